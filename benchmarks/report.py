"""Tables, verdicts and plots from result files alone."""

import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .attribution import KINDS
from .stats import BAND, CLAIM, Ratio, overlap, ratio, spread, verdict

__all__ = ['CONTROL', 'explain', 'markdown', 'notes', 'sentence', 'series', 'usable']

CONTROL = 0.02
"""A cell is unusable when the median of its control, two copies of the baseline against each other,
is farther than this from 1."""
SPREAD = 0.10
"""A cell is noted as noisy when the interquartile range of the baseline's times or of the subject's
is more than this share of their median."""

SPLITTING = ('convolutions in place', 'concat/split/copy', 'add', 'norm+activation', 'pool')
"""What a block does more often, or to smaller pieces, because it is split."""
COLUMNS = (
    'extra', 'more MACs', 'less efficient convolutions', 'the splitting itself', *SPLITTING,
    'attention', 'other', 'unexplained',
)  # fmt: skip

Record = Mapping[str, Any]
Files = Mapping[str, Mapping[str, Any]]


@functools.cache
def _cached(ratios: tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]) -> Ratio:
    return ratio(*ratios)


def ratio_of(record: Record, role: str = 'subject') -> Ratio:
    """The ratio of a role's times to the baseline's."""
    samples = record['samples']
    key = tuple(samples[role]), tuple(samples['baseline']), tuple(record.get('blocks', ()))
    return _cached(key)


def _measured(record: Record) -> bool:
    return 'error' not in record and bool(record.get('samples', {}).get('baseline'))


def _has_own_modes(record: Record) -> bool:
    """Whether the models of a record's pair ran in modes of the pair's own."""
    return '->' in record['cell']['mode']


def usable(record: Record) -> bool:
    """Whether the record's control came out within `CONTROL` of 1."""
    return _measured(record) and abs(ratio_of(record, 'control').median - 1) <= CONTROL


def notes(record: Record, threads: int = 0) -> list[str]:
    """What stands against a record of times: unusable, not settled, noisy, loaded, interrupted.

    Args:
        record: The record.
        threads: Most threads of the run's cells; the load average still has those of the cell
            before.
    """
    found = []
    if not usable(record):
        found.append('unusable')
    if record.get('interrupted'):
        found.append('interrupted')
    if not record.get('settled'):
        found.append(f'not settled, ± {100 * ratio_of(record).half_width:.1f} %')
    noise = max(spread(record['samples'][role]) for role in ('baseline', 'subject'))
    if noise > SPREAD:
        found.append(f'noisy, IQR {100 * noise:.0f} %')
    # the benchmark's own threads are part of the load average
    loads = [load for load in record['load'] if load is not None]
    if loads and max(loads) > max(record['cell']['threads'], threads) + 0.5:
        found.append(f'load {max(loads):.1f}')
    return found


def sentence(record: Record, threads: int = 0) -> str:
    """One record in one line; `threads` as in `notes`."""
    if 'error' in record:
        return f'failed: {record["error"]}'
    kind = record['cell']['kind']
    if kind == 'attribution':
        parts = {key: f'{key} {100 * value:+.1f} %' for key, value in explain(record).items()}
        shown = ', '.join(parts[c] for c in (*COLUMNS[1:4], 'attention', 'unexplained'))
        return f"time, of the baseline's: {parts['extra']}: {shown}"
    if kind == 'memory':
        base, subject = (record['memory'][r]['peak_bytes'] for r in ('baseline', 'subject'))
        return f'peak memory × {subject / base:.2f}'
    if not _measured(record):
        return 'nothing measured'
    against = '; '.join(notes(record, threads))
    # the claim is about a mode of both
    found = f'time × {ratio_of(record)}' if _has_own_modes(record) else verdict(ratio_of(record))
    return (
        f'{found}; control {ratio_of(record, "control")}, '
        f'{len(record["samples"]["baseline"])} rounds' + (f' ({against})' if against else '')
    )


