"""The table of arguments and fields: what it takes, what it refuses, and that it is complete."""

import fractions
import functools
import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.hrnet import cfg_cls
from torch import nn

from timm_res2net import Res2Net
from timm_res2net.models import arguments as rows
from timm_res2net.models.hrnet_res2net import HighResolutionRes2Net

TABLES = {
    'FEATURES': rows.FEATURES,
    'RES2NET': rows.RES2NET,
    'HRNET': rows.HRNET,
}
ROWS = [(table, name) for table, fields in TABLES.items() for name in fields]

# What a file can hold, and what only a caller can give.
JSON: tuple[Any, ...] = (
    None, True, False, 0, 1, 4, 8, -1, 10**6, 2**63, 10**400, 0.0, 0.5, 26.0, -0.5, 1e30, 64 / 3,
    math.nan, math.inf, '', '4', '0.5', 'avg', 'relu', 'se', 'nope', 'conv1', 'a\nb', 'x' * 99999,
    [], [1], [1, 1, 1, 1], [8, 8, 8, 2**31], [1.5] * 4, ['1'] * 4, [[1]] * 4, [None] * 4,
    [3, 64, 64], [0.5] * 3, ['a'] * 5, list(range(99)), {}, {'scale': 4}, {'a': {'b': [1]}},
)  # fmt: skip
OBJECTS: tuple[Any, ...] = (
    np.int64(2), np.float32(0.5), np.bool_(True), np.array(3), np.array([1, 1, 1, 1]), np.zeros(2),
    torch.tensor(2), torch.tensor(0.5), torch.tensor([1, 1, 1, 1]), torch.tensor(2j),
    torch.tensor(True), torch.empty((), device='meta'), fractions.Fraction(1, 2), 2j, b'4', (1, 2),
    {1, 2}, range(4), range(10**12), object(), int, nn.ReLU(), nn.ReLU, np.uint8(4), Ellipsis,
)  # fmt: skip


def names_of(builder: Any) -> set[str]:
    """Arguments of a constructor, but for those that torch checks or nothing uses."""
    unchecked = {'self', 'cfg', 'kwargs', 'device', 'dtype'}
    return set(inspect.signature(builder.__init__).parameters) - unchecked


def test_nothing_is_left_out():
    """An argument that is added needs a row, and then the tests below draw for it."""
    assert set(rows.RES2NET) == names_of(Res2Net)
    assert names_of(HighResolutionRes2Net) < set(rows.HRNET)


def test_what_arguments_must_be(tmp_path):
    """A person reads it: the limits leave room for networks larger than any published one."""
    found = ''.join(f'{table} {name} must be {TABLES[table][name].kind}\n' for table, name in ROWS)
    path, read = tmp_path / 'arguments.txt', Path(__file__).with_name('arguments.txt')
    path.write_text(found)
    assert found == read.read_text(), f'Read {path}, and copy it to {read} if it is good.'
    assert {*cfg_cls['hrnet_w18']} < {*rows.HRNET}


@pytest.mark.parametrize(('table', 'name'), ROWS)
def test_every_value_is_taken_or_refused_in_a_sentence(table, name):
    """Whatever a value is, reading it ends at once; what is refused is named with the remedy."""
    fields = TABLES[table]
    kind = fields[name].kind
    taken = 0
    for value in JSON + OBJECTS:
        try:
            got = rows.parse_arguments(fields, {name: value})[name]
        except ValueError as error:
            assert str(error).startswith(f'{name} must be {kind}, got ')
            assert '\n' not in str(error)
            assert len(str(error)) < len(kind) + 300
            continue
        taken += 1
        assert rows.parse_arguments(fields, {name: got})[name] is not None or got is None
        if kind.startswith(('a whole number', 'a number')):
            assert got is None or (type(got) in (int, float) and math.isfinite(got))
            assert not isinstance(value, bool | str | bytes | np.bool_)
    assert taken < len(JSON + OBJECTS)


@pytest.mark.parametrize(
    ('name', 'given', 'read'),
    [
        ('scale', np.int64(4), 4),
        ('base_width', torch.tensor(0.5), 0.5),
        ('base_width', 64 / 3, 64 / 3),
        ('layers', np.array([1, 2, 3, 4]), (1, 2, 3, 4)),
        ('layers', [1, np.int32(2), 3, torch.tensor(4)], (1, 2, 3, 4)),
        ('avg_down', np.bool_(True), True),
        ('out_indices', (-1, 0), (0, 4)),
        ('out_indices', 2, (3, 4)),
        ('out_indices', np.array([3, 1]), (1, 3)),
        ('out_indices', 5, (0, 1, 2, 3, 4)),
        ('output_stride', np.int64(16), 16),
        ('act_layer', 'silu', 'silu'),
        ('norm_layer', functools.partial, functools.partial),
        ('aa_layer', None, None),
        ('num_classes', 0, 0),
        ('nope', '4', '4'),  # no row
    ],
)
def test_what_is_taken(name, given, read):
    got = rows.parse_arguments({**rows.RES2NET, **rows.FEATURES}, {name: given})[name]
    assert got == read
    assert type(got) is type(read)


def test_numbers_of_numpy_are_recorded_as_pythons():
    model = timm.create_model(
        'test_res2net_se', layers=np.array([1, 1, 1, 1]), scale=np.int64(2), device='meta'
    )
    assert json.loads(json.dumps(model.model_args))['layers'] == [1, 1, 1, 1]
    assert model.layer1[0].scale == 2


def test_positional_arguments_are_read_too():
    assert Res2Net(np.array([1, 1, 1, 1]), np.int64(3), device='meta').num_classes == 3
    with pytest.raises(ValueError, match=r"num_classes must be a whole number .*, got '16'\."):
        Res2Net((1, 1, 1, 1), '16')
    defaults = [p.default for p in inspect.signature(Res2Net).parameters.values()]
    with pytest.raises(TypeError, match='positional arguments'):
        Res2Net(*defaults, 'one too many')
