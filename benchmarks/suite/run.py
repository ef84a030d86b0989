"""The command line: `python -m benchmarks run` measures the cells of a suite into a result file,
`python -m benchmarks report` shows what is in result files.
"""

import argparse
import dataclasses
import gc
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

from ..script import environment, save
from . import answer, measure, plots, report
from .answer import Row
from .cells import AXES, KINDS, SUITES, Cell, find_pair, load_suite, refuse_impossible
from .models import make_input, prepare_pair

PROG = 'python -m benchmarks'
ERROR, UNUSABLE, INTERRUPTED = 1, 3, 130
"""Exit codes besides 0, and 2 after a usage error."""


def start(path: Path, suite: str, command: str) -> dict[str, Any]:
    """Return the content of a file with a new run added: that of an earlier run, or empty.

    Raises:
        ValueError: The file is not a result file, or comes from another machine or version.
    """
    run = {'suite': suite, 'command': command, 'environment': environment()}
    content: dict[str, Any] = {'kind': answer.KIND, 'version': answer.VERSION}
    content |= {'runs': [], 'cells': {}}
    if path.exists():
        content = answer.load(path)
        files = {str(path): content, 'this machine': {'runs': [run]}}
        answer.refuse_different(files, 'Give another --out.')
    content['runs'].append(run)
    return content


def measure_cell(cell: Cell, budget: float, rebuild: bool = False, **options: Any) -> Row:
    """Measure one cell.

    Args:
        cell: The cell.
        budget: Seconds, without warm-up and compiling.
        rebuild: Whether compiled models are built several times within the cell, as eager ones are.
        **options: Passed to `interleave`.
    """
    pair = find_pair(cell.pair)
    started = time.perf_counter()
    row: Row = {'cell': dataclasses.asdict(cell), 'models': pair.labels(), 'budget': budget}
    torch.compiler.reset()
    torch.set_num_threads(cell.threads)
    rng = random.Random(cell.key)
    x = make_input(cell)
    if cell.kind == 'time':
        options = dict(sync=measure.synchronize(cell.device), rng=rng, budget=budget, **options)

        def build() -> dict[str, Callable[[], object]]:
            torch.compiler.reset()  # at its recompile limit it falls back to eager mode
            gc.collect()
            return {role: work.step for role, work in prepare_pair(pair, cell, x).items()}

        blocks: list[int] = []
        if cell.compiles and not rebuild:  # another build would compile for minutes
            samples = measure.interleave(build(), **options)
        else:
            samples, blocks = measure.interleave_blocks(build, **options)
        settled = measure.settled(samples, blocks)
        row |= {'samples': samples, 'blocks': blocks, 'settled': settled}
    else:
        works = prepare_pair(pair, cell, x)
        del works['control']
        if cell.kind == 'attribution':
            row['attribution'] = measure.attribute(pair, works, cell, budget, rng)
        else:
            peaks = {role: measure.peak_memory(w, cell.device) for role, w in works.items()}
            row['memory'] = peaks
    row['seconds'] = time.perf_counter() - started
    return row


def finished(cell: Cell, cells: Mapping[str, Row], budget: float, rebuild: bool = False) -> bool:
    """Return whether a cell need not be measured again.

    Its row among those of the file must be usable, hold the same models, hold several builds if
    `rebuild` asks for them, and be settled unless the budget is no larger than before.
    """
    row = cells.get(cell.key)
    if row is None or row['models'] != find_pair(cell.pair).labels():
        return False
    if cell.kind != 'time':
        return not answer.is_doubtful(row, cells)
    if rebuild and cell.compiles and not row.get('blocks'):
        return False
    return answer.is_usable(row) and (row['settled'] or budget <= row['budget'])


