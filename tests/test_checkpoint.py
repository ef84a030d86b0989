"""Checkpoints of every source: each gives its own numbers, and a bad one leaves nothing."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F

from tests.common import TIMMS, Reference, image, randomise, relative_error
from tests.fixtures import values
from timm_res2net import convert_checkpoint
from timm_res2net.convert import SOURCES, infer_arguments, read_pdparams, recognise
from timm_res2net.models.figures import FIGURES

FIXTURES = Path(__file__).parent / 'fixtures'
# float32; the references fold BatchNorm differently and have up to 150 layers to do so
FLOAT32 = 2e-4


def from_folder(path: Path, **kwargs) -> nn.Module:
    return timm.create_model(f'local-dir:{path}', pretrained=True, **kwargs).eval()


def save(tensors, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def random_weights(name: str, **kwargs) -> dict[str, torch.Tensor]:
    return randomise(timm.create_model(name, **kwargs)).state_dict()


def respell(weights, names, counted: bool = True) -> dict[str, torch.Tensor]:
    return {
        names(key): value
        for key, value in weights.items()
        if counted or not key.endswith('num_batches_tracked')
    }


# --- sources whose files are timm's in other words ----------------------------------------------


@pytest.mark.parametrize('name', TIMMS)
def test_official_files_give_timms_numbers(name, tmp_path):
    """The authors' files have timm's keys: v1, v1b (timm's d), Res2NeXt."""
    model = randomise(timm.create_model(name)).eval()
    found = convert_checkpoint(save(model.state_dict(), tmp_path / 'w.pth'), tmp_path / 'out')
    assert (found.source, found.architecture) == ('official', name)
    x = image()
    with torch.no_grad():
        assert torch.equal(from_folder(tmp_path / 'out')(x), model(x))
        # and by this package's network, which shares no code with timm's block
        own: Any = timm.create_model('res2net50_18w_4s', **infer_arguments(model.state_dict()))
        own.load_state_dict(found.model.state_dict())
        assert torch.equal(own.eval()(x), model(x))
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert 'num_classes' not in config.get('model_args', {})
    assert config['num_classes'] == 1000
    assert config['pretrained_cfg'].get('license') is None


def test_the_authors_networks_load_in_plain_timm(tmp_path):
    path = save(random_weights('res2net50_48w_2s', in_chans=1), tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'out')
    code = (
        'import sys, timm; '
        f"timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True); "
        "assert 'timm_res2net' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)


def test_published_paddle_files():
    """The README's rows are the registered tags."""
    rows = {
        cells[0]: cells[1:]
        for line in (Path(__file__).parents[1] / 'README.md').read_text().splitlines()
        if len(cells := [cell.strip() for cell in line.strip('|').split('|')]) == 5
    }
    for name, figures in FIGURES.items():
        for tag, (top1, source) in figures.top1.items():
            cfg = timm.models.get_pretrained_cfg(f'{name}.{tag}')
            if cfg.url:
                top, licence, by, command = rows[cfg.url.rpartition('/')[2]]
                assert (float(top), licence, f'{by} model zoo') == (top1, 'A', source)
                assert command == f'`convert`, or `{name}.{tag}`'


def test_v1b_152(tmp_path):
    weights = random_weights('res2net152d')
    wrapped = {f'module.{key}': value for key, value in weights.items()}
    found = convert_checkpoint(save({'state_dict': wrapped}, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.architecture == 'res2net152d'
    assert found.file['entry'] == 'state_dict'
    reference = Reference(weights, 'official', (3, 8, 36, 3), 4, deep=True, avg_down=True)
    with torch.no_grad():
        assert relative_error(from_folder(tmp_path / 'out')(image()), reference(image())) < FLOAT32


@pytest.mark.parametrize('name', ['res2net50_18w_4s', 'res2next101', 'res2net50_se'])
def test_a_network_is_found_by_its_shapes(name, tmp_path):
    weights = random_weights(name, num_classes=7, in_chans=4)
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.architecture == name
    model = from_folder(tmp_path / 'out')
    assert (model.num_classes, model.in_chans) == (7, 4)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize('semantics', ['official', 'mmdet', 'paddle', 'caffe'])
def test_a_network_without_a_name(semantics, tmp_path):
    """All its arguments stand in the config."""
    official = semantics == 'official'
    arguments = dict(
        layers=(1, 2, 1, 3), channels=(24, 48, 56, 60), base_width=40, scale=3, cardinality=2,
        semantics=semantics, stem_type='deep_tiered', stem_width=16, avg_down=True, num_classes=5,
        replace_stem_pool=True,
    )  # fmt: skip
    model = randomise(timm.create_model('res2net50_se', **arguments)).eval()
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    found = convert_checkpoint(
        tmp_path / 'w.safetensors', tmp_path / 'out', semantics=None if official else semantics
    )
    assert (found.source, found.semantics) == ('timm', semantics)
    with torch.no_grad():
        assert torch.equal(from_folder(tmp_path / 'out')(image()), model(image()))
        neck = from_folder(tmp_path / 'out', features_only=True, out_indices=(4,))
        assert torch.equal(neck(image())[0], model.forward_features(image()))
    if not official:
        with pytest.raises(ValueError, match=f"In its place say semantics='{semantics}'"):
            convert_checkpoint(tmp_path / 'w.safetensors', model=NAMED[semantics])


NAMED = {
    'mmdet': 'res2net50_v1d_26w_4s',
    'paddle': 'res2net50_pd_26w_4s',
    'caffe': 'res2net50_16w_4s_se',
}


def test_a_name_tells_the_semantics_that_keys_do_not(tmp_path):
    weights = random_weights('res2net50_pd_14w_8s')
    path = save(weights, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out', model='res2net50_pd_14w_8s')
    assert found.semantics == 'paddle'
    reference = Reference(weights, 'paddle', (3, 4, 6, 3), 8)
    with torch.no_grad():
        expected = reference(image())
        assert relative_error(from_folder(tmp_path / 'out')(image()), expected) < FLOAT32
        convert_checkpoint(path, tmp_path / 'official')
        wrong = relative_error(from_folder(tmp_path / 'official')(image()), expected)
        assert wrong > 0.01  # what the name is for


# --- OpenMMLab and detectron2 -------------------------------------------------------------------


def recorded(file: str) -> dict:
    return json.loads((FIXTURES / file).read_text())


@pytest.mark.parametrize('name', ['plain', 'deep', 'scales 8'])
def test_mmpretrain_as_recorded(name, tmp_path):
    """Bit for bit what MMPretrain 1.2.0 answered: tests/fixtures/record_mmpretrain.py."""
    case = recorded('mmpretrain.json')['cases'][name]
    weights = {
        key: torch.tensor(0)
        if key.endswith('num_batches_tracked')
        else torch.from_numpy(values.values(key, tuple(shape)))
        for key, shape in case['shapes'].items()
    }
    path = save({'meta': {'CLASSES': ('a',)}, 'state_dict': weights}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert found.source == 'mmpretrain'
    named = {'plain': 'res2net50_26w_4s', 'deep': 'res2net50d', 'scales 8': 'res2net50_14w_8s'}
    assert found.architecture == named[name]
    model = from_folder(tmp_path / 'out')
    x = torch.from_numpy(values.image())
    with torch.no_grad():
        # the same convolutions in the same order; another machine's kernels may differ in the last
        # bits
        assert relative_error(model(x), torch.tensor(case['logits'])) < 1e-5
        features = model.forward_features(x).mean((2, 3))[:, :8]
        assert relative_error(features, torch.tensor(case['features'])) < 1e-5
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to='mmpretrain')
    back = torch.load(tmp_path / 'back.pth')['state_dict']
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def mmdet_name(key: str, prefix: str = 'backbone.') -> str:
    """timm's name as MMDetection spells it: its deep stem is one Sequential."""
    if key.startswith('conv1.'):
        return f'{prefix}stem.{key.removeprefix("conv1.")}'
    return f'{prefix}stem.7.{key.removeprefix("bn1.")}' if key.startswith('bn1.') else prefix + key


def detectron2_name(key: str, prefix: str = 'backbone.bottom_up.') -> str:
    """timm's name as Res2Net-detectron2 spells it."""
    if not key.startswith('layer'):
        return f'{prefix}stem.{key}'
    stage, block, *rest = key.split('.')
    name, leaf = '.'.join(rest[:-1]), rest[-1]
    name = {
        'bn1': 'conv1.norm', 'bn3': 'conv3.norm', 'downsample.1': 'shortcut.1',
        'downsample.2': 'shortcut.1.norm',
    }.get(name, name)  # fmt: skip
    return f'{prefix}res{int(stage[5:]) + 1}.{block}.{name}.{leaf}'


HEADS = {
    'mmdet': ('neck.fpn_convs.0.conv.weight', 'roi_head.bbox_head.fc_cls.bias'),
    'detectron2': ('backbone.fpn_lateral2.weight', 'pixel_mean', 'roi_heads.box_head.fc1.bias'),
}


@pytest.mark.parametrize('source', HEADS)
def test_backbones_of_detectors(source, tmp_path):
    names = {'mmdet': mmdet_name, 'detectron2': detectron2_name}[source]
    weights = random_weights('res2net101_v1d_26w_4s', num_classes=0)
    theirs = respell(weights, names, counted=source == 'mmdet')
    heads = {key: torch.ones(2) for key in HEADS[source]}
    entry = 'state_dict' if source == 'mmdet' else 'model'
    path = save({entry: {**theirs, **heads}, 'iteration': 7}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.source, found.semantics) == (source, 'mmdet')
    assert found.architecture == 'res2net101_v1d_26w_4s'
    assert sorted(m.source for m in found.moves if not m.target) == sorted(heads)
    reference = Reference(theirs, 'mmdet', (3, 4, 23, 3), 4, deep=True, avg_down=True, names=names)
    with torch.no_grad():
        expected = reference.features(image())
        neck = from_folder(tmp_path / 'out', features_only=True, out_indices=(4,))
        assert relative_error(neck(image())[0], expected) < FLOAT32


@pytest.mark.parametrize('source', HEADS)
def test_a_backbone_that_still_is_the_authors_classifier(source, tmp_path):
    """Their converters rename v1b files, classifier included: trained as `official`."""
    name = {'mmdet': mmdet_name, 'detectron2': detectron2_name}[source]
    weights = random_weights('res2net101d')
    theirs = respell(weights, lambda key: name(key, ''))
    path = tmp_path / 'w.pkl'
    if source == 'detectron2':
        arrays = {key: value.numpy() for key, value in theirs.items()}
        content = {'model': arrays, '__author__': 'torchvision', 'matching_heuristics': True}
        path.write_bytes(pickle.dumps(content))
    else:
        save(theirs, path)
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.source, found.semantics, found.architecture) == (
        source,
        'official',
        'res2net101d',
    )
    for key, value in from_folder(tmp_path / 'out').state_dict().items():
        assert torch.equal(value, weights[key])
    found = convert_checkpoint(path, model='res2net101_v1d_26w_4s')
    assert found.semantics == 'mmdet'


# --- Paddle -------------------------------------------------------------------------------------


def test_paddle_as_recorded(tmp_path):
    """A file that paddle.save wrote, and what Paddle 3.3.1 answered:
    tests/fixtures/record_paddle.py."""
    found = convert_checkpoint(FIXTURES / 'paddle.pdparams', tmp_path / 'out')
    assert (found.source, found.semantics) == ('paddle', 'paddle')
    x = torch.from_numpy(values.image())
    expected = torch.tensor(recorded('paddle.json')['logits'])
    with torch.no_grad():
        assert relative_error(from_folder(tmp_path / 'out')(x), expected) < 1e-5
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pdparams', to='paddle')
    theirs, back = (
        read_pdparams(p) for p in (FIXTURES / 'paddle.pdparams', tmp_path / 'back.pdparams')
    )
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_paddles_own_file_under_other_semantics_is_wrong(tmp_path):
    """So the test above can fail."""
    found = convert_checkpoint(FIXTURES / 'paddle.pdparams')
    arguments = {**found.arguments, 'semantics': 'official', 'num_classes': 10}
    model = timm.create_model(found.architecture, **arguments).eval()
    model.load_state_dict(found.model.state_dict())
    expected = torch.tensor(recorded('paddle.json')['logits'])
    with torch.no_grad():
        assert relative_error(model(torch.from_numpy(values.image())), expected) > 0.01


@pytest.mark.parametrize(
    ('name', 'block'),
    [
        ('res2net200_vd_26w_4s', 'bb_2_47.res4b47_branch2b_3._conv.weight'),
        ('res2net50_pd_14w_8s', 'bb_2_5.res4f_branch2b_7._batch_norm._mean'),
    ],
)
def test_paddles_names_of_blocks(name, block, tmp_path):
    """PaddleClas counts the blocks of stage 3 from 101 layers on; before, they go by letters."""
    weights = random_weights(name)
    path = save(weights, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'w.pdparams', to='paddle', model=name)
    assert found.architecture == name
    arrays = read_pdparams(tmp_path / 'w.pdparams')
    assert {block, 'bb_2_0.res4a_branch2b_1._conv.weight'} <= arrays.keys()
    back = convert_checkpoint(tmp_path / 'w.pdparams')
    assert back.architecture == name
    for key, value in back.model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_paddle_detection(tmp_path):
    """Its own names, and a deep stem without the average pool in the shortcut."""

    def names(key: str) -> str:
        path, leaf = key.rsplit('.', 1)
        if path == 'fc' or not path.startswith('layer'):
            part = {'conv1.0': 'conv1_1', 'conv1.3': 'conv1_2', 'conv1.6': 'conv1_3'}
            norm = {'conv1.1': 'conv1_1', 'conv1.4': 'conv1_2', 'bn1': 'conv1_3'}
            if path in part:
                return f'backbone.res1.{part[path]}.conv.{leaf}'
            return f'backbone.res1.{norm[path]}.norm.{bn.get(leaf, leaf)}'
        stage, block, *rest = path.split('.')
        place = f'backbone.res{int(stage[5:]) + 1}.blocks.{block}'
        module, index = rest[0], rest[-1]
        branch = {
            'conv1': 'branch2a', 'bn1': 'branch2a', 'conv3': 'branch2c', 'bn3': 'branch2c',
            'convs': f'branch2b.{index}', 'bns': f'branch2b.{index}', 'downsample': 'branch1',
        }[module]  # fmt: skip
        is_conv = module.startswith('conv') or rest == ['downsample', '0']
        return f'{place}.{branch}.{"conv.weight" if is_conv else "norm." + bn.get(leaf, leaf)}'

    bn = {'running_mean': '_mean', 'running_var': '_variance'}
    weights = random_weights('res2net50_vd_26w_4s', avg_down=False, num_classes=0)
    theirs = respell(weights, names, counted=False)
    arrays = {key: value.numpy() for key, value in theirs.items()}
    content = {**arrays, 'neck.fpn.weight': np.ones(3, np.float32)}
    (tmp_path / 'w.pdparams').write_bytes(pickle.dumps(content, 2))
    found = convert_checkpoint(tmp_path / 'w.pdparams', tmp_path / 'out')
    assert [m.source for m in found.moves if not m.target] == ['neck.fpn.weight']
    reference = Reference(theirs, 'paddle', (3, 4, 6, 3), 4, deep=True, names=names)
    with torch.no_grad():
        got = from_folder(tmp_path / 'out').forward_features(image())
        assert relative_error(got, reference.features(image())) < FLOAT32


# --- the article --------------------------------------------------------------------------------


def article_weights(
    layers=(3, 4, 6, 3), width=16, scales=4, groups=1, num_classes=10, se=True, bias=True, seed=1
) -> dict[str, torch.Tensor]:
    """A state dict of the article's network, in float64, everything in it random."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def uniform(key: str, shape: tuple[int, ...], low: float, high: float) -> None:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        weights[key] = values * (high - low) + low

    def conv(name: str, out: int, into: int, size: int, has_bias: bool) -> None:
        bound = (3 / (into * size * size)) ** 0.5
        uniform(f'{name}.weight', (out, into, size, size), -bound, bound)
        if has_bias:
            uniform(f'{name}.bias', (out,), -0.5, 0.5)

    def norm(name: str, channels: int) -> None:
        for leaf, low, high in (
            ('weight', 0.5, 1.0), ('bias', -0.2, 0.2), ('running_mean', -0.2, 0.2),
            ('running_var', 0.5, 1.5),
        ):  # fmt: skip
            uniform(f'{name}.{leaf}', (channels,), low, high)
        weights[f'{name}.num_batches_tracked'] = torch.tensor(3)

    inside = width * scales
    conv('conv1', inside, 3, 7, False)
    norm('bn1', inside)
    for stage, depth in enumerate(layers):
        planes = width * scales << stage
        middle = planes * groups
        split = middle // scales
        for i in range(depth):
            block = f'layer{stage + 1}.{i}'
            conv(f'{block}.conv1', middle, inside, 1, bias)
            norm(f'{block}.bn1', middle)
            for j in range(scales - 1):
                conv(f'{block}.conv2.{j}', split, split // groups, 3, bias)
                norm(f'{block}.bn2.{j}', split)
            conv(f'{block}.conv3', planes * 4, middle, 1, bias)
            norm(f'{block}.bn3', planes * 4)
            if se:
                conv(f'{block}.se.fc1', planes * 4 // 16, planes * 4, 1, True)
                conv(f'{block}.se.fc2', planes * 4, planes * 4 // 16, 1, True)
            if i == 0:
                conv(f'{block}.downsample.0', planes * 4, inside, 1, bias)
                norm(f'{block}.downsample.1', planes * 4)
            inside = planes * 4
    uniform('fc.weight', (num_classes, inside), -0.1, 0.1)
    uniform('fc.bias', (num_classes,), -0.1, 0.1)
    return weights


def article(weights, x, layers, scales, groups=1) -> torch.Tensor:
    """The article's forward pass in plain loops: first split passes, softmax at the end."""

    def conv(x, name, stride=1, padding=0, groups=1):
        bias = weights.get(f'{name}.bias')
        return F.conv2d(x, weights[f'{name}.weight'], bias, stride, padding, 1, groups)

    def norm(x, name):
        leaves = ('running_mean', 'running_var', 'weight', 'bias')
        return F.batch_norm(x, *(weights[f'{name}.{leaf}'] for leaf in leaves))

    x = F.max_pool2d(norm(conv(x, 'conv1', 2, 3), 'bn1').relu(), 3, 2, 1)
    for stage, depth in enumerate(layers):
        for i in range(depth):
            block, stride = f'layer{stage + 1}.{i}', 2 if stage and i == 0 else 1
            y = norm(conv(x, f'{block}.conv1', stride), f'{block}.bn1').relu()
            xs = y.chunk(scales, 1)
            ys = [xs[0]]
            for j in range(scales - 1):
                z = xs[j + 1] if j == 0 else xs[j + 1] + ys[-1]
                ys.append(
                    norm(conv(z, f'{block}.conv2.{j}', 1, 1, groups), f'{block}.bn2.{j}').relu()
                )
            y = norm(conv(torch.cat(ys, 1), f'{block}.conv3'), f'{block}.bn3')
            if f'{block}.se.fc1.weight' in weights:
                gate = conv(y.mean((2, 3), keepdim=True), f'{block}.se.fc1').relu()
                y = y * conv(gate, f'{block}.se.fc2').sigmoid()
            if i == 0:
                x = norm(conv(x, f'{block}.downsample.0', stride), f'{block}.downsample.1')
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), weights['fc.weight'], weights['fc.bias']).softmax(1)


def test_the_articles_network(tmp_path):
    weights = article_weights()
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    assert (found.source, found.architecture) == ('article', 'res2net50_16w_4s_se')
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', num_classes=10).double().eval()
    model.load_state_dict(load_file(tmp_path / 'out' / 'model.safetensors'))
    x = image(dtype=torch.float64)
    with torch.no_grad():
        expected = article(weights, x, (3, 4, 6, 3), 4)
        assert relative_error(model(x).softmax(1), expected) < 1e-12
        assert relative_error(model(x).log_softmax(1), expected.log()) < 1e-12
    steps = {row[3] for row in found.rows()}
    assert steps == {'', 'first split moved to the end', 'subtracted from the running mean'}
    # and back: the biases are zeros, the numbers the same
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to='article')
    back = torch.load(tmp_path / 'back.pth')
    assert back.keys() == weights.keys() | {'conv1.bias'}
    with torch.no_grad():
        assert relative_error(article(back, x, (3, 4, 6, 3), 4), expected) < 1e-12
    again = convert_checkpoint(tmp_path / 'back.pth').model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in found.model.state_dict().items())


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layers=st.lists(st.integers(1, 2), min_size=4, max_size=4).map(tuple),
    width=st.sampled_from([4, 6, 10]),
    scales=st.integers(2, 5),
    groups=st.sampled_from([1, 2]),
    num_classes=st.integers(1, 4),
    se=st.booleans(),
    bias=st.booleans(),
)
def test_the_articles_options(tmp_path, layers, width, scales, groups, num_classes, se, bias):
    weights = article_weights(layers, width, scales, groups, num_classes, se, bias)
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'))
    assert found.semantics == 'caffe'
    x = image(size=33, dtype=torch.float64)
    with torch.no_grad():
        expected = article(weights, x, layers, scales, groups)
        assert relative_error(found.model.double()(x).softmax(1), expected) < 1e-12


