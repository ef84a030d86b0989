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

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

__all__ = [
    'FORMS', 'is_eager_inference', 'is_watched', 'merges', 'override', 'overwrites', 'packs',
    'supported', 'writes_slices',
]  # fmt: skip

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


def packs(x: torch.Tensor) -> bool:
    """Whether a convolution of x may run packed at all."""
    return is_eager_inference(x) and _forced.get('packed', _PACKS)


def is_eager_inference(x: torch.Tensor) -> bool:
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
    if not all(isinstance(conv, nn.Conv2d) for conv in convs):
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
    return is_eager_inference(x) and not is_watched(children)


def writes_slices(block: nn.Module, x: torch.Tensor) -> bool:
    """Whether a block is to write its splits' results over x, (B, C, H, W), its conv1's output,
    instead of concatenating them. It spares a tensor, and with two million values x 0.98 of a
    block's time; with less it gains nothing."""
    return (
        is_eager_inference(x)
        and _forced.get('slices', x.numel() >= 2_000_000)
        and not is_watched(block.modules())
    )


def supported(dtype: torch.dtype | None) -> bool:
    """Whether oneDNN convolves this type on this machine."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
