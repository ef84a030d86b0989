"""The packed convolution of the deploy form, and the functions that fuse layers into one."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from .align import AlignedBatchNorm2d, AlignedConv2d
from .fold import fold_conv, folds, recast
from .rules import conv_dtype, hides, is_finite, packs, packs_now


class _Pack(NamedTuple):
    """Packed parameters and what they were packed from.

    The originals are kept so that no other tensor can get their address.
    """

    key: Any
    weight: torch.Tensor
    bias: torch.Tensor | None
    packed_weight: torch.Tensor
    packed_bias: torch.Tensor | None

    def is_of(self, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Return whether these tensors are the originals."""
        same = self.weight.data_ptr() == weight.data_ptr()
        if self.bias is None or bias is None:
            return same and self.bias is bias
        return same and self.bias.data_ptr() == bias.data_ptr()


class FusedConv2d(nn.Conv2d):
    """Convolution that includes the layers after it: an optional residual add and an activation.

    Idea: in eager inference on a CPU it runs the oneDNN operator that torch.compile uses.

    Reason: a plain convolution packs its weights in every call, and the activation and the add are
    separate passes over memory. Without the add, the fused layer takes 0.29 to 1.06 of the time of
    the plain layers. The slowest case is a 1x1 convolution of 64 channels.

    Consequence: weights are stored twice, and the packed copy is not part of the state dict. It is
    made when two inputs in a row have the same shape, and made again after the weight is replaced
    or written to. A write through `weight.data` goes unnoticed: write under `torch.no_grad()`
    instead.

    oneDNN's ReLU turns NaN into 0. The layer runs in the plain form if its parameters are not
    finite and, with `checks_input`, if its input is not. What overflows inside of a convolution
    stays infinite or, if infinities cancel, becomes 0.

    Shape:
        - Input: (B, in_channels, H, W)
        - Residual: (B, out_channels, H', W')
        - Output: (B, out_channels, H', W'), in channels_last if it runs packed
    """

    def __init__(self, *args: Any, act: nn.Module | None = None, **kwargs: Any):
        """
        Args:
            *args: Arguments of `nn.Conv2d`.
            act: Activation, or None. A ReLU runs inside the convolution.
            **kwargs: Arguments of `nn.Conv2d`.
        """
        super().__init__(*args, **kwargs)
        self.act: nn.Module = nn.Identity() if act is None else act
        self._packed: _Pack | None = None
        self._last: Any = None  # key of the last input
        self.checks_input = False
        self._finite: tuple[Any, bool] | None = None  # versions of the parameters, and the answer

    def __getstate__(self) -> dict[str, Any]:
        # copies and files make their own packs
        return {**super().__getstate__(), '_packed': None, '_last': None, '_finite': None}

    @torch.jit.unused
    def _packs(self, x: torch.Tensor) -> bool:
        return packs(self, x) and self._is_finite() and not (self.checks_input and hides(x))

    @torch.jit.unused
    def _is_finite(self) -> bool:
        """Return whether the parameters are finite; they are looked at once a version."""
        both = [p for p in (self.weight, self.bias) if p is not None]
        key = [(p.data_ptr(), p._version) for p in both]
        if self._finite is None or self._finite[0] != key:
            self._finite = key, all(is_finite(p.detach()) for p in both)
        return self._finite[1]

    @torch.jit.unused
    def _weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias for x, packed if there is a pack or it is time to make one."""
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        key = (x.dtype, x.shape, weight._version, None if bias is None else bias._version)
        held, last, self._last = self._packed, self._last, key
        if held is not None and held.key == key and held.is_of(weight, bias):
            return held.packed_weight, held.packed_bias
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        whole, cast = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if not packs_now(key, last):
            return whole, cast
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            whole, self.padding, self.stride, self.dilation, self.groups, list(x.shape)
        )
        self._packed = _Pack(key, weight, bias, packed, cast)
        return packed, cast

    @torch.jit.unused
    def _forward_packed(
        self, x: torch.Tensor, residual: torch.Tensor | None, overwrite: bool
    ) -> torch.Tensor:
        dtype: Any = conv_dtype(self, x)
        x = x.to(dtype, memory_format=torch.channels_last)
        weight, bias = self._weights(x)
        relu = type(self.act) is nn.ReLU
        where = (self.padding, self.stride, self.dilation, self.groups)
        if residual is None:
            attr = 'relu' if relu else 'none'
            x = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *where, attr, [], '')
        else:
            other = residual.to(dtype, memory_format=torch.channels_last)
            after: Any = ('add', 1.0, 'relu' if relu else None, [], '')
            if overwrite or other is not residual:
                op = torch.ops.mkldnn._convolution_pointwise_.binary
                x = op(other, x, weight, bias, *where, *after)
            else:
                op = torch.ops.mkldnn._convolution_pointwise.binary
                x = op(x, other, weight, bias, *where, *after)
        return x if relu else self.act(x)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, overwrite: bool = False
    ) -> torch.Tensor:
        """Convolve x, add the residual and apply the activation.

        Args:
            x: Input.
            residual: Tensor to add before the activation, or None.
            overwrite: The output may be written over the residual, which no one else may use.
        """
        if not torch.jit.is_scripting() and self._packs(x):
            return self._forward_packed(x, residual, overwrite)
        x = self._conv_forward(x, self.weight, self.bias)
        if residual is not None:
            x += residual
        return self.act(x)


class Unfused(nn.Module):
    """Convolution, norm and activation that stay separate, called as `FusedConv2d` is."""

    def __init__(self, conv: nn.Module, norm: nn.Module, act: nn.Module):
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.act = act

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, overwrite: bool = False
    ) -> torch.Tensor:
        """Convolve x, normalize, add the residual and apply the activation.

        Args:
            x: Input.
            residual: Tensor to add before the activation, or None.
            overwrite: No effect.
        """
        x = self.norm(self.conv(x))
        if residual is not None:
            x = x + residual
        return self.act(x)


def fuse(conv: Any, norm: nn.Module, act: nn.Module | None = None) -> nn.Module:
    """Return a new layer for a convolution and the norm and activation after it.

    Args:
        conv: Convolution. It is not changed.
        norm: Norm, or an identity. It is not changed.
        act: Activation, or None. It is not changed.

    Returns:
        A `FusedConv2d`, or an `Unfused` if the norm has no running statistics or the convolution is
        not a plain `nn.Conv2d` with zero padding.
    """
    act = copy.deepcopy(act)
    conv = conv.bake() if isinstance(conv, AlignedConv2d) else conv
    norm = norm.bake() if isinstance(norm, AlignedBatchNorm2d) else norm
    plain = (
        type(conv) is nn.Conv2d
        and conv.padding_mode == 'zeros'
        and not isinstance(conv.padding, str)
    )
    if plain and folds(norm):
        return recast(fold_conv(conv, norm), FusedConv2d, act=act)
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    if plain and isinstance(norm, nn.Identity):
        return recast(conv, FusedConv2d, act=act)
    return Unfused(conv, norm, nn.Identity() if act is None else act)


def fuse_sequential(layers: nn.Sequential) -> nn.Sequential:
    """Return a copy in which each convolution includes the BatchNorm and the ReLU after it.

    Identities replace the included layers, so that the names of the others stay.
    """
    fused = copy.deepcopy(layers)
    for i in range(len(fused) - 1):
        has_act = i + 2 < len(fused) and type(fused[i + 2]) is nn.ReLU
        layer = fuse(fused[i], fused[i + 1], fused[i + 2] if has_act else None)
        if isinstance(layer, FusedConv2d):
            fused[i], fused[i + 1] = layer, nn.Identity()
            if has_act:
                fused[i + 2] = nn.Identity()
    return fused
