"""Folding, against the layers that it stands for."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from tests.common import image, randomise, relative_error
from timm_res2net.layers.fold import fold_conv, folds


def pair(norm, conv=None, **kwargs):
    conv = conv or nn.Conv2d(6, 8, 3, padding=1, **kwargs)
    layers = randomise(nn.Sequential(conv, norm)).double().eval()
    if isinstance(norm, FrozenBatchNorm2d):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(0.5, 1.0)
        norm.bias.uniform_(-0.2, 0.2)
    return layers


@pytest.mark.parametrize(
    'norm',
    [
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, eps=0.1),
        nn.SyncBatchNorm(8),
        FrozenBatchNorm2d(8),
    ],
    ids=str,
)
@pytest.mark.parametrize('bias', [False, True])
def test_a_convolution_with_its_batchnorm(norm, bias):
    layers = pair(norm, bias=bias, groups=2, stride=2, dilation=2)
    folded = fold_conv(*layers)
    assert type(folded) is nn.Conv2d
    x = image(2, 9, 6).double()
    # SyncBatchNorm itself runs on a CPU in eval mode only
    assert relative_error(folded(x), layers(x)) < 1e-13
    assert not any(p is q for p in folded.parameters() for q in layers.parameters())


def test_type_device_format_and_gradients_stay():
    layers = pair(nn.BatchNorm2d(8)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    folded = fold_conv(*layers.requires_grad_(False))
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded.weight.requires_grad
    assert not folded.bias.requires_grad
    assert fold_conv(*pair(nn.BatchNorm2d(8))).weight.requires_grad
    meta = nn.Sequential(nn.Conv2d(6, 8, 1, device='meta'), nn.BatchNorm2d(8, device='meta'))
    assert fold_conv(*meta).weight.device.type == 'meta'


def test_it_is_rounded_once():
    """float32 weights fold to what float64 arithmetic rounds to."""
    layers = randomise(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))).eval()
    folded, wide = fold_conv(*layers), fold_conv(*layers.double())
    assert folded.weight.dtype == torch.float32
    assert torch.equal(folded.weight, wide.weight.float())
    assert torch.equal(folded.bias, wide.bias.float())


def test_no_norm_and_either_mode():
    conv, norm = pair(nn.BatchNorm2d(8))
    assert folds(nn.Identity())
    folded = fold_conv(conv, nn.Identity())
    assert torch.equal(folded.weight, conv.weight)
    assert folded.weight is not conv.weight
    assert not folded.training
    trained = fold_conv(conv.train(), norm.train())
    assert trained.training
    assert torch.equal(trained.weight, fold_conv(conv.eval(), norm.eval()).weight)