def explain(record: Record) -> dict[str, float]:
    """The subject's extra time by cause, as shares of the baseline's time.

    With T the time of a step, C the sum of its convolutions timed alone, M their MACs and P the
    profiler's self time:
        more MACs = C_b (M_s / M_b - 1): what the MACs cost at the baseline's efficiency;
        less efficient convolutions = C_s - C_b M_s / M_b;
        every other kind = P_s - P_b, with `convolutions in place` for P - C of the convolutions:
        what they lose within the network (their input is a slice, not a whole tensor);
        `the splitting itself` = those of `SPLITTING` together;
        `unexplained`: what is left of `extra` = T_s - T_b.
    """
    found = record['attribution']
    time, alone, macs, inside = {}, {}, {}, {}
    kinds: dict[str, dict[str, float]] = {}
    for role in ('baseline', 'subject'):
        time[role] = statistics.median(found['seconds'][role])
        layers = found['alone'][role]
        rounds = zip(*(layer['seconds'] for layer in layers), strict=True)
        sums = [
            sum(layer['count'] * t for layer, t in zip(layers, row, strict=True)) for row in rounds
        ]
        alone[role] = statistics.median(sums) if sums else 0.0
        macs[role] = sum(layer['count'] * layer['macs'] for layer in layers)
        kinds[role] = {k: statistics.median(v) for k, v in found['profile'][role].items()}
        inside[role] = sum(v for k, v in kinds[role].items() if k.startswith('convolution'))
    more = macs['subject'] / macs['baseline'] if macs['baseline'] else 1.0
    parts = {
        'more MACs': alone['baseline'] * (more - 1),
        'less efficient convolutions': alone['subject'] - alone['baseline'] * more,
        'convolutions in place': (inside['subject'] - alone['subject'])
        - (inside['baseline'] - alone['baseline']),
    }
    for kind in KINDS:
        if not kind.startswith('convolution'):
            parts[kind] = kinds['subject'][kind] - kinds['baseline'][kind]
    extra = time['subject'] - time['baseline']
    parts['unexplained'] = extra - sum(parts.values())
    splitting = sum(parts[kind] for kind in SPLITTING)
    whole = {'extra': extra, **parts, 'the splitting itself': splitting}
    return {column: whole[column] / time['baseline'] for column in COLUMNS}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return '| ' + ' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + ' |'

    return '\n'.join([line(header), line(['-' * w for w in widths]), *map(line, rows)])


def select(files: Files, kind: str) -> list[Record]:
    """Records of a kind; of a cell that several files hold, the first file's."""
    found: dict[str, Record] = {}
    for file in files.values():
        for key, record in file['cells'].items():
            if record['cell']['kind'] == kind and 'error' not in record:
                if kind == 'time' and not _measured(record):
                    continue
                if kind != 'time' and kind not in record:
                    continue
                found.setdefault(key, record)
    return list(found.values())


def config(cell: Mapping[str, Any], omit: Sequence[str] = ()) -> str:
    """A cell's configuration as text, without the axes to omit."""
    shown = {
        'device': '' if cell['device'] == 'cpu' else cell['device'], 'task': cell['task'],
        'mode': cell['mode'], 'precision': cell['precision'],
        'layout': cell['layout'], 'batch': f'batch {cell["batch"]}', 'size': f'{cell["size"]} px',
        'threads': f'{cell["threads"]} thread' + ('s' if cell['threads'] > 1 else ''),
    }  # fmt: skip
    return ', '.join(value for axis, value in shown.items() if value and axis not in omit)


def by_pair(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records grouped by their pair, in order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record['cell']['pair'], []).append(record)
    return groups


def _builds(record: Record) -> str:
    return str(len(record.get('blocks', ())) or 1)


def _milliseconds(record: Record, role: str) -> str:
    return f'{1000 * statistics.median(record["samples"][role]):.1f}'


def _time_section(files: Files) -> Iterator[str]:
    records = [record for record in select(files, 'time') if not _has_own_modes(record)]
    if not records:
        return
    yield '## How much slower'
    yield (
        f"'{CLAIM}' has two readings: {100 * BAND[0]:.0f} to {100 * BAND[1]:.0f} % more time (time "
        f'× {1 + BAND[0]:.2f} to {1 + BAND[1]:.2f}), or as much less throughput (time × '
        f'{1 / (1 - BAND[0]):.2f} to {1 / (1 - BAND[1]):.2f}). "Consistent" means that the whole '
        '95 % interval lies within the band. The control is a second copy of the baseline, timed '
        f'in the same rounds; farther than {CONTROL:.2f} from 1.00 it makes the row unusable. With '
        'one build the interval is over rounds, and does not know what another build would give.'
    )
    threads = max(record['cell']['threads'] for record in records)
    for pair, group in by_pair(records).items():
        models = group[0]['models']
        yield f'### {pair}: {models["baseline"]} → {models["subject"]}'
        yield _table(
            ('configuration', 'baseline, ms', 'verdict', 'control', 'rounds', 'builds', 'notes'),
            [
                (
                    config(record['cell']),
                    _milliseconds(record, 'baseline'),
                    verdict(ratio_of(record)),
                    str(ratio_of(record, 'control')),
                    str(len(record['samples']['baseline'])),
                    _builds(record),
                    '; '.join(notes(record, threads)),
                )
                for record in group
            ],
        )
    controls = [ratio_of(record, 'control') for record in records]
    medians = [control.median for control in controls]
    yield (
        f'Controls: {len(controls)}, medians from {min(medians):.3f} to {max(medians):.3f}; '
        f'{sum(c.low <= 1 <= c.high for c in controls)} of their intervals hold 1.'
    )


