"""The deploy form of whole models: ours, timm's own Res2Nets, and `features_only` wrappers."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from torch import nn

from .layers.align import align_blocks
from .layers.bottle2neck import Bottle2neck
from .layers.fused_block import FusedBottle2neck, FusedStage
from .layers.fused_conv import fuse_sequential
from .models.res2net_zoo import Res2Net

__all__ = ['align_widths', 'is_block', 'reparameterize_model']

Model = TypeVar('Model', bound=nn.Module)


def _check(model: nn.Module, verb: str) -> None:
    """Raise a ValueError for a model whose blocks cannot be replaced."""
    name = type(model).__name__
    modules = list(model.modules())
    if any(isinstance(m, torch.jit.ScriptModule) or hasattr(m, '_orig_mod') for m in modules):
        raise ValueError(f'Cannot {verb} {name}, which is compiled. Do it first, then compile.')
    if any(isinstance(module, torch.fx.GraphModule) for module in modules):
        raise ValueError(
            f'Cannot {verb} {name}, whose blocks torch.fx has taken apart. Create it with '
            "feature_cls='list', 'dict', 'hook' or 'getter' instead of 'fx'."
        )
    if any(isinstance(module, FusedBottle2neck) for module in modules):
        raise ValueError(
            f'Cannot {verb} {name}: it is in its deploy form already, or its blocks are, by '
            'timm.utils.reparameterize_model. Give the model that it was made from.'
        )
    if not any(is_block(module) for module in modules):
        raise ValueError(
            f'Cannot {verb} {name}: it has no Res2Net block. Give a Res2Net of this package or of '
            'timm.'
        )


def reparameterize_model(model: Model) -> Model:
    """A copy of a model in its deploy form: the same outputs in inference, faster.

    Every BatchNorm is folded into the convolution before it, the stem's and the shortcuts' too, and
    every Res2Net block becomes a `FusedBottle2neck`. `timm.utils.reparameterize_model` does that to
    the blocks of this package alone, and leaves out the stem and `FusedStage`.

    Args:
        model: Model with Res2Net blocks of this package or of timm, or a `features_only` wrapper of
            one ('list', 'dict', 'hook', 'getter'). It is not changed.

    Returns:
        A model of the same class in eval mode, with the same type, device and output. Hooks on
        blocks, stages and the stem go with it; those on layers that are folded do not.

    Raises:
        ValueError: A model that is deployed already, that is compiled or traced, or that has no
            Res2Net block.
    """
    _check(model, 'reparameterize')
    with torch.inference_mode(False):  # weights born in inference mode could not be packed
        deployed = copy.deepcopy(model)
        _replace(deployed)
    return deployed.eval()


def align_widths(model: Model, multiple: int) -> Model:
    """Pad the splits of every Res2Net block with zero channels to a multiple, in place: the same
    function, weights and training, on widths that the hardware likes (8 for tensor cores).

    Parameters and buffers keep their shapes, names and places, so that optimizers, EMA copies and
    state dicts go on as they are. `create_model(..., width_multiple=8)` does the same for models of
    this package, and their `model_args` record either.

    Args:
        model: Model with Res2Net blocks of this package or of timm.
        multiple: Channels of a split become a multiple of this.

    Returns:
        The model.

    Raises:
        ValueError: A model without Res2Net blocks, one that is aligned, deployed, compiled or
            traced already, another norm layer than BatchNorm2d, DropBlock, a `multiple` that is no
            whole number of at least 1. The model is unchanged then.
    """
    _check(model, 'align the widths of')
    align_blocks([module for module in model.modules() if is_block(module)], multiple)
    if multiple > 1:
        for module in model.modules():
            if isinstance(module, Res2Net):
                module.record_args(width_multiple=multiple)
    return model


def is_block(module: nn.Module) -> bool:
    """Whether a module is a Res2Net block, of this package or of timm."""
    return isinstance(module, Bottle2neck | TimmBottle2neck)


def _is_stage(module: nn.Module) -> bool:
    are_blocks = [is_block(child) for child in module.children()]
    return type(module) is nn.Sequential and bool(are_blocks) and all(are_blocks)


def _take_hooks(module: nn.Module) -> dict[str, Any]:
    """Take a module's hooks off it (feature_cls='hook' has some), for `_put` to give to another."""
    hooks = {key: value for key, value in vars(module).items() if 'hook' in key}
    for key, value in hooks.items():
        setattr(module, key, type(value)())
    return hooks


def _put(parent: nn.Module, name: str, new: nn.Module, hooks: dict[str, Any]) -> None:
    vars(new).update(hooks)
    setattr(parent, name, new)


def _replace(module: Any) -> None:
    """Fold what a module holds, in place, blocks as a whole."""
    if all(hasattr(module, name) for name in ('conv1', 'bn1', 'act1', 'maxpool')):
        stem, norm, act = module.conv1, module.bn1, module.act1
        hooks = [_take_hooks(layer) for layer in (stem, norm, act)]
        # a deep stem ends in a convolution, whose norm and activation are bn1 and act1
        is_deep = isinstance(stem, nn.Sequential)
        layers = nn.Sequential(*(stem if is_deep else [stem]), norm, act)
        *convs, norm, act = fuse_sequential(layers)
        _put(module, 'conv1', nn.Sequential(*convs) if is_deep else convs[0], hooks[0])
        _put(module, 'bn1', norm, hooks[1])
        _put(module, 'act1', act, hooks[2])
    for name, child in module.named_children():
        if is_block(child):
            block_hooks = _take_hooks(child)
            _put(module, name, FusedBottle2neck(child), block_hooks)
        elif _is_stage(child):
            _replace(child)
            stage = FusedStage(OrderedDict(child.named_children()))
            _put(module, name, stage, _take_hooks(child))
        elif isinstance(child, nn.Sequential) and name == 'maxpool':
            setattr(module, name, fuse_sequential(child))
        else:
            _replace(child)