def test_the_articles_network_without_splits(tmp_path):
    weights = {
        k: v for k, v in article_weights().items() if '.conv2.' not in k and '.bn2.' not in k
    }
    with pytest.raises(ValueError, match=r'no 3x3 convolution at all'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_an_odd_stem_is_refused(tmp_path):
    weights = article_weights((1, 1, 1, 1), width=5, scales=3)
    with pytest.raises(ValueError, match=r'channels\[0\]=15 is also the width of the plain stem'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


# --- round trips, and what a layout cannot express ----------------------------------------------

ROUND = {
    'official': 'res2next50',
    'mmpretrain': 'res2net50d',
    'mmdet': 'res2net50_v1d_26w_4s',
    'detectron2': 'res2net50_v1d_26w_4s',
    'paddle': 'res2net50_vd_26w_4s',
    'article': 'res2net50_16w_4s_se',
}


@pytest.mark.parametrize('to', ROUND)
def test_round_trip(to, tmp_path):
    """Every tensor comes back bit for bit."""
    kwargs = {'num_classes': 0} if to in HEADS else {}
    weights = random_weights(ROUND[to], **kwargs)
    path = save(weights, tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'theirs', to=to, model=ROUND[to])
    back = convert_checkpoint(tmp_path / 'theirs')
    assert (back.source, back.architecture) == (to, ROUND[to])
    for key, value in back.model.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize(
    ('name', 'to', 'text'),
    [
        (
            'res2net50_pd_26w_4s',
            'official',
            'semantics are paddle, and official computes official.',
        ),
        ('res2net50_26w_4s', 'mmdet', 'semantics are official, and mmdet computes mmdet.'),
        (
            'res2net50_se',
            'mmpretrain',
            'it has SE modules, which the blocks of mmpretrain have not.',
        ),
        ('res2net50_pd_26w_4s', 'article', 'semantics are paddle, and article computes caffe.'),
    ],
)
def test_what_a_layout_cannot_express(name, to, text, tmp_path):
    path = save(random_weights(name), tmp_path / 'w.pth')
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out', to=to, model=name)
    assert str(error.value) == f'w.pth cannot be written as {to}: its block {text}'.replace(
        'its block it', 'it'
    )
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


def test_widths_that_the_article_has_not(tmp_path):
    model = randomise(timm.create_model('res2net50_16w_4s_se', base_width=26))
    found = convert_checkpoint(save(model.state_dict(), tmp_path / 'w.pth'))
    assert found.architecture == 'res2net50_se'  # the keys do not tell
    save_for_hf(model, tmp_path / 'f', model_args=model.model_args, safe_serialization=True)
    with pytest.raises(ValueError, match="have 104 channels in 4 splits, and the article's 64 in"):
        convert_checkpoint(tmp_path / 'f', to='article')


@pytest.mark.parametrize(
    'changed',
    [
        {'act_layer': 'silu'},
        {'norm_layer': 'groupnorm1'},
        {'global_pool': 'max'},
        {'output_stride': 16},
        {'aa_layer': 'avg'},
        {'replace_stem_pool': True},
    ],
)
def test_what_neither_keys_nor_shapes_tell(changed, tmp_path):
    """Written as another project's, it would be another network there."""
    model = timm.create_model('res2net50_18w_4s', **changed)
    save_for_hf(model, tmp_path / 'f', model_args=model.model_args, safe_serialization=True)
    with pytest.raises(ValueError) as error:
        convert_checkpoint(tmp_path / 'f', to='official')
    assert f'it has another {next(iter(changed))}'.removesuffix('replace_stem_pool') in str(
        error.value
    )


def test_an_attention_that_shapes_do_not_tell(tmp_path):
    weights = random_weights('test_res2net_se', attn_layer='eca')
    with pytest.raises(
        ValueError, match='Its attention is none of SE, and shapes do not tell which'
    ):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_paddle_files_name_numpy_as_numpy_1_did(tmp_path):
    convert_checkpoint(FIXTURES / 'paddle.pdparams', tmp_path / 'f')
    convert_checkpoint(tmp_path / 'f', tmp_path / 'w.pdparams', to='paddle')
    content = (tmp_path / 'w.pdparams').read_bytes()
    assert b'numpy.core.multiarray' in content and b'numpy._core' not in content
    arrays = pickle.loads(content)  # by numpy itself, whichever
    assert arrays['out.weight'].shape == (256, 10)


def test_a_stem_that_a_layout_has_not(tmp_path):
    weights = random_weights('res2net50_v1d_26w_4s', stem_type='')
    model = timm.create_model('res2net50_v1d_26w_4s', stem_type='')
    model.load_state_dict(weights)
    save_for_hf(model, tmp_path / 'f', model_args=model.model_args, safe_serialization=True)
    with pytest.raises(
        ValueError, match=r'cannot be written as mmdet: .* no rule for, 1: conv1.weight\.$'
    ):
        convert_checkpoint(tmp_path / 'f', to='mmdet')


# --- errors, and nothing half-written -----------------------------------------------------------


def tiny() -> dict[str, torch.Tensor]:
    return random_weights('test_res2net_se')


def without(key):
    return lambda weights: weights.pop(key)


def with_(**tensors):
    return lambda weights: weights.update({k.replace('__', '.'): v for k, v in tensors.items()})


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (without('layer3.1.bn3.bias'), 'are left without a value, 1: layer3.1.bn3.bias.'),
        (without('layer2.0.convs.0.weight'), "It has no 'layer2.0.convs.0.weight', which every"),
        (
            with_(layer9__3__odd=torch.ones(1), extra=torch.ones(1)),
            'Keys that the timm table has no rule for, 2: extra, layer9.3.odd.',
        ),
        (
            with_(layer1__0__conv1__weight=torch.ones(24, 63, 1, 1)),
            'shapes do not fit, 1: layer1.0.conv1.weight (24, 63, 1, 1) for (24, 16, 1, 1).',
        ),
        (
            with_(layer1__0__se__fc1__weight=torch.ones(8, 64, 1, 1)),
            'Its SE modules reduce 64 channels to 8; only a reduction to 4 (by 16) can be built.',
        ),
        (
            with_(layer2__0__convs__0__weight=torch.ones(40, 40, 3, 3)),
            'No base_width gives splits of 6 channels to 16 planes, 40 channels to 32 planes',
        ),
        (
            with_(layer1__0__downsample__5__weight=torch.ones(24)),
            'weights have no place in the model, 1: layer1.0.downsample.5.weight.',
        ),
        (
            with_(layer1__0__convs__0__weight=torch.ones(0, 6, 3, 3)),
            "Its 'layer1.0.convs.0.weight' has the shape (0, 6, 3, 3), not 4 sizes of at least 1.",
        ),
        (
            with_(fc__weight=torch.ones(())),
            "Its 'fc.weight' has the shape (), not 2 sizes of at least 1.",
        ),
        (
            with_(layer1__0__conv3__weight=torch.ones(7, 24, 1, 1)),
            "Its 'layer1.0.conv3.weight' has 7 channels, no multiple of 4.",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit(change, text, tmp_path):
    weights = tiny()
    change(weights)
    path = save(weights, tmp_path / 'w.pth')
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out')
    assert str(error.value).startswith(f'{path} does not convert: ')
    assert text in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


def test_the_first_ten_are_listed(tmp_path):
    weights = {**tiny(), **{f'odd{i:02d}': torch.ones(1) for i in range(12)}}
    with pytest.raises(ValueError, match=r'no rule for, 12: odd00, .*, odd09, \.\.\.$'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    path = save(tiny(), tmp_path / 'w.pth')
    monkeypatch.setattr('timm_res2net.checkpoint._readme', fail)
    with pytest.raises(OSError, match='No space left'):
        convert_checkpoint(path, tmp_path / 'out')
    monkeypatch.setitem(__import__('timm_res2net.checkpoint').checkpoints._SAVE, 'official', fail)
    plain = save(random_weights('res2net50_26w_4s'), tmp_path / 'v.pth')
    with pytest.raises(OSError, match='No space left'):
        convert_checkpoint(plain, tmp_path / 'out.pth', to='official')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['v.pth', 'w.pth']


def test_nothing_is_overwritten(tmp_path):
    path = save(tiny(), tmp_path / 'w.pth')
    out = tmp_path / 'out'
    out.mkdir()
    convert_checkpoint(path, out)  # an empty folder is as good as none
    with pytest.raises(
        FileExistsError, match=r'out is there already. Give another name, or remove'
    ):
        convert_checkpoint(path, out)
    with pytest.raises(FileExistsError, match='is there already'):
        convert_checkpoint(out, path, to='official')
    with pytest.raises(FileExistsError, match='is there already'):
        convert_checkpoint(path, out, dry_run=True)
    with pytest.raises(FileNotFoundError, match=r"Cannot write .*: there is no folder '.*/no'"):
        convert_checkpoint(path, tmp_path / 'no' / 'out')


def test_where_a_folder_may_be_made(tmp_path, monkeypatch):
    path = save(tiny(), tmp_path / 'w.pth')
    real = tmp_path / 'real'
    real.mkdir()
    (tmp_path / 'link').symlink_to(real)
    convert_checkpoint(path, tmp_path / 'link')
    assert (real / 'config.json').is_file()
    monkeypatch.chdir(tmp_path)
    convert_checkpoint('w.pth', 'a name with spaces/')
    assert (tmp_path / 'a name with spaces' / 'config.json').is_file()
    empty = tmp_path / 'empty'
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(FileExistsError, match=r'\. is there already'):
        convert_checkpoint(path, '.')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    with pytest.raises(
        OSError, match=r'Cannot write .*/new \(Permission denied\). Give a place in'
    ):
        convert_checkpoint(path, tmp_path / 'new')


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        ({'source': 'keras'}, "Unknown source 'keras'. Use auto, paddle, article, detectron2"),
        ({'to': 'onnx'}, "Unknown layout 'onnx' to write. Use one of paddle, article"),
        ({'model': 'resnet50'}, "'resnet50' is no Res2Net of timm_res2net or timm."),
        (
            {'model': 'res2net50_se'},
            'it has layers=(1, 2, 2, 1) where res2net50_se has (3, 4, 6, 3), channels=(16, 32, 40, '
            '48) where res2net50_se has (64, 128, 256, 512). Use test_res2net_se.',
        ),
        ({'source': 'paddle'}, 'Keys that the paddle table has no rule for, '),
        ({'semantics': 'caffee'}, "Unknown semantics 'caffee'. Use one of official, mmdet, paddle"),
        (
            {'model': 'test_res2net_se', 'semantics': 'paddle'},
            'test_res2net_se computes official, not paddle. Name one of the two.',
        ),
        ({'entry': 'ema'}, "it has no weights in an entry 'ema'. Name none."),
    ],
)
def test_arguments_that_cannot_be(kwargs, text, tmp_path):
    with pytest.raises(ValueError) as error:
        convert_checkpoint(save(tiny(), tmp_path / 'w.pth'), **kwargs)
    assert text in str(error.value)


def test_a_semantics_that_a_source_has_not(tmp_path):
    path = FIXTURES / 'paddle.pdparams'
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, model='res2net50_26w_4s')
    assert str(error.value) == (
        f'{path} does not convert: paddle checkpoints have block semantics paddle, not official, '
        'which res2net50_26w_4s computes. Leave the model out.'
    )


def test_files_and_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'There is no file .*w\.pth\.'):
        convert_checkpoint(tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'is a folder without a config\.json and a model\.saf'):
        convert_checkpoint(tmp_path)


