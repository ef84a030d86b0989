"""Whole models: the Res2Net in them is found, whatever is beside it."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.common import image, network, random_weights, save
from tests.convert.helpers import LAYERS, V1B, undone
from timm_res2net import convert_checkpoint
from timm_res2net.cli import main
from timm_res2net.convert.find import find_network, infer_arguments
from timm_res2net.convert.sources import SOURCES

ONE = torch.ones(2, 2)


def under(prefix: str, tensors) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def body(seed: int = 1, **kwargs) -> dict[str, torch.Tensor]:
    """The state dict of a narrow network of the authors' without a classifier."""
    return network(seed=seed, attn_layer='', num_classes=0, **kwargs).state_dict()


def test_a_decoder_beside_an_encoder(tmp_path):
    """A decoder's names are those of an encoder, too, and it has integers and masks."""
    features = body()['layer4.0.conv3.weight'].shape[0]
    beside = {
        'decoder.conv1.weight': ONE, 'decoder.layer1.0.weight': ONE, 'decoder.fc.weight': ONE,
        'decoder.convs.0.weight': ONE, 'index': torch.arange(4),
        'fc.weight': torch.ones(3, features), 'lookup.weight': torch.ones(features),
    }  # fmt: skip
    content = {'state_dict': {**under('encoder.', body()), **beside}, 'epoch': 3}
    model = convert_checkpoint(save(content, tmp_path / 'w.pth'), tmp_path / 'out')
    assert (model.notes.source, model.notes.prefix) == ('official', 'encoder.')
    assert set(model.notes.left_out) == set(beside)
    assert model.notes.classifiers == ('fc.weight',)
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert "prefix 'encoder.'" in card
    assert f'not of the Res2Net, {len(beside)}: decoder.conv1.weight' in card


HEADS = {  # what replaces tensors of fc, for 128 features
    'of a flattened map': {'weight': torch.ones(10, 49 * 128)},
    'a tensor more': {'scale': ONE},
    'a module more': {'norm.weight': ONE},
    'a cosine': {'bias': None},
    'weight norm': {'weight': None, 'weight_g': torch.ones(10, 1), 'weight_v': torch.ones(10, 128)},
    'another bias': {'bias': torch.ones(9)},
    'of other features': {'weight': torch.ones(10, 100)},
}


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('source', ['paddle', 'mmpretrain'])
def test_a_head_that_does_not_fit(head, source, tmp_path):
    """It is left out, all of it, and named."""
    net = network(attn_layer='', channels=(4, 8, 16, 32), semantics=SOURCES[source].semantics[0])
    theirs = undone(source, net.state_dict())
    start = next(key for key in theirs if theirs[key].shape == (10,)).rpartition('.')[0]
    if source == 'mmpretrain':
        theirs = {k if k.startswith(start) else f'backbone.{k}': v for k, v in theirs.items()}
    changed = {f'{start}.{leaf}': value for leaf, value in HEADS[head].items()}
    theirs = {key: value for key, value in {**theirs, **changed}.items() if value is not None}
    model = convert_checkpoint(
        save(theirs, tmp_path / 'w.pth'), semantics=net.model_args['semantics']
    )
    assert set(model.notes.left_out) == {key for key in theirs if key.startswith(f'{start}.')}
    assert model.config.num_classes == 0
    wide = [key for key in model.notes.left_out if theirs[key].shape[1:] == (128,)]
    assert set(wide) <= set(model.notes.classifiers)
    with torch.no_grad():
        assert model.net(image()).equal(net.forward_head(net.forward_features(image()), True))


