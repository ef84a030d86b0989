"""The models of a pair: with random weights, or deployed."""

from typing import Any

import timm
import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

import timm_res2net
from timm_res2net import Bottle2neck
from timm_res2net.layers.fused_conv import fuse, fuse_sequential

from . import article
from .pairs import ARTICLE, Spec


def build(spec: Spec, device: str = 'cpu') -> nn.Module:
    """Return a model with random weights in eval mode.

    Args:
        spec: The model.
        device: Where to build it, for example 'meta'.
    """
    torch.manual_seed(0)
    with torch.device(device):
        if spec.name == ARTICLE:
            model: Any = article.Res2Net(**spec.arguments)
            model.pretrained_cfg = {'input_size': (3, 224, 224)}  # an export asks for it
        else:
            model = timm.create_model(spec.name, **spec.arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and device != 'meta' and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)  # a GPU draws less power on zeros
    return model.eval()


class _FusedBottleneck(nn.Module):
    """timm's ResNet bottleneck with the treatment that a deployed Res2Net block gets."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv1 = fuse(block.conv1, block.bn1, block.act1)
        self.conv2 = fuse(block.conv2, block.bn2, block.act2)
        self.conv3 = fuse(block.conv3, block.bn3, block.act3)
        self.downsample = None if block.downsample is None else fuse_sequential(block.downsample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        # no other layer of the network reads x, so the result may overwrite it
        return self.conv3(self.conv2(self.conv1(x)), shortcut, True)


def _is_plain_resnet(model: nn.Module) -> bool:
    """Return whether `_FusedBottleneck` and `deploy` know every layer of a model."""
    if type(model) is not ResNet or type(model.conv1) is not nn.Conv2d:
        return False
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    return all(
        type(block) is Bottleneck and block.se is None and isinstance(block.aa, nn.Identity)
        for stage in stages
        for block in stage
    )


def deploy(model: nn.Module, name: str) -> nn.Module:
    """Deploy a Res2Net, or give a ResNet the same treatment.

    Every BatchNorm is folded, weights are packed, activations and adds are fused, and results
    overwrite their shortcuts.

    Args:
        model: A Res2Net of timm or of this package, or a ResNet with a plain stem and plain
            bottlenecks. A ResNet is changed in place.
        name: Name of the model for error texts.

    Raises:
        ValueError: The model is neither.
    """
    if any(isinstance(module, Bottle2neck | TimmBottle2neck) for module in model.modules()):
        return timm_res2net.reparameterize_model(model)
    if not _is_plain_resnet(model):
        raise ValueError(
            f"Model '{name}' cannot be deployed. Use a Res2Net of timm or of this package, or a "
            "ResNet with timm's plain bottlenecks, for example resnet50."
        )
    resnet: Any = model
    stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1)
    resnet.conv1, resnet.bn1, resnet.act1 = fuse_sequential(stem)
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for i, block in enumerate(stage):
            stage[i] = _FusedBottleneck(block)
    return resnet.eval()
