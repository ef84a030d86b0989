"""Sources: the files of each give its own outputs."""

import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from tests.common import TIMMS, Reference, image, randomise, relative_error, slow_except
from tests.convert.helpers import FIXTURES, random_weights, save
from tests.convert.references import Article, Detectron2, MaskRCNN, MMDet, PaddleDetection
from tests.fixtures import record_mindcv, values
from timm_res2net import convert_checkpoint, reparameterize_model
from timm_res2net.convert import (
    SOURCES,
    apply_rules,
    find_network,
    infer_arguments,
    read_checkpoint,
    recognise,
    sources,
    undo_rules,
)
from timm_res2net.convert.keys import without_counters
from timm_res2net.convert.mindspore import dump_ckpt
from timm_res2net.convert.published import FILES, PUBLISHERS, licenses_table, published_table
from timm_res2net.layers.semantics import SEMANTICS

# float32; the references fold BatchNorm differently and have up to 150 layers to do so
FLOAT32 = 2e-4
# Layers of a network that has every kind of block. The whole networks take minutes.
LAYERS = (1, 2, 1, 1)
SIZES = pytest.mark.parametrize(
    'whole', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['small', 'whole']
)


def shortened(whole: bool) -> dict[str, Any]:
    """Arguments that make a named network small unless it is to be whole."""
    return {} if whole else {'layers': LAYERS}


def from_folder(path: Path, **kwargs) -> nn.Module:
    return timm.create_model(f'local-dir:{path}', pretrained=True, **kwargs).eval()


def respell(weights, names, counted: bool = True) -> dict[str, torch.Tensor]:
    return {
        names(key): value
        for key, value in weights.items()
        if counted or not key.endswith('num_batches_tracked')
    }