@pytest.mark.parametrize(
    ('prefix', 'names'),
    [
        ('', 'encoder1=layer1 encoder2=layer2 encoder3=layer3 encoder4=layer4'),
        ('net.', 'stage_2=layer1 stage_3=layer2 stage_4=layer3 stage_5=layer4'),
        ('', 'layer3_1=layer3 layer4_1=layer4'),
        ('', '0=conv1 1=bn1 4=layer1 5=layer2 6=layer3 7=layer4'),
        ('', 'down.1.0=layer1 layer1=layer2 layer2=layer3 layer3=layer4'),
        ('m.', 'firstconv=conv1'),
    ],
)
def test_stages_and_stems_under_other_names(prefix, names, tmp_path):
    """The refusal names where the blocks are, and what it names can be renamed."""
    pairs = [pair.split('=') for pair in names.split()]
    rename = {prefix + theirs: prefix + ours for theirs, ours in pairs}
    theirs = {ours: theirs for theirs, ours in rename.items()}
    tensors = {}
    for key, value in under(prefix, body()).items():
        start = next((start for start in theirs if key.startswith(f'{start}.')), '')
        tensors[theirs.get(start, '') + key.removeprefix(start)] = value
    path = save(tensors, tmp_path / 'w.pth')
    blocks = [theirs.get(stage, stage) for stage in (f'{prefix}layer{i}' for i in range(1, 5))]
    with pytest.raises(ValueError, match=rf'blocks are in {", ".join(blocks)}\. .*--rename NAME='):
        convert_checkpoint(path)
    notes = convert_checkpoint(path, rename=rename).notes
    assert {move.theirs for move in notes.moved} == tensors.keys()
    assert (notes.left_out, notes.prefix) == ((), prefix)
    with pytest.raises(ValueError, match='Two keys get the same name'):
        convert_checkpoint(path, rename=dict.fromkeys(blocks, 'x'))
    options = [part for pair in rename.items() for part in ('--rename', '='.join(pair))]
    assert main(['convert', str(path), '--dry-run', *options]) == 0
    assert main(['convert', str(path), '--dry-run']) == 1
    with pytest.raises(SystemExit):
        main(['convert', str(path), '--dry-run', '--rename', 'encoder1'])


# --- several --------------------------------------------------------------------------------------


def two(path: Path, names: tuple[str, str]) -> Path:
    one, other = body(1), body(2, layers=LAYERS)
    return save({**under(names[0], one), **under(names[1], other)}, path / 'w.pth')


@pytest.mark.parametrize(
    ('names', 'parts'),
    [
        (('student.resnet.', 'teacher.resnet.'), ('student', 'teacher.')),
        (('encoder.', 'encoder2.'), ('encoder', 'encoder2')),
        (('', 'ema.'), ('', 'ema.')),
        (('module.rgb.backbone.', 'module.depth.backbone.'), ('rgb', 'module.depth')),
    ],
)
def test_two_networks_are_a_question(names, parts, tmp_path, capsys):
    path = two(tmp_path, names)
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out')
    size = sum(value.numel() for value in body(1).values())
    assert 'holds 2 Res2Nets' in str(error.value)
    assert f'{names[0]!r} with {size:,} numbers' in str(error.value)
    assert not (tmp_path / 'out').exists()
    for seed, name, part in zip((1, 2), names, parts, strict=True):
        model = convert_checkpoint(path, prefix=part)
        assert model.notes.prefix == name
        assert model.net.state_dict()['bn1.bias'].equal(body(seed)['bn1.bias'])
    if all(name.endswith('.resnet.') for name in names):
        with pytest.raises(ValueError, match='holds 2 Res2Nets'):
            convert_checkpoint(path, prefix='resnet')
    assert main(['convert', str(path), '--dry-run', '--prefix', parts[1]]) == 0
    text = capsys.readouterr().out
    assert f"prefix '{names[1]}'" in text
    assert 'Left out, because they are not of the Res2Net' in text
    with pytest.raises(ValueError, match=rf"has the prefix 'no'\. Use one of '{names[0]}'"):
        convert_checkpoint(path, prefix='no')


def test_a_source_by_name(tmp_path):
    """`--from` looks for that source alone."""
    tensors = body(**V1B)
    one = under('backbone.', undone('mmdet', tensors))
    other = under('other.', undone('detectron2', tensors))
    path = save({**one, **other}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='holds 2 Res2Nets'):
        convert_checkpoint(path)
    assert convert_checkpoint(path, source='detectron2').notes.prefix == 'other.'
    with pytest.raises(ValueError, match=r'Res2Net of article \(.*recognised \(auto\)'):
        convert_checkpoint(path, source='article')


