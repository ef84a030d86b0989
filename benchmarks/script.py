"""The frame of a script: its command line, where it writes, and its result file, with the machine
and the versions of libraries that figures belong to.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_res2net
from timm_res2net.files import check_writable, require, write_file

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
COMMIT = '--commit-results'


def cpu_has_bf16() -> bool:
    """Return whether the CPU has bfloat16 instructions (AVX512-BF16, AMX or SVE)."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        words = set(cpuinfo.read_text().split())
        return bool(words & {'avx512_bf16', 'amx_bf16', 'bf16', 'svebf16'})
    return torch.backends.cpu.get_cpu_capability().startswith('SVE')


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return done.stdout.strip()


def _cpu_name() -> str:
    rows = json.loads(_output('lscpu', '-J') or '{"lscpu": []}')['lscpu']
    values = {row['field'].rstrip(':'): row['data'] for row in rows}
    name = values.get('Model name') or platform.processor() or platform.machine()
    family, model = values.get('CPU family'), values.get('Model')
    return f'{name} (family {family}, model {model})' if family and model else name


def environment() -> dict[str, Any]:
    """Return the machine, the versions of libraries and the commit that figures belong to."""
    changed = _output('git', 'status', '--porcelain', '--untracked-files=no')
    commit = _output('git', 'rev-parse', 'HEAD')
    return {
        'cpu': _cpu_name(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'cpu_bf16': cpu_has_bf16(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'cuda': torch.version.cuda if torch.cuda.is_available() else None,
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        'torch': torch.__version__.split('+')[0],
        'timm': timm.__version__,
        'timm_res2net': timm_res2net.__version__,
        'numpy': np.__version__,
        'compiler': _output(os.environ.get('CXX', 'c++'), '--version').partition('\n')[0] or None,
        'commit': commit + (' with changes' if changed else '') or None,
    }


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file, one line a cell, with five digits of every figure."""

    text = json.dumps(content['cells'])
    short = json.loads(text, parse_float=lambda digits: float(f'{float(digits):.5g}'))
    cells = ',\n'.join(f'  {json.dumps(key)}: {json.dumps(row)}' for key, row in short.items())
    head = json.dumps({k: v for k, v in content.items() if k != 'cells'}, indent=1)
    text = f'{head[:-2]},\n "cells": {{\n{cells}\n }}\n}}\n'
    write_file(path, lambda file: file.write(text.encode()))


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
