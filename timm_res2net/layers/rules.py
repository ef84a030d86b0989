"""Which form of a layer runs when: all rules in one place, and `override` to change them.

All forms of a layer compute the same. One rule, `merges`, is applied when a model is deployed and
depends on the layers alone. The others are applied in each forward pass and depend on the input.
They choose the plain form under autograd, torch.compile, scripting and tracing, and under dispatch
modes and functorch transforms (a FLOP counter, for example), because all of these know plain
operators only.

The rules follow measurements: `python -m benchmarks.kernels`, benchmarks/results/kernels.json. Two
more forms of a convolution were measured and left out, because the packed form is as fast or
faster: a 1x1 convolution as a linear layer (0.97 to 1.51 times as long) and a contiguous memory
format (1.05 to 2.89 times as long).
"""

import math
import platform
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

FORMS = ('merge', 'packed', 'packs', 'slices')
"""Forms that `override` takes.

* `merge`: the parallel convolutions of a first block run as one grouped convolution
* `packed`: a convolution runs in channels_last with weights that oneDNN has packed once, and
  includes its activation and residual add
* `packs`: a 1x1 convolution keeps a second packed copy of its weight, for inputs of several sizes
* `slices`: the outputs of the splits are written where conv3 reads them, instead of concatenated
"""

# The packed form was measured on x86-64 only. Elsewhere it needs an override.
_PACKS = platform.machine().lower() in ('x86_64', 'amd64')

_forced: dict[str, bool] = {}
_plain = threading.local()  # `on` while a thread runs `plain`


@contextmanager
def override(**forms: bool) -> Iterator[None]:
    """Force forms of layers on or off within a `with` block, for measurements.

    It applies to all threads. A form that the machine or the input does not support stays off.

    Args:
        **forms: True or False for each of `FORMS`. `merge` takes effect when a model is deployed,
            the others whenever a deployed model runs.

    Raises:
        ValueError: A name that is not in `FORMS`.

    >>> import timm, torch
    >>> from timm_res2net import override, reparameterize_model
    >>> model = reparameterize_model(timm.create_model('test_res2net_se'))
    >>> with override(packed=False), torch.inference_mode():
    ...     model(torch.randn(1, 3, 64, 64)).shape
    torch.Size([1, 10])
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


# --- when a model is deployed ---------------------------------------------------------------------


def merges(convs: Sequence[nn.Module]) -> bool:
    """Return whether to merge parallel fused convolutions of equal shape into one grouped one.

    On a CPU it takes 0.89 to 0.98 of the time of a block at batch 1, and makes no difference at
    batch 8. Convolutions on a GPU stay separate, because no GPU was measured.
    """
    if not all(isinstance(conv, nn.Conv2d) for conv in convs):
        return False
    if len({(type(conv.act), repr(vars(conv.act))) for conv in convs}) > 1:
        return False  # an activation was replaced
    on_cpu = all(conv.weight.device.type in ('cpu', 'meta') for conv in convs)
    return _forced.get('merge', on_cpu)


# --- in each forward pass -------------------------------------------------------------------------


def packs(conv: nn.Conv2d, x: torch.Tensor) -> bool:
    """Return whether a convolution of x may run packed."""
    return (
        is_eager_inference(x)
        and _may_pack()
        and type(conv.weight) is nn.Parameter
        and conv.weight.device.type == 'cpu'
        # inference tensors have no version counter, so that a write to them would go unnoticed
        and not conv.weight.is_inference()
        and (conv.bias is None or not conv.bias.is_inference())
        and x.dim() == 4
        and x.numel() > 0
        and _onednn_supports(conv_dtype(conv, x))
    )


def hides(x: torch.Tensor) -> bool:
    """Return whether packed layers would hide that x is not finite.

    oneDNN's ReLU turns NaN into 0. Stem, stages and blocks of a deployed model therefore check what
    they get, and run in the plain form if it holds NaN or infinity. The check is one sum.
    """
    return is_eager_inference(x) and _may_pack() and not is_finite(x)


@contextmanager
def plain() -> Iterator[None]:
    """Let no convolution of this thread run packed within a `with` block."""
    before = getattr(_plain, 'on', False)
    _plain.on = True
    try:
        yield
    finally:
        _plain.on = before


def most_packs(conv: nn.Conv2d) -> int:
    """Return how many packed copies of its weight a convolution keeps, for inputs of several sizes.

    On the machine that was measured (AVX-512), oneDNN asks for one layout for 3x3 and larger
    kernels, and for one to three for 1x1. A 1x1 convolution keeps two copies if its weight is small
    (at most 2**18 numbers), or if it reduces the number of channels, because packing takes longer
    than running there. So the packs of a res2net50_26w_4s take at most 1.35 times the memory of its
    weights: `python -m benchmarks.changing_sizes`, benchmarks/results/changing_sizes.json.
    """
    if conv.kernel_size != (1, 1) or not _forced.get('packs', True):
        return 1
    return 2 if conv.in_channels > conv.out_channels or conv.weight.numel() <= 2**18 else 1


def writes_slices(block: nn.Module, x: torch.Tensor) -> bool:
    """Return whether a block writes the outputs of its splits over x instead of concatenating them.

    It saves a tensor. With two million values or more it takes 0.98 of the time of a block, with
    fewer it gains nothing.

    Args:
        block: Deploy form of a block.
        x: Output of its conv1, (B, scale * width, H, W).
    """
    return (
        is_eager_inference(x)
        and _forced.get('slices', x.numel() >= 2_000_000)
        and not is_watched(block.modules())
    )


def overwrites(stage: nn.Module, x: torch.Tensor) -> bool:
    """Return whether each block of a stage may overwrite the output of the block before it.

    At large batch sizes, reusing memory saves more time than splitting costs.
    """
    children = (module for module in stage.modules() if module is not stage)
    return is_eager_inference(x) and not is_watched(children)


# --- conditions -----------------------------------------------------------------------------------


def _may_pack() -> bool:
    return _forced.get('packed', _PACKS) and not getattr(_plain, 'on', False)


def is_finite(x: torch.Tensor) -> bool:
    """Return whether x holds no NaN and no infinity, by its sum, which is faster than `isfinite`.

    Values so large that their sum exceeds float32 count as infinite.
    """
    return math.isfinite(x.sum(dtype=torch.float32))


def is_eager_inference(x: torch.Tensor) -> bool:
    """Return whether x runs in eager inference on a CPU and nothing observes the operators."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(x) is torch.Tensor  # no proxy of torch.fx, no subclass
        and x.device.type == 'cpu'
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Return whether a hook sees inputs or outputs of these modules."""
    hooks = torch.nn.modules.module
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )


def conv_dtype(conv: nn.Conv2d, x: torch.Tensor) -> torch.dtype | None:
    """Return the dtype that a plain convolution of x computes in, None if it would raise."""
    if torch.is_autocast_enabled('cpu') and torch.float64 not in (x.dtype, conv.weight.dtype):
        return torch.get_autocast_dtype('cpu')
    return x.dtype if x.dtype == conv.weight.dtype else None


def _onednn_supports(dtype: torch.dtype | None) -> bool:
    """Return whether oneDNN is enabled and has convolutions of this dtype on this machine."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
