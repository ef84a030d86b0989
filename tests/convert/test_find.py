"""Whole models: the Res2Net in them is found, and answers as their own encoder at every level."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.common import image, randomise, relative_error, slow_except
from tests.convert.helpers import save, zeros
from tests.convert.references import Detectron2, MaskRCNN, MMDet, PaddleDetection
from timm_res2net import convert_checkpoint, detection_backbone, push_to_hub
from timm_res2net.convert import SOURCES, find_network, undo_rules
from timm_res2net.convert.keys import without_counters

LAYERS = (1, 2, 1, 1)
FLOAT32 = 2e-4


class Decoder(nn.Module):
    """What stands beside an encoder: names that an encoder has, too, integers, and a mask."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(256, 32, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32))
        self.convs = nn.ModuleList([nn.Conv2d(32, 32, 3)])
        self.fc = nn.Linear(32, 1)
        self.register_buffer('index', torch.arange(4))
        self.register_buffer('mask', torch.ones(2, dtype=torch.bool))


def whole(path: str, encoder: nn.Module, beside: tuple[str, ...] = ('decoder',)) -> nn.Module:
    """A model that has the encoder at a path, and decoders beside it."""
    root: Any = nn.Module()
    for name, module in ((path, encoder), *((name, randomise(Decoder())) for name in beside)):
        parent = root
        *parts, last = name.split('.')
        for part in parts:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, module)
    return root


def authors(name: str = 'res2net50d', seed: int = 1, **kwargs) -> nn.Module:
    """timm's own network, whose keys are the authors' and whose blocks are not this package's."""
    kwargs = {'layers': LAYERS, 'num_classes': 0, **kwargs}
    return randomise(timm.create_model(name, **kwargs), seed).eval()


def levels_of(encoder: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The four levels of timm's network, by the attributes that such models use."""
    x = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(x))))
    out = []
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        x = stage(x)
        out.append(x)
    return out


def assert_levels(folder: Path, expected: list[torch.Tensor], **kwargs) -> None:
    ours = timm.create_model(
        f'local-dir:{folder}', pretrained=True, features_only=True, out_indices=(1, 2, 3, 4),
        **kwargs,
    )  # fmt: skip
    with torch.no_grad():
        for got, level in zip(ours.eval()(image()), expected, strict=True):
            assert relative_error(got, level) < FLOAT32


PREFIXES = (
    'resnet', 'backbone', 'encoder', 'res2net', 'module.resnet', 'model', 'encoder.model',
    'backbone.body', '_backbone', 'body', 'net', 'ema.module', 'model.backbone.conv_encoder.model',
)  # fmt: skip


