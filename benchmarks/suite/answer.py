"""Result files, what a row of them means, and the answer to "about 20 % slower?" in sentences: this
machine's, and other people's figures.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from timm_res2net.export.measure import Ratio

from .cells import Cell
from .measure import CAUSES, explain, ratio_of_blocks

KIND = 'timm_res2net benchmark'
VERSION = 1
SAME = ('cpu', 'cpu_capability', 'gpu', 'cores', 'torch', 'timm', 'timm_res2net', 'python')
"""Parts of the environment in which all cells of a table must agree."""
CONTROL = 0.02
"""A row is unusable if the median of its control, a second copy of the baseline, is farther than
this from 1."""
SPREAD = 0.10
"""A row is noisy if the interquartile range of the baseline's or the subject's times is more than
this share of their median."""
CLAIM = 'about 20 % slower'
BAND = (0.15, 0.25)
"""Shares that count as "about 20 %". The claim has two readings, and verdicts give both: 15 to 25 %
more time (time x 1.15 to 1.25), or 15 to 25 % less throughput (time x 1.18 to 1.33)."""
_PUBLISHED = Path(__file__).parent / 'published.json'
_COMMITTED = Path(__file__).parents[1] / 'results' / 'cpu.json'

Files = Mapping[str, Mapping[str, Any]]
"""Result files by name: their runs, and their rows by the key of the cell."""


class Row(TypedDict, total=False):
    """The measurements of one cell, as a result file holds them."""

    run: int  # number of the run in the file that measured the cell
    cell: dict[str, Any]  # fields of the cell
    models: dict[str, str]  # both models as text, by role
    budget: float  # most seconds of measuring
    samples: dict[str, list[float]]  # seconds of each round, by role
    blocks: list[int]  # rounds of each build of the models; missing or empty for one build
    settled: bool  # whether the interval reached the target before the budget ended
    attribution: dict[str, Any]  # result of `attribute`
    memory: dict[str, dict[str, int]]  # results of `peak_memory`, by role
    seconds: float  # of the whole cell


def load(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: The file is not a result file, or has another version.
    """
    text = path.read_text(errors='replace')
    try:
        content = json.loads(text)
        if (content['kind'], content['version']) == (KIND, VERSION):
            return content
    except (KeyError, TypeError, json.JSONDecodeError):
        pass
    raise ValueError(
        f"'{path}' is not a result of `python -m benchmarks run`, version {VERSION}. Give a result "
        'file, or another --out.'
    )


def refuse_different(files: Files, remedy: str) -> None:
    """Raise ValueError, ending in the remedy, if runs come from different machines or versions."""
    runs = [(name, run['environment']) for name, file in files.items() for run in file['runs']]
    first_name, first = runs[0]
    for (name, environment), part in itertools.product(runs, SAME):
        if environment.get(part) != first.get(part):
            raise ValueError(
                f"'{first_name}' was measured with {part} {first.get(part)} and '{name}' with "
                f'{environment.get(part)}: one table cannot hold both. {remedy}'
            )


def select(files: Files, kind: str) -> list[Row]:
    """Return the rows of a kind; if several files hold a cell, the first file's.

    An explanation of an unusable time is left out.
    """
    rows: dict[str, Row] = {}
    for file in files.values():
        for key, row in file['cells'].items():
            if row['cell']['kind'] == kind and not is_doubtful(row, file['cells']):
                rows.setdefault(key, row)
    return list(rows.values())


def cell_of(row: Row) -> Cell:
    """Return the cell of a row."""
    return Cell(**row['cell'])


def models_of(row: Row) -> str:
    """Return both models as text."""
    return '{baseline} → {subject}'.format(**row['models'])


# the bootstrap takes longest, and the same ratio stands in several tables
_ratio = functools.cache(ratio_of_blocks)


def time_ratio(row: Row, role: str = 'subject') -> Ratio:
    """Return the ratio of a role's times to the baseline's."""
    seconds = (tuple(row['samples'][name]) for name in (role, 'baseline'))
    return _ratio(*seconds, tuple(row.get('blocks', ())))


def is_usable(row: Row) -> bool:
    """Return whether the control of a row of times is within `CONTROL` of 1."""
    return abs(time_ratio(row, 'control').median - 1) <= CONTROL


def is_doubtful(row: Row, cells: Mapping[str, Row]) -> bool:
    """Return whether a row explains a time that is unusable, among the rows of its file by key."""
    timed = cells.get(dataclasses.replace(cell_of(row), kind='time').key)
    return row['cell']['kind'] == 'attribution' and timed is not None and not is_usable(timed)


def notes(row: Row) -> list[str]:
    """Return reservations on a row of times: unusable, not settled, noisy."""
    said = [] if is_usable(row) else ['unusable']
    if not row['settled']:
        said.append(f'not settled, ± {100 * time_ratio(row).half_width:.1f} %')
    seconds = [row['samples'][role] for role in ('baseline', 'subject')]
    quarters = [np.quantile(values, (0.25, 0.5, 0.75)) for values in seconds]
    noise = max(float((high - low) / middle) for low, middle, high in quarters)
    if noise > SPREAD:
        said.append(f'noisy, IQR {100 * noise:.0f} %')
    return said


