"""Plots of result files; needs matplotlib."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm_res2net.files import require, write_file

from .answer import BAND, CLAIM, Files, Row, cell_of, is_usable, models_of, select, time_ratio
from .report import by_pair


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
        ends = [[t.median - t.low for t in times], [t.high - t.median for t in times]]
        places = [i + shift for i in range(len(times))]
        text = 'control (A/A)' if role == 'control' else 'subject'
        style: Any = {'fmt': 'o', 'ms': 3.5, 'lw': 1.4, 'color': color, 'label': text}
        axes.errorbar(middle, places, xerr=ends, **style)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"time of the subject / time of the baseline; shaded: '{CLAIM}'")
    axes.grid(axis='x', alpha=0.3)
    axes.legend(fontsize=7, loc='lower right')


def plot(files: Files, folder: Path) -> list[Path]:
    """Draw result files into a folder as PNG and return the paths of the pictures.

    A picture named after a pair shows the pair in its configurations, `pairs.png` every pair in the
    configuration that most of them share.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: The folder cannot be made or written to, or is a file.
    """
    require('plots', 'matplotlib')
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def draw(name: str, rows: Sequence[Row], names: Sequence[str]) -> None:
        if len(rows) < 2:
            return
        figure = Figure(figsize=(8, 1.2 + 0.27 * len(rows)), layout='constrained')
        _forest(figure, rows, names)
        path = folder / f'{name.replace(":", "-")}.png'
        write_file(path, partial(figure.savefig, format='png', dpi=110))
        written.append(path)

    rows = [row for row in select(files, 'time') if is_usable(row)]
    if not rows:
        return []
    # the others belong to series
    usual = statistics.mode([(row['cell']['size'], row['cell']['threads']) for row in rows])
    for pair, group in by_pair(rows).items():
        shown = [r for r in group if (r['cell']['size'], r['cell']['threads']) == usual]
        draw(pair, shown, [cell_of(row).words(['size', 'threads']) for row in shown])
    shared = statistics.mode([cell_of(row).words() for row in rows])
    alike = [row for row in rows if cell_of(row).words() == shared]
    draw('pairs', alike, [models_of(row) for row in alike])
    return written
