"""The command line: `python -m benchmarks run` measures the cells of a suite into a result file,
`python -m benchmarks report` shows what is in result files.
"""

import argparse
import dataclasses
import datetime
import gc
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from timm_res2net.files import check_writable
from timm_res2net.layers.text import first_line

from . import attribution, measure, plots, records, report
from .answer import answer
from .cells import AXES, KINDS, SUITES, Cell, describe_suite, find_pair, load_suite, minutes
from .checks import check
from .models import make_input, prepare_pair
from .records import Row

PROG = 'python -m benchmarks'
ERROR, UNUSABLE, INTERRUPTED = 1, 3, 130
"""Exit codes besides 0, and 2 after a usage error."""


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else None


def measure_cell(
    cell: Cell,
    budget: float,
    row: Row,
    on_round: Callable[[measure.Samples], object] = lambda samples: None,
    rebuild: bool = False,
    **options: Any,
) -> None:
    """Measure one cell and fill its row.

    Args:
        cell: The cell.
        budget: Seconds, without warm-up and compiling.
        row: Filled as the cell proceeds. If the call ends by an exception, the row of a 'time' cell
            holds the finished rounds.
        on_round: Called after every round of a 'time' cell.
        rebuild: Whether compiled models are built several times within the cell, as eager ones are.
        **options: Passed to `interleave`.
    """
    pair = find_pair(cell.pair)
    started = time.perf_counter()
    now = datetime.datetime.now(datetime.timezone.utc)
    row.update({
        'cell': dataclasses.asdict(cell),
        'models': pair.labels(),
        'started': now.isoformat(timespec='seconds'),
        'budget': budget,
        'load': [_load_average()],
    })  # fmt: skip
    torch.compiler.reset()
    torch.set_num_threads(cell.threads)
    rng = random.Random(cell.key)
    x = make_input(cell)
    if cell.kind == 'time':
        samples: measure.Samples = {}
        blocks: list[int] = []
        row.update({'target': measure.TARGET, 'warmup': measure.WARMUP})
        row.update({'samples': samples, 'blocks': blocks})
        options = dict(sync=measure.synchronize(cell.device), rng=rng, on_round=on_round, **options)

        def build() -> dict[str, Callable[[], object]]:
            torch.compiler.reset()  # at its recompile limit it falls back to eager mode
            gc.collect()
            return {role: work.step for role, work in prepare_pair(pair, cell, x).items()}

        if cell.compiles and not rebuild:  # another build would compile for minutes
            measure.interleave(build(), samples, budget=budget, **options)
            row['settled'] = measure.settled(samples)
        else:
            row['settled'] = measure.interleave_blocks(
                build, samples, blocks, budget=budget, **options
            )
    else:
        works = prepare_pair(pair, cell, x)
        del works['control']
        if cell.kind == 'attribution':
            row['attribution'] = attribution.attribute(pair, works, cell, budget, rng)
        else:
            row['how'] = measure.HOW[cell.device]
            row['memory'] = {
                role: measure.peak_memory(work, cell.device) for role, work in works.items()
            }
    row['load'].append(_load_average())
    row['seconds'] = time.perf_counter() - started


def finished(cell: Cell, cells: Mapping[str, Row], budget: float, rebuild: bool = False) -> bool:
    """Return whether a cell need not be measured again.

    Its row among those of the file must be complete and usable, hold the same models, hold several
    builds if `rebuild` asks for them, and be settled unless the budget is no larger than before.
    """
    row = cells.get(cell.key)
    if row is None or 'error' in row or row.get('interrupted'):
        return False
    if row['models'] != find_pair(cell.pair).labels() or records.is_doubtful(row, cells):
        return False
    if cell.kind != 'time':
        return True
    if rebuild and cell.compiles and not row.get('blocks'):
        return False
    return records.is_usable(row) and (row.get('settled', False) or budget <= row['budget'])


def _keep(row: Row, cells: dict[str, Row]) -> None:
    """Put a row among those of a file, unless it was cut short and the old one was not."""
    if 'cell' not in row:  # Ctrl-C before anything was measured
        return
    key = records.cell_of(row).key
    old = cells.get(key)
    cut_short = 'error' in row or row.get('interrupted')
    if old is None or not cut_short or 'error' in old or old.get('interrupted'):
        cells[key] = row


def measure_cells(
    todo: Mapping[Cell, float], found: dict[str, Any], out: Path, rebuild: bool
) -> list[Cell]:
    """Measure cells and return those that failed.

    The file is written after each cell, also after Ctrl-C or an error.

    Args:
        todo: Budget in seconds of every cell.
        found: The content of the file.
        out: The file.
        rebuild: As in `measure_cell`.
    """
    failed = []
    threads = max((cell.threads for cell in todo), default=0)
    # drawing takes time from the next round, so the bar draws once a second at most; disable=None
    # shows none in a file
    with tqdm(total=len(todo), unit='cell', mininterval=1, miniters=0, disable=None) as bar:
        for cell in todo:
            bar.set_description(str(cell))
            row: Row = {'run': len(found['runs']) - 1}
            try:
                measure_cell(cell, todo[cell], row, lambda samples: bar.update(0), rebuild)
            except KeyboardInterrupt:
                row['interrupted'] = 'seconds' not in row  # otherwise the cell was complete
                raise
            except Exception as error:  # out of memory or a failing compiler: try the next cell
                row['error'] = f'{type(error).__name__}: {first_line(error)}'
                failed.append(cell)
            finally:
                _keep(row, found['cells'])
                records.save(out, found)
            said = records.sentence(row, threads)
            if 'error' not in row and records.is_doubtful(row, found['cells']):
                said = 'no explanation, because the time of this cell is unusable.'
            tqdm.write(f'{cell}: {said}')
            bar.update()
    return failed


