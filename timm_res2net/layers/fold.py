"""Pure functions that change the form of layers and weights, but not what they compute."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torchvision.ops import FrozenBatchNorm2d

from .text import list_some

Conv = TypeVar('Conv', bound=nn.Conv2d)


def _find_computed(layer: nn.Module) -> tuple[str, str] | None:
    """Return a tensor of a layer that is computed from others, and the call that ends that."""
    from torch.nn.utils import prune  # which torch and timm do not load

    # hooks that compute a tensor before each call, and their attribute with the tensor's name
    kinds = (
        (prune.BasePruningMethod, '_tensor_name', 'prune.remove'),
        (WeightNorm, 'name', 'remove_weight_norm'),
        (SpectralNorm, 'name', 'remove_spectral_norm'),
    )
    for hook in layer._forward_pre_hooks.values():
        for kind, attribute, remove in kinds:
            if isinstance(hook, kind):
                return getattr(hook, attribute), remove
    if parametrize.is_parametrized(layer):
        tensors: Any = layer.parametrizations
        return next(iter(tensors)), 'parametrize.remove_parametrizations'
    return None


def check_fusible(model: nn.Module, what: str) -> None:
    """Check that layers can be replaced by others that compute the same from their parameters.

    Weights must be finite: oneDNN's ReLU turns NaN into 0, so that a deployed model would give a
    plausible answer.

    Args:
        model: Any module. Whether tensors on the meta device and of other classes are finite is not
            checked.
        what: What is refused otherwise, the beginning of the error's sentence.

    Raises:
        ValueError: A layer has a LoRA adapter, a forward that was replaced, or a weight that is
            quantized or computed from others (pruning, weight norm, spectral norm and other
            parametrizations of `torch.nn.utils`). It is named, with the call that ends that. Or
            tensors are not finite, or a BatchNorm would take the root of a negative variance.
    """
    for name, layer in model.named_modules():
        name = f"'{name}'" if name else 'the model'
        if isinstance(getattr(layer, 'base_layer', None), nn.Conv2d):
            raise ValueError(
                f'{what}, because {name} has an adapter. Call merge_and_unload() of peft first.'
            )
        if 'forward' in vars(layer):
            raise ValueError(
                f'{what}, because the forward of {name} was replaced. Replace it afterwards, '
                'and call `del layer.forward` first.'
            )
        computed = _find_computed(layer)
        if computed:
            raise ValueError(
                f'{what}, because the {computed[0]} of {name} is computed from other parameters. '
                f"Call torch.nn.utils.{computed[1]}(layer, '{computed[0]}') first."
            )
        if isinstance(layer, nn.Conv2d) and type(layer.weight) is not nn.Parameter:
            raise ValueError(
                f'{what}, because the weight of {name} is a {type(layer.weight).__name__}, not a '
                'plain parameter. Quantize the model, or compute its weights, afterwards.'
            )
    bad = []
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            # quantized tensors do not know isfinite
            if tensor.is_meta or type(tensor) not in (torch.Tensor, nn.Parameter):
                continue
            if tensor.is_floating_point() and not tensor.isfinite().all():
                bad.append(name)
            elif name.endswith('.running_var'):
                norm: Any = model.get_submodule(name.removesuffix('.running_var'))
                if (tensor + norm.eps).min() <= 0:
                    bad.append(name)
    if bad:
        raise ValueError(
            f'{what}, because weights hold NaN or infinity, or a variance is negative '
            f'({list_some(bad)}). Load weights that are finite.'
        )


def folds(norm: nn.Module) -> bool:
    """Return whether a norm is an affine map in inference, so that a convolution can include it."""
    # Compare exact types: subclasses may do more, for example timm's BatchNormAct2d.
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    return type(norm) is nn.Identity or (known and norm.running_mean is not None)


def fold_conv(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """Return a new convolution that includes the norm after it (arXiv:1712.05877, section 3.2).

    The weights are folded in float64 and rounded once. They keep the dtype, device and memory
    format of `conv.weight`, and its `requires_grad`.

    Args:
        conv: Convolution. It is not changed.
        norm: Norm for which `folds` is true. It is not changed.
    """
    folded = copy.deepcopy(conv)
    if isinstance(norm, nn.Identity):
        return folded
    wide = torch.float32 if conv.weight.device.type == 'mps' else torch.float64  # MPS has none
    own = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    copies: Any = (None if tensor is None else tensor.detach().to(wide) for tensor in own)
    weight, bias, mean, var, gamma, beta = copies
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, gamma, beta)
    dtype, needs_grad = conv.weight.dtype, conv.weight.requires_grad
    folded.weight = nn.Parameter(weight.detach().to(dtype), needs_grad)
    folded.bias = nn.Parameter(bias.detach().to(dtype), needs_grad)
    return folded


def recast(conv: Any, cls: type[Conv], **kwargs: Any) -> Conv:
    """Return a convolution of another class with the same arguments, parameters and mode.

    Args:
        conv: `nn.Conv2d`. The new convolution shares its parameters.
        cls: Class that takes the arguments of `nn.Conv2d`.
        **kwargs: Further arguments of the class.
    """
    same = cls(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups, bias=False, device='meta', **kwargs,
    )  # fmt: skip
    same.weight, same.bias = conv.weight, conv.bias
    return same.train(conv.training)