def _deploy_section(files: Files) -> Iterator[str]:
    records = [record for record in select(files, 'time') if _has_own_modes(record)]
    if not records:
        return
    axes = ('device', 'task', 'precision', 'layout', 'batch', 'size', 'threads')
    same = [axis for axis in axes if len({r['cell'][axis] for r in records}) == 1]
    changing = [axis for axis in axes if axis not in same]
    columns = list({config(r['cell'], ['mode', *same]): 0 for r in records})
    yield '## Deploy form'
    yield (
        "Time of the subject over the baseline's, below 1 where the subject is faster, of pairs "
        'with a mode for each model, in brackets after it. All: '
        f'{config(records[0]["cell"], ["mode", *changing])}.'
    )
    groups = by_pair(records)
    rows = []
    for pair, group in groups.items():
        models = group[0]['models']
        at = {config(r['cell'], ['mode', *same]): r for r in group}
        row = [f'{pair}: {models["baseline"]} → {models["subject"]}']
        for column in columns:
            found = at.get(column)
            bad = '' if found is None or usable(found) else ' (unusable)'
            row.append('' if found is None else f'× {ratio_of(found)}{bad}')
        rows.append(row)
    yield _table(('pair', *(column or 'time' for column in columns)), rows)
    threads = max(record['cell']['threads'] for record in records)
    yield _table(
        ('pair', 'configuration', 'baseline, ms', 'subject, ms', 'control', 'rounds', 'builds',
         'notes'),
        [
            (
                pair,
                config(record['cell'], ['mode']),
                _milliseconds(record, 'baseline'),
                _milliseconds(record, 'subject'),
                str(ratio_of(record, 'control')),
                str(len(record['samples']['baseline'])),
                _builds(record),
                '; '.join(notes(record, threads)),
            )
            for pair, group in groups.items()
            for record in group
        ],
    )  # fmt: skip


class Series(NamedTuple):
    """The ratio along one axis, all else the same."""

    axis: str
    pair: str
    config: str
    points: list[tuple[int, Ratio, Record]]


def series(files: Files) -> list[Series]:
    """Every run of three or more cells that differ in batch alone, or in image size alone."""
    found = []
    records = select(files, 'time')
    for axis in ('batch', 'size'):
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            cell = record['cell']
            groups.setdefault((cell['pair'], config(cell, [axis])), []).append(record)
        for (pair, rest), group in groups.items():
            points = sorted(((r['cell'][axis], ratio_of(r), r) for r in group), key=lambda p: p[0])
            if len(points) >= 3:
                found.append(Series(axis, pair, rest, points))
    return found


def _scale_section(files: Files) -> Iterator[str]:
    found = series(files)
    if not found:
        return
    yield '## As the work grows'
    for axis, unit in (('batch', 'batch'), ('size', 'image, px')):
        mine = [s for s in found if s.axis == axis]
        columns = sorted({value for s in mine for value, _, _ in s.points})
        if not mine:
            continue
        rows = []
        for one in mine:
            at = {value: time for value, time, _ in one.points}
            cells = [str(at[value]) if value in at else '' for value in columns]
            rows.append((f'{one.pair}, {one.config}', *cells))
        yield _table((f'time × at {unit}', *map(str, columns)), rows)


def _count_row(record: Record) -> tuple[str, ...]:
    counts = record['attribution']['counts']
    models = record['models']
    row = [record['cell']['pair'], f'{models["baseline"]} → {models["subject"]}']
    for key, unit in (('macs', 1e9), ('activations', 1e6), ('params', 1e6)):
        base, subject = counts['baseline'][key] / unit, counts['subject'][key] / unit
        row.append(f'{base:.2f} → {subject:.2f} (× {subject / base:.2f})')
    return tuple(row)


