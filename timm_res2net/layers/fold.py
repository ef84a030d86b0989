"""Pure functions that change the form of layers and weights, but not what they compute."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torchvision.ops import FrozenBatchNorm2d

from ..text import list_some

Conv = TypeVar('Conv', bound=nn.Conv2d)
Module = TypeVar('Module', bound=nn.Module)


def fold_bn(
    weight: torch.Tensor, bias: torch.Tensor | None, norm: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a BatchNorm into the weight and bias of the convolution before it.

    With s = gamma / sqrt(running_var + eps), the weight becomes weight * s and the bias becomes
    (bias - running_mean) * s + beta (Jacob et al. 2018, arXiv:1712.05877, section 3.2). Both are
    computed in float64 and rounded once.

    Args:
        weight: Tensor (out, in / groups, kH, kW).
        bias: Tensor (out,), or None for zeros.
        norm: BatchNorm with running statistics.

    Returns:
        Weight and bias with the dtype, device and memory format of `weight`.
    """
    wide = torch.float32 if weight.device.type == 'mps' else torch.float64  # MPS has no float64
    mean, var = norm.running_mean.to(wide), norm.running_var.to(wide)
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(wide)
    shift = -mean if bias is None else bias.to(wide) - mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(wide)
    folded = weight.to(wide) * scale[:, None, None, None]
    return folded.to(weight.dtype), shift.to(weight.dtype)


Remove = Callable[[Any, str], Any]
"""Makes a tensor of a layer a parameter again, from the layer and the tensor's name."""


def computed_tensors(layer: Any) -> list[tuple[str, Remove]]:
    """Return the tensors of a layer that torch computes from other parameters.

    `torch.nn.utils` does so for pruning, weight norm, spectral norm and parametrizations.

    Returns:
        For each tensor its name, and the function that makes it a parameter again.
    """
    from torch.nn.utils import prune  # which torch and timm do not load

    # hooks that compute a tensor before each call, and their attribute with the tensor's name
    hooks: dict[type, tuple[str, Remove]] = {
        prune.BasePruningMethod: ('_tensor_name', prune.remove),
        WeightNorm: ('name', remove_weight_norm),
        SpectralNorm: ('name', remove_spectral_norm),
    }
    found = [
        (getattr(hook, attribute), remove)
        for hook in layer._forward_pre_hooks.values()
        for kind, (attribute, remove) in hooks.items()
        if isinstance(hook, kind)
    ]
    if parametrize.is_parametrized(layer):
        found += [(name, parametrize.remove_parametrizations) for name in layer.parametrizations]
    return found


