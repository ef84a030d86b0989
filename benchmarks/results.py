"""The file of a run: environment, command and raw samples, one record a cell."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_res2net
from timm_res2net.files import write_file

from .stats import rounded

__all__ = [
    'VERSION', 'check_same', 'check_writable', 'environment', 'load', 'save', 'save_script',
    'write',
]  # fmt: skip

KIND = 'timm_res2net benchmark'
VERSION = 1
# what must not change between the cells of one file
SAME = ('cpu', 'cpu_capability', 'gpu', 'cores', 'torch', 'timm', 'timm_res2net', 'python')


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    lscpu = _output('lscpu', '-J') if shutil.which('lscpu') else None
    rows = json.loads(lscpu)['lscpu'] if lscpu else []
    values = {row['field'].rstrip(':'): row['data'] for row in rows}
    name = values.get('Model name') or platform.processor() or platform.machine()
    family, model = values.get('CPU family'), values.get('Model')
    return f'{name} (family {family}, model {model})' if family and model else name


def cpu_has_bf16() -> bool:
    """Whether the CPU computes with bfloat16 itself (AVX512-BF16, AMX or SVE)."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        words = set(cpuinfo.read_text().split())
        return bool(words & {'avx512_bf16', 'amx_bf16', 'bf16', 'svebf16'})
    return torch.backends.cpu.get_cpu_capability().startswith('SVE')


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    cxx = _output(os.environ.get('CXX', 'c++'), '--version')
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
        'compiler': cxx.splitlines()[0] if cxx else None,
        'commit': commit and commit + (' with changes' if changed else ''),
    }


def load(path: Path) -> dict[str, Any]:
    """Read the file of a run.

    Raises:
        ValueError: It is no such file, or one of another version.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"There is no file '{path}'. `python -m benchmarks run --out {path}` makes one."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Cannot read '{path}' ({error}). Give a file that `python -m benchmarks run` wrote."
        ) from error
    if not isinstance(found, dict) or found.get('kind') != KIND:
        raise ValueError(
            f"'{path}' is not a result of `python -m benchmarks run`. Give one that is, or another "
            '--out.'
        )
    if found.get('version') != VERSION:
        raise ValueError(
            f"'{path}' has version {found.get('version')!r} and this code reads version {VERSION}. "
            'Measure anew into another --out, or use the commit that the file names.'
        )
    return found


def start(path: Path, suite: str, command: str) -> dict[str, Any]:
    """The file's content with a new run in it: that of an earlier run to go on with, or empty.

    Raises:
        ValueError: The file is of another kind, version, machine or library version.
    """
    here = environment()
    found: dict[str, Any] = {'kind': KIND, 'version': VERSION, 'runs': [], 'cells': {}}
    if path.exists():
        found = load(path)
        before = found['runs'][-1]['environment']
        for name in SAME:
            if before.get(name) != here[name]:
                raise ValueError(
                    f"'{path}' was measured with {name} {before.get(name)}, and this is "
                    f'{here[name]}: its cells cannot stand beside new ones. Give another --out.'
                )
    found['runs'].append({'suite': suite, 'command': command, 'environment': here})
    return found


def check_same(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if files come from different machines or versions."""
    seen: dict[str, Any] = {}
    for file_name, file in files.items():
        for run in file['runs']:
            for name in SAME:
                value = run['environment'].get(name)
                if seen.setdefault(name, (value, file_name))[0] != value:
                    raise ValueError(
                        f"'{seen[name][1]}' was measured with {name} {seen[name][0]} and "
                        f"'{file_name}' with {value}: they cannot stand in one table. Report each "
                        'by itself.'
                    )


def check_writable(*paths: Path | None) -> None:
    """Raise ValueError unless a file can be made at each path; those that are None are not asked
    for."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            what = 'is a folder' if path.is_dir() else f"has no folder '{path.parent}'"
            raise ValueError(f"Cannot write to '{path}': it {what}. Give the path of a file.")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise ValueError(
                f"Cannot write to '{path}' ({error.strerror}). Give an --out in a folder of yours."
            ) from error


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, Mapping):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(inner) for inner in value]
    return value


def save(path: Path, found: dict[str, Any]) -> None:
    """Write the file, one line a cell."""
    cells = ',\n'.join(
        f'  {json.dumps(key)}: {json.dumps(_short(cell))}' for key, cell in found['cells'].items()
    )
    head = json.dumps({k: v for k, v in found.items() if k != 'cells'}, indent=1)
    text = f'{head[:-2]},\n "cells": {{\n{cells}\n }}\n}}\n'
    write(path, text.encode())


def save_script(path: Path, name: str, argv: Sequence[str] | None, cells: dict[str, Any]) -> None:
    """Write the file of a script of this folder.

    Args:
        path: The file.
        name: The script's, which is the file's kind too.
        argv: Arguments that it was called with; those of the process when None.
        cells: Its results.
    """
    given = sys.argv[1:] if argv is None else argv
    command = f'python -m benchmarks.{name} {shlex.join(given)}'.rstrip()
    runs = [{'command': command, 'environment': environment()}]
    save(path, {'kind': name, 'runs': runs, 'cells': cells})


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename."""
    write_file(path, lambda file: file.write(content))