def _run(args: argparse.Namespace) -> int:
    given = {axis: getattr(args, axis) for axis in ('pairs', *AXES) if getattr(args, axis)}
    cells = load_suite(args.suite, given, args.only, args.budget)
    if args.list:
        print('\n'.join(f'{cell.kind:<11} {cell}' for cell in cells))
        return 0
    for cell in cells:
        check(cell)
    out = args.out or Path(f'benchmark-{args.suite}.json')
    check_writable(out, replace=True)
    found = records.start(out, args.suite, f'{PROG} {shlex.join(args.argv)}')
    rows = found['cells']
    todo = {
        cell: budget
        for cell, budget in cells.items()
        if not finished(cell, rows, budget, args.rebuild)
    }
    print(
        f'{len(todo)} cells to measure, {len(cells) - len(todo)} already in {out}; up to '
        f'{minutes(sum(todo.values()))}, plus building and compiling models'
    )
    try:
        failed = measure_cells(todo, found, out, args.rebuild)
    except KeyboardInterrupt:
        kept = sum(finished(cell, rows, 0) for cell in cells)
        print(
            f'Stopped. {kept} of {len(cells)} cells are in {out}; the same command continues from '
            'there.',
            file=sys.stderr,
        )
        return INTERRUPTED
    print(f'Written to {out}. Tables: {PROG} report {out}')
    if failed:
        names = ', '.join(map(str, failed))
        print(f'Failed: {names}. The same command tries them again.', file=sys.stderr)
        return ERROR
    for sentence in answer({out.stem: found}):
        print(sentence)
    timed = [rows[cell.key] for cell in cells if cell.kind == 'time']
    unusable = [row for row in timed if not records.is_usable(row)]
    if unusable:
        print(
            f'{len(unusable)} of {len(timed)} cells are unusable: their control is not within 1.00 '
            f'± {records.CONTROL:.2f}. Close other programs; the same command measures them again.',
            file=sys.stderr,
        )
        return UNUSABLE
    return 0


def _report(args: argparse.Namespace) -> int:
    stems = [path.stem for path in args.files]
    names = stems if len(set(stems)) == len(stems) else map(str, args.files)
    files = {name: records.load(path) for name, path in zip(names, args.files, strict=True)}
    records.check_same(files, 'Report each file by itself.')
    if args.plots:
        for path in plots.plot(files, args.plots):
            print(f'wrote {path}', file=sys.stderr)
    print(report.markdown(files))
    return 0


def _add_run(commands: Any) -> None:
    sub = commands.add_parser(
        'run',
        help='measure the cells of a suite',
        description='Measure the cells of a suite; given values replace those of the suite.',
        epilog=f'Example: {PROG} run --suite cpu --only time --pairs main --batch 1 8 --task infer',
    )
    sub.set_defaults(handler=_run)
    add = sub.add_argument
    about = ' '.join(f'{name}: {describe_suite(name)}' for name in SUITES)
    add('--suite', choices=SUITES, default='answer', help=f'{about} Default: %(default)s')
    add('--pairs', nargs='+', metavar='PAIR', help="names in pairs.json, BASELINE:SUBJECT, or '*'")
    for axis, (choices, default) in AXES.items():
        if choices:
            text = ', '.join(choices)
            add(f'--{axis}', nargs='+', choices=choices, metavar='NAME', help=text)
        else:
            text = f'default, if the suite has none: {default or "as many threads as torch uses"}'
            add(f'--{axis}', nargs='+', type=int, metavar='N', help=text)
    text = f'kinds of cell to measure: {", ".join(KINDS)}'
    add('--only', nargs='+', choices=KINDS, default=KINDS, metavar='KIND', help=text)
    text = 'most seconds a cell, without compiling'
    add('--budget', type=float, metavar='SECONDS', help=text)
    text = 'build compiled models several times, as eager ones are; takes minutes a cell'
    add('--rebuild', action='store_true', help=text)
    text = 'result file; an existing one is continued (default: benchmark-SUITE.json)'
    add('--out', type=Path, metavar='FILE', help=text)
    add('--list', action='store_true', help='print the cells and measure nothing')


def _add_report(commands: Any) -> None:
    sub = commands.add_parser(
        'report',
        help='make tables, verdicts and plots from result files',
        description='Make tables, verdicts and plots from result files.',
        epilog=f'Example: {PROG} report benchmarks/results/cpu.json --plots plots',
    )
    sub.set_defaults(handler=_report)
    sub.add_argument('files', nargs='+', type=Path, metavar='FILE', help='result files of `run`')
    sub.add_argument('--plots', type=Path, metavar='DIR', help='draw plots there (matplotlib)')


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments after the program's name; None for the process's own.

    Returns:
        The exit code: 0; 1 after an error that was printed; 3 if a control is out of its band, so
        that figures are unusable; 130 after Ctrl-C, with what was measured in the file. Usage
        errors exit with 2, as argparse does.
    """
    parser = argparse.ArgumentParser(
        prog=PROG,
        description='How much slower than its ResNet is a Res2Net on this machine, how sure is '
        'that, and where does the time go?',
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    _add_run(commands)
    _add_report(commands)
    args = parser.parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return args.handler(args)
    except (OSError, RuntimeError, ValueError) as error:
        print(f'{PROG} {args.command}: {error}', file=sys.stderr)
        return ERROR
