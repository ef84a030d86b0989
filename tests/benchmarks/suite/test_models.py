"""The models of a pair: with random weights, and deployed."""

import pytest
import timm
import torch
from torch import nn

from benchmarks.suite.models import build, deploy
from benchmarks.suite.pairs import Spec
from tests.common import image, randomise, relative_error


@pytest.mark.parametrize('name', ['resnet50', 'resnext50_32x4d', 'res2net50_26w_4s'])
def test_a_deployed_model_computes_the_same(name):
    model = randomise(timm.create_model(name, layers=[1, 2, 1, 1])).double().eval()
    x = image(2, 64).double()
    with torch.inference_mode():
        expected = model(x)
        deployed = deploy(model, name)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
        assert relative_error(deployed(x), expected) < 1e-12  # float64, about 50 layers


def test_a_deployed_resnet_runs_packed_and_over_its_shortcuts():
    model = randomise(timm.create_model('resnet50', layers=[1, 2, 1, 1])).eval()
    model = model.to(memory_format=torch.channels_last)
    x = image(2, 64).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.inference_mode():
        expected = model(x)
    deployed = deploy(model, 'resnet50')
    with torch.inference_mode():
        for _ in range(3):  # unpacked, packing, packed
            assert relative_error(deployed(x), expected) < 1e-5
    assert torch.equal(x, kept)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50d', 'seresnet50', 'dla60_res2net'])
def test_models_that_cannot_be_deployed(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be deployed") as error:
        deploy(build(Spec(name), 'meta'), name)
    assert 'Use a Res2Net of timm or of this package' in str(error.value)
    assert 'resnet50' in str(error.value)


def test_models_do_work():
    """No BatchNorm weight is 0, because a GPU draws less power on zeros."""
    for name in ('resnet50', 'res2net50_26w_4s', 'article'):
        norms = [m for m in build(Spec(name)).modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(bool(norm.weight.any()) for norm in norms)
