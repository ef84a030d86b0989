"""The records of result files: measured cells, and the conclusions from their samples."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from timm_res2net.stats import Ratio, ratio

from .causes import CAUSES, explain
from .cells import Cell
from .stats import spread, verdict

CONTROL = 0.02
"""A record is unusable if the median of its control, a second copy of the baseline, is farther than
this from 1."""
SPREAD = 0.10
"""A record is noisy if the interquartile range of the baseline's or the subject's times is more
than this share of their median."""

Files = Mapping[str, Mapping[str, Any]]
"""Result files by name."""


@functools.cache
def _cached(ratios: tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]) -> Ratio:
    return ratio(*ratios)


class Record:
    """A cell with its measurements.

    Attributes:
        data: The record as the result file holds it.
        cell: The cell.
    """

    def __init__(self, data: Mapping[str, Any]):
        self.data = data
        self.cell = Cell.from_json(data['cell'])

    @property
    def failed(self) -> bool:
        """Whether the cell ended in an error."""
        return 'error' in self.data

    @property
    def measured(self) -> bool:
        """Whether the record holds measurements, if only in part."""
        if self.failed:
            return False
        return self.rounds > 0 if self.cell.kind == 'time' else self.cell.kind in self.data

    @property
    def models(self) -> str:
        """Both models as text."""
        return '{baseline} → {subject}'.format(**self.data['models'])

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.data.get('samples', {}).get('baseline', ()))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Rounds of each build of the models; empty if they were built once."""
        return tuple(self.data.get('blocks', ()))

    @property
    def builds(self) -> int:
        """How often the models were built."""
        return len(self.blocks) or 1

    @property
    def settled(self) -> bool:
        """Whether the interval reached the target before the budget ended."""
        return bool(self.data.get('settled'))

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C cut the cell short."""
        return bool(self.data.get('interrupted'))

    def ratio(self, role: str = 'subject') -> Ratio:
        """Return the ratio of a role's times to the baseline's."""
        samples = self.data['samples']
        return _cached((tuple(samples[role]), tuple(samples['baseline']), self.blocks))

    def milliseconds(self, role: str) -> str:
        """Return a role's median time as text."""
        return f'{1000 * statistics.median(self.data["samples"][role]):.1f}'

    @property
    def usable(self) -> bool:
        """Whether the control is within `CONTROL` of 1."""
        return self.measured and abs(self.ratio('control').median - 1) <= CONTROL

    @property
    def refusal(self) -> str:
        """What to do about an unusable record, in place of its figures."""
        control = self.ratio('control').median
        return (
            f'unusable, because a copy of the baseline took × {control:.2f} of its time. Close '
            'other programs and run the same command again.'
        )

    def notes(self, threads: int = 0) -> list[str]:
        """Return reservations: unusable, interrupted, not settled, noisy, loaded.

        Args:
            threads: The most threads that any cell of the run uses. The load average still contains
                the cell before this one.
        """
        found = []
        if not self.usable:
            found.append('unusable')
        if self.interrupted:
            found.append('interrupted')
        if not self.settled:
            found.append(f'not settled, ± {100 * self.ratio().half_width:.1f} %')
        noise = max(spread(self.data['samples'][role]) for role in ('baseline', 'subject'))
        if noise > SPREAD:
            found.append(f'noisy, IQR {100 * noise:.0f} %')
        # the load average contains the benchmark's own threads
        loads = [load for load in self.data['load'] if load is not None]
        if loads and max(loads) > max(self.cell.threads, threads) + 0.5:
            found.append(f'load {max(loads):.1f}')
        return found

    def explain(self) -> dict[str, float]:
        """Return the subject's extra time by cause, for a record of kind 'attribution'."""
        return explain(self.data['attribution'])

    def peak(self, role: str = 'subject') -> float:
        """Return a role's peak memory over the baseline's, for a record of kind 'memory'."""
        memory = self.data['memory']
        return memory[role]['peak_bytes'] / memory['baseline']['peak_bytes']

    def sentence(self, threads: int = 0) -> str:
        """Return the record in one line; for `threads` see `notes`."""
        if self.failed:
            return f'failed: {self.data["error"]}'
        if self.cell.kind == 'attribution':
            parts = {key: f'{key} {100 * value:+.1f} %' for key, value in self.explain().items()}
            shown = ', '.join(parts[c] for c in (*CAUSES[1:4], 'attention', 'unexplained'))
            return f"time, in shares of the baseline's: {parts['extra']}: {shown}"
        if self.cell.kind == 'memory':
            return f'peak memory × {self.peak():.2f}'
        if not self.measured:
            return 'nothing measured'
        if not self.usable:
            return self.refusal
        against = '; '.join(self.notes(threads))
        # the claim is about two models in the same mode
        of_pair = self.cell.modes.of_pair
        found = f'time × {self.ratio()}' if of_pair else verdict(self.ratio())
        return f'{found}; control {self.ratio("control")}, {self.rounds} rounds' + (
            f' ({against})' if against else ''
        )


def select(files: Files, kind: str) -> list[Record]:
    """Return the measured records of a kind; if several files hold a cell, the first file's.

    An explanation of an unusable time is left out.
    """
    found: dict[str, Record] = {}
    for file in files.values():
        for key, data in file['cells'].items():
            record = Record(data)
            if record.cell.kind == kind and record.measured and not doubtful(record, file['cells']):
                found.setdefault(key, record)
    return list(found.values())


def doubtful(record: Record, cells: Mapping[str, Any]) -> bool:
    """Return whether a record explains a time that is unusable.

    Args:
        record: A record.
        cells: The cells of its file by key.
    """
    if record.cell.kind != 'attribution':
        return False
    data = cells.get(dataclasses.replace(record.cell, kind='time').key)
    return data is not None and (timed := Record(data)).measured and not timed.usable


def by_pair(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records grouped by pair, in order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.cell.pair, []).append(record)
    return groups


class Series(NamedTuple):
    """The records along one axis with everything else equal.

    Attributes:
        axis: 'batch' or 'size'.
        pair: Name of the pair.
        config: The rest of the configuration as words.
        points: Record by value of the axis, in rising order.
    """

    axis: str
    pair: str
    config: str
    points: dict[int, Record]


def series(files: Files) -> list[Series]:
    """Return every series of three or more usable records along the batch or the image size."""
    found = []
    records = [record for record in select(files, 'time') if record.usable]
    for axis in ('batch', 'size'):
        groups: dict[tuple[str, str], dict[int, Record]] = {}
        for record in records:
            key = record.cell.pair, record.cell.describe([axis])
            groups.setdefault(key, {})[getattr(record.cell, axis)] = record
        for (pair, rest), points in groups.items():
            if len(points) >= 3:
                found.append(Series(axis, pair, rest, dict(sorted(points.items()))))
    return found
