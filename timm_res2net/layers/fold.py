"""Pure functions on layers and weights that change their form and not what they compute."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

__all__ = ['fold_bn', 'fold_conv', 'folds', 'merge_convs', 'pad_splits', 'recast']

Conv = TypeVar('Conv', bound=nn.Conv2d)


def fold_bn(
    weight: torch.Tensor, bias: torch.Tensor | None, norm: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution that includes the BatchNorm after it.

    With s = gamma / sqrt(running_var + eps): weight * s and (bias - running_mean) * s + beta
    (Jacob et al. 2018, arXiv:1712.05877, 3.2). Computed in float64 and rounded once.

    Args:
        weight: (out, in / groups, kH, kW).
        bias: (out,), or None for zeros.
        norm: BatchNorm with running statistics.

    Returns:
        Weight and bias in the weight's type, on its device and in its memory format.
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


def folds(norm: nn.Module) -> bool:
    """Whether a norm is an affine map in inference, so that a convolution can take it in."""
    # by exact type: timm's BatchNormAct2d, for one, is a BatchNorm2d that does more
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    return known and norm.running_mean is not None


def fold_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A new convolution that includes the norm after it, for which `folds` holds.

    Gradients are required of the new parameters where they were of the convolution's weight.
    """
    folded = copy.deepcopy(conv)
    with torch.no_grad():
        weight, bias = fold_bn(conv.weight, conv.bias, norm)
    needs_grad = conv.weight.requires_grad
    folded.weight = nn.Parameter(weight, requires_grad=needs_grad)
    folded.bias = nn.Parameter(bias, requires_grad=needs_grad)
    return folded


def merge_convs(convs: list[nn.Conv2d]) -> nn.Conv2d:
    """One grouped convolution that does side by side what convolutions of the same shape do each to
    its own slice of the channels.

    Args:
        convs: Convolutions with the same arguments, all with a bias or all without.

    Returns:
        A convolution (n * in, n * out) with n times the groups.
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
    """Pad each split along a dimension.

    Args:
        values: Tensor of any shape.
        dim: Dimension that holds the splits one after the other, counted from 0.
        splits: Number of splits, entries of each, and entries of each when padded.
        value: What to pad with.

    Returns:
        The tensor with `dim` of size number * padded; itself where nothing is to pad.
    """
    number, width, padded = splits
    if padded == width:
        return values
    # F.pad counts from the last dimension, two numbers each
    pads = [0] * (2 * (values.dim() - dim - 1)) + [0, padded - width]
    if number == 1:
        return F.pad(values, pads, value=value)  # in its memory format
    apart = values.unflatten(dim, (number, width))  # [..., number, width, ...]
    return F.pad(apart, pads, value=value).flatten(dim, dim + 1)


def recast(conv: Any, cls: type[Conv], **kwargs: Any) -> Conv:
    """A convolution of another class with the same arguments, parameters and mode.

    Args:
        conv: `nn.Conv2d`; the new one shares its parameters.
        cls: Class that takes `nn.Conv2d`'s arguments.
        **kwargs: What the class takes besides.
    """
    same = cls(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups, bias=False, device='meta', **kwargs,
    )  # fmt: skip
    same.weight, same.bias = conv.weight, conv.bias
    return same.train(conv.training)
