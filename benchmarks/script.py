"""The frame of a script: its command line, its option `--out` and its result file."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_res2net.files import check_writable

from .suite.environment import environment
from .suite.results import save

RESULTS = Path(__file__).parent / 'results'


def load(name: str) -> dict[str, Any]:
    """Return the figures that a script's committed result file holds.

    Args:
        name: The last part of the script's module name, for example 'kernels'.
    """
    return json.loads((RESULTS / f'{name}.json').read_text())['cells']


class Script:
    """A script's parser, to which it adds options, and its result file.

    Args:
        module: Module of the script below `benchmarks`, for example 'kernels'.
        doc: The module's docstring; its first line is the help text.
    """

    def __init__(self, module: str, doc: str | None):
        self.module, self.name = module, module.rpartition('.')[2]
        self.parser = argparse.ArgumentParser(
            prog=f'python -m benchmarks.{module}', description=(doc or '').splitlines()[0]
        )
        self.parser.add_argument(
            '--out',
            type=Path,
            metavar='FILE',
            default=RESULTS / f'{self.name}.json',
            help=f'result file (default: benchmarks/results/{self.name}.json)',
        )

    def parse(self, argv: Sequence[str] | None, *outputs: str) -> argparse.Namespace:
        """Parse the arguments and check that all files can be written before the work begins.

        Args:
            argv: Arguments after the script's name; None for the process's own.
            *outputs: Options besides `--out` that name a file to write, if they are given.
        """
        self.argv = list(sys.argv[1:] if argv is None else argv)
        args = self.parser.parse_args(self.argv)
        try:
            for option in ('out', *outputs):
                if (path := getattr(args, option)) is not None:
                    check_writable(path, replace=True)
        except OSError as error:
            self.parser.error(str(error))
        self.out: Path = args.out
        return args

    def save(self, cells: Mapping[str, Any]) -> None:
        """Write the figures with the command and the environment to `--out`."""
        command = f'python -m benchmarks.{self.module} {shlex.join(self.argv)}'.rstrip()
        runs = [{'command': command, 'environment': environment()}]
        save(self.out, {'kind': self.name, 'runs': runs, 'cells': cells})
