"""`python -m benchmarks run`: measure the cells of a suite into a result file."""

import argparse
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

from timm_res2net.cli.frame import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_UNUSABLE, Verbs
from timm_res2net.files import check_writable
from timm_res2net.text import first_line

from . import attribution, memory, results
from .answer import answer
from .cells import AXES, KINDS, SUITES, Cell, describe_suite, load_suite, minutes
from .checks import check
from .measure import TARGET, WARMUP, Samples, interleave, interleave_blocks, synchronize
from .pairs import find_pair
from .records import CONTROL, Record, doubtful
from .steps import make_input, prepare, roles


def add_run(verbs: Verbs) -> None:
    """Add the verb and its options."""
    sub = verbs.add(
        'run',
        _run,
        'measure the cells of a suite; given values replace those of the suite',
        'python -m benchmarks run',
        'python -m benchmarks run --suite cpu --out cpu.json',
        'python -m benchmarks run --suite cpu --only time --pairs main seresnet50:res2net50_se '
        '--batch 1 8 --task infer',
    )
    about = ' '.join(f'{name}: {describe_suite(name)}' for name in SUITES)
    sub.add_argument(
        '--suite', choices=SUITES, default='answer', help=f'{about} Default: %(default)s'
    )
    sub.add_argument(
        '--pairs', nargs='+', metavar='PAIR', help="names in pairs.json, BASELINE:SUBJECT, or '*'"
    )
    for axis, (choices, default) in AXES.items():
        if choices:
            sub.add_argument(
                f'--{axis}', nargs='+', choices=choices, metavar='NAME', help=', '.join(choices)
            )
        else:
            text = "torch's own choice" if default is None else default
            sub.add_argument(
                f'--{axis}', nargs='+', type=int, metavar='N',
                help=f'default, if the suite has none: {text}',
            )  # fmt: skip
    sub.add_argument('--device', choices=('cpu', 'cuda'), help="replaces the suite's device")
    sub.add_argument(
        '--only', nargs='+', choices=KINDS, default=KINDS, metavar='KIND',
        help=f'kinds of cell to measure: {", ".join(KINDS)}',
    )  # fmt: skip
    sub.add_argument(
        '--budget', type=float, metavar='SECONDS', help='most seconds a cell, without compiling'
    )
    sub.add_argument(
        '--rebuild',
        action='store_true',
        help='build compiled models several times, as eager ones are; takes minutes a cell',
    )
    sub.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help='result file; an existing one is continued (default: benchmark-SUITE.json)',
    )
    sub.add_argument('--list', action='store_true', help='print the cells and measure nothing')
    sub.add_argument(
        '--no-progress', dest='progress', action='store_false', help='show no progress bar'
    )


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
        cell: The cell.
        budget: Seconds, without warm-up and compiling.
        record: Filled as the cell proceeds. If the call ends by an exception, the record of a
            'time' cell holds the finished rounds.
        on_round: Called after every round of a 'time' cell.
        rebuild: Whether compiled models are built several times within the cell, as eager ones are.
        **options: Passed to `interleave`.
    """
    pair = find_pair(cell.pair)
    started = time.perf_counter()
    record.update(
        cell=cell.to_json(),
        models=pair.labels(),
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        budget=budget,
        load=[_load_average()],
    )
    torch.compiler.reset()
    torch.set_num_threads(cell.threads)
    rng = random.Random(cell.key)
    x = make_input(cell)
    both = [role for role in roles(pair, cell) if role[0] != 'control']
    if cell.kind == 'time':
        samples: Samples = {}
        blocks: list[int] = []
        record.update(target=TARGET, warmup=WARMUP, samples=samples, blocks=blocks)
        options = dict(sync=synchronize(cell.device), rng=rng, on_round=on_round, **options)

        def build() -> dict[str, Callable[[], object]]:
            torch.compiler.reset()  # at its recompile limit it falls back to eager mode
            gc.collect()
            found = roles(pair, cell)
            return {role: prepare(spec, mode, cell, x).step for role, spec, mode in found}

        if cell.modes.compiles and not rebuild:  # another build would compile for minutes
            record['settled'] = interleave(build(), samples, budget=budget, **options)
        else:
            record['settled'] = interleave_blocks(build, samples, blocks, budget=budget, **options)
    elif cell.kind == 'attribution':
        works = {role: prepare(spec, mode, cell, x) for role, spec, mode in both}
        record['attribution'] = attribution.attribute(pair, works, cell, budget, rng)
    else:
        record['how'] = memory.HOW[cell.device]
        record['memory'] = {
            role: memory.measure(prepare(spec, mode, cell, x), cell.device)
            for role, spec, mode in both
        }
    record['load'].append(_load_average())
    record['seconds'] = time.perf_counter() - started


def time_left(budgets: Sequence[float], done: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that the remaining cells will take.

    They are assumed to use the same share of their budgets as the finished cells did.

    Args:
        budgets: Budget of every remaining cell in seconds.
        done: Budget and seconds spent of every finished cell.
    """
    allowed = sum(budget for budget, _ in done)
    used = sum(spent for _, spent in done) / allowed if allowed else 1.0
    return used * sum(budgets)


def finished(
    data: Mapping[str, Any] | None, cell: Cell, budget: float, rebuild: bool = False
) -> bool:
    """Return whether a cell need not be measured again.

    Its record must be complete and usable, hold the same models, hold several builds if `rebuild`
    asks for them, and be settled unless the budget is no larger than before.
    """
    if data is None:
        return False
    record = Record(data)
    if record.failed or record.interrupted or data['models'] != find_pair(cell.pair).labels():
        return False
    if cell.kind != 'time':
        return True
    if rebuild and cell.modes.compiles and not record.blocks:
        return False
    return record.usable and (record.settled or budget <= data['budget'])


