"""The command line: `python -m benchmarks run` and `report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_res2net.cli.frame import Verbs, run_verb

from . import plots, report, results
from .run import add_run


def add_report(verbs: Verbs) -> None:
    """Add the verb and its options."""
    sub = verbs.add(
        'report',
        _report,
        'make tables, verdicts and plots from result files',
        'python -m benchmarks report benchmarks/results/cpu.json --plots plots',
    )
    sub.add_argument('files', nargs='+', type=Path, metavar='FILE', help='result files of `run`')
    sub.add_argument('--plots', type=Path, metavar='DIR', help='draw plots there (matplotlib)')


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments after the program's name; None for the process's own.

    Returns:
        The exit code: 0; 1 after an error that was printed; 3 if a control is out of its band, so
        that figures are unusable; 130 after Ctrl-C, with what was measured in the file. Usage
        errors exit with 2, as argparse does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verbs = Verbs(
        'python -m benchmarks',
        'How much slower than its ResNet is a Res2Net on this machine, how sure is that, and where '
        'does the time go?',
    )
    add_run(verbs)
    add_report(verbs)
    return run_verb(verbs, argv)
