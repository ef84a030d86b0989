"""The packed convolution of the deploy form, and the functions that fuse layers into one."""

import contextlib
import copy
import math
import platform
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .fold import fold_conv, folds

SMALL = 1_000_000
"""Multiply-adds below which a convolution runs in the plain form, which has less overhead."""
MOST_PACKS = 2
"""How many packed copies of a weight a layer keeps."""
REMEMBERED = 1024
"""How many shapes a layer remembers."""

# The packed form was measured on x86-64 only.
_PACKS = platform.machine().lower() in ('x86_64', 'amd64') and torch.backends.mkldnn.is_available()


class _Local(threading.local):
    finite: bool | None = None  # whether the tensor that `run_checked` got is finite


_local = _Local()


def may_pack(x: torch.Tensor) -> bool:
    """Return whether layers may run packed on x: in eager inference on a CPU, unobserved.

    Autograd, torch.compile, torch.fx, tracing, dispatch modes and functorch transforms (a FLOP
    counter, for example) know plain operators only.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is torch.Tensor  # no proxy of torch.fx, no subclass
        and x.is_cpu
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and _PACKS
    )


def is_finite(x: torch.Tensor) -> bool:
    """Return whether x holds no NaN and no infinity, by its sum, which is faster than `isfinite`.

    Values so large that their sum exceeds float32 count as infinite.
    """
    return math.isfinite(x.sum(dtype=torch.float32))


def run_checked(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return run(x), with this thread's layers in the plain form if x is not finite.

    oneDNN's ReLU turns NaN into 0, so that packed layers would make an answer of an all-NaN image.
    A nested call does not check again.
    """
    if not may_pack(x) or _local.finite is not None:
        return run(x)
    _local.finite = is_finite(x)
    try:
        return run(x)
    finally:
        _local.finite = None


class Packs:
    """Packed copies of one version of a weight, one for each layout that oneDNN asks for.

    The layout depends on the shape of the input. A pack of another layout would give the same
    result, but oneDNN would bring it into the right one in every call, which can take 30 times as
    long as the convolution. So every shape runs with a pack of its own layout. Most layers need one
    or two. If there are two already, a weight is packed for one call only, unless the call before
    that did so asked for the same layout: then it is the first of new packs.

    Layouts are compared by oneDNN's description of them, which has bytes that it leaves unset: two
    packs may be equal. Threads may share packs: at worst a weight is packed twice.
    """

    def __init__(self, weight: torch.Tensor):
        self.weight = weight
        self.memory = weight.detach()  # kept, so that no other weight can get its address
        self.state = weight.data_ptr(), weight._version
        self.of_shape: dict[Any, torch.Tensor | None] = {}  # None: plain
        self.of_layout: dict[bytes, torch.Tensor] = {}
        self.missed = b''

    def is_of(self, weight: torch.Tensor) -> bool:
        """Return whether a parameter is the weight and has not been written to or moved."""
        return self.weight is weight and self.state == (weight.data_ptr(), weight._version)

    def find(
        self, conv: Any, x: torch.Tensor, autocast: torch.dtype | None, key: Any
    ) -> torch.Tensor | None:
        """Return the pack for x, None for the plain form, and remember it under the key."""
        if len(self.of_shape) >= REMEMBERED:
            self.of_shape.clear()
        pack, dtypes = None, {x.dtype, self.memory.dtype}
        if torch.float64 not in dtypes and (autocast is not None or len(dtypes) == 1):
            weight = self.memory.to(autocast or x.dtype)
            how = (conv.padding, conv.stride, conv.dilation, conv.groups, list(x.shape))
            with contextlib.suppress(RuntimeError):  # oneDNN has no such convolution here
                pack = torch.ops.mkldnn._reorder_convolution_weight(weight, *how)
        if pack is not None:
            layout = torch.ops.mkldnn._get_mkldnn_serialized_md(pack).numpy().tobytes()
            if layout not in self.of_layout and len(self.of_layout) >= MOST_PACKS:
                again, self.missed = layout == self.missed, layout
                if not again:
                    return pack
                self.of_layout.clear()
                self.of_shape.clear()
            pack = self.of_layout.setdefault(layout, pack)
        self.of_shape[key] = pack
        return pack