def config(changed: str) -> str:
    """A config.json with a field changed; JSON takes the last of two alike."""
    return (
        f'{{"architecture": "res2net50_se", "num_classes": 10, "pretrained_cfg": {{}}, {changed}}}'
    )


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('{', 'JSONDecodeError'),
        ('{}', 'it lacks architecture, num_classes, pretrained_cfg. Write it anew'),
        ('{"architecture": "vgg11", "pretrained_cfg": {}}', 'it lacks num_classes. Write it anew'),
        ('[]', 'it is list, not an object'),
        (config('"architecture": "vgg11"'), "'vgg11' is no Res2Net of timm_res2net or timm"),
        (config('"architecture": 5'), 'architecture is 5, not a string.'),
        (config('"num_classes": "ten"'), "num_classes is 'ten', not a whole number."),
        (config('"num_classes": true'), 'num_classes is True, not a whole number.'),
        (config('"architecture": null'), 'architecture is None, not a string.'),
        (config('"num_classes": null'), 'num_classes is None, not a whole number.'),
        (config('"pretrained_cfg": null'), 'pretrained_cfg is None, not an object.'),
        (config('"model_args": null'), 'model_args is None, not an object.'),
        (
            config('"pretrained_cfg": {"input_size": [3, 100000, 100000]}'),
            'pretrained_cfg.input_size is [3, 100000, 100000], not channels, height and width, ',
        ),
        (config('"model_args": [1]'), 'model_args is [1], not an object.'),
        (config('"pretrained_cfg": []'), 'pretrained_cfg is [], not an object.'),
        (config('"label_names": ["a"]'), 'it has 1 label_names for 10 classes.'),
        (config('"model_args": {"scale": 0}'), 'ValueError: scale must be a whole'),
        (config('"model_args": {"scales": 4}'), "unexpected keyword argument 'scales'"),
        (
            config('"pretrained_cfg": {"mean": "grey"}'),
            "pretrained_cfg.mean is 'grey', not a list of numbers.",
        ),
        (
            config('"pretrained_cfg": {"input_size": [3, 224]}'),
            'pretrained_cfg.input_size is [3, 224], not channels, height and width, each from 1 to',
        ),
        (
            config('"pretrained_cfg": {"colour": 1}'),
            'timm knows no colour in pretrained_cfg. Remove it.',
        ),
    ],
)
def test_a_folder_with_another_config(content, text, tmp_path):
    save_file(tiny(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=r'config\.json makes no model: ') as error:
        convert_checkpoint(tmp_path)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'semantics'),
    [
        ('res2net50_16w_4s_se', {}, 'caffe'),
        ('test_res2net_se', {'semantics': 'mmdet'}, 'mmdet'),
        ('another_net', {'semantics': 'mmdet'}, 'official'),  # whose arguments they are not
    ],
)
def test_what_train_py_noted_tells_the_semantics(name, kwargs, semantics, tmp_path):
    args = argparse.Namespace(model=name, model_kwargs=kwargs, gp=None, img_size=None)
    weights = tiny() if kwargs else random_weights(name)
    path = save({'arch': name, 'args': args, 'state_dict': weights}, tmp_path / 'c.pth')
    assert convert_checkpoint(path).semantics == semantics
    assert convert_checkpoint(path, semantics='paddle').semantics == 'paddle'


