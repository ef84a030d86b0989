"""Cells and rows for the tests of the suite."""

import dataclasses

from benchmarks.suite.cells import Cell

CELL = Cell('time', 'main', 'infer', 'eager', 'fp32', 'channels_last', 2, 64, 1, 'cpu')


def cell(**changes) -> Cell:
    """A small cell."""
    return dataclasses.replace(CELL, **changes)


def synthetic(pair, subject=1.2, control=1.0, settled=True, **axes):
    """Key and row of a cell with equal samples."""
    here = cell(pair=pair, **{'batch': 8, 'size': 224, 'threads': 2, **axes})
    return here.key, {
        'cell': dataclasses.asdict(here),
        'models': {'baseline': 'resnet50', 'subject': 'res2net'},
        'samples': {'baseline': [1.0] * 8, 'subject': [subject] * 8, 'control': [control] * 8},
        'settled': settled,
    }


def file_of(*cells):
    """Content of a result file."""
    environment = {
        'cpu': 'a CPU', 'gpu': None, 'cores': 2, 'cpu_capability': 'AVX512', 'torch': '2',
        'timm': '1', 'python': '3', 'system': 'Linux', 'commit': '0123456789abcdef',
    }  # fmt: skip
    return {'runs': [{'environment': environment}], 'cells': dict(cells)}