@SIZES
@pytest.mark.parametrize('name', slow_except(['res2net50_26w_8s', 'res2net50d'], TIMMS))
def test_official_files_give_timms_numbers(name, whole, tmp_path):
    """The authors' files have timm's keys: v1, v1b (timm's d), Res2NeXt."""
    model = randomise(timm.create_model(name, **shortened(whole))).eval()
    found = convert_checkpoint(save(model.state_dict(), tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.notes.source == 'official'
    assert found.config.architecture == name or not whole
    x = image()
    with torch.no_grad():
        assert torch.equal(from_folder(tmp_path / 'out')(x), model(x))
        # and by this package's network, which shares no code with timm's block
        own: Any = timm.create_model('res2net50_18w_4s', **infer_arguments(model.state_dict()))
        own.load_state_dict(found.net.state_dict())
        assert torch.equal(own.eval()(x), model(x))
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert 'num_classes' not in config.get('model_args', {})
    assert config['num_classes'] == 1000
    assert config['pretrained_cfg'].get('license') is None


def test_every_registered_tag_loads_the_file_of_the_table():
    tags = [tag for file in FILES for tag in file.tags]
    assert len({file.file for file in FILES}) == len(FILES)
    assert len(set(tags)) == len(tags) == 25
    for file in FILES:
        assert file.source in SOURCES
        assert file.license in ('apache-2.0', 'unknown') and file.license_source
        assert PUBLISHERS[file.by].figures or not file.accuracy
        assert file.hash in file.file
        for tag in file.tags:
            cfg = timm.models.get_pretrained_cfg(tag)
            assert (cfg.url or f'https://huggingface.co/{cfg.hf_hub_id}') == file.url
            assert cfg.license == file.license
            assert cfg.origin_url == PUBLISHERS[file.by].origin_url
            assert file.top1 is not None


def test_the_readme_has_the_tables_of_published_files():
    readme = (Path(sources.__file__).parents[1] / 'README.md').read_text()
    assert published_table() in readme
    assert licenses_table() in readme


def a_network(name: str, **kwargs) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arguments and state dict of a registered model, without memory."""
    model: Any = timm.create_model(name, device='meta', **kwargs)
    tensors = model.state_dict()
    semantics = model.model_args['semantics'] if hasattr(model, 'model_args') else 'official'
    return {**infer_arguments(tensors), 'semantics': semantics}, tensors


@pytest.mark.parametrize(
    ('name', 'kwargs', 'to', 'words'),
    [
        ('res2net50_26w_4s', {}, 'official', ''),
        ('res2net50_pd_26w_4s', {}, 'official', 'semantics are paddle, and official computes'),
        ('res2net50_26w_4s', {}, 'mmdet', 'semantics are official, and mmdet computes mmdet'),
        ('res2net50_se', {}, 'timm', ''),
        ('res2net50_se', {}, 'mmpretrain', 'SE modules, which the blocks of mmpretrain do not'),
        ('res2net50_pd_26w_4s', {}, 'paddle', ''),
        ('res2net50_pd_26w_4s', {}, 'article', 'semantics are paddle, and article computes caffe'),
        ('res2net50_16w_4s_se', {}, 'article', ''),
        ('res2net50_16w_4s_se', {}, '4uiiurz1', ''),
        ('res2net50_16w_4s_se', {'in_chans': 1}, '4uiiurz1', 'takes 1 channels, and the stem'),
        ('res2net50_16w_4s_se', {'num_classes': 0}, 'article', 'no classifier'),
        (
            'res2net50_16w_4s_se',
            {'channels': (64, 128, 192, 256)},
            'article',
            '(64, 128, 192, 256), and there they double',
        ),
        ('res2net50_16w_4s_se', {'base_width': 16.2}, 'article', 'stage 4 have 516 channels'),
        ('res2net50_16w_4s_se', {'base_width': 26}, 'article', '104 channels in 4 splits'),
        ('res2net50_16w_4s_se', {'scale': 1, 'base_width': 64}, 'article', 'in at least 2'),
        ('res2net50_14w_8s', {}, 'mindcv', ''),
        ('res2net152d', {}, 'mindcv', ''),
        ('res2next50', {}, 'mindcv', 'its convolutions have groups'),
        ('res2net_custom', {'channels': (32, 64, 128, 256)}, 'mindcv', '(32, 64, 128, 256)'),
        ('res2net_custom', {'avg_down': True}, 'mindcv', 'neither those of the plain network'),
        ('res2net152d', {'stem_width': 16}, 'mindcv', 'neither those of the plain network'),
    ],
)
def test_networks_that_a_source_cannot_express(name, kwargs, to, words):
    arguments, tensors = a_network(name, **kwargs)
    reason = SOURCES[to].refuse(arguments, tensors)
    assert words in reason
    assert bool(reason) == bool(words)


@pytest.mark.parametrize('name', SOURCES)
def test_a_saved_file_is_recognised(name, tmp_path):
    """Whatever a source saves, its reader finds."""
    weights = tiny_as(name)
    with open(tmp_path / 'w', 'wb') as file:
        SOURCES[name].save(weights, file)
    found = read_checkpoint(tmp_path / 'w')
    network = find_network(found.values)
    assert network.source == name
    assert network.keys.keys() == weights.keys()
    tensors = found.take(network.keys.values())
    assert all(torch.equal(tensors[network.keys[key]], weights[key]) for key in weights)


def tiny_as(name: str) -> dict[str, torch.Tensor]:
    """A tiny network in a source's layout."""
    source = SOURCES[name]
    detector = name in ('mmdet', 'detectron2')
    weights = random_weights(
        'test_res2net_se',
        semantics=source.semantics[0],
        attn_layer='se' if source.has_se else '',
        num_classes=0 if detector or name == 'maskrcnn' else 7,
        **dict(stem_type='deep', stem_width=8, avg_down=True, down_kernel_size=1)
        if detector
        else {},
    )
    if not source.counts_batches:
        weights = without_counters(weights)
    return undo_rules(weights, source.rules(weights), name)


@SIZES
def test_v1b_152(whole, tmp_path):
    weights = random_weights('res2net152d', **shortened(whole))
    wrapped = {f'module.{key}': value for key, value in weights.items()}
    found = convert_checkpoint(save({'state_dict': wrapped}, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.config.architecture == 'res2net152d' or not whole
    assert found.notes.entry == 'state_dict'
    layers = (3, 8, 36, 3) if whole else LAYERS
    reference = Reference(weights, 'official', layers, 4, deep=True, avg_down=True)
    with torch.no_grad():
        assert relative_error(from_folder(tmp_path / 'out')(image()), reference(image())) < FLOAT32


def recorded(file: str) -> dict:
    return json.loads((FIXTURES / file).read_text())


@pytest.mark.parametrize('name', slow_except(['deep'], ['plain', 'deep', 'scales 8']))
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
    assert found.notes.source == 'mmpretrain'
    named = {'plain': 'res2net50_26w_4s', 'deep': 'res2net50d', 'scales 8': 'res2net50_14w_8s'}
    assert found.config.architecture == named[name]
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


@SIZES
def test_mmdetections_backbones(whole, tmp_path):
    weights = random_weights('res2net101_v1d_26w_4s', num_classes=0, **shortened(whole))
    theirs = respell(weights, mmdet_name)
    heads = {key: torch.ones(2) for key in HEADS['mmdet']}
    path = save({'state_dict': {**theirs, **heads}, 'iteration': 7}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == ('mmdet', 'mmdet')
    assert found.config.architecture == 'res2net101_v1d_26w_4s' or not whole
    assert sorted(found.notes.left_out) == sorted(heads)
    layers = (3, 4, 23, 3) if whole else LAYERS
    for kwargs in (
        {},
        {'strides': (1, 2, 2, 1), 'dilations': (1, 1, 1, 2), 'output_stride': 16},
        {'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, 4), 'output_stride': 8},
    ):
        stride = {'output_stride': kwargs.pop('output_stride')} if kwargs else {}
        reference = MMDet(layers, **kwargs)
        reference.load_state_dict(without_prefix(theirs, 'backbone.'))
        assert_same_levels(tmp_path / 'out', reference, **stride)


def without_prefix(weights, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def assert_same_levels(folder: Path, reference: nn.Module, **kwargs) -> None:
    """A converted folder answers as another project's network at every level, in evaluation and in
    training, and deployed."""
    kwargs = {'features_only': True, 'out_indices': (1, 2, 3, 4), **kwargs}
    for training in (False, True):
        ours = from_folder(folder, **kwargs).train(training)
        theirs = copy.deepcopy(reference).train(training)
        with torch.no_grad():
            levels = list(zip(ours(image(4)), theirs(image(4)), strict=True))
        assert len(levels) == 4
        for got, expected in levels:
            assert relative_error(got, expected) < FLOAT32
    deployed = reparameterize_model(from_folder(folder, **kwargs))
    with torch.no_grad():
        for got, expected in zip(deployed(image()), reference.eval()(image()), strict=True):
            assert relative_error(got, expected) < FLOAT32


@pytest.mark.parametrize('res5_dilation', [1, 2])
@SIZES
def test_detectron2s_detectors(whole, res5_dilation, tmp_path):
    """The numbers of Res2Net-detectron2, which strides in conv1, not those of MMDetection."""
    layers = (3, 4, 23, 3) if whole else LAYERS
    reference = randomise(Detectron2(layers, res5_dilation=res5_dilation))
    theirs = respell(reference.state_dict(), 'backbone.bottom_up.{}'.format, counted=False)
    heads = {key: torch.ones(2) for key in HEADS['detectron2']}
    path = save({'model': {**theirs, **heads}, 'iteration': 7}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == ('detectron2', 'detectron2')
    assert sorted(found.notes.left_out) == sorted(heads)
    stride = {'output_stride': 16} if res5_dilation == 2 else {}
    assert_same_levels(tmp_path / 'out', reference, **stride)
    if res5_dilation == 1:
        convert_checkpoint(path, tmp_path / 'mmdet', semantics='mmdet')
        with pytest.raises(AssertionError):  # what such a file was read as
            assert_same_levels(tmp_path / 'mmdet', reference)


def test_mmpretrain_with_the_style_of_caffe(tmp_path):
    """The keys do not tell it. It computes what Res2Net-maskrcnn computes."""
    reference = randomise(MaskRCNN(LAYERS, norm=nn.BatchNorm2d))
    theirs = respell(reference.state_dict(), lambda key: f'backbone.{key.removeprefix("stem.")}')
    path = save({'state_dict': theirs}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out', semantics='maskrcnn')
    assert (found.notes.prefix, found.config.semantics) == ('backbone.', 'maskrcnn')
    assert_same_levels(tmp_path / 'out', reference)
    assert convert_checkpoint(path).config.semantics == 'official'


@pytest.mark.parametrize(('width', 'scale'), slow_except([(26, 4)], [(26, 4), (48, 2), (14, 8)]))
def test_res2net_maskrcnn(width, scale, tmp_path):
    reference = randomise(MaskRCNN(LAYERS, width, scale))
    generator = torch.Generator().manual_seed(3)
    for name, value in reference.named_buffers():  # of a frozen BatchNorm everything is a buffer
        low = 0.3 if name.endswith(('weight', 'var')) else -0.2
        value.uniform_(low, low + 0.4, generator=generator)
        if name.endswith('var'):
            value[0] = 2e-5  # a channel whose variance is near the eps that the others add
    theirs = respell(reference.state_dict(), 'module.backbone.body.{}'.format)
    heads = ('module.backbone.fpn.fpn_inner1.bias', 'module.rpn.head.conv.bias')
    theirs = {**theirs, **dict.fromkeys(heads, torch.ones(2))}
    path = save({'model': theirs, 'iteration': 7}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == ('maskrcnn', 'maskrcnn')
    ours = from_folder(tmp_path / 'out', features_only=True, out_indices=(1, 2, 3, 4))
    x = image()
    with torch.no_grad():
        expected = reference(x)
        for model in (ours, reparameterize_model(ours)):
            for got, level in zip(model(x), expected, strict=True):
                assert relative_error(got, level) < FLOAT32
    # in training theirs is frozen; the blocks are compared with a BatchNorm that trains
    trained = randomise(MaskRCNN(LAYERS, width, scale, nn.BatchNorm2d))
    save({'model': trained.state_dict()}, tmp_path / 'trained.pth')
    convert_checkpoint(tmp_path / 'trained.pth', tmp_path / 'trained')
    own = from_folder(tmp_path / 'trained', features_only=True, out_indices=(1, 2, 3, 4)).train()
    with torch.no_grad():
        for got, level in zip(own(image(4)), trained.train()(image(4)), strict=True):
            assert relative_error(got, level) < FLOAT32
    # and back
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to='maskrcnn')
    back = torch.load(tmp_path / 'back.pth')['model']
    reference.load_state_dict(back)
    with torch.no_grad():
        for got, level in zip(reference(x), expected, strict=True):
            assert relative_error(got, level) < FLOAT32


@SIZES
@pytest.mark.parametrize('source', HEADS)
def test_a_backbone_that_still_is_the_authors_classifier(source, whole, tmp_path):
    """Their converters rename v1b files, classifier included: trained as `official`."""
    name = {'mmdet': mmdet_name, 'detectron2': detectron2_name}[source]
    weights = random_weights('res2net101d', **shortened(whole))
    theirs = respell(weights, lambda key: name(key, ''))
    path = tmp_path / 'w.pkl'
    if source == 'detectron2':
        arrays = {key: value.numpy() for key, value in theirs.items()}
        content = {'model': arrays, '__author__': 'torchvision', 'matching_heuristics': True}
        path.write_bytes(pickle.dumps(content))
    else:
        save(theirs, path)
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == (source, 'official')
    assert found.config.architecture == 'res2net101d' or not whole
    for key, value in from_folder(tmp_path / 'out').state_dict().items():
        assert torch.equal(value, weights[key])
    named = {'model': 'res2net101_v1d_26w_4s'} if whole else {'semantics': 'mmdet'}
    assert convert_checkpoint(path, **named).config.semantics == 'mmdet'


def test_paddle_as_recorded(tmp_path):
    """A file that paddle.save wrote, and what Paddle 3.3.1 answered:
    tests/fixtures/record_paddle.py."""
    found = convert_checkpoint(FIXTURES / 'paddle.pdparams', tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == ('paddle', 'paddle')
    x = torch.from_numpy(values.image())
    expected = torch.tensor(recorded('paddle.json')['logits'])
    with torch.no_grad():
        assert relative_error(from_folder(tmp_path / 'out')(x), expected) < 1e-5
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pdparams', to='paddle')
    theirs, back = (
        read_checkpoint(p).tensors
        for p in (FIXTURES / 'paddle.pdparams', tmp_path / 'back.pdparams')
    )
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_paddles_own_file_under_other_semantics_is_wrong(tmp_path):
    """So the test above can fail."""
    found = convert_checkpoint(FIXTURES / 'paddle.pdparams')
    arguments = {**found.config.model_args, 'semantics': 'official', 'num_classes': 10}
    model = timm.create_model(found.config.architecture, **arguments).eval()
    model.load_state_dict(found.net.state_dict())
    expected = torch.tensor(recorded('paddle.json')['logits'])
    with torch.no_grad():
        assert relative_error(model(torch.from_numpy(values.image())), expected) > 0.01


def assert_as_mindcv(model: Any, case: dict) -> None:
    """The model gives MindCV's logits and features, within the rounding of float32."""
    x = torch.from_numpy(values.image(1, record_mindcv.SIZE))
    with torch.no_grad():
        assert relative_error(model.eval()(x), torch.tensor(case['logits'])) < 1e-5
        _, levels = model.forward_intermediates(x)
    for level, expected in zip(levels[1:], case['levels'], strict=True):
        some = level[0, :: level.shape[1] // 8, ::3, ::3]
        assert relative_error(some, torch.tensor(expected)) < 1e-5


@pytest.mark.parametrize('file', ['mindcv.ckpt', 'mindcv_v1b.ckpt'])
def test_mindcv_as_recorded(file, tmp_path):
    """A file that mindspore.save_checkpoint wrote, and what MindCV 0.3.0 answered:
    tests/fixtures/record_mindcv.py."""
    found = convert_checkpoint(FIXTURES / file, tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == ('mindcv', 'official')
    assert_as_mindcv(from_folder(tmp_path / 'out'), recorded('mindcv.json')['files'][file])
    # and back; MindCV's constructor has no narrow networks
    source, state_dict = SOURCES['mindcv'], without_counters(found.net.state_dict())
    back = undo_rules(state_dict, source.rules(state_dict), 'mindcv')
    theirs = read_checkpoint(FIXTURES / file).tensors
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize('file', ['mindcv.ckpt', 'mindcv_v1b.ckpt'])
def test_mindcvs_own_file_under_other_semantics_is_wrong(file):
    """So the test above can fail."""
    found = convert_checkpoint(FIXTURES / file)
    case = recorded('mindcv.json')['files'][file]
    for semantics in SEMANTICS.keys() - {'official'}:
        arguments = {**found.config.model_args, 'semantics': semantics, 'num_classes': 10}
        model = timm.create_model(found.config.architecture, **arguments)
        model.load_state_dict(found.net.state_dict())
        with pytest.raises(AssertionError):
            assert_as_mindcv(model, case)


@pytest.mark.parametrize(
    ('theirs', 'timms', 'ours'),
    [
        ('res2net50', 'res2net50_26w_4s', 'res2net50_ms_26w_4s'),
        ('res2net50_v1b', 'res2net50d', 'res2net50d_ms_26w_4s'),
        pytest.param(
            'res2net101', 'res2net101_26w_4s', 'res2net101_ms_26w_4s', marks=pytest.mark.slow
        ),
        pytest.param(
            'res2net101_v1b', 'res2net101d', 'res2net101d_ms_26w_4s', marks=pytest.mark.slow
        ),
    ],
)
def test_mindcvs_published_networks(theirs, timms, ours, tmp_path):
    """Whole, in the files that `--to mindcv` writes: the names and shapes are MindCV's own."""
    case = recorded('mindcv.json')['whole'][theirs]
    model = timm.create_model(timms, num_classes=10)
    save(model.state_dict(), tmp_path / 'w.pth')
    convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'w.ckpt', to='mindcv')
    shapes_of = {k: tuple(v.shape) for k, v in read_checkpoint(tmp_path / 'w.ckpt').tensors.items()}
    names = '\n'.join(f'{key} {shape}' for key, shape in sorted(shapes_of.items()))
    assert hashlib.sha256(names.encode()).hexdigest() == case['names_sha256']
    weights = {k: torch.from_numpy(values.values(k, shape)) for k, shape in shapes_of.items()}
    with open(tmp_path / 'w.ckpt', 'wb') as file:
        dump_ckpt(weights, file)
    found = convert_checkpoint(tmp_path / 'w.ckpt')
    assert found.config.architecture == timms
    assert_as_mindcv(found.net, case)
    overlay = {'file': str(tmp_path / 'w.ckpt'), 'num_classes': 10}
    assert_as_mindcv(timm.create_model(ours, True, pretrained_cfg_overlay=overlay), case)


def test_jittors_files(tmp_path):
    """Pickled arrays under the authors' keys, with a checksum and a mark behind the pickle."""
    model = randomise(timm.create_model('res2net50_26w_4s', layers=LAYERS)).eval()
    weights = without_counters(model.state_dict())
    pickled = pickle.dumps({key: value.numpy() for key, value in weights.items()}, 4)
    path = tmp_path / 'res2net50_26w_4s.pkl'
    path.write_bytes(pickled + hashlib.sha1(pickled).digest() + b'HCAJSLHD')
    found = convert_checkpoint(path)
    assert (found.notes.source, found.config.semantics) == ('official', 'official')
    with torch.no_grad():
        assert torch.equal(found.net(image()), model(image()))


BLOCKS = pytest.mark.parametrize(
    ('name', 'block'),
    [
        ('res2net200_vd_26w_4s', 'bb_2_47.res4b47_branch2b_3._conv.weight'),
        ('res2net50_pd_14w_8s', 'bb_2_5.res4f_branch2b_7._batch_norm._mean'),
    ],
)


@BLOCKS
def test_paddles_names_of_blocks(name, block):
    """PaddleClas counts the blocks of stage 3 from 101 layers on; before, they go by letters."""
    weights = without_counters(timm.create_model(name, device='meta').state_dict())
    rules = SOURCES['paddle'].rules(weights)
    theirs = undo_rules(weights, rules, 'paddle')
    assert {block, 'bb_2_0.res4a_branch2b_1._conv.weight'} <= theirs.keys()
    assert recognise(theirs) == 'paddle'
    back = apply_rules(theirs, SOURCES['paddle'].rules(theirs), 'paddle').tensors
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in weights.items()}


@pytest.mark.slow
@BLOCKS
def test_paddles_whole_files(name, block, tmp_path):
    weights = random_weights(name)
    path = save(weights, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'w.pdparams', to='paddle', model=name)
    assert found.config.architecture == name
    arrays = read_checkpoint(tmp_path / 'w.pdparams').tensors
    assert {block, 'bb_2_0.res4a_branch2b_1._conv.weight'} <= arrays.keys()
    back = convert_checkpoint(tmp_path / 'w.pdparams')
    assert back.config.architecture == name
    for key, value in back.net.state_dict().items():
        assert torch.equal(value, weights[key])


@SIZES
@pytest.mark.parametrize('variant', ['b', 'd'])
def test_paddle_detection(variant, whole, tmp_path):
    """Its own names, and a deep stem without the average pool in the shortcut."""
    reference = randomise(PaddleDetection((3, 4, 6, 3) if whole else LAYERS, variant))
    paddles = {'running_mean': '_mean', 'running_var': '_variance'}

    def names(key: str) -> str:
        path, leaf = key.rsplit('.', 1)
        return f'backbone.{path}.{paddles.get(leaf, leaf)}'

    theirs = respell(reference.state_dict(), names, counted=False)
    arrays = {key: value.numpy() for key, value in theirs.items()}
    content = {**arrays, 'neck.fpn.weight': np.ones(3, np.float32)}
    (tmp_path / 'w.pdparams').write_bytes(pickle.dumps(content, 2))
    found = convert_checkpoint(tmp_path / 'w.pdparams', tmp_path / 'out')
    assert (found.notes.source, found.config.semantics) == ('paddle', 'paddle')
    assert found.notes.left_out == ('neck.fpn.weight',)
    assert_same_levels(tmp_path / 'out', reference)


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


@SIZES
def test_the_articles_network(whole, tmp_path):
    layers = (3, 4, 6, 3) if whole else LAYERS
    weights = article_weights(layers)
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.notes.source == 'article'
    assert found.config.architecture == 'res2net50_16w_4s_se' or not whole
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', num_classes=10).double().eval()
    model.load_state_dict(load_file(tmp_path / 'out' / 'model.safetensors'))
    x = image(dtype=torch.float64)
    with torch.no_grad():
        expected = article(weights, x, layers, 4)
        assert relative_error(model(x).softmax(1), expected) < 1e-12
        assert relative_error(model(x).log_softmax(1), expected.log()) < 1e-12
    steps = {move.rule.how for move in found.notes.moved}
    assert steps == {'', 'first split moved to the end', 'subtracted from the running mean'}
    # and back: the article's biases are zeros, the numbers the same
    for to, bias in (('article', True), ('4uiiurz1', False)):
        convert_checkpoint(tmp_path / 'out', tmp_path / f'{to}.pth', to=to)
        theirs = Article(layers, 10, bias=bias).double().eval()
        theirs.load_state_dict(torch.load(tmp_path / f'{to}.pth'))
        with torch.no_grad():
            logits = theirs(x)
            assert relative_error(logits.softmax(1), expected) < 1e-12
            assert relative_error(logits.log_softmax(1), expected.log()) < 1e-12
        again = convert_checkpoint(tmp_path / f'{to}.pth')
        assert again.notes.source == to
        state = again.net.state_dict()
        assert all(torch.equal(v, state[key]) for key, v in found.net.state_dict().items())


@pytest.mark.parametrize('bias', [True, False], ids=['article', '4uiiurz1'])
@pytest.mark.parametrize(('groups', 'se'), [(1, False), (2, True)])
def test_what_is_written_for_the_articles_code_loads_there(bias, groups, se, tmp_path):
    to = 'article' if bias else '4uiiurz1'
    theirs = randomise(Article(LAYERS, 5, 6, 3, groups, se, bias)).eval()
    found = convert_checkpoint(save(theirs.state_dict(), tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.notes.source == to
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to=to)
    again = Article(LAYERS, 5, 6, 3, groups, se, bias).eval()
    again.load_state_dict(torch.load(tmp_path / 'back.pth'))  # strict
    with torch.no_grad():
        assert relative_error(again(image()), theirs(image())) < FLOAT32
        assert relative_error(found.net(image()), theirs(image())) < FLOAT32


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
    assert found.config.semantics == 'caffe'
    x = image(size=33, dtype=torch.float64)
    with torch.no_grad():
        expected = article(weights, x, layers, scales, groups)
        assert relative_error(found.net.double()(x).softmax(1), expected) < 1e-12


def test_the_articles_network_without_splits():
    keys = [key for key in article_weights(LAYERS) if '.conv2.' not in key and '.bn2.' not in key]
    with pytest.raises(ValueError, match=r'no 3x3 convolution .*scales=1'):
        recognise(keys)


def test_an_odd_stem_is_refused(tmp_path):
    weights = article_weights((1, 1, 1, 1), width=5, scales=3)
    with pytest.raises(ValueError, match=r'channels\[0\]=15'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


@pytest.mark.parametrize(
    ('keys', 'text'),
    [
        (['layer1.0.conv2.weight'], "It is a ResNet's: its blocks have one 3x3 convolution"),
        (
            ['encoder.weight'],
            r'None of its keys belongs to a Res2Net of paddle, .* \(1: encoder\.weight\)',
        ),
    ],
)
def test_checkpoints_of_no_known_source(keys, text):
    with pytest.raises(ValueError, match=text):
        recognise(keys)


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        (['level3.tree1.tree2.convs.0.weight'], 'dla60_res2net and dla60_res2next. Load it with'),
        (['backbone.cb_modules.0.layer1.0.convs.0.weight'], 'CBNet.* cannot be built'),
        (['backbone.cb_linears.1.0.0.weight'], 'CBNet.* cannot be built'),
        (['layer2.0.convs.0.conv_offset.weight'], 'deformable convolutions, which cannot be built'),
        (['res3.0.conv2_offsets.0.weight'], 'deformable convolutions, which cannot be built'),
        (
            [f'layer{i}.0.convs.0.weight' for i in (1, 2, 3)],
            'three stages, as networks for CIFAR have.* cannot be built',
        ),
        (
            [f'layer{i}.0.conv2.0.weight' for i in (1, 2, 3)],
            'three stages, as networks for CIFAR have.* cannot be built',
        ),
    ],
)
def test_networks_that_cannot_be_built(keys, words):
    with pytest.raises(ValueError, match=words):
        find_network(dict.fromkeys(keys))


def test_timms_dla_is_recognised():
    with pytest.raises(ValueError, match='dla60_res2net'):
        find_network(timm.create_model('dla60_res2net', device='meta').state_dict())


@pytest.mark.parametrize('bias', [False, True])
def test_se_by_linear_layers(bias, tmp_path):
    """`se.fc` as two Linear layers with a ReLU between, in the most copied SE module."""
    weights = random_weights('test_res2net_se')
    theirs = dict(weights)
    for key in weights:
        if '.se.' in key:
            name, leaf = key.rsplit('.', 1)
            block, fc = name.rsplit('.', 1)
            matrix = theirs.pop(key)
            if leaf == 'weight':
                theirs[f'{block}.fc.{"02"[int(fc[-1]) - 1]}.weight'] = matrix[:, :, 0, 0]
            elif bias:
                theirs[f'{block}.fc.{"02"[int(fc[-1]) - 1]}.bias'] = matrix
            else:
                weights[key] = torch.zeros_like(matrix)
    path = save(theirs, tmp_path / 'w.pth')
    found = convert_checkpoint(path)
    assert found.config.architecture == 'test_res2net_se'
    got = found.net.state_dict()
    assert all(torch.equal(got[key], value) for key, value in weights.items())
    # the gate is their gate
    block: Any = found.net.layer1[0]
    x = torch.rand(2, 64, 3, 3)
    fc = [theirs[f'layer1.0.se.fc.{i}.weight'] for i in (0, 2)]
    biases = [theirs.get(f'layer1.0.se.fc.{i}.bias') for i in (0, 2)]
    hidden = F.linear(x.mean((2, 3)), fc[0], biases[0]).relu()
    gate = F.linear(hidden, fc[1], biases[1]).sigmoid()
    with torch.no_grad():
        assert relative_error(block.se(x), x * gate[:, :, None, None]) < 1e-6


def test_every_source_has_its_sentences():
    assert set(SOURCES) == {
        'official', 'mmpretrain', 'mmdet', 'detectron2', 'maskrcnn', 'paddle', 'article', 'timm',
        'mindcv', '4uiiurz1',
    }  # fmt: skip
    assert all(SOURCES[name].name == name for name in SOURCES)
    assert all(source.license.endswith('.') for source in SOURCES.values())
    assert {s for source in SOURCES.values() for s in source.semantics} == set(SEMANTICS)