def test_a_folder_names_its_model(tmp_path):
    convert_checkpoint(save(tiny(), tmp_path / 'w.pth'), tmp_path / 'out')
    with pytest.raises(ValueError, match=r'names the model. Leave model and semantics out\.'):
        convert_checkpoint(tmp_path / 'out', model='test_res2net_se')


@pytest.mark.parametrize(
    ('keys', 'text'),
    [
        (['layer1.0.conv2.weight'], "It is a ResNet's: its blocks have one 3x3 convolution"),
        (
            ['encoder.weight'],
            r"None of its keys is a Res2Net's of paddle, .* \(1: encoder\.weight\)",
        ),
    ],
)
def test_checkpoints_of_no_known_source(keys, text):
    with pytest.raises(ValueError, match=text):
        recognise(keys)


# --- what a file may be -------------------------------------------------------------------------


class Trap:
    """A pickle that calls something as it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, path.parent / 'out')
    text = str(error.value)
    assert text.startswith(f'Cannot read {path} as a checkpoint: ')
    assert {p.name for p in path.parent.iterdir()} == {path.name}  # no trap sprang, nothing written
    return text


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    ('function', 'name'),
    [
        (os.system, f'{os.name}.system'),
        (eval, 'eval'),
        (__import__, '__import__'),
    ],
)
def test_a_torch_file_that_wants_to_run_something(function, name, legacy, tmp_path):
    argument = f'touch {tmp_path}/trap' if function is os.system else '__import__("os")'
    content = {'state_dict': tiny(), 'hook': Trap(function, argument)}
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    text = refused(path)
    assert f"{name}', which no weights need." in text and "it wants to load '" in text
    assert 'Nothing in it was run. If you trust where it comes from, load it there' in text


@pytest.mark.parametrize('function', [os.system, eval, getattr, np.load])
def test_a_pickle_that_wants_to_run_something(function, tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': Trap(function, f'touch {tmp_path}/trap')}))
    assert f".{function.__name__}', which is no part of a dictionary of arrays." in refused(path)


def rewrite(path: Path, compression: int, repeat: int = 1) -> None:
    """A torch archive with its entries compressed, or pointing at the same bytes many times."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if repeat > 1:
            last = max(archive.infolist(), key=lambda info: info.file_size)
            for i in range(repeat):
                twin = zipfile.ZipInfo(f'{last.filename}-{i}')
                for field in ('header_offset', 'CRC', 'compress_size', 'file_size'):
                    setattr(twin, field, getattr(last, field))
                archive.filelist.append(twin)


