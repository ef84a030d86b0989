"""The table of arguments and fields: what it takes, what it refuses, and that it is complete."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import BlurPool2d, DropBlock2d, EcaModule
from timm.models import FeatureDictNet, PretrainedCfg
from torch import nn

from tests import fuzz
from timm_res2net import Bottle2neck, Res2Net, schema
from timm_res2net.folder import Config
from timm_res2net.models.hrnet_res2net import HighResolutionRes2Net

ROOT = Path(__file__).parents[1]
HUB_CONFIGS = sorted((ROOT / 'hub_configs').glob('*/config.json'))
TABLES = {
    'BLOCK': schema.BLOCK,
    'RES2NET': schema.RES2NET,
    'TIMM': schema.TIMM,
    'HRNET': schema.HRNET,
    'CFG': schema.CFG,
    'CONFIG_FIELDS': schema.CONFIG_FIELDS,
    'MADE_FROM': schema.MADE_FROM,
}
ROWS = [(table, name) for table, fields in TABLES.items() for name in fields]


def test_nothing_is_left_out():
    """An argument or a field that is added needs a row, and then the tests below draw for it."""
    of_timm = set(fuzz.OF_TIMM)
    assert set(schema.BLOCK) == set(fuzz.names_of(Bottle2neck))
    assert set(schema.RES2NET) == {*fuzz.names_of(Res2Net), *of_timm}
    assert set(schema.HRNET) == set(fuzz.OF_HRNET)
    named = set(fuzz.names_of(HighResolutionRes2Net)) - {'cfg', 'kwargs'}
    assert named <= set(schema.HRNET)
    assert set(schema.TIMM) - {'block_args', 'block_reduce_first'} <= set(schema.RES2NET)
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)}
    assert fields <= set(schema.CFG)  # an older timm may have fewer
    assert {field.name for field in dataclasses.fields(Config)} == set(schema.CONFIG_FIELDS)


@pytest.mark.parametrize(('table', 'name'), ROWS)
def test_every_value_is_taken_or_refused_in_a_sentence(table, name):
    """Whatever a value is, reading it ends at once; what is refused is named with the remedy."""
    field = TABLES[table][name]
    numeric = field.kind.startswith(('a whole number', 'a number'))
    for value in fuzz.JSON + fuzz.OBJECTS:
        try:
            got = schema.read(TABLES[table], name, value, 'args.')
        except ValueError as error:
            assert str(error).startswith(f'args.{name} must be {field.kind}, got ')
            assert '\n' not in str(error)
            assert len(str(error)) < len(field.kind) + 300
        else:
            schema.read(TABLES[table], name, got)  # what was read can be read again
            if numeric:
                assert type(got) in (int, float) or got is None
                assert got is None or math.isfinite(got)
                assert not isinstance(value, bool | str | bytes | np.bool_)


@pytest.mark.parametrize(
    ('name', 'given', 'read'),
    [
        ('scale', np.int64(4), 4),
        ('scale', torch.tensor(4), 4),
        ('scale', np.array(4), 4),
        ('base_width', np.float32(32), 32.0),
        ('base_width', torch.tensor(0.5), 0.5),
        ('base_width', 64 / 3, 64 / 3),
        ('layers', np.array([1, 2, 3, 4]), (1, 2, 3, 4)),
        ('layers', torch.tensor([1, 2, 3, 4]), (1, 2, 3, 4)),
        ('layers', [1, np.int32(2), 3, torch.tensor(4)], (1, 2, 3, 4)),
        ('avg_down', np.bool_(True), True),
        ('out_indices', (-1, 0), (0, 4)),
        ('out_indices', 2, (3, 4)),
        ('out_indices', np.array([3, 1]), (1, 3)),
        ('output_stride', np.int64(16), 16),
        ('act_layer', nn.SiLU, nn.SiLU),
        ('act_layer', 'silu', 'silu'),
        ('norm_layer', nn.SyncBatchNorm, nn.SyncBatchNorm),
        ('norm_layer', 'BatchNorm2d', 'BatchNorm2d'),
        ('aa_layer', BlurPool2d, BlurPool2d),
        ('aa_layer', None, None),
        ('attn_layer', EcaModule, EcaModule),
        ('attn_layer', '', ''),
        ('num_classes', 0, 0),
        ('global_pool', '', ''),
        ('in_chans', 1, 1),
        ('feature_cls', FeatureDictNet, FeatureDictNet),
        ('device', torch.device('meta'), torch.device('meta')),
        ('dtype', torch.bfloat16, torch.bfloat16),
    ],
)
def test_what_is_taken(name, given, read):
    got = schema.read(schema.RES2NET, name, given)
    assert got == read
    assert type(got) is type(read)


def test_builders_are_taken():
    builders = {
        'act_layer': functools.partial(nn.LeakyReLU, 0.1),
        'norm_layer': functools.partial(nn.GroupNorm, 1),
        'attn_layer': lambda channels, **kwargs: nn.Identity(),
        'drop_block': functools.partial(DropBlock2d, drop_prob=0.1),
    }
    for name, value in builders.items():
        assert schema.read(schema.BLOCK, name, value) is value


def test_numbers_of_numpy_are_recorded_as_pythons():
    model = timm.create_model(
        'test_res2net_se', layers=np.array([1, 1, 1, 1]), scale=np.int64(2), device='meta'
    )
    assert json.loads(json.dumps(model.model_args))['layers'] == [1, 1, 1, 1]
    assert model.layer1[0].scale == 2


@pytest.mark.parametrize('path', HUB_CONFIGS, ids=lambda path: path.parent.name)
def test_published_configs_pass(path):
    config = Config.read(path)
    schema.check_res2net(
        {**schema.read_all(schema.RES2NET, config.model_args), 'num_classes': 1000}
    )


LARGEST = {
    'layers': (3, 12, 48, 3), 'channels': (64, 128, 256, 512), 'base_width': 26, 'scale': 8,
    'cardinality': 1, 'attn_layer': 'se', 'in_chans': 3, 'num_classes': 21_843,
    'global_pool': 'avg', 'stem_width': 64, 'stem_type': 'deep', 'down_kernel_size': 1,
    'replace_stem_pool': True,
}  # fmt: skip


def test_twice_the_largest_published_network_is_built():
    """Twice as deep, and twice as wide: the bounds are no obstacle to research."""
    schema.check_res2net({**LARGEST, 'layers': (6, 24, 96, 6)})
    schema.check_res2net({**LARGEST, 'scale': 4, 'base_width': 52})
    for more in ({'num_classes': 10**6}, {'base_width': 1000}, {'layers': (3, 12, 480, 3)}):
        with pytest.raises(ValueError, match=r'At most (500,000,000|2,048) are built') as error:
            schema.check_res2net({**LARGEST, **more})
        ((name, value),) = more.items()
        assert f'{name}={value!r}' in str(error.value)


@pytest.mark.parametrize('given', [{}, {'attn_layer': 'splat'}, {'cardinality': 4, 'scale': 3}])
def test_sizes_are_counted_rightly(given):
    """The count that is compared is that of the parameters, but for norms, shortcuts and biases."""
    arguments = {**LARGEST, 'layers': (1, 2, 1, 1), 'num_classes': 10, 'attn_layer': '', **given}
    model = Res2Net(**arguments, device='meta')
    real = sum(p.numel() for p in model.parameters())
    counted: list[int] = []
    check = schema.check_size
    schema.check_size = lambda parameters, splits, **_: counted.append(parameters)
    try:
        schema.check_res2net(arguments)
    finally:
        schema.check_size = check
    assert 1 <= counted[0] / real < 1.05 or abs(counted[0] / real - 1) < 0.05


def test_branches_that_change_their_channels():
    """timm has no layer for that between stages 2, 3 and 4, and would fail at the first forward."""
    stages = dict(fuzz.BRANCHES, stage3={**fuzz.BRANCHES['stage3'], 'num_channels': (9, 16, 32)})
    with pytest.raises(ValueError) as error:
        timm.create_model('hrnet_w18_res2net', device='meta', **stages)
    text = str(error.value)
    assert 'branches of stage3 must begin' in text
    assert '[8, 16], got [9, 16, 32]' in text


def test_levels_of_a_model_without_levels():
    given = {'out_indices': (1, 2)}
    with pytest.raises(ValueError, match=r"'out_indices'.*Remove it"):
        schema.check_arguments(given, schema.RES2NET, 'res2net50_se')
    schema.check_arguments({**given, 'features_only': True}, schema.RES2NET, 'res2net50_se')


@pytest.mark.slow
@pytest.mark.parametrize('what', [*fuzz.BUILDERS, 'check'])
@pytest.mark.parametrize('seed', range(4))
def test_values_of_any_kind(what, seed):
    """Thousands of cases: a model that runs, or a sentence; nothing hangs and nothing takes 2 GB.

    In a process of its own, because each case is a fork, which takes long in a large process.
    """
    command = ['-m', 'tests.fuzz', '--only', what, '--seed', str(seed), '--count', '300']
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, _, counts = done.stdout.partition(' ')
    found = json.loads(counts)
    assert name == what
    assert found.keys() <= {'fine', 'a sentence'}, done.stderr
    assert sum(found.values()) == 300
