"""HRNet for timm with Res2Net bottlenecks.

Papers:
* `Deep High-Resolution Representation Learning for Visual Recognition` -
  https://arxiv.org/abs/1908.07919
* `Res2Net: A New Multi-scale Backbone Architecture` - https://arxiv.org/abs/1904.01169

timm's HRNet, both as a classifier and as features, with the bottlenecks of its first stage and of
its head made by `Bottle2neck`. The basic blocks of its branches stay what they are.
"""

import copy
from functools import partial
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.hrnet import HighResolutionNet, HighResolutionNetFeatures, cfg_cls
from timm.models.resnet import Bottleneck
from torch import nn

from ..layers.bottle2neck import AttnLayer, Bottle2neck
from .res2net_zoo import sorted_indices
from .se_identity import checkpoint_filter_fn

__all__ = ['HighResolutionRes2Net', 'HighResolutionRes2NetFeatures']

# Arguments that do not change what a trained model computes, or that timm records elsewhere
_NOT_RECORDED = ('num_classes', 'drop_rate', 'device', 'dtype')

# Arguments of timm's two classes besides those named below
_TIMMS = (
    'num_classes', 'global_pool', 'drop_rate', 'head', 'head_conv_bias', 'device', 'dtype',
    'feature_location', 'out_indices',
)  # fmt: skip
_HEADS = ('classification', 'incre', '')  # what timm puts on the branches, the first by default


class HighResolutionRes2Net(HighResolutionNet):
    """timm's `HighResolutionNet` with `Bottle2neck` in its first stage and its head.

    All that changes is how a layer is made, for this class and for the one of features.

    Shape:
        - Input: (B, in_chans, H, W) with H and W multiples of 32
        - Output: (B, num_classes) logits
    """

    __jit_unused_properties__: ClassVar[list[str]] = ['model_args']

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
            cfg: Stages, as timm's `cfg_cls` describes them. It is not changed.
            in_chans: Channels of the image.
            output_stride: 32, the only one that HRNet has.
            cardinality: Groups of the 3x3 convolutions in the bottlenecks.
            base_width: Channels of a split, per group, at planes = 64.
            scale: Splits of a bottleneck.
            semantics: Which published block it is, one of `timm_res2net.bottle2neck.SEMANTICS`.
            attn_layer: Attention in every bottleneck: a name, a class, or '' for none.
            **kwargs: What timm's class takes besides (`num_classes`, `global_pool`, `drop_rate`,
                `head`; `feature_location`, `out_indices`), and entries of `cfg` to replace.

        Raises:
            ValueError: What `Bottle2neck` refuses, another `output_stride`, an unknown `head` or
                `feature_location`.
            TypeError: An unknown argument.
        """
        if output_stride != 32:
            raise ValueError(f'output_stride must be 32 for an HRNet, got {output_stride!r}.')
        if kwargs.get('head', _HEADS[0]) not in _HEADS:
            raise ValueError(f'Unknown head {kwargs["head"]!r}. Use one of {_HEADS}.')
        if kwargs.get('feature_location', '') not in _HEADS[1:]:
            raise ValueError(
                f"feature_location must be 'incre' or '', got {kwargs['feature_location']!r}."
            )
        unknown = sorted(kwargs.keys() - {*cfg, *_TIMMS})
        if unknown:  # timm before 1.0.31 would take them
            raise TypeError(f'{type(self).__name__} takes no argument {", ".join(unknown)}.')
        arguments: dict[str, Any] = dict(
            cardinality=cardinality, base_width=base_width, scale=scale, semantics=semantics,
            attn_layer=attn_layer,
        )  # fmt: skip
        block: Any = partial(Bottle2neck, **arguments)
        block.expansion = Bottle2neck.expansion
        # timm makes layers in its constructor, before which a module holds plain attributes only
        self._block = block
        super().__init__(copy.deepcopy(cfg), in_chans=in_chans, **kwargs)  # timm 1.0.22 changes it
        del self._block
        self.in_chans = in_chans  # timm before 1.0.31 does not keep it
        recorded = {k: v for k, v in kwargs.items() if k not in _NOT_RECORDED}
        self._recorded_args = dict(arguments, in_chans=in_chans, **recorded)

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments that rebuild this network, as they stand now, for `save_for_hf(model, ...,
        model_args=...)`.

        The class count is left out: it has a place of its own in timm's config.
        """
        pool_type = getattr(self.global_pool, 'pool_type', None)
        return dict(
            self._recorded_args, **({} if pool_type is None else {'global_pool': pool_type})
        )

    def _make_layer(self, block_type: Any, *args: Any, **kwargs: Any) -> nn.Sequential:
        block = self._block if block_type is Bottleneck else block_type
        return super()._make_layer(block, *args, **kwargs)


