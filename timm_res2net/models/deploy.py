"""The deploy form of a whole model: a Res2Net of this package or of timm, or features of one."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from torch import nn

from ..layers.bottle2neck import Bottle2neck
from ..layers.fold import check_fusible
from ..layers.fused_block import FusedBottle2neck, FusedStage
from ..layers.fused_conv import FusedConv2d, fuse_sequential

Model = TypeVar('Model', bound=nn.Module)


def _check(model: nn.Module, what: str) -> None:
    """Raise a ValueError if the blocks of a model cannot be replaced."""
    modules = list(model.modules())
    if any(isinstance(m, torch.jit.ScriptModule) or hasattr(m, '_orig_mod') for m in modules):
        raise ValueError(f'{what}, because it is compiled. Compile it afterwards.')
    if any(isinstance(module, torch.fx.GraphModule) for module in modules):
        raise ValueError(
            f'{what}, because torch.fx has split its blocks. Create it with '
            "feature_cls='list', 'dict', 'hook' or 'getter' instead of 'fx'."
        )
    if any(isinstance(module, FusedBottle2neck) for module in modules):
        raise ValueError(
            f'{what}, because it is already deployed, or its blocks are, by '
            'timm.utils.reparameterize_model. Pass the original model.'
        )
    if not any(is_block(module) for module in modules):
        raise ValueError(
            f"{what}, because it has no Res2Net block (the blocks of timm's DLAs are others). "
            'Pass a Res2Net of this package or of timm.'
        )


def reparameterize_model(model: Model) -> Model:
    """Return a deployed copy of a model: the same outputs in inference, but faster.

    Every BatchNorm is folded into the convolution before it, also in the stem and the shortcuts,
    and every Res2Net block becomes a `FusedBottle2neck`. `timm.utils.reparameterize_model` does
    less: it replaces only the blocks of this package, and leaves the stem and the stages as they
    are.

    Replaced layers of other classes stay as they are, with their norms.

    To change a weight of the copy, write under `torch.no_grad()`. A write to `weight.data` goes
    unnoticed, because torch does not count it; `model.load_state_dict(model.state_dict())` makes up
    for it.

    Stem, stages and blocks look at their input. If it is not finite, they run in the plain form, so
    that NaN in an image stays visible. What overflows inside of a block may become 0.

    To count operations, use torch's `FlopCounterMode`, fvcore, or ptflops with `backend='aten'`.
    Tools that know layers by their class (thop, torchinfo) count fused layers as nothing.

    Args:
        model: Model with Res2Net blocks of this package or of timm, or a `features_only` wrapper of
            one ('list', 'dict', 'hook' or 'getter'). It is not changed.

    Returns:
        A model of the same class, dtype and device in eval mode. Hooks on blocks, stages and the
        stem are kept. Hooks on folded layers are not.

    Raises:
        ValueError: The model is already deployed, is compiled or traced, has no Res2Net block, or
            has a weight that is not finite. Or a layer has an adapter (peft), a replaced forward,
            or a weight that is quantized or computed from others (pruning, weight norm, spectral
            norm, parametrizations); it is named with the remedy.

    >>> import timm, torch
    >>> from timm_res2net import reparameterize_model
    >>> model = timm.create_model('test_res2net_se', pretrained=True).eval()
    >>> deployed = reparameterize_model(model)
    >>> x = torch.randn(1, 3, 64, 64)
    >>> with torch.inference_mode():
    ...     torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
    """
    what = f'Cannot reparameterize {type(model).__name__}'
    _check(model, what)
    with torch.inference_mode(False):  # weights created in inference mode cannot be packed
        check_fusible(model, what)
        deployed = copy.deepcopy(model)
        _replace(deployed)
    return deployed.eval()


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a Res2Net block of this package or of timm."""
    return isinstance(module, Bottle2neck | TimmBottle2neck)


def _is_stage(module: nn.Module) -> bool:
    """Return whether a module is a sequence of Res2Net blocks."""
    are_blocks = [is_block(child) for child in module.children()]
    return type(module) is nn.Sequential and bool(are_blocks) and all(are_blocks)


def _take_hooks(module: nn.Module) -> dict[str, Any]:
    """Remove the hooks of a module, which `feature_cls='hook'` adds, and return them for `_put`."""
    hooks = {key: value for key, value in vars(module).items() if 'hook' in key}
    for key, value in hooks.items():
        setattr(module, key, type(value)())
    return hooks


def _put(parent: nn.Module, name: str, new: nn.Module, hooks: dict[str, Any]) -> None:
    """Replace a child of a module, and give the new child the hooks of the old one."""
    vars(new).update(hooks)
    setattr(parent, name, new)


def _replace(module: nn.Module) -> None:
    """Replace the stem, stages and blocks in a module by their deploy forms, in place."""
    if all(hasattr(module, name) for name in ('conv1', 'bn1', 'act1', 'maxpool')):
        _fuse_stem(module)
    for name, child in module.named_children():
        if is_block(child):
            hooks = _take_hooks(child)
            _put(module, name, FusedBottle2neck(child), hooks)
        elif _is_stage(child):
            _replace(child)
            stage = FusedStage(OrderedDict(child.named_children()))
            _put(module, name, stage, _take_hooks(child))
        elif isinstance(child, nn.Sequential) and name == 'maxpool':
            setattr(module, name, fuse_sequential(child))
            _check_inputs(module.get_submodule(name))
        else:
            _replace(child)


def _fuse_stem(model: nn.Module) -> None:
    """Fold the norm and activation of a stem into its convolution, in place."""
    names = ('conv1', 'bn1', 'act1')
    stem, norm, act = (model.get_submodule(name) for name in names)
    hooks = [_take_hooks(layer) for layer in (stem, norm, act)]
    # a deep stem ends in a convolution, whose norm and activation are bn1 and act1
    is_deep = isinstance(stem, nn.Sequential)
    layers = nn.Sequential(*(stem if isinstance(stem, nn.Sequential) else [stem]), norm, act)
    *convs, norm, act = fuse_sequential(layers)
    stem = nn.Sequential(*convs) if is_deep else convs[0]
    for name, layer, hook in zip(names, (stem, norm, act), hooks, strict=True):
        _put(model, name, layer, hook)
    _check_inputs(stem)


def _check_inputs(stem: nn.Module) -> None:
    """Let every convolution of a stem look for NaN. In the stages, stages do."""
    for module in stem.modules():
        if isinstance(module, FusedConv2d):
            module.checks_input = True
