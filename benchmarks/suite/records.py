"""Result files: their rows, one a cell with its raw samples, and what follows from a row."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from timm_res2net.export.measure import Ratio
from timm_res2net.files import write_file

from .attribution import CAUSES, explain
from .cells import Cell
from .environment import environment
from .stats import ratio_of_blocks, rounded, spread, verdict

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

Files = Mapping[str, Mapping[str, Any]]
"""Result files by name: their runs, and their rows by the key of the cell."""


class Row(TypedDict, total=False):
    """The measurements of one cell, as a result file holds them."""

    run: int  # number of the run in the file that measured the cell
    cell: dict[str, Any]  # fields of the cell
    models: dict[str, str]  # both models as text, by role
    started: str  # time in ISO format
    budget: float  # most seconds of measuring
    load: list[float | None]  # load average before and after; None where the system has none
    target: float  # half width of the interval at which a 'time' cell ends
    warmup: int  # untimed steps before the first round
    samples: dict[str, list[float]]  # seconds of each round, by role
    blocks: list[int]  # rounds of each build of the models; missing or empty for one build
    settled: bool  # whether the interval reached the target before the budget ended
    attribution: dict[str, Any]  # result of `attribute`
    how: str  # how memory was measured
    memory: dict[str, dict[str, int]]  # results of `peak_memory`, by role
    seconds: float  # of the whole cell
    error: str  # type and first line of the error that ended the cell
    interrupted: bool  # whether Ctrl-C ended the cell


def load(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: The file is not a result file, or has another version.
        OSError: The file is missing, or cannot be read.
    """
    text = path.read_text(errors='replace')
    try:
        found = json.loads(text)
        if (found['kind'], found['version']) == (KIND, VERSION):
            return found
    except (KeyError, TypeError, json.JSONDecodeError):
        pass
    raise ValueError(
        f"'{path}' is not a result of `python -m benchmarks run`, version {VERSION}. Give a result "
        'file, or another --out.'
    )


def check_same(files: Files, remedy: str) -> None:
    """Raise ValueError, ending in the remedy, if runs come from different machines or versions."""
    seen: dict[str, Any] = {}
    for file_name, file in files.items():
        for run in file['runs']:
            for name in SAME:
                value = run['environment'].get(name)
                if seen.setdefault(name, (value, file_name))[0] != value:
                    raise ValueError(
                        f"'{seen[name][1]}' was measured with {name} {seen[name][0]} and "
                        f"'{file_name}' with {value}: one table cannot hold both. {remedy}"
                    )


def start(path: Path, suite: str, command: str) -> dict[str, Any]:
    """Return the content of a file with a new run added: that of an earlier run, or empty.

    Raises:
        ValueError: The file is not a result file, or comes from another machine or version.
    """
    run = {'suite': suite, 'command': command, 'environment': environment()}
    found: dict[str, Any] = {'kind': KIND, 'version': VERSION, 'runs': [], 'cells': {}}
    if path.exists():
        found = load(path)
        check_same({str(path): found, 'this machine': {'runs': [run]}}, 'Give another --out.')
    found['runs'].append(run)
    return found


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result file, one line a cell, with five digits of every figure."""

    def line(row: Any) -> str:
        short = json.loads(json.dumps(row), parse_float=lambda digits: rounded(float(digits)))
        return json.dumps(short)

    cells = ',\n'.join(f'  {json.dumps(key)}: {line(row)}' for key, row in found['cells'].items())
    head = json.dumps({k: v for k, v in found.items() if k != 'cells'}, indent=1)
    text = f'{head[:-2]},\n "cells": {{\n{cells}\n }}\n}}\n'
    write_file(path, lambda file: file.write(text.encode()))


def cell_of(row: Row) -> Cell:
    """Return the cell of a row."""
    return Cell(**row['cell'])


def models_of(row: Row) -> str:
    """Return both models as text."""
    return '{baseline} → {subject}'.format(**row['models'])


def rounds(row: Row) -> int:
    """Return the number of rounds."""
    return len(row.get('samples', {}).get('baseline', ()))


def builds(row: Row) -> int:
    """Return how often the models were built."""
    return len(row.get('blocks', ())) or 1


def is_measured(row: Row) -> bool:
    """Return whether a row holds measurements, if only in part."""
    if 'error' in row:
        return False
    return rounds(row) > 0 if row['cell']['kind'] == 'time' else row['cell']['kind'] in row


# the bootstrap takes longest, and the same ratio stands in several tables
@functools.cache
def _ratio(subject: tuple[float, ...], base: tuple[float, ...], blocks: tuple[int, ...]) -> Ratio:
    return ratio_of_blocks(subject, base, blocks)


def time_ratio(row: Row, role: str = 'subject') -> Ratio:
    """Return the ratio of a role's times to the baseline's."""
    samples = row['samples']
    return _ratio(
        tuple(samples[role]), tuple(samples['baseline']), tuple(row.get('blocks', ()))
    )  # fmt: skip


def milliseconds(row: Row, role: str) -> str:
    """Return a role's median time as text."""
    return f'{1000 * statistics.median(row["samples"][role]):.1f}'