class HighResolutionRes2NetFeatures(HighResolutionRes2Net, HighResolutionNetFeatures):
    """The same as features: the stem at stride 2 and the four branches at strides 4 to 32.

    Shape:
        - Input: (B, in_chans, H, W) with H and W multiples of 32
        - Output: a list of (B, C, H / stride, W / stride), with the head's channels (128 to 1024)
            or, with `feature_location=''`, the branches' own (w to 8 w)
    """


def _filter(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Leave out a classifier's head where there is none, and start gates at the identity."""
    own = model.state_dict()
    of_head = ('incre_modules.', 'downsamp_modules.', 'final_layer.', 'classifier.')
    kept = {k: v for k, v in state_dict.items() if k in own or not k.startswith(of_head)}
    return checkpoint_filter_fn(kept, model)


def _create_hrnet(
    variant: str, base: str, pretrained: bool = False, **kwargs: Any
) -> HighResolutionRes2Net:
    features_only = kwargs.pop('features_only', False)
    feature_cls = kwargs.get('feature_cls')
    # timm before 1.0.31 has no such method
    getter = 'getter' if hasattr(HighResolutionNet, 'forward_intermediates') else None
    if feature_cls not in (None, getter):
        raise ValueError(
            f"An HRNet's levels come out of its last stage together: feature_cls={feature_cls!r} "
            "cannot take them. Leave it out, or use 'getter' with timm 1.0.31 or newer."
        )
    if features_only and 'out_indices' in kwargs:
        kwargs['out_indices'] = sorted_indices(kwargs['out_indices'])
    as_class = features_only and feature_cls is None
    model_cls = HighResolutionRes2NetFeatures if as_class else HighResolutionRes2Net
    model: Any = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        model_cfg=cfg_cls[base],
        pretrained_filter_fn=_filter,
        pretrained_strict=not features_only and kwargs.get('head', _HEADS[0]) == _HEADS[0],
        kwargs_filter=('num_classes', 'global_pool') if as_class else None,  # type: ignore[arg-type]
        features_only=features_only and not as_class,
        **kwargs,
    )
    if as_class:  # as timm does for its own feature classes
        of_head = ('num_classes', 'classifier', 'global_pool')
        cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in of_head}
        model.pretrained_cfg = model.default_cfg = cfg
    return model


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'url': '',
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1', 'classifier': 'classifier',
        'license': None,  # without weights there is none
        'origin_url': 'https://github.com/HRNet/HRNet-Image-Classification',
        'paper_name': 'Deep High-Resolution Representation Learning for Visual Recognition',
        'paper_ids': ('arXiv:1908.07919', 'arXiv:1904.01169'),
        **kwargs,
    }  # fmt: skip


default_cfgs = generate_default_cfgs({
    'hrnet_w18_res2net.untrained': _cfg(
        description='HRNet-W18 with Res2Net bottlenecks; no weights are published.',
    ),
    'hrnet_w32_res2net.untrained': _cfg(
        description='HRNet-W32 with Res2Net bottlenecks; no weights are published.',
    ),
})  # fmt: skip


@register_model
def hrnet_w18_res2net(pretrained: bool = False, **kwargs: Any) -> HighResolutionRes2Net:
    """HRNet-W18 with Res2Net bottlenecks, 26w x 4s."""
    return _create_hrnet('hrnet_w18_res2net', 'hrnet_w18', pretrained, **kwargs)


@register_model
def hrnet_w32_res2net(pretrained: bool = False, **kwargs: Any) -> HighResolutionRes2Net:
    """HRNet-W32 with Res2Net bottlenecks, 26w x 4s."""
    return _create_hrnet('hrnet_w32_res2net', 'hrnet_w32', pretrained, **kwargs)
