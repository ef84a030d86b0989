"""The packed convolution of the deploy form, and the functions that fuse layers into one."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from .align import AlignedBatchNorm2d, AlignedConv2d
from .fold import fold_conv, folds, recast
from .packs import Packs
from .rules import conv_dtype, hides, is_finite, most_packs, packs


class Finite(NamedTuple):
    """Whether the parameters of a layer are finite.

    Attributes:
        key: Addresses and versions of the parameters.
        answer: Whether they are finite.
        sample: A view of some values of the weight.
        before: A copy of the sample.
    """

    key: Any
    answer: bool
    sample: torch.Tensor
    before: torch.Tensor


class FusedConv2d(nn.Conv2d):
    """Convolution that includes the layers after it: an optional residual add and an activation.

    Idea: in eager inference on a CPU it runs the oneDNN operator that torch.compile uses.

    Reason: a plain convolution packs its weights in every call, and the activation and the add are
    separate passes over memory. Without the add, the fused layer takes 0.29 to 1.06 of the time of
    the plain layers. The slowest case is a 1x1 convolution of 64 channels.

    Consequence: besides the weight, a layer keeps packed copies of it, one for inputs of one size
    and up to `rules.most_packs` for several. They are not part of the state dict, and are made
    again after the weight is replaced or written to. Torch does not count writes through
    `weight.data`. They are noticed if they change one of a few sampled values, as a write to the
    whole weight does; to write to a part of it, write under `torch.no_grad()` instead.

    oneDNN's ReLU turns NaN into 0. The layer runs in the plain form if its parameters are not
    finite and, with `checks_input`, if its input is not. What overflows inside of a convolution
    stays infinite or, if infinities cancel, becomes 0.

    Shape:
        - Input: (B, in_channels, H, W)
        - Residual: (B, out_channels, H', W')
        - Output: (B, out_channels, H', W'), in channels_last if it runs packed
    """

    def __init__(self, *args: Any, act: nn.Module | None, **kwargs: Any):
        """
        Args:
            *args: Arguments of `nn.Conv2d`.
            act: Activation, or None. A ReLU runs inside the convolution.
            **kwargs: Arguments of `nn.Conv2d`.
        """
        super().__init__(*args, **kwargs)
        self.act: nn.Module = nn.Identity() if act is None else act
        self._packs: Packs | None = None
        self.checks_input = False
        self._finite: Finite | None = None

    def __getstate__(self) -> dict[str, Any]:
        # copies and files make their own packs
        return {**super().__getstate__(), '_packs': None, '_finite': None}

    @torch.jit.unused
    def _may_pack(self, x: torch.Tensor) -> bool:
        return packs(self, x) and self._is_finite() and not (self.checks_input and hides(x))

    @torch.jit.unused
    def _is_finite(self) -> bool:
        """Return whether the parameters are finite; they are looked at once a version.

        If the sample says that the weight has been written to, it is packed again, too.
        """
        both = [p for p in (self.weight, self.bias) if p is not None]
        key = [(p.data_ptr(), p._version) for p in both]
        held = self._finite
        if held is None or held.key != key or not torch.equal(held.sample, held.before):
            sample = self._sample()
            answer = all(is_finite(p.detach()) for p in both)
            held = self._finite = Finite(key, answer, sample, sample.clone())
            self._packs = None
        return held.answer

    @torch.jit.unused
    def _sample(self) -> torch.Tensor:
        """Return a view of about 64 values of the weight."""
        diagonal = self.weight.detach().diagonal(0, 0, 1)  # [kH, kW, min(out, in / groups)]
        return diagonal[..., :: max(1, diagonal.numel() // 64)]

    @torch.jit.unused
    def _weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the packed weight and the bias for x."""
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        version = (x.dtype, weight._version, None if bias is None else bias._version)
        held = self._packs
        if held is None or held.version != version or not held.is_of(weight, bias):
            weight, bias = weight.detach(), None if bias is None else bias.detach()
            held = self._packs = Packs(weight, bias, version, x.dtype, most_packs(self))
        return held.get(self, x), held.bias

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
        if not torch.jit.is_scripting() and self._may_pack(x):
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
