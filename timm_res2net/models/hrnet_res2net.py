"""HRNet for timm with Res2Net bottlenecks.

Papers:
* `Deep High-Resolution Representation Learning for Visual Recognition` -
  https://arxiv.org/abs/1908.07919
* `Res2Net: A New Multi-scale Backbone Architecture` - https://arxiv.org/abs/1904.01169

The bottlenecks are those of timm's HRNet in its first stage and in its head. The basic blocks of
the branches stay.
"""

from typing import Any, ClassVar

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.hrnet import HighResolutionNet, HighResolutionNetFeatures, cfg_cls
from timm.models.resnet import Bottleneck
from torch import nn

from ..layers.bottle2neck import AttnLayer, Bottle2neck
from .arguments import FEATURES, HRNET, checked, parse_arguments
from .loading import checkpoint_filter_fn
from .res2net_zoo import NOT_RECORDED, Res2Net, make_cfg

__all__ = ['HighResolutionRes2Net', 'HighResolutionRes2NetFeatures']

_HEAD = 'classification'  # timm's default


class HighResolutionRes2Net(HighResolutionNet):
    """HRNet with `Bottle2neck` in place of the bottlenecks of timm's `HighResolutionNet`.

    Shape:
        - Input: (B, in_chans, H, W) with H and W multiples of 32
        - Output: (B, num_classes) logits
    """

    __jit_unused_properties__: ClassVar[list[str]] = ['model_args']
    model_args = Res2Net.model_args

    @checked(HRNET)
    def __init__(
        self,
        cfg: dict[str, Any],
        in_chans: int = 3,
        output_stride: int = 32,
        cardinality: int = 1,
        base_width: float = 26,
        scale: int = 4,
        semantics: str = 'official',
        attn_layer: AttnLayer = '',
        **kwargs: Any,
    ):
        """
        Args:
            cfg: Table of stages as in timm's `cfg_cls`. It is not changed.
            in_chans: Channels of the images.
            output_stride: 32. HRNet has no other.
            cardinality: Groups of the 3x3 convolutions in the bottlenecks.
            base_width: Channels of a split, per group, at planes = 64.
            scale: Number of splits of a bottleneck.
            semantics: Computation of the first bottleneck of a stage, one of `SEMANTICS`.
            attn_layer: Attention in every bottleneck: a name, a class, or '' for none.
            **kwargs: Further arguments of timm's class (`num_classes`, `global_pool`, `drop_rate`,
                `head`, `feature_location`, `out_indices`), and entries of `cfg` to replace.

        Raises:
            ValueError: A value that arguments.py does not allow.
            TypeError: An unknown argument.
        """
        super().__init__(cfg, in_chans=in_chans, **kwargs)
        arguments: dict[str, Any] = dict(
            cardinality=cardinality, base_width=base_width, scale=scale, semantics=semantics,
            attn_layer=attn_layer,
        )  # fmt: skip
        dd = {'device': kwargs.get('device'), 'dtype': kwargs.get('dtype')}
        for parent in list(self.modules()):
            for name, block in parent.named_children():
                if isinstance(block, Bottleneck):  # whose class is not an argument of timm's HRNet
                    planes = block.conv3.out_channels // Bottle2neck.expansion
                    own = dict(arguments, downsample=block.downsample, **dd)
                    setattr(parent, name, Bottle2neck(block.conv1.in_channels, planes, **own))
        self.init_weights()
        recorded = {k: v for k, v in kwargs.items() if k not in NOT_RECORDED}
        self._recorded_args = dict(arguments, in_chans=in_chans, **recorded)


class HighResolutionRes2NetFeatures(HighResolutionRes2Net, HighResolutionNetFeatures):
    """Feature levels of `HighResolutionRes2Net`: the stem at stride 2, the branches at 4 to 32.

    Shape:
        - Input: (B, in_chans, H, W) with H and W multiples of 32
        - Output: a list of (B, C, H / stride, W / stride). The branches have the channels of the
          head (128 to 1024), or with `feature_location=''` their own (w to 8 w).
    """


def _filter(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Drop the weights of a head that the model does not have, and start gates at the identity."""
    own = model.state_dict()
    of_head = ('incre_modules.', 'downsamp_modules.', 'final_layer.', 'classifier.')
    kept = {k: v for k, v in state_dict.items() if k in own or not k.startswith(of_head)}
    return checkpoint_filter_fn(kept, model)


def _create_hrnet(
    variant: str, base: str, pretrained: bool, **kwargs: Any
) -> HighResolutionRes2Net:
    kwargs = parse_arguments(FEATURES, kwargs)
    features_only = kwargs.pop('features_only', False)
    if features_only:  # loads files without a classifier, too
        kwargs['num_classes'] = 0
    feature_cls = kwargs.get('feature_cls')
    if feature_cls not in (None, 'getter'):
        raise ValueError(
            f'feature_cls={feature_cls!r} cannot extract the levels of an HRNet, whose last stage '
            "returns all of them together. Leave it out, or use 'getter'."
        )
    as_class = features_only and feature_cls is None
    head = kwargs.pop('head', _HEAD) if as_class else None
    if head in ('incre', ''):  # of a network without a classifier: it has these levels
        kwargs.setdefault('feature_location', head)
    model_cls = HighResolutionRes2NetFeatures if as_class else HighResolutionRes2Net
    model: Any = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        model_cfg=cfg_cls[base],
        pretrained_filter_fn=_filter,
        pretrained_strict=not features_only and kwargs.get('head', _HEAD) == _HEAD,
        kwargs_filter=('num_classes', 'global_pool') if as_class else None,  # type: ignore[arg-type]
        features_only=features_only and not as_class,
        **kwargs,
    )
    if as_class:  # as timm's own factory does
        for key in ('num_classes', 'classifier', 'global_pool'):
            model.pretrained_cfg.pop(key, None)
    return model


_CFG: dict[str, Any] = dict(
    classifier='classifier',
    origin_url='https://github.com/HRNet/HRNet-Image-Classification',
    paper_name='Deep High-Resolution Representation Learning for Visual Recognition',
    paper_ids=('arXiv:1908.07919', 'arXiv:1904.01169'),
)
default_cfgs = generate_default_cfgs({
    f'hrnet_w{width}_res2net.untrained': make_cfg(
        description=f'HRNet-W{width} with Res2Net bottlenecks, without weights.', **_CFG
    )
    for width in (18, 32)
})  # fmt: skip


@register_model
def hrnet_w18_res2net(pretrained: bool = False, **kwargs: Any) -> HighResolutionRes2Net:
    """HRNet-W18 with Res2Net bottlenecks, 26w x 4s."""
    return _create_hrnet('hrnet_w18_res2net', 'hrnet_w18', pretrained, **kwargs)


@register_model
def hrnet_w32_res2net(pretrained: bool = False, **kwargs: Any) -> HighResolutionRes2Net:
    """HRNet-W32 with Res2Net bottlenecks, 26w x 4s."""
    return _create_hrnet('hrnet_w32_res2net', 'hrnet_w32', pretrained, **kwargs)