def measure_cells(
    todo: Mapping[Cell, float], content: dict[str, Any], out: Path, rebuild: bool
) -> list[Cell]:
    """Measure cells and return those that failed.

    The file is written after each cell. A cell that fails or that Ctrl-C ends has no row, so an
    older one stays. `todo` has the budget in seconds of every cell.
    """
    failed = []
    rows = content['cells']
    # drawing takes time from the next round, so the bar draws once a second at most; disable=None
    # shows none in a file
    with tqdm(total=len(todo), unit='cell', mininterval=1, miniters=0, disable=None) as bar:
        for cell, budget in todo.items():
            bar.set_description(str(cell))
            try:
                row = measure_cell(cell, budget, rebuild, on_round=lambda: bar.update(0))
            except Exception as error:  # out of memory or a failing compiler: try the next cell
                said = f'failed: {type(error).__name__}: {first_line(error)}'
                failed.append(cell)
            else:
                rows[cell.key] = row | {'run': len(content['runs']) - 1}
                said = answer.sentence(row)
                if answer.is_doubtful(row, rows):
                    said = 'no explanation, because the time of this cell is unusable.'
            save(out, content)
            tqdm.write(f'{cell}: {said}')
            bar.update()
    return failed


def _minutes(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 90 else f'{seconds / 60:.0f} min'


def _run(args: argparse.Namespace) -> int:
    given = {axis: getattr(args, axis) for axis in ('pairs', *AXES) if getattr(args, axis)}
    cells = load_suite(args.suite, given, args.only, args.budget)
    if args.list:
        print('\n'.join(f'{cell.kind:<11} {cell}' for cell in cells))
        return 0
    for cell in cells:
        refuse_impossible(cell)
    out = args.out or Path(f'benchmark-{args.suite}.json')
    check_writable(out, replace=True)
    content = start(out, args.suite, f'{PROG} {shlex.join(args.argv)}')
    rows = content['cells']
    todo = {
        cell: budget
        for cell, budget in cells.items()
        if not finished(cell, rows, budget, args.rebuild)
    }
    print(
        f'{len(todo)} cells to measure, {len(cells) - len(todo)} already in {out}; up to '
        f'{_minutes(sum(todo.values()))}, plus building and compiling models'
    )
    try:
        failed = measure_cells(todo, content, out, args.rebuild)
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
    for sentence in answer.answer({out.stem: content}):
        print(sentence)
    timed = [rows[cell.key] for cell in cells if cell.kind == 'time']
    unusable = [row for row in timed if not answer.is_usable(row)]
    if unusable:
        print(
            f'{len(unusable)} of {len(timed)} cells are unusable: their control is not within 1.00 '
            f'± {answer.CONTROL:.2f}. Close other programs; the same command measures them again.',
            file=sys.stderr,
        )
        return UNUSABLE
    return 0


def _report(args: argparse.Namespace) -> int:
    files = {str(path): answer.load(path) for path in args.files}
    answer.refuse_different(files, 'Report each file by itself.')
    if args.plots:
        for path in plots.plot(files, args.plots):
            print(f'wrote {path}', file=sys.stderr)
    print(report.markdown(files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description='How much slower than its ResNet is a Res2Net on this machine, how sure is '
        'that, and where does the time go?',
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    sub = commands.add_parser(
        'run',
        help='measure the cells of a suite',
        description='Measure the cells of a suite; given values replace those of the suite.',
        epilog=f'Example: {PROG} run --suite cpu --only time --pairs main --batch 1 8 --task infer',
    )
    sub.set_defaults(handler=_run)
    add = sub.add_argument
    about = ''
    for name, suite in SUITES.items():
        most = _minutes(sum(load_suite(name).values()))
        about += f'{name}: {suite["about"]} Up to {most}, plus building models. '
    add('--suite', choices=SUITES, default='answer', help=f'{about}Default: %(default)s')
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

    sub = commands.add_parser(
        'report',
        help='make tables, verdicts and plots from result files',
        description='Make tables, verdicts and plots from result files.',
        epilog=f'Example: {PROG} report benchmarks/results/cpu.json --plots plots',
    )
    sub.set_defaults(handler=_report)
    sub.add_argument('files', nargs='+', type=Path, metavar='FILE', help='result files of `run`')
    sub.add_argument('--plots', type=Path, metavar='DIR', help='draw plots there (matplotlib)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    It is 0; 1 after an error that was printed; 3 if a control is out of its band, so that figures
    are unusable; 130 after Ctrl-C, with what was measured in the file. Usage errors exit with 2, as
    argparse does.
    """
    args = _parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return args.handler(args)
    except (OSError, RuntimeError, ValueError) as error:
        print(f'{PROG} {args.command}: {error}', file=sys.stderr)
        return ERROR
