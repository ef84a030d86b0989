"""A backbone with a feature pyramid for torchvision's detectors."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureInfo
from torch import nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from .hub.fetch import create_model

# Stages from the last to the first, as torchvision's `trainable_layers` counts them
_STAGES = ('layer4', 'layer3', 'layer2', 'layer1', 'conv1')
_NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    'frozen': freeze_batch_norm_2d,
    'batch': lambda body: body,
    'sync': nn.SyncBatchNorm.convert_sync_batchnorm,
}


class DetectionBackbone(nn.Module):
    """Feature levels of a timm model with a Feature Pyramid Network (arXiv:1612.03144) on top.

    Shape:
        - Input: (B, in_chans, H, W)
        - Output: an OrderedDict of (B, out_channels, H / stride, W / stride), finest level first.
          The names are '0', '1', ... for the levels, then 'pool', or 'p6' and 'p7'.
    """

    def __init__(
        self, body: nn.Module, out_channels: int, extra_blocks: ExtraFPNBlock | None
    ) -> None:
        """
        Args:
            body: `features_only` model of timm.
            out_channels: Channels of every level of the pyramid.
            extra_blocks: Block of torchvision for levels above the last one, or None.
        """
        super().__init__()
        info: Any = body.feature_info
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), out_channels, extra_blocks)
        for weight in itertools.islice(body.parameters(), 1):  # an exported file has none
            self.fpn.to(weight.device, weight.dtype)
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the levels of the pyramid by name."""
        features = self.body(x)
        return self.fpn(OrderedDict((str(i), feature) for i, feature in enumerate(features)))


def detection_backbone(
    name: str | os.PathLike[str] | nn.Module,
    out_indices: Sequence[int] = (1, 2, 3, 4),
    out_channels: int = 256,
    extra_blocks: str | ExtraFPNBlock | None = 'pool',
    trainable_layers: int | None = None,
    norm: str | None = None,
    **kwargs: Any,
) -> DetectionBackbone:
    """Create a backbone for FasterRCNN, MaskRCNN, RetinaNet and FCOS of torchvision.

    The default levels and 'pool' (strides 4 to 64) fit the default anchors of FasterRCNN and
    MaskRCNN. `out_indices=(2, 3, 4)` and 'p6p7' (strides 8 to 128) fit those of RetinaNet and FCOS.

    Args:
        name: Res2Net of this package or of timm, another model of timm, a folder, or a repository
            of the Hub (OWNER/NAME). Or a module with feature levels, such as `load_exported`
            returns, whose levels are used as they are.
        out_indices: Feature levels: 0 to 4 for strides 2 to 32.
        out_channels: Channels of every level of the pyramid.
        extra_blocks: Levels above the last one: 'pool' for one level by subsampling, 'p6p7' for two
            levels by convolution, None, or a block of torchvision.
        trainable_layers: Number of stages that are trained, counted from the last one: layer4,
            layer3, layer2, layer1 and the stem. 5 trains everything. As in torchvision, the default
            is 3 with weights and 5 without: random layers must not be frozen.
        norm: 'frozen' keeps the statistics and affine parameters of the BatchNorms as loaded, which
            suits small batches. 'batch' trains them. 'sync' trains them as SyncBatchNorm, for
            several processes. The default is 'frozen' with weights and 'batch' without.
        **kwargs: Further arguments of `timm.create_model`, for example `pretrained=True`. The
            pyramid follows `device` and `dtype`.

    "With weights" means `pretrained=True` or a `checkpoint_path`. If you load weights afterwards
    with `backbone.body.load_state_dict`, pass `trainable_layers=3, norm='frozen'` to get the
    defaults of `pretrained=True`.

    Raises:
        OSError: `name` is a path and there is nothing at it, or the Hub refuses or cannot be
            reached.
        ValueError: An unknown model, `norm` or `extra_blocks`; a `trainable_layers` that is not 0
            to 5 or is below 5 for a model without these stages; or levels that the model does not
            have.

    >>> import torch
    >>> from timm_res2net import detection_backbone
    >>> from torchvision.models.detection import FasterRCNN
    >>> backbone = detection_backbone('test_res2net_se', pretrained=True)
    >>> list(backbone(torch.randn(1, 3, 128, 128)))
    ['0', '1', '2', '3', 'pool']
    >>> detector = FasterRCNN(backbone, num_classes=91)
    """
    has_weights = bool(kwargs.get('pretrained') or kwargs.get('checkpoint_path'))
    norm = norm or ('frozen' if has_weights else 'batch')
    if trainable_layers is None:
        trainable_layers = 3 if has_weights else len(_STAGES)
    if norm not in _NORMS:
        raise ValueError(f'Unknown norm {norm!r}. Use {", ".join(_NORMS)}.')
    if trainable_layers not in range(6):
        raise ValueError(
            f'trainable_layers must be a whole number from 0 to 5, got {trainable_layers!r}.'
        )
    if extra_blocks == 'pool':
        extra_blocks = LastLevelMaxPool()
    elif extra_blocks == 'p6p7':
        extra_blocks = LastLevelP6P7(out_channels, out_channels)
    elif isinstance(extra_blocks, str):
        raise ValueError(
            f"Unknown extra_blocks {extra_blocks!r}. Use 'pool', 'p6p7', None, or an ExtraFPNBlock."
        )
    if isinstance(name, nn.Module):
        body = name
    else:
        body = create_model(name, features_only=True, out_indices=tuple(out_indices), **kwargs)
    if not isinstance(getattr(body, 'feature_info', None), FeatureInfo):  # a list in other models
        raise ValueError(
            f'{type(body).__name__} returns no feature levels. Create it with features_only=True, '
            'or export with features=True (--features).'
        )
    if trainable_layers < len(_STAGES):
        children = dict(body.named_children())
        if not {'conv1', 'layer1'} <= children.keys():
            raise ValueError(
                f'trainable_layers={trainable_layers} counts stages named layer1 to layer4, which '
                f'{name} does not have. Use trainable_layers=5, and freeze parameters yourself.'
            )
        for key in children.keys() - set(_STAGES[:trainable_layers]):
            children[key].requires_grad_(False)
    return DetectionBackbone(_NORMS[norm](body), out_channels, extra_blocks)