def test_zip_bombs(tmp_path):
    path = tmp_path / 'w.pth'
    save({'a': torch.zeros(1_000_000)}, path)
    rewrite(path, zipfile.ZIP_DEFLATED)
    assert 'is compressed, which torch never does.' in refused(path)
    save({'a': torch.zeros(10_000)}, path)
    rewrite(path, zipfile.ZIP_STORED, repeat=20)
    assert 'its entries claim ' in refused(path)


def end_records(content: bytes) -> tuple[bytes, bytes]:
    """A zip file before its end record, and that record."""
    return content[:-22], content[-22:]


def test_a_zip_file_with_two_directories(tmp_path):
    """Python takes the one before the end record, torch the one that the record points to."""
    path = save({'a': torch.zeros(10)}, tmp_path / 'w.pth')
    rewrite(path, zipfile.ZIP_STORED)
    harmless = path.read_bytes()
    save({'a': torch.zeros(1_000_000)}, path)
    rewrite(path, zipfile.ZIP_DEFLATED)
    bomb = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    body, end = end_records(harmless)
    # ... and the harmless archive behind the bomb, with the bomb's directory in its record
    record = bytearray(end)
    record[8:10] = record[10:12] = count.to_bytes(2, 'little')
    record[16:20] = start.to_bytes(4, 'little')
    path.write_bytes(bomb[:-22] + body + bytes(record))
    assert 'its end is not as torch writes it. Download it again.' in refused(path)
    path.write_bytes(harmless)
    with pytest.raises(ValueError, match='does not convert'):  # it reads
        convert_checkpoint(path)
    path.write_bytes(harmless + b'more')
    assert 'Download it again.' in refused(path)