def is_usable(row: Row) -> bool:
    """Return whether the control is within `CONTROL` of 1."""
    return is_measured(row) and abs(time_ratio(row, 'control').median - 1) <= CONTROL


def refusal(row: Row) -> str:
    """Return what to do about an unusable row, in place of its figures."""
    return (
        f'unusable, because a copy of the baseline took × {time_ratio(row, "control").median:.2f} '
        'of its time. Close other programs and run the same command again.'
    )


def notes(row: Row, threads: int = 0) -> list[str]:
    """Return reservations: unusable, interrupted, not settled, noisy, loaded.

    Args:
        row: A row of kind 'time'.
        threads: The most threads that any cell of the run uses. The load average still contains the
            cell before this one.
    """
    found = []
    if not is_usable(row):
        found.append('unusable')
    if row.get('interrupted'):
        found.append('interrupted')
    if not row.get('settled'):
        found.append(f'not settled, ± {100 * time_ratio(row).half_width:.1f} %')
    noise = max(spread(row['samples'][role]) for role in ('baseline', 'subject'))
    if noise > SPREAD:
        found.append(f'noisy, IQR {100 * noise:.0f} %')
    # the load average contains the benchmark's own threads
    loads = [load for load in row['load'] if load is not None]
    if loads and max(loads) > max(row['cell']['threads'], threads) + 0.5:
        found.append(f'load {max(loads):.1f}')
    return found


def peak(row: Row) -> float:
    """Return the subject's peak memory over the baseline's."""
    memory = row['memory']
    return memory['subject']['peak_bytes'] / memory['baseline']['peak_bytes']


def sentence(row: Row, threads: int = 0) -> str:
    """Return a row in one line; for `threads` see `notes`."""
    if 'error' in row:
        return f'failed: {row["error"]}'
    if row['cell']['kind'] == 'attribution':
        causes = explain(row['attribution'])
        parts = {key: f'{key} {100 * value:+.1f} %' for key, value in causes.items()}
        shown = ', '.join(parts[c] for c in (*CAUSES[1:4], 'attention', 'unexplained'))
        return f"time, in shares of the baseline's: {parts['extra']}: {shown}"
    if row['cell']['kind'] == 'memory':
        return f'peak memory × {peak(row):.2f}'
    if not is_measured(row):
        return 'nothing measured'
    if not is_usable(row):
        return refusal(row)
    against = '; '.join(notes(row, threads))
    # the claim is about two models in the same mode
    found = f'time × {time_ratio(row)}' if cell_of(row).of_pair else verdict(time_ratio(row))
    return f'{found}; control {time_ratio(row, "control")}, {rounds(row)} rounds' + (
        f' ({against})' if against else ''
    )


def is_doubtful(row: Row, cells: Mapping[str, Row]) -> bool:
    """Return whether a row explains a time that is unusable.

    Args:
        row: A row.
        cells: The rows of its file by key.
    """
    if row['cell']['kind'] != 'attribution':
        return False
    timed = cells.get(dataclasses.replace(cell_of(row), kind='time').key)
    return timed is not None and is_measured(timed) and not is_usable(timed)


def select(files: Files, kind: str) -> list[Row]:
    """Return the measured rows of a kind; if several files hold a cell, the first file's.

    An explanation of an unusable time is left out.
    """
    found: dict[str, Row] = {}
    for file in files.values():
        for key, row in file['cells'].items():
            is_kind = row['cell']['kind'] == kind and is_measured(row)
            if is_kind and not is_doubtful(row, file['cells']):
                found.setdefault(key, row)
    return list(found.values())


def by_pair(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows grouped by pair, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row['cell']['pair'], []).append(row)
    return groups


def series(files: Files, axis: str) -> dict[str, dict[int, Row]]:
    """Return every series of three or more usable rows along an axis with everything else equal.

    Args:
        files: Result files.
        axis: 'batch' or 'size'.

    Returns:
        Rows by value of the axis in rising order, by the pair and the rest of the configuration as
        words.
    """
    groups: dict[str, dict[int, Row]] = {}
    for row in select(files, 'time'):
        if is_usable(row):
            name = f'{row["cell"]["pair"]}, {cell_of(row).describe([axis])}'
            groups.setdefault(name, {})[row['cell'][axis]] = row
    return {
        name: dict(sorted(points.items())) for name, points in groups.items() if len(points) >= 3
    }
