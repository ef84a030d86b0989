"""Sources: a converted file computes what the source's own code computes."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save as safetensors
from torch.nn import functional as F

from tests.common import (
    FIXTURES,
    Reference,
    from_folder,
    image,
    network,
    relative_error,
    save,
    slow_except,
)
from tests.convert.helpers import FLOAT32, LAYERS, V1B, recorded, undone, without_counters
from tests.convert.references import NAMES, Article, spelled
from tests.fixtures import record_mindcv, values
from timm_res2net import convert_checkpoint, reparameterize_model
from timm_res2net.convert import FILES
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
    'safetensors': lambda tensors, path: path.write_bytes(safetensors(tensors)),
    'MindSpore': write_ckpt,
}
BESIDE = {'decoder.conv1.weight': torch.ones(2, 2, 3, 3), 'loss.step': torch.ones(3)}
SPLITS = dict(scale=3, base_width=64 / 3, channels=(12, 24, 48, 96), num_classes=5)
THERE_AND_BACK = [
    # source, prefix, format, and what its network has besides
    ('paddle', '', 'pickled arrays', V1B),
    ('paddle', 'module.', 'torch', dict(num_classes=5, cardinality=2)),
    ('mindcv', '', 'MindSpore', dict(num_classes=5, cardinality=2, base_width=32)),
    ('mindcv', 'backbone.', 'entry', V1B),
    ('mindcv', '', 'torch', dict(num_classes=5, channels=(64, 128, 256, 512))),
    ('article', '', 'torch', dict(**SPLITS, attn_layer='se')),
    ('4uiiurz1', 'module.', 'safetensors', SPLITS),
    ('detectron2', 'ema.module.body.', 'pickled arrays', dict(**V1B, semantics='mmdet')),
    ('maskrcnn', 'module.backbone.', 'entry', dict(scale=2)),
    ('mmdet', 'backbone.', 'entry', V1B),
    ('mmpretrain', 'module.backbone.', 'entry', dict(num_classes=5)),
    ('mmpretrain', '', 'MindSpore', dict(**V1B, semantics='maskrcnn')),
    ('timm', 'module.', 'safetensors', dict(num_classes=5, attn_layer='se', semantics='mmdet')),
    ('official', 'backbone.', 'torch', dict(num_classes=5, semantics='caffe')),
    ('official', '', 'entry', dict(num_classes=5)),
]


def in_model(theirs: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors as they are in a larger model; MMPretrain's classifier is beside its backbone."""
    beside = prefix.removesuffix('backbone.')
    return {
        (beside if key.startswith('head.') else prefix) + key: value
        for key, value in theirs.items()
    }


@pytest.mark.parametrize(('name', 'prefix', 'kind', 'arguments'), THERE_AND_BACK)
def test_there_and_back(name, prefix, kind, arguments, tmp_path):
    semantics = arguments.get('semantics', SOURCES[name].semantics[0])
    usual = dict(attn_layer='', num_classes=0, layers=LAYERS)
    net = network(**{**usual, **arguments, 'semantics': semantics})
    theirs = undone(name, net.state_dict())
    beside = BESIDE if prefix else {}
    FORMATS[kind]({**in_model(theirs, prefix), **beside}, tmp_path / 'w')
    model = convert_checkpoint(tmp_path / 'w', tmp_path / 'out', semantics=semantics)
    notes = model.notes
    assert (notes.source, notes.prefix, model.config.semantics) == (name, prefix, semantics)
    assert notes.format == ('torch' if kind == 'entry' else kind)
    assert {move.theirs for move in notes.moved} == set(in_model(theirs, prefix))
    assert set(notes.left_out) == set(beside)
    with torch.no_grad():
        for ours in (model.net, from_folder(tmp_path / 'out')):
            # only the variances of maskrcnn change, by its eps, and back
            assert relative_error(ours(image()), net(image())) < (name == 'maskrcnn') * 1e-5 + 1e-9
    if name == 'timm':  # whose files are folders
        return
    # and back
    arguments = {**infer_arguments(model.net.state_dict()), 'semantics': semantics}
    reason = SOURCES[name].refuse(arguments)
    if reason:
        with pytest.raises(ValueError, match=f'and {name} builds'):
            convert_checkpoint(tmp_path / 'out', tmp_path / 'back', to=name)
        assert not (tmp_path / 'back').exists()
        return
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back', to=name)
    back = read_checkpoint(tmp_path / 'back').tensors
    assert convert_checkpoint(tmp_path / 'back').notes.source == name
    back = {key.removeprefix('backbone.'): value for key, value in back.items()}
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.allclose(back[key], value, 0, 1e-6 if name == 'maskrcnn' else 0)


# --- by an implementation that is not ours --------------------------------------------------------


class Case(NamedTuple):
    """A backbone of another project, what its keys start with, and the strides that it can have."""

    prefix: str
    source: str
    semantics: str
    arguments: dict[str, Any]
    strides: tuple[int, ...] = (32,)