@pytest.mark.parametrize('kind', ['optimizer', 'scalar'])
def test_what_training_scripts_keep_beside_the_weights(kind, tmp_path):
    if kind == 'optimizer':  # torchvision's and PyTorch's examples keep a tensor, too
        content = {'epoch': 3, 'state_dict': tiny(), 'best_acc1': torch.tensor(0.5)}
        assert convert_checkpoint(save(content, tmp_path / 'w.pth')).file['entry'] == 'state_dict'
    else:
        path = save({'state_dict': tiny(), 'best': np.float64(0.5)}, tmp_path / 'w.pth')
        text = refused(path)
        assert "scalar', which no weights need. Nothing in it was run." in text
        assert 'weights_only' not in text


def test_an_average_of_models(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(randomise(timm.create_model('test_res2net_se')))
    path = save({'model_ema': average.state_dict(), 'model': zeros(tiny())}, tmp_path / 'w.pth')
    found = convert_checkpoint(path)
    assert found.file['entry'] == 'model_ema'
    for key, value in average.module.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[key])


def test_mmengines_ema_entry_is_not_the_average(tmp_path):
    """MMEngine swaps the two as it saves: the averaged weights stand in state_dict."""
    content = {'state_dict': tiny(), 'ema_state_dict': {'steps': torch.tensor(3), **zeros(tiny())}}
    assert convert_checkpoint(save(content, tmp_path / 'w.pth')).file['entry'] == 'state_dict'


