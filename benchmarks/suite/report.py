"""Tables and verdicts of result files, as Markdown."""

import statistics
from collections.abc import Iterator

from timm_res2net.layers.text import table

from . import records
from .answer import answer
from .attribution import CAUSES, KINDS, SPLITTING, explain
from .records import CONTROL, Files, Row, cell_of, is_usable, models_of, select, time_ratio
from .stats import BAND, CLAIM, overlap, verdict


def _machine_section(files: Files) -> Iterator[str]:
    machines: dict[str, list[str]] = {}
    for file in files.values():
        for run in file['runs']:
            env = run['environment']
            gpu = f', {env["gpu"]}' if env['gpu'] else ''
            machine = (
                f'{env["cpu"]}, {env["cores"]} cores, {env["cpu_capability"]}{gpu}; '
                f'torch {env["torch"]}, timm {env["timm"]}, Python {env["python"]}, {env["system"]}'
            )
            commits = machines.setdefault(machine, [])
            if env['commit'] and env['commit'][:12] not in commits:
                commits.append(env['commit'][:12])
    yield '\n'.join(
        f'Measured on {machine}' + (f'; commits {", ".join(commits)}.' if commits else '.')
        for machine, commits in machines.items()
    )


def _answer_section(files: Files) -> Iterator[str]:
    if said := answer(files):
        yield '## The answer'
        yield '\n'.join(f'- {sentence}' for sentence in said)


def _time_section(files: Files) -> Iterator[str]:
    rows = [row for row in select(files, 'time') if not cell_of(row).of_pair]
    if not rows:
        return
    yield '## How much slower'
    yield (
        f"'{CLAIM}' has two readings: {100 * BAND[0]:.0f} to {100 * BAND[1]:.0f} % more time (time "
        f'× {1 + BAND[0]:.2f} to {1 + BAND[1]:.2f}), or as much less throughput (time × '
        f'{1 / (1 - BAND[0]):.2f} to {1 / (1 - BAND[1]):.2f}). "Consistent" means that the whole '
        '95 % interval is within the band. The control is a second copy of the baseline, timed in '
        f'the same rounds; if it is farther than {CONTROL:.2f} from 1.00, the row is unusable and '
        'has no verdict. With one build the interval is over rounds and does not tell what '
        'another build would give.'
    )
    threads = max(row['cell']['threads'] for row in rows)
    for pair, group in records.by_pair(rows).items():
        yield f'### {pair}: {models_of(group[0])}'
        yield table(
            ('configuration', 'baseline, ms', 'verdict', 'control', 'rounds', 'builds', 'notes'),
            [
                (
                    cell_of(row).describe(),
                    records.milliseconds(row, 'baseline'),
                    verdict(time_ratio(row)) if is_usable(row) else records.refusal(row),
                    *_doubts(row, threads),
                )
                for row in group
            ],
        )
    controls = [time_ratio(row, 'control') for row in rows]
    medians = [control.median for control in controls]
    yield (
        f'Controls: {len(controls)}, medians from {min(medians):.3f} to {max(medians):.3f}; '
        f'{sum(c.low <= 1 <= c.high for c in controls)} of their intervals contain 1.'
    )


def _doubts(row: Row, threads: int) -> tuple[str, ...]:
    """Return the last columns of a row of times: control, rounds, builds and notes."""
    number = str(records.rounds(row)), str(records.builds(row))
    return str(time_ratio(row, 'control')), *number, '; '.join(records.notes(row, threads))


_AXES = ('device', 'task', 'precision', 'layout', 'batch', 'size', 'threads')


def _deploy_section(files: Files) -> Iterator[str]:
    rows = [row for row in select(files, 'time') if cell_of(row).of_pair]
    if not rows:
        return
    same = [axis for axis in _AXES if len({row['cell'][axis] for row in rows}) == 1]
    changing = [axis for axis in _AXES if axis not in same]
    columns = list(dict.fromkeys(cell_of(row).describe(['mode', *same]) for row in rows))
    yield '## Deployed models and other runtimes'
    yield (
        "Time of the subject over the baseline's, below 1 if the subject is faster. Each model's "
        'mode is in brackets after it. All rows: '
        f'{cell_of(rows[0]).describe(["mode", *changing])}.'
    )
    groups = records.by_pair(rows)
    lines = []
    for pair, group in groups.items():
        line = dict.fromkeys(columns, '')
        for row in group:
            time = f'× {time_ratio(row)}' if is_usable(row) else 'unusable'
            line[cell_of(row).describe(['mode', *same])] = time
        lines.append((f'{pair}: {models_of(group[0])}', *line.values()))
    yield table(('pair', *(column or 'time' for column in columns)), lines)
    threads = max(row['cell']['threads'] for row in rows)
    yield table(
        ('pair', 'configuration', 'baseline, ms', 'subject, ms', 'control', 'rounds', 'builds',
         'notes'),
        [
            (
                pair,
                cell_of(row).describe(['mode']),
                records.milliseconds(row, 'baseline'),
                records.milliseconds(row, 'subject'),
                *_doubts(row, threads),
            )
            for pair, group in groups.items()
            for row in group
        ],
    )  # fmt: skip


