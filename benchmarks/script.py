"""The frame of a script: its command line, where it writes, and its result file."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_res2net.files import check_writable, require

from .suite.environment import environment
from .suite.records import save

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
COMMIT = '--commit-results'


def load(name: str) -> dict[str, Any]:
    """Return the figures that a script's committed result file holds.

    Args:
        name: The last part of the script's module name, for example 'kernels'.
    """
    return json.loads((RESULTS / f'{name}.json').read_text())['cells']


def add_out(parser: argparse.ArgumentParser, default: str, committed: Path) -> None:
    """Add the options `--out` and `--commit-results`, of which one may be given.

    Args:
        parser: Parser of a script; the path is its argument `out`.
        default: Path that is written if neither option is given; git ignores it.
        committed: What `--commit-results` writes.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        '--out',
        type=Path,
        metavar='PATH',
        default=Path(default),
        help='what to write (default: %(default)s)',
    )
    group.add_argument(
        COMMIT,
        dest='out',
        action='store_const',
        const=committed,
        help=f'renew the committed {committed.relative_to(ROOT)} instead',
    )


class Script:
    """A script's parser, to which it adds options, and its result file.

    Args:
        module: Module of the script below `benchmarks`, for example 'kernels'.
        doc: The module's docstring; its first line is the help text.
        *needs: Packages of the extra `scripts` that the script imports.
    """

    def __init__(self, module: str, doc: str | None, *needs: str):
        self.module, self.name, self.needs = module, module.rpartition('.')[2], needs
        self.parser = argparse.ArgumentParser(
            prog=f'python -m benchmarks.{module}',
            description=(doc or '').splitlines()[0],
            allow_abbrev=False,
        )
        self.committed = RESULTS / f'{self.name}.json'
        add_out(self.parser, f'benchmark-{self.name}.json', self.committed)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the arguments, and check packages and the file before the work begins.

        Args:
            argv: Arguments after the script's name; None for the process's own.
        """
        self.argv = list(sys.argv[1:] if argv is None else argv)
        args = self.parser.parse_args(self.argv)
        try:
            require('scripts', *self.needs)
        except ValueError as error:
            self.parser.exit(1, f'{self.parser.prog}: {error}\n')
        try:
            check_writable(args.out, replace=True)
        except OSError as error:
            self.parser.error(str(error))
        self.out: Path = args.out
        return args

    def save(self, cells: Mapping[str, Any], before: Sequence[Any] = ()) -> None:
        """Write the figures with the command and the environment to `--out`.

        Args:
            cells: The figures.
            before: Runs that some of the figures come from, as the file has them.
        """
        # where the file went does not change its figures
        argv = [arg for arg in self.argv if arg != COMMIT]
        command = f'python -m benchmarks.{self.module} {shlex.join(argv)}'.rstrip()
        runs = [*before, {'command': command, 'environment': environment()}]
        save(self.out, {'kind': self.name, 'runs': runs, 'cells': cells})
        print(f'Written to {self.out}.')
