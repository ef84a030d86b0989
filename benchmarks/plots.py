"""Plots of result files; needs matplotlib."""

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import report, results
from .attribution import KINDS
from .stats import BAND, CLAIM

__all__ = ['plot']


def _forest(figure: Any, records: Sequence[report.Record], names: Sequence[str]) -> None:
    """Ratios with their intervals, one a row, between the bands of the claim."""
    axes = figure.subplots()
    low, high = BAND
    axes.axvspan(1 + low, 1 + high, color='tab:orange', alpha=0.18, lw=0, label='as more time')
    axes.axvspan(
        1 / (1 - low), 1 / (1 - high), color='tab:blue', alpha=0.13, lw=0,
        label='as less throughput',
    )  # fmt: skip
    axes.axvline(1, color='k', lw=0.8)
    for role, colour, shift in (('control', '0.6', 0.22), ('subject', 'k', 0.0)):
        times = [report.ratio_of(r, role) for r in records]
        middle = [time.median for time in times]
        below = [time.median - time.low for time in times]
        above = [time.high - time.median for time in times]
        places = [i + shift for i in range(len(times))]
        text = 'control (A/A)' if role == 'control' else 'subject'
        axes.errorbar(
            middle, places, xerr=[below, above], fmt='o', ms=3.5, lw=1.4, color=colour, label=text
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"time of the subject / time of the baseline; shaded: '{CLAIM}'")
    axes.grid(axis='x', alpha=0.3)
    axes.legend(fontsize=7, loc='lower right')


def _curves(figure: Any, found: Sequence[report.Series]) -> None:
    """The ratio over batch and over image size."""
    axis_names = [axis for axis in ('batch', 'size') if any(s.axis == axis for s in found)]
    rows = figure.subplots(1, len(axis_names), squeeze=False, sharey=True)[0]
    for axes, axis in zip(rows, axis_names, strict=True):
        for one in (s for s in found if s.axis == axis):
            xs = [value for value, _, _ in one.points]
            middle = [time.median for _, time, _ in one.points]
            below = [time.median - time.low for _, time, _ in one.points]
            above = [time.high - time.median for _, time, _ in one.points]
            axes.errorbar(
                xs, middle, yerr=[below, above], fmt='o-', ms=4, capsize=2,
                label=f'{one.pair}, {one.config}',
            )  # fmt: skip
        if axis == 'batch':
            axes.set_xscale('log', base=2)
        axes.axhspan(1 + BAND[0], 1 + BAND[1], color='tab:orange', alpha=0.15, lw=0)
        ticks = sorted({v for s in found if s.axis == axis for v, _, _ in s.points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel({'batch': 'batch', 'size': 'image size, px'}[axis])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    rows[0].set_ylabel('time × (subject / baseline)')


def _bars(figure: Any, records: Sequence[report.Record]) -> None:
    """Self time by kind, baseline and subject side by side, in shares of the baseline's time."""
    axes = figure.subplots()
    colours = dict(zip(KINDS, ('C0', 'C9', '0.75', 'C2', 'C1', 'C3', 'C5', 'C4', 'k'), strict=True))
    labels = []
    for i, record in enumerate(records):
        profile = record['attribution']['profile']
        medians = {
            role: {kind: statistics.median(profile[role][kind]) for kind in KINDS}
            for role in ('baseline', 'subject')
        }
        whole = sum(medians['baseline'].values())
        for side, role in enumerate(('baseline', 'subject')):
            bottom = 0.0
            for kind in KINDS:
                share = medians[role][kind] / whole
                axes.bar(i + 0.4 * side, share, 0.36, bottom, color=colours[kind])
                bottom += share
        models = record['models']
        labels.append(f'{models["baseline"]}\n→ {models["subject"]}')
    axes.axhline(1, color='k', lw=0.6, ls=':')
    axes.set_xticks([i + 0.2 for i in range(len(labels))], labels, fontsize=6, rotation=30)
    axes.set_ylabel("self time / the baseline's")
    handles = [
        figure.axes[0].bar(0, 0, color=colour, label=kind) for kind, colour in colours.items()
    ]
    axes.legend(handles=handles, fontsize=7, loc='upper left', bbox_to_anchor=(1, 1))


def plot(files: report.Files, folder: Path) -> list[Path]:
    """Draw what the files hold into a folder, as PNG, and return the pictures' paths.

    `main.png` has the first pair with several configurations, `pairs.png` every pair in the
    configuration that most of them share, `scale.png` the ratio over batch and image size,
    `attribution.png` the time by kind.

    Raises:
        ValueError: matplotlib is not installed; the folder is a file.
        OSError: The folder cannot be made or written to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "Plots need matplotlib. Install the extra with pip install '.[plots]', or leave out "
            '--plots.'
        ) from None
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file. Give a folder to --plots.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def draw(name: str, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
        figure = Figure(figsize=size, layout='constrained')
        paint(figure)
        path = folder / f'{name.replace(":", "-")}.png'
        picture = io.BytesIO()
        figure.savefig(picture, format='png', dpi=110)
        results.write(path, picture.getvalue())
        written.append(path)

    records = report.select(files, 'time')
    groups = report.by_pair(records)
    usual = _usual(records)
    for pair, group in groups.items():
        rows = [r for r in group if all(r['cell'][axis] == usual[axis] for axis in usual)]
        if len(rows) > 1:
            names = [report.config(r['cell'], ['size', 'threads']) for r in rows]
            draw(pair, (8, 1.2 + 0.27 * len(rows)), partial(_forest, records=rows, names=names))
    shared = _shared(groups)
    if len(shared) > 1:
        names = [f'{r["models"]["baseline"]} → {r["models"]["subject"]}' for r in shared]
        draw('pairs', (8, 1.2 + 0.3 * len(shared)), partial(_forest, records=shared, names=names))
    found = report.series(files)
    if found:
        draw('scale', (10, 4.2), partial(_curves, found=found))
    profiled = report.select(files, 'attribution')
    if profiled:
        draw('attribution', (3 + 0.8 * len(profiled), 5), partial(_bars, records=profiled))
    return written


def _usual(records: Sequence[report.Record]) -> dict[str, Any]:
    """Image size and threads of most records; the others belong to curves."""
    if not records:
        return {}
    return {axis: statistics.mode(r['cell'][axis] for r in records) for axis in ('size', 'threads')}


def _shared(groups: Mapping[str, Sequence[report.Record]]) -> list[report.Record]:
    """One record a pair, all in the configuration that most pairs have."""
    configs = [report.config(r['cell']) for group in groups.values() for r in group]
    if not configs:
        return []
    common = statistics.mode(configs)
    return [r for group in groups.values() for r in group if report.config(r['cell']) == common]
