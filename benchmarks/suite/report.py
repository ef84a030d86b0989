"""Tables and verdicts of result files, as Markdown."""

import statistics
from collections.abc import Iterator, Sequence

from timm_res2net.layers.text import table

from . import answer
from .answer import Files, Row, cell_of, models_of, select, time_ratio
from .measure import CAUSES, explain


def by_pair(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows grouped by pair, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row['cell']['pair'], []).append(row)
    return groups


def _head_section(files: Files) -> Iterator[str]:
    runs = [run for file in files.values() for run in file['runs']]
    env = runs[0]['environment']
    gpu = f', {env["gpu"]}' if env['gpu'] else ''
    commits = dict.fromkeys((run['environment']['commit'] or '')[:12] for run in runs)
    commits.pop('', None)
    yield (
        f'Measured on {env["cpu"]}, {env["cores"]} cores, {env["cpu_capability"]}{gpu}; torch '
        f'{env["torch"]}, timm {env["timm"]}, Python {env["python"]}, {env["system"]}'
        + (f'; commits {", ".join(commits)}.' if commits else '.')
    )
    yield 'What the columns mean: section "How it measures" of benchmarks/README.md.'
    if said := answer.answer(files):
        yield '## The answer'
        yield '\n'.join(f'- {line}' for line in said)


def _time_section(files: Files) -> Iterator[str]:
    names = {id(row): name for name, file in files.items() for row in file['cells'].values()}
    every = [row for name in files for row in select({name: files[name]}, 'time')]
    for heading, own in (('How much slower', False), ('Deployed models and other runtimes', True)):
        rows = [row for row in every if cell_of(row).of_pair == own]
        if not rows:
            continue
        yield f'## {heading}'
        for pair, group in by_pair(rows).items():
            yield f'### {pair}: {models_of(group[0])}'
            lines = []
            for row in group:
                seconds = [statistics.median(row['samples'][r]) for r in ('baseline', 'subject')]
                number = len(row['samples']['baseline']), len(row.get('blocks', ())) or 1
                lines.append((
                    cell_of(row).words(['mode'] if own else []),
                    names[id(row)],
                    *(f'{1000 * median:.1f}' for median in seconds),
                    answer.verdict(row),
                    str(time_ratio(row, 'control')),
                    *map(str, number),
                    '; '.join(answer.notes(row)),
                ))  # fmt: skip
            yield table(_COLUMNS, lines)
        medians = [time_ratio(row, 'control').median for row in rows]
        yield f'Medians of the controls: {min(medians):.3f} to {max(medians):.3f}.'


_COLUMNS = (
    'configuration', 'file', 'baseline, ms', 'subject, ms', 'verdict', 'control', 'rounds',
    'builds', 'notes',
)  # fmt: skip


def _attribution_section(files: Files) -> Iterator[str]:
    rows = select(files, 'attribution')
    if not rows:
        return
    yield '## Where the time goes'
    yield (
        "Extra time of the subject by cause, in percent of the baseline's time "
        f'({cell_of(rows[0]).words()}).'
    )
    lines = []
    for row in rows:
        counts = row['attribution']['counts'].values()
        sizes = [
            ' → '.join(f'{each[key] / unit:.2f}' for each in counts)
            for key, unit in (('macs', 1e9), ('activations', 1e6), ('params', 1e6))
        ]
        shares = [f'{100 * share:+.1f}' for share in explain(row['attribution']).values()]
        lines.append((row['cell']['pair'], models_of(row), *sizes, *shares))
    sizes = ['GMACs', 'activations, M', 'parameters, M']
    yield table(('pair', 'models', *sizes, *CAUSES), lines)


def _memory_section(files: Files) -> Iterator[str]:
    rows = select(files, 'memory')
    if not rows:
        return
    yield '## Memory'
    yield (
        'Peak memory of one step in MB (1e6 bytes): what stays between steps (parameters, buffers, '
        'input, optimizer state) plus the most beyond it.'
    )
    lines = []
    for row in rows:
        used = [
            f'{memory["resident_bytes"] / 1e6:.0f} + {memory["beyond_bytes"] / 1e6:.0f}'
            for memory in row['memory'].values()
        ]
        config = cell_of(row).words(['threads'])
        lines.append((row['cell']['pair'], config, *used, answer.sentence(row)))
    yield table(('pair', 'configuration', 'baseline', 'subject', 'ratio'), lines)


def markdown(files: Files) -> str:
    """Return all tables and verdicts of the result files of one machine."""
    sections = (_head_section, _time_section, _attribution_section, _memory_section)
    return '\n\n'.join(part for section in sections for part in section(files))