CASES = {
    'mmdet': Case('backbone.', 'mmdet', 'mmdet', V1B, (32, 16, 8)),
    'detectron2': Case('backbone.bottom_up.', 'detectron2', 'detectron2', V1B, (32, 16)),
    'maskrcnn': Case('module.backbone.body.', 'maskrcnn', 'maskrcnn', {}),
    # the keys do not tell it, and it computes as Res2Net-maskrcnn
    'mmpretrain': Case('backbone.', 'official', 'maskrcnn', {}),
    # no shortcut pools
    'paddle, d': Case('backbone.', 'paddle', 'paddle', {**V1B, 'avg_down': False}),
    'paddle, b': Case('x.backbone.', 'paddle', 'paddle', {}),
}


@pytest.mark.parametrize('name', NAMES)
def test_backbones_of_other_projects(name, tmp_path):
    """The same at every level, also deployed; under other semantics the same weights are wrong."""
    (prefix, source, semantics, arguments, strides), spell = CASES[name], spelled(name)
    net = network(semantics=semantics, attn_layer='', layers=LAYERS, num_classes=0, **arguments)
    tensors = net.state_dict()
    if not SOURCES[source].counts_batches:
        tensors = without_counters(tensors)
    theirs, is_maskrcnn = {spell(key): value for key, value in tensors.items()}, name == 'maskrcnn'
    for key, value in theirs.items():
        if is_maskrcnn and key.endswith('var'):
            value[0] = 2e-5  # near the eps that the others add
    write = FORMATS['pickled arrays' if source == 'paddle' else 'entry']
    in_file = {f'{prefix}{key}': value for key, value in theirs.items()}
    write({**in_file, 'neck.weight': torch.ones(2)}, tmp_path / 'w')
    asked = {'semantics': semantics} if name == 'mmpretrain' else {}
    model = convert_checkpoint(tmp_path / 'w', tmp_path / 'out', **asked)
    assert (model.notes.source, model.notes.prefix) == (source, prefix)
    assert (model.config.semantics, model.notes.left_out) == (semantics, ('neck.weight',))
    reference = Reference(
        theirs, semantics, LAYERS, 4, deep='stem_type' in arguments,
        avg_down=arguments.get('avg_down', False), names=spell, eps=0 if is_maskrcnn else 1e-5,
    )  # fmt: skip
    kwargs, x = {'features_only': True, 'out_indices': (1, 2, 3, 4)}, image()
    with torch.no_grad():
        for stride in strides:
            ours = from_folder(tmp_path / 'out', output_stride=stride, **kwargs)
            for form in (ours, reparameterize_model(ours)):
                for got, expected in zip(form(x), reference.levels(x, stride), strict=True):
                    assert relative_error(got, expected) < FLOAT32
        for other in under_other_semantics(model):
            assert relative_error(other(x), model.net(x)) > 1e-3


def under_other_semantics(model: Any) -> list[Any]:
    """The same weights in networks of the other semantics."""
    nets = []
    for semantics in SEMANTICS.keys() - {model.config.semantics}:
        arguments = {**model.config.model_args, 'semantics': semantics}
        arguments['num_classes'] = model.config.num_classes
        nets.append(timm.create_model(model.config.architecture, **arguments).eval())
        nets[-1].load_state_dict(model.net.state_dict())
    return nets


@pytest.mark.parametrize(
    ('bias', 'scales', 'groups', 'se'),
    [(True, 4, 1, True), (True, 2, 2, False), (False, 8, 1, True)],
)
def test_the_articles_network(bias, scales, groups, se, tmp_path):
    """And 4uiiurz1's, without biases."""
    to = 'article' if bias else '4uiiurz1'
    net = network(
        semantics='caffe', layers=LAYERS, channels=(16, 32, 64, 128), scale=scales,
        base_width=64 / scales, cardinality=groups, attn_layer='se' if se else '',
    )  # fmt: skip
    theirs = undone(to, net.double().state_dict())
    biases = [key for key in theirs if re.search(r'(conv\d(\.\d)?|sample\.0)\.bias', key)]
    assert bool(biases) == bias
    for key in biases:
        theirs[key] = torch.rand_like(theirs[key]) - 0.5
    model = convert_checkpoint(save(theirs, tmp_path / 'w.pth'), tmp_path / 'out')
    assert (model.notes.source, model.config.semantics) == (to, 'caffe')
    convert_checkpoint(tmp_path / 'out', tmp_path / 'back.pth', to=to)
    back = torch.load(tmp_path / 'back.pth')
    assert back.keys() == theirs.keys()
    x = image(dtype=torch.float64)
    with torch.no_grad():
        got = model.net.double()(x)
        for weights in (theirs, {key: value.double() for key, value in back.items()}):
            reference = Article(weights, 'caffe', LAYERS, scales, groups, se=se)
            assert relative_error(got, reference(x)) < 1e-12