class FusedConv2d(nn.Conv2d):
    """Convolution that includes the layers after it: an optional residual add and an activation.

    Idea: in eager inference on a CPU it runs the oneDNN operator that torch.compile uses, on a
    weight that is packed once.

    Reason: a plain convolution packs its weight in every call, and the activation and the add are
    separate passes over memory. A deployed res2net50_26w_4s takes × 0.73 to × 0.78 of the time of
    eager mode on AMD Zen 4: `python -m benchmarks.forms`, benchmarks/results/forms.json.

    Consequence: besides the weight, a layer keeps up to two packed copies of it (see `Packs`). They
    are not part of the state dict, and are made again after the weight is replaced or written to.
    Torch does not count writes through `weight.data`: write under `torch.no_grad()` instead.

    With `checks_input`, the layer runs in the plain form if its input is not finite. Stages and
    blocks check their input instead (see `run_checked`).

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
        self.checks_input = False
        # multiply-adds for each number of the input
        kernel, stride = math.prod(self.kernel_size), math.prod(self.stride)
        self.work = self.out_channels / self.groups * kernel / stride
        self._packs: Packs | None = None

    def __getstate__(self) -> dict[str, Any]:
        # copies and files make their own packs
        return vars(self) | {'_packs': None}

    @torch.jit.unused
    def _pack_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the packed weight to run x with, None to run in the plain form."""
        if not may_pack(x) or x.numel() * self.work < SMALL or _local.finite is False:
            return None
        if not torch.backends.mkldnn.enabled:
            return None
        weight, packs = self.weight, self._packs
        if packs is None or not packs.is_of(weight):
            # inference tensors have no version, so that a write to them would go unnoticed
            if type(weight) is not nn.Parameter or weight.is_inference():
                return None
            packs = self._packs = Packs(weight)
        autocast = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
        key = (x.shape, x.dtype, torch.get_num_threads(), autocast)
        try:
            pack = packs.of_shape[key]
        except KeyError:
            pack = packs.find(self, x, autocast, key)
        return None if self.checks_input and not is_finite(x) else pack

    @torch.jit.unused
    def _forward_packed(
        self, x: torch.Tensor, pack: torch.Tensor, residual: torch.Tensor | None, overwrite: bool
    ) -> torch.Tensor:
        dtype, act = pack.dtype, self.act
        relu = type(act) is nn.ReLU
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        bias: Any = None if self.bias is None else self.bias.to(dtype)
        where: Any = (pack, bias, self.padding, self.stride, self.dilation, self.groups)
        ops = torch.ops.mkldnn
        if residual is None:
            x = ops._convolution_pointwise(x, *where, 'relu' if relu else 'none', [], '')
        else:
            other = residual.to(dtype).contiguous(memory_format=torch.channels_last)
            if other is residual and other.shape[2:] == (1, 1):
                other = residual.clone()  # torch 2.6 writes the sum of single pixels only in place
            where += ('add', 1.0, 'relu' if relu else None, [], '')
            if overwrite or other is not residual:
                x = ops._convolution_pointwise_.binary(other, x, *where)
            else:
                x = ops._convolution_pointwise.binary(x, other, *where)
        return x if relu else act(x)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, overwrite: bool = False
    ) -> torch.Tensor:
        """Convolve x, add the residual and apply the activation.

        Args:
            x: Input.
            residual: Tensor to add before the activation, or None.
            overwrite: The output may be written over the residual, which no one else may use.
        """
        if not torch.jit.is_scripting():
            pack = self._pack_for(x)
            if pack is not None:
                return self._forward_packed(x, pack, residual, overwrite)
        x = self._conv_forward(x, self.weight, self.bias)
        if residual is not None:
            x += residual
        return self.act(x)


def fuses(conv: Any, norm: nn.Module) -> bool:
    """Return whether `fuse` takes them: a plain `nn.Conv2d`, and `folds` is true."""
    plain = type(conv) is nn.Conv2d and conv.padding_mode == 'zeros'
    return plain and not isinstance(conv.padding, str) and folds(norm)


def fuse(conv: Any, norm: nn.Module, act: nn.Module | None = None) -> FusedConv2d:
    """Return a new layer for a convolution and the norm and activation after it.

    Args:
        conv: Convolution for which, with the norm, `fuses` is true. It is not changed.
        norm: Norm, or an identity. It is not changed.
        act: Activation, or None. It is not changed.
    """
    folded = fold_conv(conv, norm)
    fused = FusedConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups, bias=False, device='meta', act=copy.deepcopy(act),
    )  # fmt: skip
    fused.weight, fused.bias = folded.weight, folded.bias
    return fused.train(conv.training)


def fuse_sequential(layers: nn.Sequential) -> nn.Sequential:
    """Return a copy in which each convolution includes the BatchNorm and the ReLU after it.

    Identities replace the included layers, so that the names of the others stay.
    """
    fused = copy.deepcopy(layers)
    for i in range(len(fused) - 1):
        if fuses(fused[i], fused[i + 1]):
            has_act = i + 2 < len(fused) and type(fused[i + 2]) is nn.ReLU
            fused[i] = fuse(fused[i], fused[i + 1], fused[i + 2] if has_act else None)
            for j in (i + 1, i + 2)[: 1 + has_act]:
                fused[j] = nn.Identity()
    return fused
