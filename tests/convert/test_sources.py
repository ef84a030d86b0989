"""Sources: a converted file computes what the source's own code computes."""

import copy
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from tests.common import image, randomise, relative_error, slow_except
from tests.convert.helpers import (
    FIXTURES,
    LAYERS,
    LEVELS,
    assert_levels,
    from_folder,
    network,
    recorded,
    without_counters,
)
from tests.convert.helpers import save as save_torch
from tests.convert.references import Article, Detectron2, MaskRCNN, MMDet, PaddleDetection
from tests.fixtures import record_mindcv, values
from timm_res2net import convert_checkpoint, reparameterize_model
from timm_res2net.convert import FILES, PUBLISHERS
from timm_res2net.convert.engine import undo_rules
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.find import infer_arguments
from timm_res2net.convert.mindspore import dump_ckpt
from timm_res2net.convert.sources import SOURCES
from timm_res2net.layers.semantics import SEMANTICS

# --- there and back -------------------------------------------------------------------------------


def write_ckpt(tensors, path: Path) -> None:
    with path.open('wb') as file:
        dump_ckpt(tensors, file)


FORMATS: dict[str, Any] = {
    'torch': lambda tensors, path: torch.save(tensors, path),
    'entry': lambda tensors, path: torch.save({'state_dict': tensors, 'epoch': 3}, path),
    'pickled arrays': lambda tensors, path: path.write_bytes(
        pickle.dumps({key: value.numpy() for key, value in tensors.items()}, 2)
    ),
    'safetensors': lambda tensors, path: path.write_bytes(save(tensors)),
    'MindSpore': write_ckpt,
}
BESIDE = {'decoder.conv1.weight': torch.ones(2, 2, 3, 3), 'loss.step': torch.ones(3)}


@st.composite
def checkpoints(draw) -> tuple[str, str, dict[str, Any]]:
    """A source, a prefix, and the arguments of a narrow network."""
    name = draw(st.sampled_from(list(SOURCES)))
    source = SOURCES[name]
    is_article, has_classes = source.has_se and name != 'timm', draw(st.booleans())
    deep = draw(st.booleans())
    if name in ('mmdet', 'detectron2'):
        deep = True
    elif is_article or name == 'maskrcnn':
        deep = False
    if name == 'maskrcnn':
        has_classes = False
    elif is_article or (name == 'mmpretrain' and not deep):
        has_classes = True
    scale = draw(st.integers(2, 4))
    arguments = dict(
        seed=draw(st.integers(1, 3)),
        semantics=draw(st.sampled_from(source.semantics)),
        layers=draw(st.tuples(*[st.integers(1, 2)] * 4)),
        channels=(12, 24, 48, 96),  # which divide into all of these splits
        scale=scale,
        base_width=64 / scale if is_article else draw(st.sampled_from([26, 32, 48])),
        cardinality=draw(st.integers(1, 2)),
        attn_layer='se' if name == 'timm' or (is_article and draw(st.booleans())) else '',
        num_classes=5 if has_classes else 0,
        **dict(stem_type='deep', stem_width=6, avg_down=True, down_kernel_size=1) if deep else {},
    )
    prefixes = ['backbone.', 'module.backbone.']
    if name != 'mmpretrain' or not has_classes:
        prefixes += ['', 'module.', 'ema.module.body.']
    return name, draw(st.sampled_from(prefixes)), arguments


