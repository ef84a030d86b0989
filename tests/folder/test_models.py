"""Every model that the package makes is saved, pushed (dry run) and loaded with equal outputs."""

from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from tests.common import (
    HRNETS,
    NAMES,
    TIMMS,
    TINY,
    from_folder,
    image,
    network,
    push_to_folder,
    randomise,
    slow_except,
)
from timm_res2net import Res2Net, authors, check, push_to_hub

# a network of every kind of block, as narrow as names allow
NARROW: dict[str, Any] = {'layers': (1, 2, 1, 1), 'channels': (16, 32, 40, 48), 'num_classes': 5}
STAGES = {
    f'stage{i}': {
        'num_modules': 1, 'num_branches': i, 'block_type': 'BOTTLENECK' if i == 1 else 'BASIC',
        'num_blocks': [1] * i, 'num_channels': [8 << j for j in range(i)], 'fuse_method': 'SUM',
    }
    for i in (1, 2, 3, 4)
}  # fmt: skip


def replaced(name: str, **layers: nn.Module) -> nn.Module:
    model: Any = timm.create_model(name)
    for key, layer in layers.items():
        setattr(model, key, layer)
    return model


def one_channel() -> nn.Module:
    return nn.Conv2d(1, 16, 7, stride=2, padding=3, bias=False)


CUSTOM = dict(
    layers=(1, 1, 2, 1), scale=8, base_width=14, semantics='caffe', attn_layer='eca', in_chans=1,
    global_pool='max', act_layer='silu', output_stride=16,
)  # fmt: skip
WHOLE = dict(layers=(1, 1, 1, 1), scale=3, cardinality=2, semantics='paddle')
BRANCHES = dict(
    scale=2, base_width=48, cardinality=2, semantics='caffe', attn_layer='eca', in_chans=1,
    global_pool='avgmax', num_classes=3, stem_width=16,
)  # fmt: skip
STEM = dict(stem_type='deep_tiered', stem_width=16, avg_down=True, replace_stem_pool=True)
OTHERS = {
    'other arguments': lambda: timm.create_model(TINY, **CUSTOM),
    'another stem': lambda: timm.create_model(TINY, **WHOLE, **STEM),
    'training only': lambda: timm.create_model(TINY, drop_path_rate=0.2, drop_block_rate=0.1),
    'the class': lambda: Res2Net((1, 1, 1, 1), num_classes=4, channels=(8, 16, 24, 32)),
    'a replaced head': lambda: replaced(TINY, fc=nn.Linear(192, 7)),
    'a removed head': lambda: replaced(TINY, fc=nn.Identity()),
    'a replaced stem': lambda: replaced(TINY, conv1=one_channel()),
    "timm's own": lambda: timm.create_model('res2net50d', **NARROW),
    'no head': lambda: timm.create_model(TINY, num_classes=0),
    "the authors' class": lambda: authors.Res2Net(authors.Bottle2neck, [1, 2, 1, 1], scale=2),
}
AUTHORS = [
    name
    for name, value in vars(authors).items()
    if name.startswith('res2ne') and getattr(value, '__module__', '') == authors.__name__
]
MODELS = {
    **{name: lambda name=name: timm.create_model(name, **NARROW) for name in NAMES},
    **OTHERS,
    'a narrow HRNet': lambda: timm.create_model('hrnet_w18_res2net', **STAGES, **BRANCHES),
    **{name: lambda name=name: timm.create_model(name, num_classes=5) for name in HRNETS + TIMMS},
    **{f'authors.{name}': lambda name=name: getattr(authors, name)() for name in AUTHORS},
}
QUICK = [
    'res2net50_se', 'res2net50d_se', 'res2net50_vd_26w_4s', 'res2net50_16w_4s_se', *OTHERS,
]  # fmt: skip


@pytest.mark.parametrize('case', slow_except(QUICK, MODELS))
def test_saved_pushed_and_loaded(case, tmp_path):
    """By a push, and the registered models by timm's own function, too."""
    model = randomise(MODELS[case]()).eval()
    folders = [push_to_folder(model, tmp_path / 'pushed')]
    assert {finding.state for finding in check(folders[0])} == {'ok'}
    if case in (*NAMES, *HRNETS, 'a narrow HRNet'):
        folders.append(tmp_path / 'saved')
        save_for_hf(model, folders[1], model_args=model.model_args, safe_serialization=True)
    x = image(1, channels=next(iter(model.parameters())).shape[1])
    with torch.no_grad():
        expected = model(x)
        for folder in folders:
            assert torch.equal(from_folder(folder)(x), expected)
            done = push_to_hub(folder, 'me/net', license='mit', dry_run=True)
            assert 'num_classes' not in done.config.model_args
            assert not {'architecture', 'custom_load'} & done.config.pretrained_cfg.keys()


@pytest.mark.parametrize(
    ('name', 'module', 'replacement', 'words'),
    [
        (TINY, 'act1', nn.SiLU(), 'level 0 differs first'),
        (TINY, 'maxpool', nn.Identity(), 'level 1 differs first, by inf'),
        (TINY, 'layer1.0.bn1', nn.BatchNorm2d(24, eps=1e-2), 'level 1 differs first'),
        (TINY, 'layer4.0.relu', nn.SiLU(), 'level 4 differs first'),
        (TINY, 'global_pool.pool', nn.AdaptiveMaxPool2d(1), 'logits differs first'),
        (TINY, 'conv1', nn.Conv2d(3, 16, 3, padding=1, bias=False), 'size mismatch for conv1'),
        (TINY, 'fc', nn.Sequential(nn.Dropout(), nn.Linear(192, 10)), 'fc.1.bias'),
        (TINY, 'aux', nn.Linear(3, 3), 'the model does not have, 2: aux.bias, aux.weight'),
    ],
)
def test_a_layer_that_no_argument_describes(name, module, replacement, words):
    """The folder would load as another network: its outputs say which layer, or its keys do."""
    model = timm.create_model(name)
    parent, _, child = module.rpartition('.')
    setattr(model.get_submodule(parent), child, replacement)
    with pytest.raises(ValueError, match='Nothing was pushed') as error:
        push_to_hub(randomise(model), 'me/net', license='mit', dry_run=True)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ('name', 'shape', 'of', 'wanted', 'features'),
    [
        (TINY, {}, 1, 3, False),
        (TINY, {}, 13, 26, True),
        ('res2net50_se', NARROW, 3, 1, True),
        ('res2net50d_se', NARROW, 13, 3, False),
        pytest.param('hrnet_w18_res2net', STAGES, 13, 3, True, marks=pytest.mark.slow),
    ],
)
def test_a_folder_loads_for_other_channels(name, shape, of, wanted, features, tmp_path):
    """timm repeats or sums the weights of the first convolution, as for its own weights."""
    model = network(name, in_chans=of, **shape)
    folder = push_to_folder(model, tmp_path / 'net')
    loaded = from_folder(folder, in_chans=wanted, features_only=features)
    weight, own = next(loaded.parameters()), next(model.parameters())
    assert weight.shape[1] == wanted
    if of == 1:  # each of the three has a third of it
        assert torch.allclose(weight, own.repeat(1, 3, 1, 1) / 3)
    if wanted == 1:
        assert torch.allclose(weight, own.sum(1, keepdim=True))
