"""The deploy form of a whole model: a Res2Net of this package or of timm, or features of one."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.utils import unwrap_model
from torch import nn

from ..layers.bottle2neck import Bottle2neck
from ..layers.fold import check_fusible, check_layers
from ..layers.fused_block import FusedBottle2neck, FusedStage, fuse_block
from ..layers.fused_conv import FusedConv2d, fuse_sequential
from ..layers.text import brief

Model = TypeVar('Model', bound=nn.Module)


def unwrap(model: Any, step: str) -> Any:
    """Return the model inside of wrappers: torch.compile's, DataParallel, moving averages.

    `step` is what is done with it, a verb for the errors: a TypeError if it is not a module, and
    those of `check_layers`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'Cannot {step} {brief(model)}: it is not a model. Pass an nn.Module.')
    model = unwrap_model(model)
    check_layers(model, f'Cannot {step} {type(model).__name__}')
    return model


def reparameterize_model(model: Model) -> Model:
    """Return a deployed copy of a model: the same outputs in inference, but faster.

    Every BatchNorm is folded into the convolution before it, also in the stem and the shortcuts,
    and every Res2Net block becomes a `FusedBottle2neck`. `timm.utils.reparameterize_model` does
    less: it replaces only the blocks of this package, and leaves the stem and the stages as they
    are.

    Blocks in which a layer does not fuse stay as they are: a norm without running statistics, or a
    replaced layer of another class.

    The copy's conv1 includes the norm and the activation of the stem, and its blocks include those
    of their layers. If your code runs a part of them on its own, do not deploy the model: for
    example, `maxpool(bn1(conv1(x)))` without the activation would return something else.

    To change a weight of the copy, write under `torch.no_grad()`. A write to `weight.data` goes
    unnoticed, because torch does not count it; `model.load_state_dict(model.state_dict())` makes up
    for it.

    Stem, stages and blocks look at their input. If it is not finite, they run in the plain form, so
    that NaN in an image stays visible. What overflows inside of a block may become 0.

    To count operations, use torch's `FlopCounterMode`, fvcore, or ptflops with `backend='aten'`.
    Tools that know layers by their class (thop, torchinfo) count fused layers as nothing.

    Args:
        model: Model with Res2Net blocks of this package or of timm, or a `features_only` wrapper of
            one ('list', 'dict', 'hook' or 'getter'). It is not changed. Of a wrapped model
            (torch.compile, DataParallel, a moving average) the model inside is taken.

    Returns:
        A model of the same class, dtype and device in eval mode. Hooks stay with the names of their
        modules, except those of layers that are included in others.

    Raises:
        TypeError: It is not a model.
        ValueError: The model is already deployed, is traced or has compiled parts, has no Res2Net
            block, or has weights that are sharded or not finite. Or a layer has an adapter (peft),
            a replaced forward, or a weight that is quantized or computed from others (pruning,
            weight norm, spectral norm, parametrizations); it is named with the remedy.

    >>> import timm, torch
    >>> from timm_res2net import reparameterize_model
    >>> model = timm.create_model('test_res2net_se', pretrained=True).eval()
    >>> deployed = reparameterize_model(model)
    >>> x = torch.randn(1, 3, 64, 64)
    >>> with torch.inference_mode():
    ...     torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
    """
    model = unwrap(model, 'reparameterize')
    what = f'Cannot reparameterize {type(model).__name__}'
    modules = list(model.modules())
    compiled = (torch.jit.ScriptModule, torch.fx.GraphModule)
    if any(isinstance(m, compiled) or hasattr(m, '_orig_mod') for m in modules):
        raise ValueError(
            f"{what}, because it is compiled or traced, as with feature_cls='fx'. Compile it "
            "afterwards, and use feature_cls='list', 'dict', 'hook' or 'getter'."
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
    with torch.inference_mode(False):  # weights created in inference mode cannot be packed
        check_fusible(model, what)
        deployed = copy.deepcopy(model)
        # those of `feature_cls='hook'` cannot be copied with a layer alone
        hooks = {name: _take_hooks(module) for name, module in deployed.named_modules()}
        _replace(deployed)
        for name, module in deployed.named_modules():
            vars(module).update(hooks.get(name, {}))
    return deployed.eval()


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a Res2Net block of this package or of timm."""
    return isinstance(module, Bottle2neck | TimmBottle2neck)


def _take_hooks(module: nn.Module) -> dict[str, Any]:
    """Remove the hooks of a module and return them."""
    hooks = {k: v for k, v in vars(module).items() if k.startswith('_') and 'hook' in k}
    vars(module).update({key: type(value)() for key, value in hooks.items()})
    return hooks


def _replace(module: nn.Module) -> None:
    """Replace the stem, stages and blocks in a module by their deploy forms, in place."""
    # the authors' name is that of other activations, too, except in a network of timm's kind
    act = 'relu' if hasattr(module, 'feature_info') and hasattr(module, 'relu') else 'act1'
    if all(hasattr(module, name) for name in ('conv1', 'bn1', act, 'maxpool')):
        _fuse_stem(module, act)
    for name, child in module.named_children():
        if is_block(child):
            setattr(module, name, fuse_block(child))
        elif type(child) is nn.Sequential and len(child) and all(map(is_block, child)):
            _replace(child)
            setattr(module, name, FusedStage(OrderedDict(child.named_children())))
        else:
            _replace(child)


def _fuse_stem(model: Any, act: str) -> None:
    """Fold the norms and activations of a stem into its convolutions, in place."""
    # a deep stem ends in a convolution, whose norm is bn1
    is_deep = isinstance(model.conv1, nn.Sequential)
    convs = model.conv1 if is_deep else [model.conv1]
    *convs, model.bn1, last = fuse_sequential(nn.Sequential(*convs, model.bn1, getattr(model, act)))
    model.conv1 = nn.Sequential(*convs) if is_deep else convs[0]
    setattr(model, act, last)
    if isinstance(model.maxpool, nn.Sequential):
        model.maxpool = fuse_sequential(model.maxpool)
    for layer in (*model.conv1.modules(), *model.maxpool.modules()):
        if isinstance(layer, FusedConv2d):  # it looks for NaN; in the stages, stages do
            layer.checks_input = True
