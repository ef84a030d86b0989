"""Plots of result files; needs matplotlib."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm_res2net.files import write_file
from timm_res2net.folder.extras import require

from . import records
from .attribution import KINDS
from .records import Files, Row, is_usable, select, time_ratio
from .stats import BAND, CLAIM


def _forest(figure: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
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
        times = [time_ratio(row, role) for row in rows]
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


def _curves(figure: Any, found: Mapping[str, Mapping[str, Mapping[int, Row]]]) -> None:
    """Draw the ratio over batch and over image size.

    Args:
        figure: Where to draw.
        found: Result of `series` by axis, without axes that have none.
    """
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (axis, curves) in zip(panels, found.items(), strict=True):
        for name, points in curves.items():
            times = [time_ratio(row) for row in points.values()]
            below = [time.median - time.low for time in times]
            above = [time.high - time.median for time in times]
            axes.errorbar(
                list(points), [time.median for time in times], yerr=[below, above], fmt='o-', ms=4,
                capsize=2, label=name,
            )  # fmt: skip
        if axis == 'batch':
            axes.set_xscale('log', base=2)
        axes.axhspan(1 + BAND[0], 1 + BAND[1], color='tab:orange', alpha=0.15, lw=0)
        ticks = sorted({value for points in curves.values() for value in points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel({'batch': 'batch', 'size': 'image size, px'}[axis])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    panels[0].set_ylabel('time × (subject / baseline)')


def _bars(figure: Any, rows: Sequence[Row]) -> None:
    """Draw the self time by kind, baseline and subject side by side, in shares of the baseline's
    time.
    """
    axes = figure.subplots()
    colors = dict(zip(KINDS, ('C0', 'C9', '0.75', 'C2', 'C1', 'C3', 'C5', 'C4', 'k'), strict=True))
    for i, row in enumerate(rows):
        profile = row['attribution']['profile']
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
    labels = [records.models_of(row).replace(' →', '\n→') for row in rows]
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

    rows = [row for row in select(files, 'time') if is_usable(row)]
    # the others belong to series
    usual = _most([(row['cell']['size'], row['cell']['threads']) for row in rows])
    for pair, group in records.by_pair(rows).items():
        shown = [r for r in group if (r['cell']['size'], r['cell']['threads']) == usual]
        if len(shown) > 1:
            names = [records.cell_of(row).describe(['size', 'threads']) for row in shown]
            draw(pair, (8, 1.2 + 0.27 * len(shown)), partial(_forest, rows=shown, names=names))
    shared = _most([records.cell_of(row).describe() for row in rows])
    alike = [row for row in rows if records.cell_of(row).describe() == shared]
    if len(alike) > 1:
        names = [records.models_of(row) for row in alike]
        draw('pairs', (8, 1.2 + 0.3 * len(alike)), partial(_forest, rows=alike, names=names))
    curves = {axis: records.series(files, axis) for axis in ('batch', 'size')}
    if any(curves.values()):
        found = {axis: one for axis, one in curves.items() if one}
        draw('scale', (10, 4.2), partial(_curves, found=found))
    profiled = select(files, 'attribution')
    if profiled:
        draw('attribution', (3 + 0.8 * len(profiled), 5), partial(_bars, rows=profiled))
    return written


def _most(values: Sequence[Any]) -> Any:
    """Return the most frequent value; None if there is none."""
    return statistics.mode(values) if values else None
