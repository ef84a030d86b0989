"""Files with an HRNet of Res2Net bottlenecks are told by their keys."""

import argparse

import pytest
import timm
import torch

from tests.common import image, randomise, slow_except
from timm_res2net import convert_checkpoint

CASES = {
    'a classifier': dict(num_classes=7),
    'no classifier': dict(num_classes=0),
    'SE, eight splits, gray images': dict(attn_layer='se', scale=8, base_width=14, in_chans=1),
    'groups, max pooling': dict(cardinality=2, semantics='paddle', global_pool='max'),
    'a backbone': dict(features_only=True),
    "a backbone's branches": dict(features_only=True, feature_location=''),
    'the branches of a larger model': dict(head=''),
}


def made(**kwargs):
    return randomise(timm.create_model('hrnet_w18_res2net', **kwargs)).eval()


def weights(prefix: str = '', **kwargs) -> dict[str, torch.Tensor]:
    return {f'{prefix}{key}': value for key, value in made(**kwargs).state_dict().items()}


@pytest.mark.parametrize('case', slow_except(['a backbone'], CASES))
def test_a_file_becomes_a_folder_with_the_same_outputs(case, tmp_path):
    kwargs = CASES[case]
    model = made(**kwargs)
    beside = {'joints.weight': torch.zeros(17, 18, 1, 1), 'step': torch.zeros(1)}
    is_backbone = 'features_only' in kwargs or 'head' in kwargs
    if is_backbone:  # as pose networks name their last layer
        beside['backbone.final_layer.weight'] = torch.zeros(17, 18, 1, 1)
    keys = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    args = argparse.Namespace()
    if 'semantics' in kwargs:  # as timm's train.py notes what no shape tells
        args.model, args.gp = 'hrnet_w18_res2net', kwargs['global_pool']
        args.model_kwargs = {'semantics': kwargs['semantics']}
    torch.save({'state_dict': {**keys, **beside}, 'args': args}, tmp_path / 'w.pth')
    found = convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'out')
    assert (found.source, found.architecture) == ('timm', 'hrnet_w18_res2net')
    assert (found.prefix, sorted(found.left_out)) == ('backbone.', sorted(beside))
    levels = {'features_only': True} if is_backbone else {}
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True, **levels).eval()
    x = image(1, channels=kwargs.get('in_chans', 3))
    with torch.no_grad():
        expected, outputs = model(x), again(x)
    if 'head' in kwargs:
        outputs = outputs[1:]  # without the stem's level
    elif not is_backbone:
        expected, outputs = [expected], [outputs]
    assert len(outputs) == len(expected)
    assert all(map(torch.equal, outputs, expected))


WRONG = {
    'another HRNet is asked for': (
        {'model': 'hrnet_w32_res2net'},
        ['(18, 36, 72, 144)', 'Use hrnet_w18_res2net'],
    ),
    'a Res2Net is asked for': (
        {'model': 'res2net50_se'},
        ['(18, 36, 72, 144)', 'Use hrnet_w18_res2net'],
    ),
    'another layout is asked for': (
        {'to': 'official'},
        ['cannot be written as official', 'HRNet', "timm's"],
    ),
    'a tensor is missing': ({'without': 'bn2.weight'}, ['bn2.weight', 'without a value']),
    'the stem is missing': ({'without': 'conv1.weight'}, ["no stem 'conv1'"]),
    'a branch is narrower': (
        {'narrow': 'stage4.0.branches.1.0.conv1.weight'},
        ['(18, 18, 72, 144)', 'hrnet_w32_res2net'],
    ),
    "timm's own HRNet": ({'network': 'hrnet_w18'}, ['plain HRNet', 'one 3x3 convolution']),
}


@pytest.mark.parametrize('case', slow_except(["timm's own HRNet"], WRONG))
def test_what_cannot_be_converted(case, tmp_path):
    change, words = WRONG[case]
    tensors = timm.create_model(change.get('network', 'hrnet_w18_res2net')).state_dict()
    tensors.pop(change.get('without'), None)
    if 'narrow' in change:
        tensors[change['narrow']] = tensors[change['narrow']][:18].clone()
    torch.save(tensors, tmp_path / 'w.pth')
    options = {key: change[key] for key in ('model', 'to') if key in change}
    with pytest.raises(ValueError) as error:
        convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'out', **options)
    assert all(word in str(error.value) for word in words), error.value
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']