# --- as recorded ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', slow_except(['deep'], ['plain', 'deep']))
def test_mmpretrain_as_recorded(name, tmp_path):
    """What MMPretrain 1.2.0 gave: tests/fixtures/record_mmpretrain.py."""
    case = recorded('mmpretrain.json')['cases'][name]
    weights = {
        key: torch.tensor(0)
        if key.endswith('num_batches_tracked')
        else torch.from_numpy(values.values(key, tuple(shape)))
        for key, shape in case['shapes'].items()
    }
    content = {'meta': {'CLASSES': ('a',)}, 'state_dict': weights}
    model = convert_checkpoint(save(content, tmp_path / 'w.pth'))
    named = {'plain': 'res2net50_26w_4s', 'deep': 'res2net50d'}
    assert (model.notes.source, model.config.architecture) == ('mmpretrain', named[name])
    net: Any = model.net
    x = torch.from_numpy(values.image())
    with torch.no_grad():
        # another machine's kernels may differ in the last bits
        assert relative_error(net(x), torch.tensor(case['logits'])) < 1e-5
        features = net.forward_features(x).mean((2, 3))[:, :8]
    assert relative_error(features, torch.tensor(case['features'])) < 1e-5


@pytest.mark.parametrize('file', ['paddle.pdparams', 'mindcv.ckpt', 'mindcv_v1b.ckpt'])
def test_files_as_recorded(file):
    """Files that paddle.save and mindspore.save_checkpoint wrote, and what Paddle 3.3.1 and MindCV
    0.3.0 gave: tests/fixtures/record_paddle.py and record_mindcv.py."""
    model: Any = convert_checkpoint(FIXTURES / file)
    name = file.partition('.')[0].partition('_')[0]
    semantics = 'paddle' if name == 'paddle' else 'official'
    assert (model.notes.source, model.config.semantics) == (name, semantics)
    case = recorded(f'{name}.json')
    case = case.get('files', {file: case})[file]
    x = values.image(1, record_mindcv.SIZE) if name == 'mindcv' else values.image()
    x, expected = torch.from_numpy(x), torch.tensor(case['logits'])
    with torch.no_grad():
        assert relative_error(model.net(x), expected) < 1e-5
        _, levels = model.net.forward_intermediates(x)
        for net in under_other_semantics(model):
            assert relative_error(net(x), expected) > 1e-3
    for level, some in zip(levels[1:], case.get('levels', levels[1:]), strict=True):
        if 'levels' in case:
            got = level[0, :: level.shape[1] // 8, ::3, ::3]
            assert relative_error(got, torch.tensor(some)) < 1e-5
    # and back; the constructors have no narrow networks
    back = undone(name, model.net.state_dict())
    theirs = read_checkpoint(FIXTURES / file).tensors
    assert back.keys() == theirs.keys()
    assert all(back[key].equal(theirs[key]) for key in theirs)


# --- what some files have besides -----------------------------------------------------------------


@pytest.mark.parametrize('source', ['official', 'mmdet', 'detectron2'])
def test_the_authors_classifier_under_other_names(source, tmp_path):
    """What the converters of two projects write, classifier included: trained as `official`. And
    Jittor's files, which have a checksum and a mark behind the pickle."""
    net = network(attn_layer='', **V1B)
    theirs = undone(source, without_counters(net.state_dict()))
    arrays: dict[str, Any] = {key: value.numpy() for key, value in theirs.items()}
    if source != 'official':
        arrays = {'model': arrays, '__author__': 'torchvision', 'matching_heuristics': True}
    path, pickled = tmp_path / 'w.pkl', pickle.dumps(arrays, 4)
    path.write_bytes(pickled + hashlib.sha1(pickled).digest() + b'HCAJSLHD')
    model = convert_checkpoint(path)
    assert (model.notes.source, model.config.semantics) == (source, 'official')
    with torch.no_grad():
        assert model.net(image()).equal(net(image()))
    assert convert_checkpoint(path, semantics='mmdet').config.semantics == 'mmdet'


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
    model = convert_checkpoint(save(theirs, tmp_path / 'w.pth'))
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
        assert file.figures or not file.accuracy
        assert file.hash in file.file
        for tag in file.tags:
            cfg = timm.models.get_pretrained_cfg(tag)
            assert (cfg.url or f'https://huggingface.co/{cfg.hf_hub_id}') == file.url
            assert cfg.license == file.license
            assert cfg.origin_url == file.origin_url
            assert file.top1 is not None


def test_every_source_has_its_sentences():
    assert all(SOURCES[name].name == name for name in SOURCES)
    assert all(source.license.endswith('.') for source in SOURCES.values())
    assert {s for source in SOURCES.values() for s in source.semantics} == set(SEMANTICS)
