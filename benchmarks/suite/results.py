"""The result file of a run: environment, command and raw samples, one record a cell."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_res2net.files import write_file

from .environment import environment
from .stats import rounded

KIND = 'timm_res2net benchmark'
VERSION = 1
SAME = ('cpu', 'cpu_capability', 'gpu', 'cores', 'torch', 'timm', 'timm_res2net', 'python')
"""Parts of the environment in which all cells of a file must agree."""


def load(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: The file is missing, is not a result file, or has another version.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"There is no file '{path}'. `python -m benchmarks run --out {path}` writes one."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Cannot read '{path}' ({error}). Give a file that `python -m benchmarks run` wrote."
        ) from error
    if not isinstance(found, dict) or found.get('kind') != KIND:
        raise ValueError(
            f"'{path}' is not a result of `python -m benchmarks run`. Give a result file, or "
            'another --out.'
        )
    if found.get('version') != VERSION:
        raise ValueError(
            f"'{path}' has version {found.get('version')!r}, but this code reads version {VERSION}."
            ' Measure again into another --out, or use the commit that the file names.'
        )
    return found


def start(path: Path, suite: str, command: str) -> dict[str, Any]:
    """Return the content of a file with a new run added: that of an earlier run, or empty.

    Raises:
        ValueError: The file is not a result file, or comes from another machine or version.
    """
    here = environment()
    found: dict[str, Any] = {'kind': KIND, 'version': VERSION, 'runs': [], 'cells': {}}
    if path.exists():
        found = load(path)
        before = found['runs'][-1]['environment']
        for name in SAME:
            if before.get(name) != here[name]:
                raise ValueError(
                    f"'{path}' was measured with {name} {before.get(name)}, but this machine has "
                    f'{here[name]}: one file cannot hold both. Give another --out.'
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
                        f"'{file_name}' with {value}: one table cannot hold both. Report each file "
                        'by itself.'
                    )


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, Mapping):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(inner) for inner in value]
    return value


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result file, one line a cell."""
    cells = ',\n'.join(
        f'  {json.dumps(key)}: {json.dumps(_short(cell))}' for key, cell in found['cells'].items()
    )
    head = json.dumps({k: v for k, v in found.items() if k != 'cells'}, indent=1)
    text = f'{head[:-2]},\n "cells": {{\n{cells}\n }}\n}}\n'
    write_file(path, lambda file: file.write(text.encode()))