def _replaces(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> bool:
    """Return whether a new record replaces an old one; one that was cut short must have more."""
    if old is None or not ('error' in new or new.get('interrupted')):
        return True
    if old.get('models') != new.get('models'):
        return True
    return 'samples' in old and Record(new).rounds > Record(old).rounds


class _Run:
    """The run of a suite: its cells, its result file and its progress."""

    def __init__(self, args: argparse.Namespace, cells: Mapping[Cell, float], out: Path):
        self.cells, self.out, self.rebuild = cells, out, args.rebuild
        command = f'python -m benchmarks {shlex.join(args.argv)}'
        self.found = results.start(out, args.suite, command)
        self.done: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.threads = max(cell.threads for cell in cells)
        self.shown = 0.0

    def is_finished(self, cell: Cell, budget: float, rebuild: bool = False) -> bool:
        data = self.found['cells'].get(cell.key)
        if data is not None and self.is_doubtful(data):
            return False
        return finished(data, cell, budget, rebuild)

    def is_doubtful(self, data: Mapping[str, Any]) -> bool:
        return doubtful(Record(data), self.found['cells'])

    def keep(self, cell: Cell, record: dict[str, Any]) -> None:
        if record.get('models') and _replaces(record, self.found['cells'].get(cell.key)):
            self.found['cells'][cell.key] = record
        results.save(self.out, self.found)

    def measure(self, cell: Cell, later: Sequence[Cell], bar: Any) -> None:
        """Measure one cell and save the file, also after Ctrl-C or an error in the cell.

        Args:
            cell: The cell.
            later: The cells after it.
            bar: The progress bar.
        """
        budget = self.cells[cell]
        record: dict[str, Any] = {'run': len(self.found['runs']) - 1}
        before = time.perf_counter()

        def describe() -> str:
            here = time_left([budget], self.done) - (time.perf_counter() - before)
            left = max(here, 0) + time_left([self.cells[c] for c in later], self.done)
            return f'{cell} (about {minutes(left)} left)'

        def show(samples: Samples) -> None:
            if time.perf_counter() - self.shown > 1:  # drawing takes time from the next round
                bar.set_postfix(round=len(samples['baseline']), refresh=False)  # of this build
                bar.set_description(describe())
                self.shown = time.perf_counter()

        bar.set_description(describe())
        try:
            try:
                measure_cell(cell, budget, record, show, rebuild=self.rebuild)
            except Exception as error:  # out of memory or a failing compiler: try the next cell
                record['error'] = f'{type(error).__name__}: {first_line(error)}'
                self.failed.append(str(cell))
            self.keep(cell, record)
            self.done.append((budget, time.perf_counter() - before))
            said = Record(record).sentence(self.threads)
            if 'error' not in record and self.is_doubtful(record):
                said = 'no explanation, because the time of this cell is unusable.'
            tqdm.write(f'{cell}: {said}')
        except KeyboardInterrupt:
            if 'seconds' not in record:  # otherwise the cell was already complete
                record['interrupted'] = True
            self.keep(cell, record)
            raise


def _run(args: argparse.Namespace) -> int:
    given = {axis: getattr(args, axis) for axis in ('pairs', *AXES) if getattr(args, axis)}
    cells = load_suite(args.suite, given, args.only, args.budget, args.device)
    if args.list:
        print('\n'.join(f'{cell.kind:<11} {cell}' for cell in cells))
        return 0
    for cell in cells:
        check(cell)
    out = args.out or Path(f'benchmark-{args.suite}.json')
    check_writable(out, replace=True)
    run = _Run(args, cells, out)
    todo = [
        cell for cell, budget in cells.items() if not run.is_finished(cell, budget, args.rebuild)
    ]
    print(
        f'{len(todo)} cells to measure, {len(cells) - len(todo)} already in {out}; up to '
        f'{minutes(sum(cells[cell] for cell in todo))}, plus building and compiling models'
    )
    with tqdm(todo, unit='cell', disable=not args.progress) as bar:
        try:
            for i, cell in enumerate(bar):
                run.measure(cell, todo[i + 1 :], bar)
        except KeyboardInterrupt:
            bar.close()
            kept = sum(run.is_finished(cell, 0) for cell in cells)
            print(
                f'Stopped. {kept} of {len(cells)} cells are in {out}; the same command continues '
                'from there.',
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
    return _conclude(run)


def _conclude(run: _Run) -> int:
    """Print the path of the results and the problems with them; return the exit code."""
    print(f'Written to {run.out}. Tables: python -m benchmarks report {run.out}')
    if run.failed:
        print(
            f'Failed: {", ".join(run.failed)}. The same command tries them again.', file=sys.stderr
        )
        return EXIT_ERROR
    records = [Record(run.found['cells'][cell.key]) for cell in run.cells if cell.kind == 'time']
    for sentence in answer({run.out.stem: run.found}):
        print(sentence)
    unusable = [record for record in records if not record.usable]
    if unusable:
        print(
            f'{len(unusable)} of {len(records)} cells are unusable: their control is not within '
            f'1.00 ± {CONTROL:.2f}. Close other programs; the same command measures them again.',
            file=sys.stderr,
        )
        return EXIT_UNUSABLE
    return 0