def built(name: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """A network, and its tensors as a source names them."""
    net = network(**arguments)
    tensors = net.state_dict()
    if not SOURCES[name].counts_batches:
        tensors = without_counters(tensors)
    return net, undo_rules(tensors, SOURCES[name].rules(tensors), name)


def in_model(theirs: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors as they are in a larger model; MMPretrain's classifier is beside its backbone."""
    beside = prefix.removesuffix('backbone.')
    return {
        (beside if key.startswith('head.') else prefix) + key: value
        for key, value in theirs.items()
    }


def examples(count: int):
    return settings(
        max_examples=count, deadline=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


def clean(folder: Path) -> Path:
    """A new folder, since hypothesis gives all examples the same one."""
    number = len(list(folder.iterdir()))
    (folder / str(number)).mkdir()
    return folder / str(number)


@examples(8)
@given(checkpoint=checkpoints(), kind=st.sampled_from(list(FORMATS)), has_more=st.booleans())
def test_there_and_back(checkpoint, kind, has_more, tmp_path):
    (name, prefix, arguments), here = checkpoint, clean(tmp_path)
    net, theirs = built(name, arguments)
    beside = BESIDE if has_more else {}
    FORMATS[kind]({**in_model(theirs, prefix), **beside}, here / 'w')
    semantics = net.model_args['semantics']
    model = convert_checkpoint(here / 'w', here / 'out', semantics=semantics)
    notes = model.notes
    assert (notes.source, notes.prefix, model.config.semantics) == (name, prefix, semantics)
    assert notes.format == ('torch' if kind == 'entry' else kind)
    assert {move.theirs for move in notes.moved} == set(in_model(theirs, prefix))
    assert set(notes.left_out) == set(beside)
    with torch.no_grad():
        for ours in (model.net, from_folder(here / 'out')):
            # only the variances of maskrcnn change, by its eps, and back
            assert relative_error(ours(image()), net(image())) < (name == 'maskrcnn') * 1e-5 + 1e-9
    if name == 'timm':  # whose files are folders
        return
    # and back
    arguments = {**infer_arguments(model.net.state_dict()), 'semantics': semantics}
    reason = SOURCES[name].refuse(arguments)
    if reason:
        with pytest.raises(ValueError, match=f'and {name} builds'):
            convert_checkpoint(here / 'out', here / 'back', to=name)
        assert not (here / 'back').exists()
        return
    convert_checkpoint(here / 'out', here / 'back', to=name)
    back = read_checkpoint(here / 'back').tensors
    assert convert_checkpoint(here / 'back').notes.source == name
    back = {key.removeprefix('backbone.'): value for key, value in back.items()}
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.allclose(back[key], value, 0, 1e-6 if name == 'maskrcnn' else 0)


@examples(8)
@given(
    checkpoint=checkpoints(),
    fault=st.sampled_from(['missing', 'odd', 'shape', 'integer', 'nan', 'infinite']),
    data=st.data(),
)
def test_what_is_refused_leaves_nothing(checkpoint, fault, data, tmp_path):
    (name, prefix, arguments), here = checkpoint, clean(tmp_path)
    net, theirs = built(name, arguments)
    key = data.draw(st.sampled_from(sorted(k for k, v in theirs.items() if v.ndim == 4)))
    changed = dict(theirs)
    if fault == 'odd':
        changed[f'{key}.odd'] = changed[key]
    else:
        value = changed.pop(key)
        changed |= {
            'missing': {},
            'shape': {key: torch.cat([value, value])},
            'integer': {key: value.int()},
            'nan': {key: value.where(value != value.max(), torch.nan)},
            'infinite': {key: value.where(value != value.max(), torch.inf)},
        }[fault]
    torch.save(in_model(changed, prefix), here / 'w')
    with pytest.raises(ValueError, match=r'w (does not convert|was not converted)|/w as a check'):
        convert_checkpoint(here / 'w', here / 'out', semantics=net.model_args['semantics'])
    assert [path.name for path in here.iterdir()] == ['w']


@pytest.mark.parametrize(
    ('to', 'kwargs', 'words'),
    [
        ('official', {'semantics': 'paddle'}, "semantics is 'paddle', and official builds 'offi"),
        ('mmdet', {}, "semantics is 'official', and mmdet builds 'mmdet'"),
        ('mmpretrain', {'attn_layer': 'se'}, "attn_layer is 'se', and mmpretrain builds ''"),
        ('article', {'in_chans': 1}, 'in_chans is 1, and article builds 3'),
        ('4uiiurz1', {'num_classes': 0}, 'num_classes is 0, and 4uiiurz1 builds 1'),
        ('article', {'channels': (16, 32, 48, 64)}, r'builds \(16, 32, 64, 128\)'),
        ('article', {'base_width': 26}, 'base_width is 26, and article builds 16.0'),
        ('article', {'scale': 1, 'base_width': 64}, 'scale is 1, and article builds 2'),
        ('mindcv', {'cardinality': 8}, 'cardinality is 8, and mindcv builds 1'),
        ('mindcv', {'channels': (32, 64, 128, 256)}, r'builds \(64, 128, 256, 512\)'),
        ('mindcv', {'avg_down': True}, 'avg_down is True, and mindcv builds False'),
        ('mindcv', {'stem_type': 'deep', 'stem_width': 16}, 'stem_width is 16, .* builds 32'),
        ('mindcv', {'stem_type': 'deep_tiered'}, "stem_type is 'deep_tiered', .* builds 'deep'"),
        ('mindcv', {}, ''),
        ('article', {}, ''),
        ('4uiiurz1', {'attn_layer': 'se'}, ''),
        ('timm', {'attn_layer': 'se'}, ''),
        ('paddle', {}, ''),
    ],
)
def test_networks_that_a_source_cannot_express(to, kwargs, words):
    usual: dict[str, Any] = {'attn_layer': '', 'channels': (64, 128, 256, 512), 'base_width': 16}
    if to in ('article', '4uiiurz1', 'paddle'):
        usual['semantics'] = SOURCES[to].semantics[0]
    net: Any = timm.create_model('test_res2net_se', device='meta', **{**usual, **kwargs})
    arguments = {**infer_arguments(net.state_dict()), 'semantics': net.model_args['semantics']}
    reason = SOURCES[to].refuse(arguments)
    assert bool(reason) == bool(words)
    if words:
        with pytest.raises(ValueError, match=words):
            raise ValueError(reason)


# --- by an implementation that is not ours --------------------------------------------------------


@pytest.mark.parametrize('name', ['res2net50_26w_8s', 'res2net50d', 'res2next50'])
def test_official_files_give_timms_numbers(name, tmp_path):
    """The authors' files have timm's keys: v1, v1b (timm's d), Res2NeXt."""
    theirs = randomise(timm.create_model(name, layers=LAYERS, num_classes=10)).eval()
    model = convert_checkpoint(save_torch(theirs.state_dict(), tmp_path / 'w.pth'))
    assert model.notes.source == 'official'
    with torch.no_grad():
        assert model.net(image()).equal(theirs(image()))


def spelled(reference: nn.Module, prefix: str, leaves=()) -> dict[str, torch.Tensor]:
    """The state dict of a reference under a prefix, with other names of its leaves."""
    names = dict(leaves)
    tensors = {}
    for key, value in reference.state_dict().items():
        path, leaf = key.rsplit('.', 1)
        tensors[f'{prefix}{path}.{names.get(leaf, leaf)}'] = value
    return tensors


def assert_as_reference(folder: Path, reference: nn.Module, **kwargs) -> None:
    """A converted folder gives the same at every level, in evaluation and in training, deployed."""
    ours = from_folder(folder, **LEVELS, **kwargs)
    assert_levels(ours.train(), copy.deepcopy(reference).train())
    ours = from_folder(folder, **LEVELS, **kwargs)
    assert_levels(ours, reference.eval())
    assert_levels(reparameterize_model(ours), reference)


@pytest.mark.parametrize(
    ('strides', 'dilations', 'output_stride'),
    [((1, 2, 2, 2), (1, 1, 1, 1), 32), ((1, 2, 2, 1), (1, 1, 1, 2), 16),
     ((1, 2, 1, 1), (1, 1, 2, 4), 8)],
)  # fmt: skip
def test_mmdetections_backbones(strides, dilations, output_stride, tmp_path):
    reference = randomise(MMDet(LAYERS, strides, dilations))
    heads = {'neck.fpn_convs.0.conv.weight': torch.ones(2)}
    content = {'state_dict': {**spelled(reference, 'backbone.'), **heads}, 'iteration': 7}
    model = convert_checkpoint(save_torch(content, tmp_path / 'w.pth'), tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == ('mmdet', 'mmdet')
    assert model.notes.left_out == tuple(heads)
    assert_as_reference(tmp_path / 'out', reference, output_stride=output_stride)


@pytest.mark.parametrize('dilation', [1, 2])
def test_detectron2s_detectors(dilation, tmp_path):
    """The numbers of Res2Net-detectron2, which strides in conv1, not those of MMDetection."""
    reference = randomise(Detectron2(LAYERS, res5_dilation=dilation))
    theirs = without_counters(spelled(reference, 'backbone.bottom_up.'))
    heads = {'backbone.fpn_lateral2.weight': torch.ones(2), 'pixel_mean': torch.ones(3)}
    path = save_torch({'model': {**theirs, **heads}, 'iteration': 7}, tmp_path / 'w.pth')
    model = convert_checkpoint(path, tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == ('detectron2', 'detectron2')
    assert set(model.notes.left_out) == set(heads)
    assert_as_reference(tmp_path / 'out', reference, output_stride=16 if dilation == 2 else 32)
    convert_checkpoint(path, tmp_path / 'mmdet', semantics='mmdet')
    with pytest.raises(AssertionError):  # so the comparison can fail
        assert_as_reference(tmp_path / 'mmdet', reference)


def test_mmpretrain_with_the_style_of_caffe(tmp_path):
    """The keys do not tell it. It computes what Res2Net-maskrcnn computes."""
    reference = randomise(MaskRCNN(LAYERS, norm=nn.BatchNorm2d))
    theirs = spelled(reference, 'backbone.')
    theirs = {key.replace('.stem.', '.'): value for key, value in theirs.items()}
    path = save_torch({'state_dict': theirs}, tmp_path / 'w.pth')
    model = convert_checkpoint(path, tmp_path / 'out', semantics='maskrcnn')
    assert (model.notes.prefix, model.config.semantics) == ('backbone.', 'maskrcnn')
    assert_as_reference(tmp_path / 'out', reference)
    assert convert_checkpoint(path).config.semantics == 'official'


def test_res2net_maskrcnn(tmp_path):
    reference = randomise(MaskRCNN(LAYERS))
    generator = torch.Generator().manual_seed(3)
    for name, value in reference.named_buffers():  # of a frozen BatchNorm everything is a buffer
        low = 0.3 if name.endswith(('weight', 'var')) else -0.2
        value.uniform_(low, low + 0.4, generator=generator)
        if name.endswith('var'):
            value[0] = 2e-5  # a channel whose variance is near the eps that the others add
    theirs = spelled(reference, 'module.backbone.body.')
    heads = {'module.rpn.head.conv.bias': torch.ones(2)}
    path = save_torch({'model': {**theirs, **heads}, 'iteration': 7}, tmp_path / 'w.pth')
    model = convert_checkpoint(path, tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == ('maskrcnn', 'maskrcnn')
    ours = from_folder(tmp_path / 'out', **LEVELS)
    assert_levels(ours, reference)
    assert_levels(reparameterize_model(ours), reference)
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to='maskrcnn')
    again = MaskRCNN(LAYERS)
    again.load_state_dict(torch.load(tmp_path / 'back.pth')['model'])
    assert_levels(again, reference)


@pytest.mark.parametrize('variant', ['b', 'd'])
def test_paddle_detection(variant, tmp_path):
    """Its own names, and a deep stem without the average pool in the shortcut."""
    reference = randomise(PaddleDetection(LAYERS, variant))
    leaves = {'running_mean': '_mean', 'running_var': '_variance'}
    theirs = without_counters(spelled(reference, 'teacher_model.backbone.', leaves))
    arrays = {key: value.numpy() for key, value in theirs.items()}
    content = {**arrays, 'neck.fpn.weight': np.ones(3, np.float32)}
    (tmp_path / 'w.pdparams').write_bytes(pickle.dumps(content, 2))
    model = convert_checkpoint(tmp_path / 'w.pdparams', tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == ('paddle', 'paddle')
    assert model.notes.left_out == ('neck.fpn.weight',)
    assert_as_reference(tmp_path / 'out', reference)


@pytest.mark.parametrize('bias', [True, False], ids=['article', '4uiiurz1'])
@pytest.mark.parametrize(
    ('width', 'scales', 'groups', 'se'), [(4, 4, 1, True), (6, 3, 2, False), (5, 2, 1, True)]
)
def test_the_articles_network(bias, width, scales, groups, se, tmp_path):
    to = 'article' if bias else '4uiiurz1'
    arguments = (LAYERS, 5, width, scales, groups, se, bias)
    theirs = randomise(Article(*arguments)).double().eval()
    path = save_torch(theirs.state_dict(), tmp_path / 'w.pth')
    model = convert_checkpoint(path, tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == (to, 'caffe')
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to=to)
    again = Article(*arguments).double().eval()
    again.load_state_dict(torch.load(tmp_path / 'back.pth'))  # strict
    x = image(dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x)
        assert relative_error(model.net.double()(x), expected) < 1e-12
        assert relative_error(again(x), expected) < 1e-12


# --- as recorded ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', slow_except(['deep'], ['plain', 'deep', 'scales 8']))
def test_mmpretrain_as_recorded(name, tmp_path):
    """What MMPretrain 1.2.0 gave: tests/fixtures/record_mmpretrain.py."""
    case = recorded('mmpretrain.json')['cases'][name]
    weights = {
        key: torch.tensor(0)
        if key.endswith('num_batches_tracked')
        else torch.from_numpy(values.values(key, tuple(shape)))
        for key, shape in case['shapes'].items()
    }
    path = save_torch({'meta': {'CLASSES': ('a',)}, 'state_dict': weights}, tmp_path / 'w.pth')
    model = convert_checkpoint(path)
    named = {'plain': 'res2net50_26w_4s', 'deep': 'res2net50d', 'scales 8': 'res2net50_14w_8s'}
    assert (model.notes.source, model.config.architecture) == ('mmpretrain', named[name])
    net: Any = model.net
    x = torch.from_numpy(values.image())
    with torch.no_grad():
        # another machine's kernels may differ in the last bits
        assert relative_error(net(x), torch.tensor(case['logits'])) < 1e-5
        features = net.forward_features(x).mean((2, 3))[:, :8]
    assert relative_error(features, torch.tensor(case['features'])) < 1e-5


def under_other_semantics(model) -> list[Any]:
    """The same weights in networks of the other semantics."""
    nets = []
    for semantics in SEMANTICS.keys() - {model.config.semantics}:
        arguments = {**model.config.model_args, 'semantics': semantics, 'num_classes': 10}
        nets.append(timm.create_model(model.config.architecture, **arguments).eval())
        nets[-1].load_state_dict(model.net.state_dict())
    return nets


def test_paddle_as_recorded(tmp_path):
    """A file that paddle.save wrote, and what Paddle 3.3.1 gave:
    tests/fixtures/record_paddle.py."""
    path = FIXTURES / 'paddle.pdparams'
    model = convert_checkpoint(path, tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == ('paddle', 'paddle')
    x = torch.from_numpy(values.image())
    expected = torch.tensor(recorded('paddle.json')['logits'])
    with torch.no_grad():
        assert relative_error(from_folder(tmp_path / 'out')(x), expected) < 1e-5
        for net in under_other_semantics(model):
            assert relative_error(net(x), expected) > 0.01
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pdparams', to='paddle')
    theirs, back = (read_checkpoint(p).tensors for p in (path, tmp_path / 'back.pdparams'))
    assert back.keys() == theirs.keys()
    assert all(back[key].equal(theirs[key]) for key in theirs)


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
def test_mindcv_as_recorded(file):
    """A file that mindspore.save_checkpoint wrote, and what MindCV 0.3.0 gave:
    tests/fixtures/record_mindcv.py."""
    model = convert_checkpoint(FIXTURES / file)
    assert (model.notes.source, model.config.semantics) == ('mindcv', 'official')
    case = recorded('mindcv.json')['files'][file]
    assert_as_mindcv(model.net, case)
    for net in under_other_semantics(model):
        with pytest.raises(AssertionError):
            assert_as_mindcv(net, case)
    # and back; MindCV's constructor has no narrow networks
    tensors = without_counters(model.net.state_dict())
    back = undo_rules(tensors, SOURCES['mindcv'].rules(tensors), 'mindcv')
    theirs = read_checkpoint(FIXTURES / file).tensors
    assert back.keys() == theirs.keys()
    assert all(back[key].equal(theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ('theirs', 'timms'),
    [
        ('res2net50', 'res2net50_26w_4s'),
        ('res2net50_v1b', 'res2net50d'),
        ('res2net101', 'res2net101_26w_4s'),
        ('res2net101_v1b', 'res2net101d'),
    ],
)
def test_mindcvs_published_networks(theirs, timms):
    """The names and shapes that we write are MindCV's own."""
    model = timm.create_model(timms, num_classes=10, device='meta')
    tensors = without_counters(model.state_dict())
    back = undo_rules(tensors, SOURCES['mindcv'].rules(tensors), 'mindcv')
    names = '\n'.join(f'{key} {tuple(value.shape)}' for key, value in sorted(back.items()))
    case = recorded('mindcv.json')['whole'][theirs]
    assert hashlib.sha256(names.encode()).hexdigest() == case['names_sha256']


# --- what some files have besides -----------------------------------------------------------------


@pytest.mark.parametrize('name', ['mmdet', 'detectron2'])
def test_a_backbone_that_still_is_the_authors_classifier(name, tmp_path):
    """Their converters rename v1b files, classifier included: trained as `official`."""
    net = network(attn_layer='', stem_type='deep', stem_width=8, avg_down=True, down_kernel_size=1)
    tensors = net.state_dict()
    theirs = undo_rules(tensors, SOURCES[name].rules(tensors), name)
    arrays = {key: value.numpy() for key, value in theirs.items()}
    content = {'model': arrays, '__author__': 'torchvision', 'matching_heuristics': True}
    path = tmp_path / 'w.pkl'
    path.write_bytes(pickle.dumps(content))
    model = convert_checkpoint(path)
    assert (model.notes.source, model.config.semantics) == (name, 'official')
    with torch.no_grad():
        assert model.net(image()).equal(net(image()))
    assert convert_checkpoint(path, semantics='mmdet').config.semantics == 'mmdet'


def test_jittors_files(tmp_path):
    """Pickled arrays under the authors' keys, with a checksum and a mark behind the pickle."""
    net = network(attn_layer='')
    arrays = {key: value.numpy() for key, value in without_counters(net.state_dict()).items()}
    pickled = pickle.dumps(arrays, 4)
    path = tmp_path / 'res2net50_26w_4s.pkl'
    path.write_bytes(pickled + hashlib.sha1(pickled).digest() + b'HCAJSLHD')
    model = convert_checkpoint(path)
    assert (model.notes.source, model.config.semantics) == ('official', 'official')
    with torch.no_grad():
        assert model.net(image()).equal(net(image()))


@pytest.mark.parametrize('bias', [False, True])
def test_se_by_linear_layers(bias, tmp_path):
    """`se.fc` as two Linear layers with a ReLU between, in the most copied SE module."""
    tensors = network().state_dict()
    theirs = {}
    for key, value in tensors.items():
        block, se, leaf = key.partition('.se.')
        if not se:
            theirs[key] = value
        elif leaf.endswith('weight') or bias:
            number = 0 if leaf.startswith('fc1') else 2
            linear = value[:, :, 0, 0] if leaf.endswith('weight') else value
            theirs[f'{block}.se.fc.{number}.{leaf.partition(".")[2]}'] = linear
    model = convert_checkpoint(save_torch(theirs, tmp_path / 'w.pth'))
    assert model.config.architecture == 'test_res2net_se'
    block: Any = model.net.layer1[0]
    x = torch.rand(2, 64, 3, 3)
    fc = [theirs[f'layer1.0.se.fc.{i}.weight'] for i in (0, 2)]
    biases = [theirs.get(f'layer1.0.se.fc.{i}.bias') for i in (0, 2)]
    hidden = F.linear(x.mean((2, 3)), fc[0], biases[0]).relu()
    gate = F.linear(hidden, fc[1], biases[1]).sigmoid()
    with torch.no_grad():
        assert relative_error(block.se(x), x * gate[:, :, None, None]) < 1e-6


# --- tables ---------------------------------------------------------------------------------------


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


def test_every_source_has_its_sentences():
    assert all(SOURCES[name].name == name for name in SOURCES)
    assert all(source.license.endswith('.') for source in SOURCES.values())
    assert {s for source in SOURCES.values() for s in source.semantics} == set(SEMANTICS)
