"""Every model that the package makes is saved, pushed (dry run), loaded, and gives equal outputs."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from tests.common import HRNETS, NAMES, TIMMS, TINY, image, push_to_folder, randomise, slow_except
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
STEM = dict(stem_type='deep_tiered', stem_width=16, avg_down=True, replace_stem_pool=True)
OTHERS = {
    'other arguments': lambda: timm.create_model(TINY, **CUSTOM),
    'another stem': lambda: timm.create_model(TINY, **WHOLE, **STEM),
    'training only': lambda: timm.create_model(TINY, drop_path_rate=0.2, drop_block_rate=0.1),
    'the class': lambda: Res2Net((1, 1, 1, 1), num_classes=4, attn_layer='se', **{'channels': (8, 16, 24, 32)}),
    'a replaced head': lambda: replaced(TINY, fc=nn.Linear(192, 7)),
    'a removed head': lambda: replaced(TINY, fc=nn.Identity()),
    'a replaced stem': lambda: replaced(TINY, conv1=one_channel()),
    'no head': lambda: timm.create_model(TINY, num_classes=0),
    'a narrow HRNet': lambda: timm.create_model('hrnet_w18_res2net', **STAGES),
}
AUTHORS = [
    name
    for name, value in vars(authors).items()
    if name.startswith('res2ne') and getattr(value, '__module__', '') == authors.__name__
]
MODELS = {
    **{name: lambda name=name: timm.create_model(name, **NARROW) for name in NAMES},
    **OTHERS,
    **{name: lambda name=name: timm.create_model(name, num_classes=5) for name in HRNETS + TIMMS},
    **{f'authors.{name}': lambda name=name: getattr(authors, name)(num_classes=3) for name in AUTHORS},
}
QUICK = [
    'res2net50_se', 'res2net50d_se', 'res2next50_se', 'res2net50_vd_26w_4s',
    'res2net50_v1d_26w_4s', 'res2net50_16w_4s_se', 'authors.res2net50_v1b_26w_4s', *OTHERS,
]  # fmt: skip


def loads_the_same(folder: Path, model: Any) -> None:
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = image(channels=next(iter(model.parameters())).shape[1])
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize('case', slow_except(QUICK, MODELS))
def test_saved_pushed_loaded(case, tmp_path):
    model = randomise(MODELS[case]()).eval()
    folder = push_to_folder(model, tmp_path / 'net')
    loads_the_same(folder, model)
    assert {finding.state for finding in check(folder)} == {'ok'}
    save_for_hf(model, tmp_path / 'saved', model_args=getattr(model, 'model_args', None))
    again = push_to_hub(folder, 'me/net', dry_run=True)
    assert again.files['model.safetensors'].sha256
