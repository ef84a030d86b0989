"""Tables and verdicts of result files, as Markdown."""

import statistics
from collections.abc import Iterator

from timm_res2net.text import table

from .answer import answer
from .attribution import KINDS
from .causes import CAUSES, SPLITTING
from .records import CONTROL, Files, Record, by_pair, select, series
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
    records = [record for record in select(files, 'time') if not record.cell.modes.of_pair]
    if not records:
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
    threads = max(record.cell.threads for record in records)
    for pair, group in by_pair(records).items():
        yield f'### {pair}: {group[0].models}'
        yield table(
            ('configuration', 'baseline, ms', 'verdict', 'control', 'rounds', 'builds', 'notes'),
            [
                (
                    record.cell.describe(),
                    record.milliseconds('baseline'),
                    verdict(record.ratio()) if record.usable else record.refusal,
                    str(record.ratio('control')),
                    str(record.rounds),
                    str(record.builds),
                    '; '.join(record.notes(threads)),
                )
                for record in group
            ],
        )
    controls = [record.ratio('control') for record in records]
    medians = [control.median for control in controls]
    yield (
        f'Controls: {len(controls)}, medians from {min(medians):.3f} to {max(medians):.3f}; '
        f'{sum(c.low <= 1 <= c.high for c in controls)} of their intervals contain 1.'
    )


_AXES = ('device', 'task', 'precision', 'layout', 'batch', 'size', 'threads')


def _deploy_section(files: Files) -> Iterator[str]:
    records = [record for record in select(files, 'time') if record.cell.modes.of_pair]
    if not records:
        return
    same = [axis for axis in _AXES if len({getattr(r.cell, axis) for r in records}) == 1]
    changing = [axis for axis in _AXES if axis not in same]
    columns = list(dict.fromkeys(r.cell.describe(['mode', *same]) for r in records))
    yield '## Deployed models and other runtimes'
    yield (
        "Time of the subject over the baseline's, below 1 if the subject is faster. Each model's "
        'mode is in brackets after it. All rows: '
        f'{records[0].cell.describe(["mode", *changing])}.'
    )
    groups = by_pair(records)
    rows = []
    for pair, group in groups.items():
        at = {r.cell.describe(['mode', *same]): r for r in group}
        row = [f'{pair}: {group[0].models}']
        for column in columns:
            found = at.get(column)
            times = '' if found is None else f'× {found.ratio()}'
            row.append(times if found is None or found.usable else 'unusable')
        rows.append(row)
    yield table(('pair', *(column or 'time' for column in columns)), rows)
    threads = max(record.cell.threads for record in records)
    yield table(
        ('pair', 'configuration', 'baseline, ms', 'subject, ms', 'control', 'rounds', 'builds',
         'notes'),
        [
            (
                pair,
                record.cell.describe(['mode']),
                record.milliseconds('baseline'),
                record.milliseconds('subject'),
                str(record.ratio('control')),
                str(record.rounds),
                str(record.builds),
                '; '.join(record.notes(threads)),
            )
            for pair, group in groups.items()
            for record in group
        ],
    )  # fmt: skip


def _scale_section(files: Files) -> Iterator[str]:
    found = series(files)
    if not found:
        return
    yield '## By batch and image size'
    for axis, unit in (('batch', 'batch'), ('size', 'image, px')):
        mine = [one for one in found if one.axis == axis]
        columns = sorted({value for one in mine for value in one.points})
        if mine:
            rows = [
                (
                    f'{one.pair}, {one.config}',
                    *(str(one.points[v].ratio()) if v in one.points else '' for v in columns),
                )
                for one in mine
            ]
            yield table((f'time × at {unit}', *map(str, columns)), rows)


def _count_row(record: Record) -> tuple[str, ...]:
    counts = record.data['attribution']['counts']
    row = [record.cell.pair, record.models]
    for key, unit in (('macs', 1e9), ('activations', 1e6), ('params', 1e6)):
        base, subject = counts['baseline'][key] / unit, counts['subject'][key] / unit
        row.append(f'{base:.2f} → {subject:.2f} (× {subject / base:.2f})')
    return tuple(row)


def _attribution_section(files: Files) -> Iterator[str]:
    records = select(files, 'attribution')
    if not records:
        return
    yield '## Where the time goes'
    yield table(
        ('pair', 'models', 'GMACs', 'activations, M', 'parameters, M'), map(_count_row, records)
    )
    yield (
        "Extra time of the subject by cause, in percent of the baseline's time "
        f'({records[0].cell.describe()}). "More MACs" and "less efficient convolutions" come from '
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
            (record.cell.pair, *(f'{100 * share:+.1f}' for share in record.explain().values()))
            for record in records
        ],
    )
    yield "The profiler's self time by kind, in milliseconds of one step."
    rows = []
    for record in records:
        for role in ('baseline', 'subject'):
            profile = record.data['attribution']['profile'][role]
            times = [f'{1000 * statistics.median(profile[kind]):.1f}' for kind in KINDS]
            rows.append((record.cell.pair, record.data['models'][role], *times))
    yield table(('pair', 'model', *KINDS), rows)


def _memory_section(files: Files) -> Iterator[str]:
    records = select(files, 'memory')
    if not records:
        return
    yield '## Memory'
    ways = '; '.join(dict.fromkeys(record.data['how'] for record in records))
    yield (
        'Peak memory of one step in MB (1e6 bytes): what stays between steps (parameters, buffers, '
        f'input, optimizer state) plus the most beyond it. Measured by {ways}.'
    )

    def megabytes(record: Record, role: str) -> str:
        used = record.data['memory'][role]
        return f'{used["resident_bytes"] / 1e6:.0f} + {used["beyond_bytes"] / 1e6:.0f}'

    yield table(
        ('pair', 'configuration', 'baseline', 'subject', 'peak ×'),
        [
            (
                record.cell.pair,
                record.cell.describe(['threads']),
                megabytes(record, 'baseline'),
                megabytes(record, 'subject'),
                f'{record.peak():.2f}',
            )
            for record in records
        ],
    )


def _repeat_section(files: Files) -> Iterator[str]:
    keys: dict[str, list[tuple[str, Record]]] = {}
    for name, file in files.items():
        for record in select({name: file}, 'time'):
            keys.setdefault(record.cell.key, []).append((name, record))
    rows = []
    for runs in keys.values():
        ratios = [record.ratio() for _, record in runs]
        together = all(overlap(a, b) for i, a in enumerate(ratios) for b in ratios[:i])
        for name, record in runs if len(runs) > 1 else ():
            time = record.ratio()
            rows.append((
                f'{record.cell.pair}, {record.cell.describe()}', name,
                f'{time.median:.3f} [{time.low:.3f}, {time.high:.3f}]',
                f'{record.ratio("control").median:.3f}', str(record.rounds), str(record.builds),
                f'{sum(map(sum, record.data["samples"].values())):.0f}',
                'yes' if together else 'no',
            ))  # fmt: skip
    if rows:
        yield '## The same cell in several runs'
        yield table(
            ('cell', 'run', 'time ×', 'control', 'rounds', 'builds', 'seconds',
             'intervals overlap'),
            rows,
        )  # fmt: skip


def markdown(files: Files) -> str:
    """Return all tables and verdicts of result files."""
    sections = (
        _machine_section, _answer_section, _time_section, _deploy_section, _scale_section,
        _attribution_section, _memory_section, _repeat_section,
    )  # fmt: skip
    return '\n\n'.join(part for section in sections for part in section(files))
