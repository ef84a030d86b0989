"""The article's network, compared with this package's."""

import pytest
import timm
import torch

from benchmarks.suite import article
from benchmarks.suite.attribution import counts
from benchmarks.suite.pairs import Spec
from tests.common import image, randomise, relative_error


def test_equal_macs_are_the_closest_that_a_base_width_gives():
    macs = counts(Spec('article'), 224)['macs']
    found = {
        width: counts(Spec('resnet50', {'base_width': width}), 224)['macs']
        for width in (32, 40, 41, 42, 64)
    }
    # MACs grow with the width, so only the neighbors of the closest can be closer
    assert list(found.values()) == sorted(set(found.values()))
    others = {width: abs(value / macs - 1) for width, value in found.items()}
    assert min(others, key=others.__getitem__) == 41
    assert others[41] == pytest.approx(0.0036, abs=5e-5)
    assert others[40] == pytest.approx(0.0235, abs=5e-5)
    full = counts(Spec('resnet50'), 224)
    assert macs / full['macs'] == pytest.approx(0.577, abs=5e-4)
    # arXiv:2003.13678, table of ResNet-50: 25.6 M parameters, 4.1 GFLOPs, 11.1 M activations
    assert full['params'] == 25_557_032
    assert full['macs'] / 1e9 == pytest.approx(4.09, abs=5e-3)
    assert full['activations'] / 1e6 == pytest.approx(11.1, abs=0.05)


def rotated(chunks):
    return torch.cat([*chunks[1:], chunks[0]])


def test_the_articles_network_is_ours_with_biases_and_another_order():
    """Biases go into the running means, and the first split becomes the last."""
    theirs = randomise(article.Res2Net((1, 2, 1, 1))).double().eval()
    ours = timm.create_model('res2net50_16w_4s_se', layers=[1, 2, 1, 1]).double().eval()
    source = theirs.state_dict()
    target = {}

    def conv_bn(conv, bn, to_conv, to_bn, rotate=False):
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            target[f'{to_bn}.{name}'] = source[f'{bn}.{name}']
        target[f'{to_conv}.weight'] = source[f'{conv}.weight']
        target[f'{to_bn}.running_mean'] = (
            source[f'{bn}.running_mean'] - source.get(f'{conv}.bias', 0.0)
        )  # fmt: skip
        if rotate:
            for key in (f'{to_conv}.weight', *(k for k in target if k.startswith(f'{to_bn}.'))):
                target[key] = rotated(target[key].chunk(4))

    conv_bn('stem.0', 'stem.1', 'conv1', 'bn1')
    for stage, depth in enumerate((1, 2, 1, 1)):
        for i in range(depth):
            a, b = f'layers.{stage}.{i}', f'layer{stage + 1}.{i}'
            conv_bn(f'{a}.conv1', f'{a}.bn1', f'{b}.conv1', f'{b}.bn1', rotate=True)
            for j in range(3):
                conv_bn(f'{a}.conv2.{j}', f'{a}.bn2.{j}', f'{b}.convs.{j}', f'{b}.bns.{j}')
            conv_bn(f'{a}.conv3', f'{a}.bn3', f'{b}.conv3', f'{b}.bn3')
            turned = rotated(target[f'{b}.conv3.weight'].transpose(0, 1).chunk(4))
            target[f'{b}.conv3.weight'] = turned.transpose(0, 1)
            for name in ('fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'):
                target[f'{b}.se.{name}'] = source[f'{a}.se.{name}']
            if i == 0:
                conv_bn(
                    f'{a}.downsample.0', f'{a}.downsample.1', f'{b}.downsample.0',
                    f'{b}.downsample.1',
                )  # fmt: skip
    target.update({f'fc.{name}': source[f'fc.{name}'] for name in ('weight', 'bias')})
    counters = [k for k in ours.state_dict() if k.endswith('num_batches_tracked')]
    missing, unexpected = ours.load_state_dict(target, strict=False)
    assert set(missing) <= set(counters)
    assert not unexpected
    x = image(2, 96).double()
    with torch.inference_mode():
        assert relative_error(ours(x).softmax(1), theirs(x)) < 1e-12


def test_the_articles_network_has_the_parameters_known_of_it():
    assert sum(p.numel() for p in article.Res2Net().parameters()) == 18_916_424
    with pytest.raises(ValueError, match='planes=30 must be a multiple of scales=4'):
        article.Block(8, 30, 1, 4, 1, False)