def test_keys_that_are_no_names(tmp_path):
    path = save({0: torch.ones(1)}, tmp_path / 'w.pth')
    assert 'it has keys of int, not of names.' in refused(path)


def test_an_array_of_numbers_that_torch_has_not(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': np.ones(3, np.longdouble)}, 2))
    assert "the entry 'a' is f16, not floating-point numbers." in refused(path)


def test_tensors_that_claim_more_than_there_is(tmp_path):
    path = save({'a': torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / 'w.pth')
    assert "the entry 'a' claims (1048576, 1048576) and has memory for less." in refused(path)


def test_a_damaged_file(tmp_path):
    path = save(tiny(), tmp_path / 'w.pth')
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    assert 'File is not a zip file. Download it again.' in refused(path)
    torch.save(tiny(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])
    assert 'Download it again.' in refused(path)
    save_file(tiny(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert 'Download it again.' in refused(path)
    path.write_bytes(b'')
    assert 'it is empty. Download it again.' in refused(path)


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        (b'<!DOCTYPE html><html>', "it begins with b'<!DOCTYPE html><', as no safetensors, .pth"),
        (b'\x89PNG\r\n\x1a\n' + bytes(99), 'it begins with '),
        (pickle.dumps([1, 2]), 'it holds list, not a dict.'),
        (
            pickle.dumps({'epoch': 3}),
            'none of its entries (epoch) holds weights. Looked for state_',
        ),
        (
            pickle.dumps({'a': np.ones(3, np.int32), 'b': np.ones(2)}),
            "the entry 'a' is int32, not floating-point numbers.",
        ),
    ],
)
def test_a_file_of_another_kind(content, text, tmp_path):
    path = tmp_path / 'w.bin'
    path.write_bytes(content)
    assert text in refused(path)


@pytest.mark.filterwarnings('ignore:Validating sparse tensor')  # torch, of sparse tensors
@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ([torch.ones(1)], 'it holds list, not a state dict. Save `model.state_dict()`, not the'),
        ({'optimizer': {'lr': 1}}, 'none of its entries (optimizer) holds weights.'),
        ({'a': torch.ones(2), 'lr': 0.1}, "the entry 'lr' is float, not a tensor."),
        (
            {'a': torch.ones(2, dtype=torch.int64)},
            "the entry 'a' is a torch.strided tensor of torch",
        ),
        ({'a': torch.ones(2, 2).to_sparse()}, "the entry 'a' is a torch.sparse_coo tensor of"),
    ],
)
def test_a_torch_file_of_another_kind(content, text, tmp_path):
    assert text in refused(save(content, tmp_path / 'w.pth'))


