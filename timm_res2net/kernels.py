"""Which form of a layer is fastest where: rules that were measured, and one override.

All forms compute the same. What is chosen when a model is deployed depends on layers alone; what is
chosen at run time depends on the input and on how the model runs, and gives way to the plain form
under autograd, torch.compile, scripting, tracing and whatever else looks on (a dispatch mode such
as a FLOP counter, a functorch transform), all of which know the plain operators only.

The figures behind the rules: `python -m benchmarks.kernels`, benchmarks/results/kernels.json. Two
forms that a convolution could have besides are not here, since the packed one is as fast or faster
there: a 1x1 convolution as a linear layer (x 0.97 to 1.51 of its time), and a contiguous memory
format (x 1.05 to 2.89).
"""

import copy
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from .align import AlignedBatchNorm2d, AlignedConv2d
from .fusion import fold_conv, folds, recast

__all__ = [
    'FORMS',
    'FusedConv2d',
    'Unfused',
    'fuse',
    'fuse_sequential',
    'is_watched',
    'merges',
    'override',
    'overwrites',
    'writes_slices',
]

FORMS = ('merge', 'packed', 'slices')
"""`merge`: the convolutions of a first block that does not add, side by side as one grouped
convolution. `packed`: a convolution with weights that oneDNN has packed once, its activation and
its residual add inside, in channels_last. `slices`: results written where conv3 reads them, instead
of concatenated."""

# The packed form was measured on x86-64 only; elsewhere it waits for an override.
_PACKS = platform.machine().lower() in ('x86_64', 'amd64')

_forced: dict[str, bool] = {}


@contextmanager
def override(**forms: bool) -> Iterator[None]:
    """Force forms on or off, whatever the rules say: `with override(packed=False, slices=True):`.

    `merge` is chosen when a model is deployed, the others whenever it runs. A form that the machine
    or the input cannot have stays off. Meant for measuring: it holds for all threads.

    Raises:
        ValueError: A form that is not in `FORMS`.
    """
    for name in forms:
        if name not in FORMS:
            raise ValueError(f"Unknown form '{name}'. Use one of {', '.join(FORMS)}.")
    before = dict(_forced)
    _forced.update(forms)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def _is_eager_inference(x: torch.Tensor) -> bool:
    """Whether x runs in eager inference on a CPU, with nothing looking on."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(x) is torch.Tensor  # a stand-in of torch.fx or a subclass is not
        and x.device.type == 'cpu'
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


def merges(convs: Sequence[nn.Module]) -> bool:
    """Whether convolutions of the same shape, side by side, are better done as one grouped one:
    on a CPU for x 0.89 to 0.98 of a block's time at batch 1, at batch 8 for nothing. Where the
    weights lie when the model is deployed decides; no GPU was measured."""
    if not all(type(conv) is FusedConv2d for conv in convs):
        return False
    on_cpu = all(conv.weight.device.type in ('cpu', 'meta') for conv in convs)
    return _forced.get('merge', on_cpu)


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook sees what goes into these modules or comes out of them."""
    hooks = torch.nn.modules.module
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )


def overwrites(stage: nn.Module, x: torch.Tensor) -> bool:
    """Whether the blocks of a stage, run on x, may write over what the block before them made."""
    children = (module for module in stage.modules() if module is not stage)
    return _is_eager_inference(x) and not is_watched(children)


def writes_slices(block: nn.Module, x: torch.Tensor) -> bool:
    """Whether a block is to write its splits' results over x, (B, C, H, W), its conv1's output,
    instead of concatenating them. It spares a tensor, and with two million values x 0.98 of a
    block's time; with less it gains nothing."""
    return (
        _is_eager_inference(x)
        and _forced.get('slices', x.numel() >= 2_000_000)
        and not is_watched(block.modules())
    )


def _supported(dtype: torch.dtype | None) -> bool:
    """Whether oneDNN convolves this type on this machine."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()


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
            _is_eager_inference(x)
            and _forced.get('packed', _PACKS)
            and type(self.weight) is nn.Parameter
            and self.weight.device.type == 'cpu'
            # an inference tensor has no version, so that a write would go unnoticed
            and not self.weight.is_inference()
            and (self.bias is None or not self.bias.is_inference())
            and x.dim() == 4
            and x.numel() > 0
            and _supported(self._dtype(x))
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