def _scale_section(files: Files) -> Iterator[str]:
    tables = []
    for axis, unit in (('batch', 'batch'), ('size', 'image, px')):
        found = records.series(files, axis)
        values = sorted({value for points in found.values() for value in points})
        lines = [
            (name, *(str(time_ratio(points[v])) if v in points else '' for v in values))
            for name, points in found.items()
        ]
        if lines:
            tables.append(table((f'time × at {unit}', *map(str, values)), lines))
    if tables:
        yield '## By batch and image size'
        yield from tables


def _count_line(row: Row) -> tuple[str, ...]:
    counts = row['attribution']['counts']
    line = [row['cell']['pair'], models_of(row)]
    for key, unit in (('macs', 1e9), ('activations', 1e6), ('params', 1e6)):
        base, subject = counts['baseline'][key] / unit, counts['subject'][key] / unit
        line.append(f'{base:.2f} → {subject:.2f} (× {subject / base:.2f})')
    return tuple(line)


def _attribution_section(files: Files) -> Iterator[str]:
    rows = select(files, 'attribution')
    if not rows:
        return
    yield '## Where the time goes'
    yield table(
        ('pair', 'models', 'GMACs', 'activations, M', 'parameters, M'), map(_count_line, rows)
    )
    yield (
        "Extra time of the subject by cause, in percent of the baseline's time "
        f'({cell_of(rows[0]).describe()}). "More MACs" and "less efficient convolutions" come from '
        'timing the convolution of every layer alone on a dense input: the first is the cost of '
        "the MACs at the speed of the baseline's convolutions, the second what the subject's take "
        f'beyond that. "The splitting itself" is the sum of the {len(SPLITTING)} columns after it: '
        '"convolutions in place" is what convolutions lose within the network, because their input '
        'is a slice; the others are differences of the profiler\'s self times. "Unexplained" is '
        'the rest.'
    )
    yield table(
        ('pair', *CAUSES),
        [
            (
                row['cell']['pair'],
                *(f'{100 * share:+.1f}' for share in explain(row['attribution']).values()),
            )
            for row in rows
        ],
    )
    yield "The profiler's self time by kind, in milliseconds of one step."
    lines = []
    for row in rows:
        for role, model in row['models'].items():
            profile = row['attribution']['profile'][role]
            times = [f'{1000 * statistics.median(profile[kind]):.1f}' for kind in KINDS]
            lines.append((row['cell']['pair'], model, *times))
    yield table(('pair', 'model', *KINDS), lines)


def _memory_section(files: Files) -> Iterator[str]:
    rows = select(files, 'memory')
    if not rows:
        return
    yield '## Memory'
    ways = '; '.join(dict.fromkeys(row['how'] for row in rows))
    yield (
        'Peak memory of one step in MB (1e6 bytes): what stays between steps (parameters, buffers, '
        f'input, optimizer state) plus the most beyond it. Measured by {ways}.'
    )
    lines = []
    for row in rows:
        used = [
            f'{row["memory"][role]["resident_bytes"] / 1e6:.0f} + '
            f'{row["memory"][role]["beyond_bytes"] / 1e6:.0f}'
            for role in ('baseline', 'subject')
        ]
        config = cell_of(row).describe(['threads'])
        lines.append((row['cell']['pair'], config, *used, f'{records.peak(row):.2f}'))
    yield table(('pair', 'configuration', 'baseline', 'subject', 'peak ×'), lines)


def _repeat_section(files: Files) -> Iterator[str]:
    keys: dict[str, list[tuple[str, Row]]] = {}
    for name, file in files.items():
        for row in select({name: file}, 'time'):
            keys.setdefault(cell_of(row).key, []).append((name, row))
    lines = []
    for runs in keys.values():
        ratios = [time_ratio(row) for _, row in runs]
        together = all(overlap(a, b) for i, a in enumerate(ratios) for b in ratios[:i])
        for name, row in runs if len(runs) > 1 else ():
            time = time_ratio(row)
            lines.append((
                f'{row["cell"]["pair"]}, {cell_of(row).describe()}', name,
                f'{time.median:.3f} [{time.low:.3f}, {time.high:.3f}]',
                f'{time_ratio(row, "control").median:.3f}',
                str(records.rounds(row)), str(records.builds(row)),
                f'{sum(map(sum, row["samples"].values())):.0f}',
                'yes' if together else 'no',
            ))  # fmt: skip
    if lines:
        yield '## The same cell in several runs'
        yield table(
            ('cell', 'run', 'time ×', 'control', 'rounds', 'builds', 'seconds',
             'intervals overlap'),
            lines,
        )  # fmt: skip


def markdown(files: Files) -> str:
    """Return all tables and verdicts of result files."""
    sections = (
        _machine_section, _answer_section, _time_section, _deploy_section, _scale_section,
        _attribution_section, _memory_section, _repeat_section,
    )  # fmt: skip
    return '\n\n'.join(part for section in sections for part in section(files))
