"""`python -m benchmarks run` and `report`."""

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

from . import attribution, memory, plots, report, results
from .measure import TARGET, WARMUP, Samples, interleave, interleave_blocks, synchronize
from .subjects import (
    AXES,
    KINDS,
    SUITES,
    Cell,
    check,
    compiles,
    find_pair,
    label,
    load_suite,
    make_input,
    prepare,
    roles,
)  # fmt: skip

__all__ = ['main', 'measure_cell', 'time_left']

EXIT_ERROR, EXIT_UNUSABLE, EXIT_INTERRUPTED = 1, 3, 130


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else None


def measure_cell(
    cell: Cell,
    budget: float,
    record: dict[str, Any],
    on_round: Callable[[Samples], None] = lambda samples: None,
    rebuild: bool = False,
    **options: Any,
) -> None:
    """Measure one cell and fill its record.

    Args:
        cell: What to measure.
        budget: Seconds, warm-up and compiling apart.
        record: Filled as the cell goes on; of a 'time' cell it holds the finished rounds also if
            the call ends by an exception.
        on_round: Called after every round of a 'time' cell.
        rebuild: Build compiled models anew within the cell, as others are.
        options: For `interleave`.
    """
    pair = find_pair(cell.pair)
    started = time.perf_counter()
    record.update(
        cell=dataclasses.asdict(cell),
        models=_labels(cell),
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        budget=budget,
        load=[_load_average()],
    )
    torch.compiler.reset()
    torch.set_num_threads(cell.threads)
    rng = random.Random(cell.key)
    x = make_input(cell)
    if cell.kind == 'time':
        samples: Samples = {}
        blocks: list[int] = []
        record.update(target=TARGET, warmup=WARMUP, samples=samples, blocks=blocks)
        options = dict(sync=synchronize(cell.device), rng=rng, on_round=on_round, **options)

        def build() -> dict[str, Callable[[], object]]:
            torch.compiler.reset()  # at its limit of recompiles it would go on in eager mode
            gc.collect()
            return {role: prepare(spec, cell, x).step for role, spec in roles(pair)}

        if compiles(cell) and not rebuild:  # once: another build would compile for minutes
            record['settled'] = interleave(build(), samples, budget=budget, **options)
        else:
            record['settled'] = interleave_blocks(build, samples, blocks, budget=budget, **options)
    elif cell.kind == 'attribution':
        works = {role: prepare(spec, cell, x) for role, spec in pair.items()}
        record['attribution'] = attribution.attribute(pair, works, cell, budget, rng)
    else:
        record['how'] = memory.HOW[cell.device]
        record['memory'] = {
            role: memory.measure(prepare(spec, cell, x), cell.device) for role, spec in pair.items()
        }
    record['load'].append(_load_average())
    record['seconds'] = time.perf_counter() - started


def time_left(budgets: Sequence[float], done: Sequence[tuple[float, float]]) -> float:
    """Seconds that the cells left will take, if they use their budgets as those done used theirs.

    Args:
        budgets: Budget of every cell left, in seconds.
        done: Budget and seconds spent, of every cell done.
    """
    allowed = sum(budget for budget, _ in done)
    used = sum(spent for _, spent in done) / allowed if allowed else 1.0
    return used * sum(budgets)