def sentence(row: Row) -> str:
    """Return a row in one line."""
    if row['cell']['kind'] == 'attribution':
        causes = explain(row['attribution'])
        parts = {key: f'{key} {100 * value:+.1f} %' for key, value in causes.items()}
        shown = ', '.join(parts[c] for c in (*CAUSES[1:4], 'attention', 'unexplained'))
        return f"time, in shares of the baseline's: {parts['extra']}: {shown}"
    if row['cell']['kind'] == 'memory':
        base, subject = (row['memory'][role]['peak_bytes'] for role in ('baseline', 'subject'))
        return f'peak memory × {subject / base:.2f}'
    against = f' ({"; ".join(notes(row))})' if notes(row) else ''
    rounds = len(row['samples']['baseline'])
    quality = f'; control {time_ratio(row, "control")}, {rounds} rounds{against}'
    return verdict(row) + (quality if is_usable(row) else '')


def verdict(row: Row) -> str:
    """Return what a row of times says, or what to do if it is unusable.

    The claim is about two models in the same mode; a pair with modes of its own has only a ratio.
    """
    if not is_usable(row):
        return (
            'unusable, because a copy of the baseline took × '
            f'{time_ratio(row, "control").median:.2f} of its time. Close other programs and run '
            'the same command again.'
        )
    time = time_ratio(row)
    return f'time × {time}' if cell_of(row).of_pair else on_the_claim(time)


def _reading(value: Ratio, low: float, high: float) -> str:
    if value.high < low:
        return 'less than'
    if value.low > high:
        return 'more than'
    return 'consistent with' if low <= value.low and value.high <= high else 'at the edge of'


def on_the_claim(time: Ratio) -> str:
    """Return one sentence: the ratio of times, of throughputs, and what they say about the claim.

    Each reading of the claim is consistent if the whole interval is in its band (`BAND`), less or
    more if the whole interval is below or above it, and otherwise at its edge.
    """
    low, high = BAND
    by_time = _reading(time, 1 + low, 1 + high)
    by_throughput = _reading(time, 1 / (1 - low), 1 / (1 - high))
    if time.high < 1:
        words = f"faster, not '{CLAIM}'"
    elif time.low <= 1 and by_time == 'less than':
        words = f"no difference shown, not '{CLAIM}'"
    elif time.low <= 1:
        words = f"undecided on '{CLAIM}', the interval is too wide"
    elif by_time != by_throughput:
        words = f"{by_time} '{CLAIM}' as more time, {by_throughput} it as less throughput"
    else:
        slower = 'slower, by ' if by_time in ('less than', 'more than') else ''
        words = f"{slower}{by_time} '{CLAIM}'"
    return f'time × {time}, throughput × {1 / time.median:.2f}: {words}'


def read_published() -> dict[str, dict[str, Any]]:
    """Return other people's figures by their publisher."""
    return json.loads(_PUBLISHED.read_text())['publishers']


def published() -> str:
    """Return the figures that others published, in one sentence."""
    return json.loads(_PUBLISHED.read_text())['sentence'].format(**read_published())


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
    asked = {'pair': 'main', 'task': 'infer', 'size': 224, 'mode': 'eager'}.items()
    rows = [r for r in select(files, 'time') if asked <= r['cell'].items() and is_usable(r)]
    rows.sort(key=lambda row: -row['cell']['threads'])
    words = [cell_of(row).words(['batch']) for row in rows]
    return {row['cell']['batch']: row for row, w in zip(rows, words, strict=True) if w == words[0]}


def _machine(files: Files, row: Row) -> str:
    environment = next(iter(files.values()))['runs'][0]['environment']  # equal in all of them
    return environment['gpu' if row['cell']['device'] == 'cuda' else 'cpu']


def _sentence(files: Files, rows: list[Row]) -> str:
    shares = [f'{percent(time_ratio(row))} at batch {row["cell"]["batch"]}' for row in rows]
    config = cell_of(rows[0]).words(['batch', 'device'])
    config = config.replace('infer,', 'inference,').replace('fp32', 'float32')
    models = rows[0]['models']
    return (
        f'On {_machine(files, rows[0])}, {models["subject"]} takes {" and ".join(shares)}, '
        f'compared with {models["baseline"]} ({config}; 95 % intervals).'
    )


def answer(files: Files) -> list[str]:
    """Return a sentence on the measured figures, and sentences on what other machines showed.

    Returns:
        Nothing if the files, of one machine, hold no usable row of the main pair in eager inference
        at 224 px. Otherwise a sentence on its smallest and its largest batch, one on the committed
        figures if they are another machine's, and one on published figures.
    """
    rows = _rows(files)
    if not rows:
        return []
    batches = sorted({min(rows), max(rows)})
    said = [_sentence(files, [rows[batch] for batch in batches])]
    committed = {'cpu': load(_COMMITTED)}
    others = _rows(committed)
    if _machine(files, rows[batches[0]]) != _machine(committed, others[8]):
        same = [others[batch] for batch in batches if batch in others]
        said.append(_sentence(committed, same or [others[8]]))
    return [*said, published()]
