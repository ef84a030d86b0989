"""`run`: a script of the user with the models registered."""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .frame import EXIT_ERROR, Verbs


def is_script(argv: Sequence[str]) -> bool:
    """Return whether a command line is `run SCRIPT ...` or `run -- SCRIPT ...`."""
    rest = _script(argv)
    return bool(argv) and argv[0] == 'run' and bool(rest) and not rest[0].startswith('-')


def _script(argv: Sequence[str]) -> list[str]:
    return list(argv[2:] if tuple(argv[:2]) == ('run', '--') else argv[1:])


def run_script(argv: Sequence[str]) -> int:
    """Run the script of a command line `run SCRIPT ...` as `python SCRIPT ...` does."""
    script, *arguments = _script(argv)
    if not Path(script).is_file():
        text = f"There is no script '{script}'. Give the path of a Python file."
        print(f'timm-res2net run: {text}', file=sys.stderr)
        return EXIT_ERROR
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name='__main__')
    return 0


def _run(args: argparse.Namespace) -> int:
    return run_script(['run', args.script, *args.arguments])


def add(verbs: Verbs) -> None:
    """Add the verb `run`."""
    parser = verbs.add(
        'run',
        _run,
        "register the models, then run a script unchanged, such as timm's train.py",
        'timm-res2net run train.py DATA --model res2net50_se --pretrained',
        'torchrun --nproc-per-node 4 -m timm_res2net run train.py DATA --model res2net50_se',
    )
    parser.add_argument('script', metavar='SCRIPT', help='Python file to run')
    parser.add_argument('arguments', metavar='...', nargs='*', help='arguments of the script')