# --- what cannot be built -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        (['encoder.weight'], r'Res2Net of paddle, .* \(1: encoder\.weight\)'),
        (['net.layer1.0.conv2.weight'], 'ResNet or a plain HRNet'),
        (['level3.tree1.tree2.convs.0.weight'], 'dla60_res2net and dla60_res2next. Load it with'),
        (['backbone.cb_modules.0.layer1.0.convs.0.weight'], 'CBNet.* cannot be built'),
        (['cb_modules.0.layer1.0.convs.0.weight', 'layer1.0.convs.0.weight'], 'CBNet'),
        (['backbone.cb_linears.1.0.0.weight'], 'CBNet.* cannot be built'),
        (['layer1.0.convs.0.weight', 'layer1.0.convs.0.conv_offset.weight'], 'deformable'),
        (['res3.0.conv2_offsets.0.weight'], 'deformable convolutions, which cannot be built'),
        (timm.create_model('dla60_res2net', device='meta').state_dict(), 'dla60_res2net'),
    ],
)
def test_networks_that_cannot_be_built(keys, words):
    with pytest.raises(ValueError, match=words):
        find_network(dict.fromkeys(keys))


@pytest.mark.parametrize(
    ('odd', 'words'),
    [
        ('layer1.0.cbam.weight', r'no rule for, 1: layer1\.0\.cbam'),
        ('layer4.2.bns.9.odd.x', r'no rule for, 1: layer4\.2'),
        ('bn1_1.weight', ''),  # another module of the model
    ],
)
def test_parts_of_a_block_are_not_left_out(odd, words, tmp_path):
    """A part of a block that no rule knows changes what the network computes."""
    path = save(under('resnet.', {**body(), odd: ONE}), tmp_path / 'w.pth')
    if words:
        with pytest.raises(ValueError, match=words):
            convert_checkpoint(path)
    else:
        assert convert_checkpoint(path).notes.left_out == (f'resnet.{odd}',)


# --- arguments from shapes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kwargs',
    [
        {}, {'layers': (1, 3, 2, 1)}, {'channels': (8, 16, 40, 64)}, {'cardinality': 2},
        {'base_width': 26.5}, {'scale': 1}, {'scale': 5}, {'attn_layer': ''}, {'in_chans': 4},
        {'num_classes': 0}, {'stem_type': 'deep', 'stem_width': 8},
        {'stem_type': 'deep_tiered', 'stem_width': 8}, {'avg_down': True},
        {'down_kernel_size': 3}, {'replace_stem_pool': True},
        {'base_width': 64 / 3, 'channels': (48, 96, 192, 384)},  # no whole number fits
    ],
)  # fmt: skip
def test_arguments_build_the_same_shapes(kwargs):
    net: Any = timm.create_model('test_res2net_se', device='meta', **kwargs)
    arguments = infer_arguments(net.state_dict())
    assert all(arguments[key] == value for key, value in kwargs.items() if key != 'base_width')
    again: Any = timm.create_model('res2net50_18w_4s', device='meta', **arguments)
    shapes, expected = (
        {key: value.shape for key, value in m.state_dict().items()} for m in (again, net)
    )
    assert shapes == expected


@pytest.mark.parametrize(
    ('key', 'words'),
    [
        ('layer2.0.convs.0.weight', "no 'layer2.0.convs.0.weight'"),
        ('layer4.0.conv3.weight', "no 'layer4.0.conv3.weight'.*four stages"),
        ('conv1.weight', "no 'conv1.weight'"),
        ('layer1.0.se.fc1.weight', 'attention is not SE'),
    ],
)
def test_shapes_of_no_res2net(key, words):
    tensors = random_weights()
    del tensors[key]
    with pytest.raises(ValueError, match=words):
        infer_arguments(tensors)