@pytest.mark.parametrize('name', slow_except(['res2net50d'], ['res2net50d', 'res2net50_26w_4s']))
@pytest.mark.parametrize('path', PREFIXES)
def test_an_encoder_in_a_model(path, name, tmp_path):
    encoder = authors(name)
    model = whole(path, encoder, ('decoder', 'loss.vgg'))
    found = convert_checkpoint(save(model.state_dict(), tmp_path / 'w.pth'), tmp_path / 'out')
    # DistributedDataParallel's prefix is removed if all keys have it
    assert found.notes.prefix == f'{path}.'
    assert (found.notes.source, found.config.semantics) == ('official', 'official')
    left = [key for key in model.state_dict() if not key.startswith(f'{path}.')]
    assert sorted(found.notes.left_out) == sorted(left)
    assert {move.source for move in found.notes.moved} == set(model.state_dict()) - set(left)
    with torch.no_grad():
        assert_levels(tmp_path / 'out', levels_of(encoder, image()))
    assert found.notes.prefix == f'{path}.'
    assert set(found.notes.left_out) == set(left)
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert f"prefix '{path}.'" in card
    assert f'not of the Res2Net, {len(left)}: {min(left)}' in card


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: {'state_dict': w, 'epoch': 3},
        lambda w: {'net': w},
        lambda w: {'state_dict_ema': w, 'state_dict': zeros(w)},
        lambda w: {'ema': {'module': w, 'updates': 3}},
        lambda w: {'weights': {'student': w}},
        lambda w: {f'module.{k}': v for k, v in w.items()},
        lambda w: {'n_averaged': torch.tensor(3), **{f'module.{k}': v for k, v in w.items()}},
        lambda w: {'state_dict': {f'_orig_mod.module.{k}': v for k, v in w.items()}},
    ],
)
def test_what_wraps_a_model(wrap, tmp_path):
    encoder = authors()
    path = save(wrap(whole('resnet', encoder).state_dict()), tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert found.notes.prefix.endswith('resnet.')
    with torch.no_grad():
        assert_levels(tmp_path / 'out', levels_of(encoder, image()))


def test_a_model_that_is_an_encoder_with_more(tmp_path):
    """A class that inherits from the authors': the encoder's keys have no prefix."""
    encoder = authors('res2net50_48w_2s')
    weights = encoder.state_dict()
    beside = {f'decoder.{key}': value for key, value in Decoder().state_dict().items()}
    found = convert_checkpoint(save({**weights, **beside}, tmp_path / 'w.pth'), tmp_path / 'out')
    assert (found.notes.prefix, sorted(found.notes.left_out)) == ('', sorted(beside))
    with torch.no_grad():
        assert_levels(tmp_path / 'out', levels_of(encoder, image()))


def test_the_classifier_of_an_encoder_stays(tmp_path):
    """The authors' function returns a whole classifier, whatever its user needs of it."""
    encoder = authors('res2net50_48w_2s', num_classes=7)
    path = save(whole('resnet', encoder).state_dict(), tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'out')
    ours = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    with torch.no_grad():
        assert relative_error(ours(image()), encoder(image())) < FLOAT32


def test_another_head_under_the_classifiers_name(tmp_path):
    encoder = authors('res2net50_48w_2s')
    heads = {'fc.1.weight': torch.ones(3, 2048), 'fc.1.bias': torch.ones(3)}
    path = save({**encoder.state_dict(), **heads}, tmp_path / 'w.pth')
    found = convert_checkpoint(path)
    assert sorted(found.notes.left_out) == sorted(heads)
    assert found.config.num_classes == 0


# --- detectors ------------------------------------------------------------------------------------

HEADS = {
    'mmdet': (
        'backbone.', MMDet, (
            'neck.fpn_convs.0.conv.weight', 'bbox_head.gfl_cls.weight', 'rpn_head.rpn_conv.bias',
            'roi_head.mask_head.0.convs.0.conv.weight', 'panoptic_fusion_head.x', 'query_head.y',
            'bbox_head.cls_convs.3.conv.conv_offset.weight', 'encoder.layers.0.weight',
        ),
    ),
    'detectron2': (
        'backbone.bottom_up.', Detectron2, (
            'backbone.fpn_lateral2.weight', 'proposal_generator.rpn_head.conv.weight',
            'roi_heads.box_head.fc1.bias', 'sem_seg_head.p2.0.weight', 'pixel_mean', 'dynamic.x',
        ),
    ),
    'maskrcnn': (
        'module.backbone.body.', lambda layers: MaskRCNN(layers, norm=nn.BatchNorm2d),
        ('module.backbone.fpn.fpn_inner1.bias', 'module.rpn.head.conv.bias', 'iteration_count'),
    ),
    'mmdet under a teacher': (
        'teacher.backbone.', MMDet, ('student.backbone.conv1.weight', 'teacher.neck.x'),
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', HEADS)
def test_detectors_with_any_head(case, tmp_path):
    prefix, build, heads = HEADS[case]
    reference = randomise(build(LAYERS)).eval()
    weights = {f'{prefix}{key}': value for key, value in reference.state_dict().items()}
    beside = {key: torch.ones(2, 2) for key in heads}
    path = save({'state_dict': {**weights, **beside}}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert found.notes.source == case.split()[0]
    assert (found.notes.prefix, sorted(found.notes.left_out)) == (prefix, sorted(heads))
    with torch.no_grad():
        expected = reference(image())
        if case == 'maskrcnn':  # its BatchNorm has no eps, and the reference's has
            frozen = MaskRCNN(LAYERS)
            frozen.load_state_dict(without_counters(reference.state_dict()))
            expected = frozen(image())
        assert_levels(tmp_path / 'out', expected)


def test_a_classifier_of_mmpretrain_and_a_head_that_is_none(tmp_path):
    encoder = authors('res2net50_48w_2s', num_classes=7)
    weights = {
        key.replace('fc.', 'head.fc.') if key.startswith('fc.') else f'backbone.{key}': value
        for key, value in encoder.state_dict().items()
    }
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    notes = found.notes
    assert (notes.source, notes.prefix, notes.left_out) == ('mmpretrain', 'backbone.', ())
    assert {'head.fc.weight', 'head.fc.bias'} <= {move.source for move in notes.moved}
    ours = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    with torch.no_grad():
        assert relative_error(ours(image()), encoder(image())) < FLOAT32
    weights['head.fc.weight'] = torch.ones(7, 99)  # of something else
    found = convert_checkpoint(save(weights, tmp_path / 'other.pth'))
    assert (found.notes.source, found.config.num_classes) == ('official', 0)
    assert sorted(found.notes.left_out) == ['head.fc.bias', 'head.fc.weight']


@pytest.mark.parametrize('prefix', ['Student.', 'Teacher.', 'Student.backbone.'])
def test_paddles_distillation(prefix, tmp_path):
    model = randomise(timm.create_model('res2net50_vd_26w_4s', layers=LAYERS)).eval()
    tensors = without_counters(model.state_dict())
    theirs = undo_rules(tensors, SOURCES['paddle'].rules(tensors), 'paddle')
    arrays = {f'{prefix}{key}': value.numpy() for key, value in theirs.items()}
    other = {'Other.weight': np.ones((3, 3)), 'Other.step': np.ones((), np.int64)}
    (tmp_path / 'w.pdparams').write_bytes(pickle.dumps({**arrays, **other}, 2))
    found = convert_checkpoint(tmp_path / 'w.pdparams', tmp_path / 'out')
    assert (found.notes.source, found.notes.prefix) == ('paddle', prefix)
    assert sorted(found.notes.left_out) == sorted(other)
    ours = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    with torch.no_grad():
        assert relative_error(ours(image()), model(image())) < FLOAT32


def test_paddle_detection_in_a_model(tmp_path):
    reference = randomise(PaddleDetection(LAYERS, 'b')).eval()
    paddles = {'running_mean': '_mean', 'running_var': '_variance'}
    arrays = {}
    for key, value in without_counters(reference.state_dict()).items():
        path, leaf = key.rsplit('.', 1)
        arrays[f'teacher_model.backbone.{path}.{paddles.get(leaf, leaf)}'] = value.numpy()
    arrays['head.yolo.weight'] = torch.ones(2, 2).numpy()
    (tmp_path / 'w.pdparams').write_bytes(pickle.dumps(arrays, 2))
    found = convert_checkpoint(tmp_path / 'w.pdparams', tmp_path / 'out')
    assert (found.notes.prefix, found.notes.left_out) == (
        'teacher_model.backbone.',
        ('head.yolo.weight',),
    )
    with torch.no_grad():
        assert_levels(tmp_path / 'out', reference(image()))


def test_the_articles_network_in_a_model(tmp_path):
    model = randomise(timm.create_model('res2net50_16w_4s_se', layers=LAYERS)).eval()
    tensors = model.state_dict()
    theirs = undo_rules(tensors, SOURCES['article'].rules(tensors), 'article')
    weights = {f'net.{key}': value for key, value in theirs.items()}
    path = save({**weights, 'head.weight': torch.ones(2, 2)}, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.notes.source, found.notes.prefix, found.notes.left_out) == (
        'article',
        'net.',
        ('head.weight',),
    )
    ours = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    with torch.no_grad():
        assert relative_error(ours(image()), model(image())) < FLOAT32


def test_torchvisions_detector_and_our_backbone(tmp_path):
    backbone = detection_backbone('res2net50_18w_4s', pretrained=False, layers=LAYERS)
    detector = torchvision.models.detection.RetinaNet(backbone, num_classes=3).eval()
    randomise(detector)
    path = save(OrderedDict(detector.state_dict()), tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    assert (found.notes.prefix, found.notes.source) == ('backbone.body.', 'official')
    assert any(key.startswith('head.classification_head') for key in found.notes.left_out)
    with torch.no_grad():
        assert_levels(tmp_path / 'out', levels_of(detector.backbone.body, image()))


# --- several --------------------------------------------------------------------------------------


def two(tmp_path: Path, names=('student', 'teacher')) -> tuple[Path, list[nn.Module]]:
    encoders = [authors('res2net50_48w_2s', seed=i, layers=(1, 1 + i, 1, 1)) for i in range(2)]
    weights = {}
    for name, encoder in zip(names, encoders, strict=True):
        weights.update(whole(name, encoder, ()).state_dict())
    return save({'state_dict': weights}, tmp_path / 'w.pth'), encoders


TWO = [
    ['student.resnet', 'teacher.resnet'], ['model', 'ema_model'], ['encoder', 'encoder2'],
    ['rgb.backbone', 'depth.backbone'], ['Student', 'Teacher'], ['model', 'ema.module'],
]  # fmt: skip
"""Lists, because `slow_except` unpacks tuples."""


@pytest.mark.parametrize('names', slow_except([TWO[0], TWO[2]], TWO))
def test_two_networks_are_a_question(names, tmp_path):
    path, encoders = two(tmp_path, names)
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out')
    text = str(error.value)
    assert 'holds 2 Res2Nets' in text
    assert '--prefix' in text
    for name, encoder in zip(names, encoders, strict=True):
        size = sum(value.numel() for value in encoder.state_dict().values())
        assert f"'{name}.' with {size:,} numbers" in text
    for i, (name, encoder) in enumerate(zip(names, encoders, strict=True)):
        out = tmp_path / f'out{i}'
        found = convert_checkpoint(path, out, prefix=name if i else f'{name}.')
        assert found.notes.prefix == f'{name}.'
        with torch.no_grad():
            assert_levels(out, levels_of(encoder, image()))
    with pytest.raises(ValueError, match=rf"has the prefix 'no\.'\. Use one of '{names[0]}\."):
        convert_checkpoint(path, prefix='no')


def test_a_part_of_a_prefix_is_enough_if_it_is_clear(tmp_path):
    path, _ = two(tmp_path, ('student.resnet', 'teacher.resnet'))
    assert convert_checkpoint(path, prefix='teacher').notes.prefix == 'teacher.resnet.'
    assert convert_checkpoint(path, prefix='module.teacher').notes.prefix == 'teacher.resnet.'


def test_the_network_without_a_prefix_beside_another(tmp_path):
    outer, inner = authors('res2net50_48w_2s'), authors('res2net50_48w_2s', seed=2)
    weights = {f'ema.{key}': value for key, value in inner.state_dict().items()}
    path = save({**outer.state_dict(), **weights}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r"2 Res2Nets, '' with [\d,]+ numbers, 'ema\.' with"):
        convert_checkpoint(path)
    for prefix, encoder in (('', outer), ('ema', inner)):
        found = convert_checkpoint(path, tmp_path / f'out{prefix}', prefix=prefix)
        assert found.notes.prefix == (f'{prefix}.' if prefix else '')
        with torch.no_grad():
            assert_levels(tmp_path / f'out{prefix}', levels_of(encoder, image()))


def test_an_average_beside_the_model(tmp_path):
    model, average = (whole('resnet', authors(seed=seed)).state_dict() for seed in (1, 2))
    content = {'model': model, 'ema': {'module': average, 'updates': 3}}
    path = save(content, tmp_path / 'w.pth')
    found = convert_checkpoint(path)
    assert (found.notes.entry, found.notes.others) == ('model', ('ema.module',))
    found = convert_checkpoint(path, entry='ema.module')
    assert found.notes.entry == 'ema.module'
    assert found.net.state_dict()['bn1.bias'].equal(average['resnet.bn1.bias'])


def test_a_push_takes_the_same_files(tmp_path):
    path, encoders = two(tmp_path)
    with pytest.raises(ValueError, match='holds 2 Res2Nets'):
        push_to_hub(path, 'me/net', license='mit', dry_run=True)
    done = push_to_hub(path, 'me/net', license='mit', prefix='teacher', dry_run=True)
    left = len(encoders[0].state_dict())
    assert any("prefix 'teacher.'" in note and f'{left}: student.' in note for note in done.notes)
    assert "prefix 'teacher.'" in done.card
    with pytest.raises(ValueError, match='prefix out'):
        push_to_hub(encoders[0], 'me/net', license='mit', prefix='x', dry_run=True)


def test_the_command_line(tmp_path, capsys):
    from timm_res2net.cli import main

    path, encoders = two(tmp_path)
    assert main(['convert', str(path), '--dry-run', '--prefix', 'student']) == 0
    text = capsys.readouterr().out
    assert "prefix 'student.'" in text
    left = len(encoders[1].state_dict())
    assert f'Left out, because they are not of the Res2Net, {left}: ' in text


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize('path', ['', 'resnet.'])
def test_a_stem_that_moved_is_named(path, tmp_path):
    moved = {'conv1.': 'layer0.0.', 'bn1.': 'layer0.1.'}
    weights = {}
    for key, value in authors('res2net50_48w_2s').state_dict().items():
        start = key.partition('.')[0] + '.'
        weights[path + key.replace(start, moved.get(start, start), 1)] = value
    given = save({**weights, 'decoder.conv.weight': torch.ones(8, 256, 3, 3)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError) as error:
        convert_checkpoint(given)
    text = str(error.value)
    assert f"no stem '{path}conv1'" in text
    assert f"1: '{path}layer0.0.weight' (64, 3, 7, 7)" in text
    assert f"under the names '{path}conv1' and '{path}bn1'" in text


def test_a_stem_that_is_nowhere(tmp_path):
    weights = authors('res2net50_48w_2s').state_dict()
    weights = {f'x.{k}': v for k, v in weights.items() if not k.startswith(('conv1.', 'bn1.'))}
    with pytest.raises(ValueError, match=r"no stem 'x\.conv1', and no other convolution looks"):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


@pytest.mark.parametrize(
    'odd', ['layer1.0.cbam.weight', 'layer2.1.conv4.weight', 'bn1_1.weight', 'layer4.2.bns.9.odd.x']
)
def test_what_stands_in_the_network_is_not_left_out(odd, tmp_path):
    """A part of a block that no rule knows changes what the network computes."""
    weights = {f'resnet.{k}': v for k, v in authors('res2net50_48w_2s').state_dict().items()}
    path = save({**weights, f'resnet.{odd}': torch.ones(2, 2)}, tmp_path / 'w.pth')
    if odd.startswith('bn1_1'):  # another module of the model
        assert convert_checkpoint(path).notes.left_out == (f'resnet.{odd}',)
    else:
        with pytest.raises(ValueError, match=rf'no rule for, 1: {odd}'):
            convert_checkpoint(path)


def test_a_weight_of_the_network_that_is_no_weight(tmp_path):
    weights = {f'resnet.{k}': v for k, v in authors('res2net50_48w_2s').state_dict().items()}
    weights['resnet.layer1.0.conv1.weight'] = weights['resnet.layer1.0.conv1.weight'].to(torch.int8)
    with pytest.raises(ValueError, match=r"'resnet\.layer1\.0\.conv1\.weight' is a .* torch\.int8"):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('backbone.cb_modules.1.', 'CBNet.*cannot be built'),
        ('backbone.', ''),
    ],
)
def test_a_cascade_of_two_backbones(name, words, tmp_path):
    weights = {}
    for prefix in ('backbone.cb_modules.0.', name):
        weights.update({f'{prefix}{k}': v for k, v in MMDet(LAYERS).state_dict().items()})
    weights['backbone.cb_linears.1.0.0.weight'] = torch.ones(2, 2)
    with pytest.raises(ValueError, match=words or 'CBNet'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_deformable_convolutions_in_a_detector(tmp_path):
    weights = {f'backbone.{k}': v for k, v in MMDet(LAYERS).state_dict().items()}
    weights['backbone.layer2.0.convs.0.conv_offset.weight'] = torch.ones(27, 52, 3, 3)
    with pytest.raises(ValueError, match='deformable convolutions, which cannot be built'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_three_stages_in_a_model(tmp_path):
    weights = authors('res2net50_48w_2s').state_dict()
    weights = {f'net.{k}': v for k, v in weights.items() if not k.startswith('layer4.')}
    with pytest.raises(ValueError, match='three stages, as networks for CIFAR have'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_a_layout_by_name(tmp_path):
    """`--from` looks for that layout alone."""
    mmdet = {f'backbone.{k}': v for k, v in MMDet(LAYERS).state_dict().items()}
    d2 = {f'other.{k}': v for k, v in Detectron2(LAYERS).state_dict().items()}
    path = save({**mmdet, **d2}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='holds 2 Res2Nets'):
        convert_checkpoint(path)
    assert convert_checkpoint(path, source='detectron2').notes.prefix == 'other.'
    with pytest.raises(ValueError, match=r'Res2Net of article \(.*recognised \(auto\)'):
        convert_checkpoint(path, source='article')


def test_keys_are_enough_to_find_a_network():
    network = find_network(dict.fromkeys(whole('resnet', authors()).state_dict()))
    assert (network.prefix, network.source) == ('resnet.', 'official')
    assert network.keys['bn1.bias'] == 'resnet.bn1.bias'