def _minutes(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 120 else f'{seconds / 60:.0f} min'


def _labels(cell: Cell) -> dict[str, str]:
    return {role: label(spec) for role, spec in find_pair(cell.pair).items()}


def finished(
    record: Mapping[str, Any] | None, cell: Cell, budget: float, rebuild: bool = False
) -> bool:
    """Whether a record of a cell need not be measured anew: complete, of the same models, usable,
    of several builds if these are asked for, and settled unless there is no larger budget to try.
    """
    if record is None or 'error' in record or record.get('interrupted'):
        return False
    if record['models'] != _labels(cell):
        return False
    if 'samples' not in record:
        return True
    if rebuild and compiles(cell) and not record['blocks']:
        return False
    return report.usable(record) and (record['settled'] or budget <= record['budget'])


def _keep(old: Mapping[str, Any] | None, new: dict[str, Any]) -> bool:
    """Whether a new record takes an old one's place: not if it was cut short and has less."""
    if old is None or not ('error' in new or new.get('interrupted')):
        return True
    if old.get('models') != new.get('models'):
        return True

    def rounds(record: Mapping[str, Any]) -> int:
        return len(record.get('samples', {}).get('baseline', ()))

    return 'samples' in old and rounds(new) > rounds(old)


def _run(args: argparse.Namespace) -> int:
    given = {axis: getattr(args, axis) for axis in ('pairs', *AXES) if getattr(args, axis)}
    cells = load_suite(args.suite, given, args.only, args.budget, args.device)
    for cell in cells:
        check(cell)
    if args.list:
        print('\n'.join(map(str, cells)))
        return 0
    out = args.out or Path(f'benchmark-{args.suite}.json')
    results.check_writable(out)
    command = f'python -m benchmarks {shlex.join(args.argv)}'
    found = results.start(out, args.suite, command)
    todo = [
        cell
        for cell, budget in cells.items()
        if not finished(found['cells'].get(cell.key), cell, budget, args.rebuild)
    ]
    here = len(cells) - len(todo)
    print(
        f'{len(todo)} cells to measure, {here} in {out} already; about '
        f'{_minutes(sum(cells[cell] for cell in todo))}, compiling apart'
    )
    done: list[tuple[float, float]] = []
    failed: list[str] = []
    shown = [0.0]
    threads = max(cell.threads for cell in cells)
    bar = tqdm(todo, unit='cell', disable=not args.progress)
    for i, cell in enumerate(bar):
        left = _minutes(time_left([cells[c] for c in todo[i:]], done))
        bar.set_description(f'{cell} (about {left} left)')

        def show(samples: Samples, bar: Any = bar) -> None:
            bar.set_postfix(round=len(samples['baseline']), refresh=False)  # of this build
            if time.perf_counter() - shown[0] > 1:  # drawing is kept out of most rounds
                bar.refresh()
                shown[0] = time.perf_counter()

        record: dict[str, Any] = {'run': len(found['runs']) - 1}
        before = time.perf_counter()
        try:
            try:
                measure_cell(cell, cells[cell], record, show, rebuild=args.rebuild)
            except Exception as error:  # out of memory, a compiler that fails: the others go on
                first = (str(error) or type(error).__name__).splitlines()[0]
                record['error'] = f'{type(error).__name__}: {first}'
                failed.append(str(cell))
            if _keep(found['cells'].get(cell.key), record):
                found['cells'][cell.key] = record
            results.save(out, found)
            done.append((cells[cell], time.perf_counter() - before))
            tqdm.write(f'{cell}: {report.sentence(record, threads)}')
        except KeyboardInterrupt:
            if 'seconds' not in record:  # else it came after the cell
                record['interrupted'] = True
            if record.get('models') and _keep(found['cells'].get(cell.key), record):
                found['cells'][cell.key] = record
            results.save(out, found)
            bar.close()
            kept = sum(finished(found['cells'].get(c.key), c, 0) for c in cells)
            print(
                f'Stopped. {kept} of {len(cells)} cells are in {out}; the same command goes on '
                'from there.',
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
    bar.close()
    records = [found['cells'][cell.key] for cell in cells]
    unusable = [r for r in records if r.get('samples') and not report.usable(r)]
    print(f'Written to {out}. Tables: python -m benchmarks report {out}')
    if failed:
        names = ', '.join(failed)
        print(f'Failed, and tried again by the same command: {names}', file=sys.stderr)
        return EXIT_ERROR
    if unusable:
        print(
            f'{len(unusable)} cells are unusable: their control is out of '
            f'1.00 ± {report.CONTROL:.2f}. Quiet the machine; the same command measures them anew.',
            file=sys.stderr,
        )
        return EXIT_UNUSABLE
    return 0


def _report(args: argparse.Namespace) -> int:
    stems = [path.stem for path in args.files]
    names = stems if len(set(stems)) == len(stems) else map(str, args.files)
    files = {name: results.load(path) for name, path in zip(names, args.files, strict=True)}
    results.check_same(files)
    if args.plots:
        for path in plots.plot(files, args.plots):
            print(f'wrote {path}', file=sys.stderr)
    print(report.markdown(files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description='How much slower than its ResNet is a Res2Net here, how sure is that, and '
        'where does the time go?',
    )
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)

    def verb(
        name: str, handler: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=f'{text[0].upper()}{text[1:]}.',
            epilog=f'examples:\n  {example}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        return sub

    sub = verb(
        'run',
        _run,
        'measure the cells of a suite; values given replace those of the suite',
        'python -m benchmarks run --suite smoke\n'
        '  python -m benchmarks run --suite cpu --out cpu.json\n'
        '  python -m benchmarks run --suite cpu --only time --pairs main seresnet50:res2net50_se '
        '--batch 1 8 --task infer',
    )
    sub.add_argument('--suite', choices=SUITES, default='smoke')
    sub.add_argument('--pairs', nargs='+', metavar='PAIR', help="of pairs.json, 'A:B', or '*'")
    for axis, (choices, default) in AXES.items():
        if choices:
            sub.add_argument(f'--{axis}', nargs='+', choices=choices)
        else:
            text = "torch's own choice" if default is None else default
            sub.add_argument(
                f'--{axis}', nargs='+', type=int, metavar='N', help=f'({text} if unnamed)'
            )
    sub.add_argument('--device', choices=('cpu', 'cuda'), help="for the suite's own")
    sub.add_argument('--only', nargs='+', choices=KINDS, default=KINDS, help='kinds of cell')
    sub.add_argument(
        '--budget', type=float, metavar='SECONDS', help='a cell at most, compiling apart'
    )
    sub.add_argument(
        '--rebuild',
        action='store_true',
        help='build compiled models several times, too, as others are; takes minutes a cell',
    )
    sub.add_argument(
        '--out', type=Path, metavar='FILE', help='result; a run goes on from it (default: '
        'benchmark-SUITE.json)',
    )  # fmt: skip
    sub.add_argument('--list', action='store_true', help='print the cells, measure nothing')
    sub.add_argument('--no-progress', dest='progress', action='store_false')

    sub = verb(
        'report',
        _report,
        'make tables, verdicts and plots from result files alone',
        'python -m benchmarks report benchmarks/results/cpu.json --plots plots',
    )
    sub.add_argument('files', nargs='+', type=Path, metavar='FILE')
    sub.add_argument('--plots', type=Path, metavar='DIR', help='draw plots there (matplotlib)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code: 0; 1 after an error that was printed; 3 where a control came out of its band,
        so that figures are unusable; 130 after Ctrl-C, with what was measured in the file. Usage
        errors exit with 2, as argparse has it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    args.argv = argv
    try:
        return args.handler(args)
    except (OSError, ValueError) as error:
        print(f'python -m benchmarks {args.verb}: {error}', file=sys.stderr)
        return EXIT_ERROR
