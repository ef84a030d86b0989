"""Files with an HRNet of Res2Net bottlenecks convert by the name of the network."""

import argparse

import pytest
import timm
import torch

from tests.common import image, randomise, slow_except
from timm_res2net import convert_checkpoint

NAME = 'hrnet_w18_res2net'
CASES = {
    'a classifier': dict(num_classes=7),
    'no classifier': dict(num_classes=0),
    'SE, eight splits, gray images': dict(attn_layer='se', scale=8, base_width=14, in_chans=1),
    'groups, max pooling': dict(cardinality=2, semantics='paddle', global_pool='max'),
    'the branches of a larger model': dict(head=''),
}


def args_of(**kwargs) -> argparse.Namespace:
    """What timm's train.py records of a network."""
    gp = kwargs.pop('global_pool', None)
    return argparse.Namespace(model=NAME, gp=gp, model_kwargs=kwargs)


def made(**kwargs):
    return randomise(timm.create_model(NAME, **kwargs)).eval()


@pytest.mark.parametrize('case', slow_except(['a classifier'], CASES))
def test_a_file_becomes_a_folder_with_the_same_outputs(case, tmp_path):
    kwargs = CASES[case]
    model = made(**kwargs)
    beside = {'joints.weight': torch.zeros(17, 18, 1, 1), 'step': torch.zeros(1)}
    if 'head' in kwargs:  # as pose networks name their last layer
        beside['backbone.final_layer.weight'] = torch.zeros(17, 18, 1, 1)
    keys = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    content = {'state_dict': {**keys, **beside}, 'args': args_of(**kwargs)}
    torch.save(content, tmp_path / 'w.pth')
    found = convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'out')
    assert (found.notes.source, found.config.architecture) == ('timm', NAME)
    assert (found.notes.prefix, sorted(found.notes.left_out)) == ('backbone.', sorted(beside))
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = image(1, channels=kwargs.get('in_chans', 3))
    with torch.no_grad():
        expected, outputs = (m.forward_intermediates(x) for m in (model, again))
        assert all(map(torch.equal, outputs[1], expected[1]))
        if 'head' not in kwargs:
            assert torch.equal(again(x), model(x))


def test_a_file_without_a_record(tmp_path):
    """The name is given; the numbers of classes and channels are those of the layers."""
    model = made(num_classes=3, in_chans=1)
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    found = convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'out', model=NAME)
    assert (found.config.architecture, found.config.semantics) == (NAME, 'official')
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(image(1, channels=1)), model(image(1, channels=1)))
    found = convert_checkpoint(tmp_path / 'w.pth', model=NAME, semantics='paddle', dry_run=True)
    assert found.config.semantics == 'paddle'


WRONG = {
    'no name': ({'model': None}, ['an HRNet', 'model=hrnet_w18_res2net or hrnet_w32_res2net']),
    'another HRNet is asked for': ({'model': 'hrnet_w32_res2net'}, ['size mismatch', ' more']),
    'a Res2Net is asked for': ({'model': 'res2net50_se'}, ['an HRNet', 'model=hrnet_w18_res2net']),
    'it is a Res2Net': ({'network': 'res2net50_18w_4s'}, ['size mismatch', ' more']),
    'another layout is asked for': (
        {'to': 'official'},
        ['cannot be written as official', 'an HRNet', 'only timm'],
    ),
    'a tensor is missing': ({'without': 'bn2.weight'}, ['bn2.weight', 'without a value']),
    'the stem is missing': ({'without': 'conv1.weight'}, ["no stem 'conv1'"]),
    "timm's own HRNet": ({'network': 'hrnet_w18'}, ['plain HRNet', 'one 3x3 convolution']),
}


@pytest.mark.parametrize('case', slow_except(["timm's own HRNet"], WRONG))
def test_what_cannot_be_converted(case, tmp_path):
    change, words = WRONG[case]
    tensors = timm.create_model(change.get('network', NAME)).state_dict()
    tensors.pop(change.get('without'), None)
    torch.save(tensors, tmp_path / 'w.pth')
    options = {'model': NAME, **{key: change[key] for key in ('model', 'to') if key in change}}
    with pytest.raises(ValueError) as error:
        convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'out', **options)
    assert all(word in str(error.value) for word in words), error.value
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']
