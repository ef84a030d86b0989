"""The answer to "about 20 % slower?" in sentences: this machine's, and other people's figures."""

import json
from pathlib import Path
from typing import Any

from timm_res2net.export.measure import Ratio

from .records import Files, Row, cell_of, is_usable, load, select, time_ratio

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


def _rows(files: Files) -> dict[int, Row]:
    """Return the usable rows of the pair in eager inference by batch size.

    They have one configuration: the one with the most threads, and of these the first measured.
    """
    found = [
        row
        for row in select(files, 'time')
        if is_usable(row)
        and (row['cell']['pair'], row['cell']['task'], row['cell']['size']) == (PAIR, 'infer', SIZE)
        and row['cell']['mode'] == 'eager'
    ]
    if not found:
        return {}
    config = cell_of(max(found, key=lambda row: row['cell']['threads'])).describe(['batch'])
    return {
        row['cell']['batch']: row for row in found if cell_of(row).describe(['batch']) == config
    }


def _machine(files: Files, row: Row) -> str:
    """Return the name of the machine that measured a row."""
    file = next(f for f in files.values() if f['cells'].get(cell_of(row).key) is row)
    environment = file['runs'][row.get('run', -1)]['environment']
    return environment['gpu'] if row['cell']['device'] == 'cuda' else environment['cpu']


def _sentence(files: Files, rows: list[Row]) -> str:
    shares = [f'{percent(time_ratio(row))} at batch {row["cell"]["batch"]}' for row in rows]
    config = cell_of(rows[0]).describe(['batch', 'device'])
    config = config.replace('infer,', 'inference,').replace('fp32', 'float32')
    models = rows[0]['models']
    return (
        f'On {_machine(files, rows[0])}, {models["subject"]} takes {" and ".join(shares)}, '
        f'compared with {models["baseline"]} ({config}; 95 % intervals).'
    )


def answer(files: Files) -> list[str]:
    """Return a sentence on the measured figures, and sentences on what other machines showed.

    Args:
        files: Result files.

    Returns:
        Nothing if the files hold no usable row of the main pair in eager inference at 224 px.
        Otherwise a sentence on its smallest and its largest batch, one on the committed figures
        if they are another machine's, and one on published figures.
    """
    found = _rows(files)
    if not found:
        return []
    batches = sorted({min(found), max(found)})
    said = [_sentence(files, [found[batch] for batch in batches])]
    committed = {'cpu': load(_COMMITTED)}
    others = _rows(committed)
    first = next(iter(found.values()))
    if _machine(files, first) != _machine(committed, others[8]):
        same = [others[batch] for batch in batches if batch in others]
        said.append(_sentence(committed, same or [others[8]]))
    return [*said, published()]