def settle(module: Module) -> Module:
    """Return a copy in which every tensor that torch computes from others is a parameter.

    The values are those of eval mode.
    """
    # deepcopy refuses results of autograd; these are computed again below
    results = {
        id(value): value.detach()
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    settled = copy.deepcopy(module, results)
    for layer in list(settled.modules()):
        if parametrize.is_parametrized(layer):
            # a copy has the class of the original, from which torch would delete the tensor
            cls: Any = type(layer)
            layer.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
            layer.parametrizations.eval()  # type: ignore[union-attr]
        for name, remove in computed_tensors(layer):
            remove(layer, name)
    return settled


def check_layers(layers: Iterable[tuple[str, nn.Module]], what: str) -> None:
    """Check that layers can be replaced by others that compute the same from their parameters.

    Args:
        layers: Names and layers.
        what: What is refused otherwise, the beginning of the error's sentence.

    Raises:
        ValueError: A layer has a LoRA adapter, a forward that was replaced, or a weight that is
            computed or quantized. It is named.
    """
    for name, layer in layers:
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
        for tensor, remove in computed_tensors(layer):
            call = f'{remove.__module__.rpartition(".")[2]}.{remove.__name__}'
            raise ValueError(
                f'{what}, because the {tensor} of {name} is computed from other parameters. Call '
                f"{call}(layer, '{tensor}') of torch.nn.utils first."
            )
        if isinstance(layer, nn.Conv2d) and type(layer.weight) is not nn.Parameter:
            raise ValueError(
                f'{what}, because the weight of {name} is a {type(layer.weight).__name__}, not a '
                'plain parameter. Quantize the model, or compute its weights, afterwards.'
            )


def check_finite(model: nn.Module, what: str) -> None:
    """Check that no parameter and no buffer of a model holds NaN or infinity.

    oneDNN's ReLU turns NaN into 0, so that a deployed model would give a plausible answer.

    Args:
        model: Any module. Tensors on the meta device and of other classes are not looked at.
        what: What is refused otherwise, the beginning of the error's sentence.

    Raises:
        ValueError: A tensor is not finite, or a BatchNorm would take the root of a negative
            variance. They are named.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = (torch.Tensor, nn.Parameter)  # quantized ones do not know isfinite
    tensors = {
        name: t for name, t in tensors.items() if t.device.type != 'meta' and type(t) in plain
    }
    with torch.no_grad():
        bad = {
            name
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        }
        bad |= {
            f'{name}.running_var'
            for name, norm in model.named_modules()
            if f'{name}.running_var' in tensors and (norm.running_var + norm.eps).min() <= 0
        }
    if bad:
        raise ValueError(
            f'{what}, because weights hold NaN or infinity, or a variance is negative '
            f'({list_some(bad)}). Load weights that are finite.'
        )


def folds(norm: nn.Module) -> bool:
    """Return whether a norm is an affine map in inference, so that a convolution can include it."""
    # Compare exact types: subclasses may do more, for example timm's BatchNormAct2d.
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    return known and norm.running_mean is not None


def fold_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return a new convolution that includes the norm after it.

    The new parameters inherit `requires_grad` from `conv.weight`.

    Args:
        conv: Convolution. It is not changed.
        norm: Norm for which `folds` is true. It is not changed.
    """
    folded = copy.deepcopy(conv)
    with torch.no_grad():
        weight, bias = fold_bn(conv.weight, conv.bias, norm)
    needs_grad = conv.weight.requires_grad
    folded.weight = nn.Parameter(weight, requires_grad=needs_grad)
    folded.bias = nn.Parameter(bias, requires_grad=needs_grad)
    return folded


def merge_convs(convs: list[nn.Conv2d]) -> nn.Conv2d:
    """Merge parallel convolutions, each on its own slice of the channels, into one grouped one.

    Args:
        convs: Convolutions with equal arguments, either all with a bias or all without.

    Returns:
        A convolution from n * in to n * out channels with n times the groups, for n convolutions.
    """
    first = convs[0]
    merged = copy.deepcopy(first)
    n = len(convs)
    merged.in_channels, merged.out_channels = n * first.in_channels, n * first.out_channels
    merged.groups = n * first.groups
    with torch.no_grad():
        weight = torch.cat([conv.weight for conv in convs])
        merged.weight = nn.Parameter(weight, requires_grad=first.weight.requires_grad)
        if first.bias is not None:
            bias = torch.cat([conv.bias for conv in convs])  # type: ignore[misc]
            merged.bias = nn.Parameter(bias, requires_grad=first.bias.requires_grad)
    return merged


def pad_splits(
    values: torch.Tensor, dim: int, splits: tuple[int, int, int], value: float = 0.0
) -> torch.Tensor:
    """Pad each split along one dimension.

    Args:
        values: Tensor of any shape.
        dim: Dimension that holds the splits one after another, counted from 0.
        splits: Number of splits, entries of each split, and entries of each padded split.
        value: Value of the padding.

    Returns:
        The tensor with number * padded entries along `dim`, or `values` itself if there is nothing
        to pad.
    """
    number, width, padded = splits
    if padded == width:
        return values
    # F.pad takes two numbers per dimension, starting from the last dimension.
    pads = [0] * (2 * (values.dim() - dim - 1)) + [0, padded - width]
    if number == 1:
        return F.pad(values, pads, value=value)  # keeps the memory format
    apart = values.unflatten(dim, (number, width))  # [..., number, width, ...]
    return F.pad(apart, pads, value=value).flatten(dim, dim + 1)


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
