"""The answer to "about 20 % slower?" in sentences: this machine's, and other people's figures."""

import json
from pathlib import Path
from typing import Any

from timm_res2net.stats import Ratio

from . import results
from .pairs import load_pairs
from .records import Files, Record, select

PAIR = 'main'
SIZE = 224
_PUBLISHED = Path(__file__).parent / 'published.json'
_COMMITTED = Path(__file__).parents[1] / 'results' / 'cpu.json'


def read_published() -> dict[str, dict[str, Any]]:
    """Return other people's figures by their publisher."""
    return json.loads(_PUBLISHED.read_text())


def published() -> str:
    """Return the figures that others published, in one sentence."""
    others = read_published()
    timm, paddle = (others[whose]['figures'] for whose in ('timm', 'PaddleClas'))
    base, ours = others['the paper']['milliseconds'].values()
    return (
        f"Published by others: timm's tables give × {timm['RTX 3090, AMP']:.2f} on an RTX 3090 and "
        f'× {timm["RTX 4090, AMP"]:.2f} on an RTX 4090 (AMP), '
        f'× {timm["RTX PRO 6000, bfloat16, compiled"]:.2f} on an RTX PRO 6000 (bfloat16, '
        f"compiled); PaddleClas's × {paddle['Tesla T4, FP16, batch 1']:.2f} and "
        f'× {paddle["Tesla T4, FP16, batch 8"]:.2f} on a T4 (TensorRT, FP16, batch 1 and 8); the '
        f'paper, Table 3, {base} ms → {ours} ms (× {ours / base:.2f}).'
    )


def percent(time: Ratio) -> str:
    """Return a ratio of times as words, for example '18 % [15, 22] more time'."""
    sign, word = (1, 'more') if time.median >= 1 else (-1, 'less')
    middle, *ends = (round(100 * sign * (value - 1)) for value in time)
    low, high = sorted(ends)
    return f'{middle} % [{low}, {high}] {word} time'


def _records(files: Files) -> dict[int, Record]:
    """Return the usable records of the pair in eager inference by batch size.

    They have one configuration: the one with the most threads, and of these the first measured.
    """
    found = [
        record
        for record in select(files, 'time')
        if record.usable
        and (record.cell.pair, record.cell.task, record.cell.size) == (PAIR, 'infer', SIZE)
        and str(record.cell.modes) == 'eager'
    ]
    if not found:
        return {}
    config = max(found, key=lambda record: record.cell.threads).cell.describe(['batch'])
    return {r.cell.batch: r for r in found if r.cell.describe(['batch']) == config}


def _machine(files: Files, record: Record) -> str:
    """Return the name of the machine that measured a record."""
    file = next(f for f in files.values() if f['cells'].get(record.cell.key) is record.data)
    environment = file['runs'][record.data.get('run', -1)]['environment']
    return environment['gpu'] if record.cell.device == 'cuda' else environment['cpu']


def _sentence(files: Files, records: list[Record]) -> str:
    pair = load_pairs()[PAIR]
    shares = [f'{percent(r.ratio())} at batch {r.cell.batch}' for r in records]
    config = records[0].cell.describe(['batch', 'device'])
    config = config.replace('infer,', 'inference,').replace('fp32', 'float32')
    return (
        f'On {_machine(files, records[0])}, {pair.subject} takes {" and ".join(shares)}, compared '
        f'with {pair.baseline} ({config}; 95 % intervals).'
    )


def answer(files: Files) -> list[str]:
    """Return a sentence on the measured figures, and sentences on what other machines showed.

    Args:
        files: Result files.

    Returns:
        Nothing if the files hold no usable record of the main pair in eager inference at 224 px.
        Otherwise a sentence on its smallest and its largest batch, one on the committed figures
        if they are another machine's, and one on published figures.
    """
    found = _records(files)
    if not found:
        return []
    batches = sorted({min(found), max(found)})
    said = [_sentence(files, [found[batch] for batch in batches])]
    committed = {'cpu': results.load(_COMMITTED)}
    others = _records(committed)
    first = next(iter(found.values()))
    if _machine(files, first) != _machine(committed, others[8]):
        same = [others[batch] for batch in batches if batch in others]
        said.append(_sentence(committed, same or [others[8]]))
    return [*said, published()]
