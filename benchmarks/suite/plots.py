"""Plots of result files; needs matplotlib."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm_res2net.extras import require
from timm_res2net.files import write_file

from .attribution import KINDS
from .records import Files, Record, Series, by_pair, select, series
from .stats import BAND, CLAIM


def _forest(figure: Any, records: Sequence[Record], names: Sequence[str]) -> None:
    """Draw ratios with their intervals, one a row, over the bands of the claim."""
    axes = figure.subplots()
    low, high = BAND
    axes.axvspan(1 + low, 1 + high, color='tab:orange', alpha=0.18, lw=0, label='as more time')
    axes.axvspan(
        1 / (1 - low), 1 / (1 - high), color='tab:blue', alpha=0.13, lw=0,
        label='as less throughput',
    )  # fmt: skip
    axes.axvline(1, color='k', lw=0.8)
    for role, color, shift in (('control', '0.6', 0.22), ('subject', 'k', 0.0)):
        times = [record.ratio(role) for record in records]
        middle = [time.median for time in times]
        below = [time.median - time.low for time in times]
        above = [time.high - time.median for time in times]
        places = [i + shift for i in range(len(times))]
        text = 'control (A/A)' if role == 'control' else 'subject'
        axes.errorbar(
            middle, places, xerr=[below, above], fmt='o', ms=3.5, lw=1.4, color=color, label=text
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"time of the subject / time of the baseline; shaded: '{CLAIM}'")
    axes.grid(axis='x', alpha=0.3)
    axes.legend(fontsize=7, loc='lower right')


def _curves(figure: Any, found: Sequence[Series]) -> None:
    """Draw the ratio over batch and over image size."""
    axis_names = [axis for axis in ('batch', 'size') if any(s.axis == axis for s in found)]
    rows = figure.subplots(1, len(axis_names), squeeze=False, sharey=True)[0]
    for axes, axis in zip(rows, axis_names, strict=True):
        for one in (s for s in found if s.axis == axis):
            times = [record.ratio() for record in one.points.values()]
            axes.errorbar(
                list(one.points),
                [time.median for time in times],
                yerr=[
                    [time.median - time.low for time in times],
                    [time.high - time.median for time in times],
                ],
                fmt='o-', ms=4, capsize=2, label=f'{one.pair}, {one.config}',
            )  # fmt: skip
        if axis == 'batch':
            axes.set_xscale('log', base=2)
        axes.axhspan(1 + BAND[0], 1 + BAND[1], color='tab:orange', alpha=0.15, lw=0)
        ticks = sorted({value for s in found if s.axis == axis for value in s.points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel({'batch': 'batch', 'size': 'image size, px'}[axis])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    rows[0].set_ylabel('time × (subject / baseline)')


def _bars(figure: Any, records: Sequence[Record]) -> None:
    """Draw the self time by kind, baseline and subject side by side, in shares of the baseline's
    time.
    """
    axes = figure.subplots()
    colors = dict(zip(KINDS, ('C0', 'C9', '0.75', 'C2', 'C1', 'C3', 'C5', 'C4', 'k'), strict=True))
    for i, record in enumerate(records):
        profile = record.data['attribution']['profile']
        medians = {
            role: {kind: statistics.median(profile[role][kind]) for kind in KINDS}
            for role in ('baseline', 'subject')
        }
        whole = sum(medians['baseline'].values())
        for side, role in enumerate(('baseline', 'subject')):
            bottom = 0.0
            for kind in KINDS:
                share = medians[role][kind] / whole
                axes.bar(i + 0.4 * side, share, 0.36, bottom, color=colors[kind])
                bottom += share
    labels = [record.models.replace(' →', '\n→') for record in records]
    axes.axhline(1, color='k', lw=0.6, ls=':')
    axes.set_xticks([i + 0.2 for i in range(len(labels))], labels, fontsize=6, rotation=30)
    axes.set_ylabel("self time / the baseline's")
    handles = [figure.axes[0].bar(0, 0, color=color, label=kind) for kind, color in colors.items()]
    axes.legend(handles=handles, fontsize=7, loc='upper left', bbox_to_anchor=(1, 1))


def plot(files: Files, folder: Path) -> list[Path]:
    """Draw result files into a folder as PNG and return the paths of the pictures.

    A picture named after a pair shows the pair in its configurations, `pairs.png` every pair in the
    configuration that most of them share, `scale.png` the ratio over batch and image size, and
    `attribution.png` the time by kind.

    Raises:
        ValueError: matplotlib is not installed.
        FileExistsError: The folder is a file.
        OSError: The folder cannot be made or written to.
    """
    require('--plots', 'plots', 'matplotlib')
    from matplotlib.figure import Figure

    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"'{folder}' is a file. Give a folder to --plots.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def draw(name: str, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
        figure = Figure(figsize=size, layout='constrained')
        paint(figure)
        path = folder / f'{name.replace(":", "-")}.png'
        write_file(path, partial(figure.savefig, format='png', dpi=110))
        written.append(path)

    records = [record for record in select(files, 'time') if record.usable]
    groups = by_pair(records)
    usual = _usual(records)
    for pair, group in groups.items():
        rows = [r for r in group if (r.cell.size, r.cell.threads) == usual]
        if len(rows) > 1:
            names = [r.cell.describe(['size', 'threads']) for r in rows]
            draw(pair, (8, 1.2 + 0.27 * len(rows)), partial(_forest, records=rows, names=names))
    shared = _shared(groups)
    if len(shared) > 1:
        names = [record.models for record in shared]
        draw('pairs', (8, 1.2 + 0.3 * len(shared)), partial(_forest, records=shared, names=names))
    found = series(files)
    if found:
        draw('scale', (10, 4.2), partial(_curves, found=found))
    profiled = select(files, 'attribution')
    if profiled:
        draw('attribution', (3 + 0.8 * len(profiled), 5), partial(_bars, records=profiled))
    return written


def _usual(records: Sequence[Record]) -> tuple[int, int] | None:
    """Return the image size and the threads of most records. The others belong to series."""
    if not records:
        return None
    return (
        statistics.mode(record.cell.size for record in records),
        statistics.mode(record.cell.threads for record in records),
    )


def _shared(groups: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Return one record a pair, all in the configuration that most pairs have."""
    records = [record for group in groups.values() for record in group]
    if not records:
        return []
    common = statistics.mode(record.cell.describe() for record in records)
    return [record for record in records if record.cell.describe() == common]