def _attribution_section(files: Files) -> Iterator[str]:
    records = select(files, 'attribution')
    if not records:
        return
    yield '## Where the time goes'
    yield _table(
        ('pair', 'models', 'GMACs', 'activations, M', 'parameters, M'),
        [_count_row(record) for record in records],
    )
    explained = [explain(record) for record in records]
    yield (
        "Extra time of the subject by cause, in percent of the baseline's time "
        f'({config(records[0]["cell"])}). "More MACs" and "less efficient convolutions" come from '
        "every layer's convolution timed alone on a dense input: what the MACs would cost at the "
        "speed of the baseline's convolutions, and what the subject's take beyond that. "
        f'"The splitting itself" is the sum of the {len(SPLITTING)} columns after it: '
        '"convolutions in place", what they lose within the network, where their input is a slice, '
        'and differences of the profiler\'s self times. "Unexplained" is what is left.'
    )
    yield _table(
        ('pair', *COLUMNS),
        [
            (record['cell']['pair'], *(f'{100 * parts[column]:+.1f}' for column in COLUMNS))
            for record, parts in zip(records, explained, strict=True)
        ],
    )
    yield "The profiler's self time by kind, in milliseconds of one step."
    rows = []
    for record in records:
        for role in ('baseline', 'subject'):
            profile = record['attribution']['profile'][role]
            cells = [f'{1000 * statistics.median(profile[kind]):.1f}' for kind in KINDS]
            rows.append((record['cell']['pair'], record['models'][role], *cells))
    yield _table(('pair', 'model', *KINDS), rows)


def _memory_section(files: Files) -> Iterator[str]:
    records = select(files, 'memory')
    if not records:
        return
    yield '## Memory'
    yield (
        'Peak of one step in MB (1e6 bytes): what stays (parameters, buffers, input, optimizer '
        'state) and the most beyond it. Measured by ' + '; '.join({r['how']: 0 for r in records})
        + '.'
    )  # fmt: skip

    def cell(record: Record, role: str) -> str:
        used = record['memory'][role]
        return f'{used["resident_bytes"] / 1e6:.0f} + {used["beyond_bytes"] / 1e6:.0f}'

    def peak(record: Record, role: str) -> int:
        return record['memory'][role]['peak_bytes']

    yield _table(
        ('pair', 'configuration', 'baseline', 'subject', 'peak ×'),
        [
            (
                record['cell']['pair'],
                config(record['cell'], ['threads']),
                cell(record, 'baseline'),
                cell(record, 'subject'),
                f'{peak(record, "subject") / peak(record, "baseline"):.2f}',
            )
            for record in records
        ],
    )


def _repeat_section(files: Files) -> Iterator[str]:
    keys: dict[str, list[tuple[str, Record]]] = {}
    for name, file in files.items():
        for key, record in file['cells'].items():
            if record['cell']['kind'] == 'time' and _measured(record):
                keys.setdefault(key, []).append((name, record))
    repeated = {key: runs for key, runs in keys.items() if len(runs) > 1}
    if not repeated:
        return
    yield '## The same cell in several runs'
    rows = []
    for runs in repeated.values():
        ratios = [ratio_of(record) for _, record in runs]
        together = all(overlap(a, b) for i, a in enumerate(ratios) for b in ratios[:i])
        cell = runs[0][1]['cell']
        for (name, record), time in zip(runs, ratios, strict=True):
            rows.append((
                f'{cell["pair"]}, {config(cell)}', name, f'{time.median:.3f} '
                f'[{time.low:.3f}, {time.high:.3f}]', f'{ratio_of(record, "control").median:.3f}',
                str(len(record['samples']['baseline'])), _builds(record),
                f'{sum(map(sum, record["samples"].values())):.0f}',
                'yes' if together else 'no',
            ))  # fmt: skip
    yield _table(
        ('cell', 'run', 'time ×', 'control', 'rounds', 'builds', 'seconds', 'intervals overlap'),
        rows,
    )


def _machine_section(files: Files) -> Iterator[str]:
    seen = {}
    for file in files.values():
        for run in file['runs']:
            env = run['environment']
            where = f'{env["cpu"]}, {env["cores"]} cores, {env["cpu_capability"]}'
            where += f', {env["gpu"]}' if env['gpu'] else ''
            commit = f', commit {env["commit"][:12]}' if env['commit'] else ''
            seen[
                f'{where}; torch {env["torch"]}, timm {env["timm"]}, Python {env["python"]}, '
                f'{env["system"]}{commit}'
            ] = 0
    yield 'Measured on ' + '; and on '.join(seen) + '.'


def markdown(files: Files) -> str:
    """All tables and verdicts of result files, by name."""
    sections = (
        _machine_section, _time_section, _deploy_section, _scale_section, _attribution_section,
        _memory_section, _repeat_section,
    )  # fmt: skip
    return '\n\n'.join(part for section in sections for part in section(files))