def test_a_torchscript_archive(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / 'w.pt'))
    assert 'Cannot read' in refused(tmp_path / 'w.pt')


def test_a_whole_model_is_refused(tmp_path):
    path = tmp_path / 'w.pth'
    torch.save(timm.create_model('test_res2net_se'), path)
    assert "it wants to load 'timm_res2net.models.res2net_zoo.Res2Net'" in refused(path)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_floats_are_widened(dtype, tmp_path):
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tiny().items()
    }
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.file['widened'] == sum(v.is_floating_point() for v in weights.values())
    with safe_open(tmp_path / 'out' / 'model.safetensors', 'pt') as stored:
        for key, value in weights.items():
            assert stored.get_tensor(key).dtype in (torch.float32, torch.int64)
            assert torch.equal(stored.get_tensor(key).to(value.dtype), value)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    ('wrap', 'entry'),
    [
        (lambda w: w, ''),
        (lambda w: {f'module.{k}': v for k, v in w.items()}, ''),
        (lambda w: {f'_orig_mod.module.{k}': v for k, v in w.items()}, ''),
        (lambda w: {'state_dict': w, 'optimizer': {'state': {0: torch.ones(3)}}}, 'state_dict'),
        (lambda w: {'model': w, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)}, 'model'),
        (lambda w: {'state_dict': zeros(w), 'state_dict_ema': w}, 'state_dict_ema'),
        (lambda w: {'net': {f'module.{k}': v for k, v in w.items()}}, 'net'),
    ],
)
def test_what_wraps_weights(wrap, entry, legacy, tmp_path):
    weights = tiny()
    path = tmp_path / 'w.pth'
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=not legacy)
    found = convert_checkpoint(path)
    assert found.file['entry'] == entry
    assert found.file['format'] == ('torch (legacy)' if legacy else 'torch')
    for key, value in found.model.state_dict().items():
        assert torch.equal(value, weights[key])


def zeros(weights):
    return {key: torch.zeros_like(value) for key, value in weights.items()}


def test_an_entry_by_name(tmp_path):
    path = save({'state_dict': zeros(tiny()), 'state_dict_ema': tiny()}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, entry='state_dict')
    assert not any(value.any() for value in found.model.state_dict().values())
    with pytest.raises(ValueError, match=r"an entry 'x'. Use one of state_dict, state_dict_ema\."):
        convert_checkpoint(path, entry='x')


def test_a_key_that_only_contains_a_prefix_keeps_it(tmp_path):
    weights = {**tiny(), 'layer1.0.module.weight': torch.ones(1)}
    with pytest.raises(ValueError, match=r'no rule for, 1: layer1\.0\.module\.weight'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_every_source_has_its_sentences():
    assert set(SOURCES) == {
        'official', 'mmpretrain', 'mmdet', 'detectron2', 'paddle', 'article', 'timm',
    }  # fmt: skip
    assert all(source.licence.endswith('.') for source in SOURCES.values())
    assert {s for source in SOURCES.values() for s in source.semantics} == {
        'official', 'mmdet', 'paddle', 'caffe',
    }  # fmt: skip


def test_a_readme_says_what_it_was_made_from(tmp_path):
    import hashlib

    path = save(tiny(), tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'my_net')
    text = (tmp_path / 'my_net' / 'README.md').read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert f'{path.stat().st_size:,} bytes' in text
    assert '# my_net' in text
    assert "timm.create_model('local-dir:my_net', pretrained=True)" in text
    assert '| `layer{stage}.{block}.se.*.*`' in text
    assert 'The converter cannot tell who published the file.' in text
    assert text.startswith('---\n')
    convert_checkpoint(tmp_path / 'my_net', tmp_path / 'again')
    assert 'made from a folder: see' in (tmp_path / 'again' / 'README.md').read_text()
