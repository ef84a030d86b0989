"""The packed convolution of the deploy form, and how layers become one."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from .align import AlignedBatchNorm2d, AlignedConv2d
from .fold import fold_conv, folds, recast
from .rules import packs, supported

__all__ = ['FusedConv2d', 'Unfused', 'fuse', 'fuse_sequential']


class _Pack(NamedTuple):
    """What was packed, and what for. The originals are held so that nothing else can come to lie
    where they do."""

    key: Any
    weight: torch.Tensor
    bias: torch.Tensor | None
    packed_weight: torch.Tensor
    packed_bias: torch.Tensor | None

    def is_of(self, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Whether it was packed from these tensors."""
        same = self.weight.data_ptr() == weight.data_ptr()
        if self.bias is None or bias is None:
            return same and self.bias is bias
        return same and self.bias.data_ptr() == bias.data_ptr()


class FusedConv2d(nn.Conv2d):
    """A convolution with what follows it: a residual add, if one is given, and an activation.

    Idea: in eager inference on a CPU it runs on oneDNN's own operator, the one torch.compile uses.

    Reason: a plain convolution packs its weights anew at every call, and leaves the activation and
    the add to be passes over memory of their own. Without the add this takes x 0.29 to 1.06 of a
    plain one's time; the worst is a 1x1 convolution of 64 channels.

    Consequence: weights are held twice, the packed copy outside of the state dict. It is made when
    inputs of a shape have come twice in a row, and again when the weight is another tensor or was
    written to. A write through `weight.data` goes unnoticed: write under `torch.no_grad()` instead.

    Shape:
        - Input: (B, in_channels, H, W)
        - Residual: of the output's shape
        - Output: (B, out_channels, H', W'), in channels_last where it runs packed
    """

    def __init__(self, *args: Any, act: nn.Module | None = None, **kwargs: Any):
        """
        Args:
            *args: As for `nn.Conv2d`.
            act: Activation, none when None. A ReLU runs inside the convolution.
            **kwargs: As for `nn.Conv2d`.
        """
        super().__init__(*args, **kwargs)
        self.act: nn.Module = nn.Identity() if act is None else act
        self._packed: _Pack | None = None
        self._last: Any = None  # what the last input was like

    def __getstate__(self) -> dict[str, Any]:
        # copies and files pack their own
        return {**super().__getstate__(), '_packed': None, '_last': None}

    def _dtype(self, x: torch.Tensor) -> torch.dtype | None:
        """The type that a plain convolution computes in, None where it refuses."""
        if torch.is_autocast_enabled('cpu') and torch.float64 not in (x.dtype, self.weight.dtype):
            return torch.get_autocast_dtype('cpu')
        return x.dtype if x.dtype == self.weight.dtype else None

    @torch.jit.unused
    def _packs(self, x: torch.Tensor) -> bool:
        return (
            packs(x)
            and type(self.weight) is nn.Parameter
            and self.weight.device.type == 'cpu'
            # an inference tensor has no version, so that a write would go unnoticed
            and not self.weight.is_inference()
            and (self.bias is None or not self.bias.is_inference())
            and x.dim() == 4
            and x.numel() > 0
            and supported(self._dtype(x))
        )

    @torch.jit.unused
    def _weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias for x, packed once inputs of its shape have come twice in a row.

        A pack serves one shape: for another it can be far slower than no pack at all. So inputs
        that change their size all the time, as a detector's do, run unpacked.
        """
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        key = (x.dtype, x.shape, weight._version, None if bias is None else bias._version)
        held = self._packed
        if held is not None and held.key == key and held.is_of(weight, bias):
            self._last = key
            return held.packed_weight, held.packed_bias
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        whole, cast = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if self._last != key:
            self._last = key
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
        dtype: Any = self._dtype(x)
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
        """Convolve x, add the residual, activate. With `overwrite` the result may come to lie where
        the residual did, which must then be nobody else's."""
        if not torch.jit.is_scripting() and self._packs(x):
            return self._forward_packed(x, residual, overwrite)
        x = self._conv_forward(x, self.weight, self.bias)
        if residual is not None:
            x += residual
        return self.act(x)


class Unfused(nn.Module):
    """A convolution, a norm and an activation that stay apart, called as `FusedConv2d` is."""

    def __init__(self, conv: nn.Module, norm: nn.Module, act: nn.Module):
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.act = act

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, overwrite: bool = False
    ) -> torch.Tensor:
        """Convolve x, normalize, add the residual, activate. `overwrite` has no effect."""
        x = self.norm(self.conv(x))
        if residual is not None:
            x = x + residual
        return self.act(x)


def fuse(conv: Any, norm: nn.Module, act: nn.Module | None = None) -> nn.Module:
    """A new layer for a convolution, the norm and the activation after it, which are not changed.

    Returns:
        A `FusedConv2d`; an `Unfused` where the norm has no running statistics or the convolution is
        not plainly torch's.
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
    """A copy in which every convolution has taken in the BatchNorm and the ReLU after it, and
    identities stand in their places, so that names stay."""
    fused = copy.deepcopy(layers)
    for i in range(len(fused) - 1):
        acts = i + 2 < len(fused) and type(fused[i + 2]) is nn.ReLU
        layer = fuse(fused[i], fused[i + 1], fused[i + 2] if acts else None)
        if isinstance(layer, FusedConv2d):
            fused[i], fused[i + 1] = layer, nn.Identity()
            if acts:
                fused[i + 2] = nn.Identity()
    return fused
