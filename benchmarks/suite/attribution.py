"""Where the time goes: counts, the profiler's self time by kind, every convolution alone, and the
extra time by cause, computed from them.
"""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from .cells import Cell, Pair, Spec
from .measure import interleave, synchronize
from .models import Work, build

KINDS = (
    'convolution 1×1', 'convolution 3×3', 'convolution other', 'norm+activation', 'add',
    'concat/split/copy', 'pool', 'attention', 'other',
)  # fmt: skip

_CONVOLUTIONS = {
    'aten::conv2d', 'aten::convolution', 'aten::_convolution', 'aten::mkldnn_convolution',
    'aten::cudnn_convolution', 'aten::_conv_depthwise2d', 'aten::thnn_conv2d',
    'aten::_slow_conv2d_forward', 'aten::miopen_convolution',
}  # fmt: skip
_OPERATORS = {
    'norm+activation': (
        'batch_norm', '_batch_norm_impl_index', 'native_batch_norm', 'cudnn_batch_norm', 'relu',
        'relu_', 'clamp_min', 'clamp_min_', 'sigmoid', 'silu_', 'hardtanh_',
    ),
    'add': ('add', 'add_'),
    'concat/split/copy': (
        'cat', 'chunk', 'split', 'split_with_sizes', 'narrow', 'slice', 'copy_', 'clone',
        'contiguous',
    ),
    'pool': (
        'max_pool2d', 'max_pool2d_with_indices', 'avg_pool2d', 'adaptive_avg_pool2d',
        '_adaptive_avg_pool2d', 'mean',
    ),
    'other': ('linear', 'addmm', 'flatten', 'softmax', '_softmax', 'to'),
}  # fmt: skip
_KIND = {f'aten::{name}': kind for kind, names in _OPERATORS.items() for name in names}
_ATTENTION = 'attention'


def counts(spec: Spec, size: int) -> dict[str, int]:
    """Count the parameters, multiply-accumulates and activations of a model for one image.

    Both are those of convolutions and linear layers; activations are their output elements, as in
    Radosavovic et al. 2020 (arXiv:2003.13678).

    Args:
        spec: The model.
        size: Height and width of the image in pixels.

    Returns:
        Numbers under 'params', 'macs' and 'activations'.
    """
    model = build(spec, 'meta')
    found = {'params': sum(p.numel() for p in model.parameters()), 'macs': 0, 'activations': 0}

    def count(module: Any, args: Any, output: torch.Tensor) -> None:
        found['macs'] += _macs(module.weight.shape, output)
        found['activations'] += output.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size, device='meta'))
    return found


def _macs(weight: Sequence[int], output: torch.Tensor) -> int:
    """Return the multiply-accumulates of a layer: one an output and weight of its channel."""
    return output.numel() * math.prod(weight[1:])


def kind_of(event: Any) -> str:
    """Return the kind of a profiler event.

    It is attention if the event is within the range of an attention module; otherwise the kind of
    the nearest known operator, which is the event itself or one that contains it.
    """
    known, ancestor = None, event
    while ancestor is not None:
        name = ancestor.name
        if name == _ATTENTION:
            return 'attention'
        # within a convolution a copy counts as a copy, and an add as the bias of the convolution
        if name in _CONVOLUTIONS and known in (None, 'add'):
            shapes = ancestor.input_shapes  # input, weight, ...
            size = tuple(shapes[1][2:]) if len(shapes) > 1 else ()
            size_name = {(1, 1): '1×1', (3, 3): '3×3'}.get(size, 'other')
            known = f'convolution {size_name}'
        if name == 'aten::_to_copy':  # autocast casts weights
            known = 'other'
        if known is None:
            known = _KIND.get(name)
        ancestor = ancestor.cpu_parent
    return known or 'other'


def _is_attention(part: str) -> bool:
    """Return whether a part of a module's name is that of an attention module."""
    return part in ('se', 'attn')


def _mark_attention(model: nn.Module) -> None:
    """Put a profiler range around every attention module."""
    for name, module in model.named_modules():
        if not _is_attention(name.rpartition('.')[2]):
            continue
        forward = module.forward

        def marked(*args: Any, forward: Callable[..., Any] = forward) -> Any:
            with record_function(_ATTENTION):
                return forward(*args)

        module.forward = marked


def self_times(step: Callable[[], object], device: str) -> dict[str, float]:
    """Return the seconds of one step by kind of operator, the profiler's self times summed."""
    cuda = device == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        step()
        synchronize(device)()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.events() or ():
        # on a GPU the kernels' time belongs to the operator that launched them
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        if event.device_type == torch.autograd.DeviceType.CPU and event.name != _ATTENTION:
            seconds[kind_of(event)] += spent / 1e6
    return seconds


def convolutions(model: nn.Module, step: Callable[[], object]) -> Counter[tuple[Any, ...]]:
    """Count how often each convolution occurs in a step, without those of attention.

    Returns:
        Counts by (input shape, weight shape, has a bias, stride, padding, dilation, groups).
    """
    found: Counter[tuple[Any, ...]] = Counter()

    def note(module: Any, args: Any) -> None:
        found[
            tuple(args[0].shape), tuple(module.weight.shape), module.bias is not None,
            module.stride, module.padding, module.dilation, module.groups,
        ] += 1  # fmt: skip

    hooks = [
        module.register_forward_pre_hook(note)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not any(map(_is_attention, name.split('.')))
    ]
    step()
    for hook in hooks:
        hook.remove()
    return found


def attribute(
    pair: Pair, works: Mapping[str, Work], cell: Cell, budget: float, rng: random.Random
) -> dict[str, Any]:
    """Measure where the time of both models of a pair goes.

    The budget has three equal parts: the whole models in interleaved rounds; profiled steps in
    turn; and every distinct convolution alone in interleaved rounds, on dense inputs of the cell's
    type and layout.

    On a GPU the profiler's times are those of the kernels, but a convolution alone is timed with
    its launch. At small batches the columns that compare the two therefore say little.

    Args:
        pair: The models.
        works: The models ready to run, under 'baseline' and 'subject'.
        cell: The configuration: inference in eager mode.
        budget: Seconds.
        rng: Source of the order.

    Returns:
        By role: `counts`; `seconds`, one value a round; `profile`, by kind one value a profiled
        step; `alone`, a list of convolutions with their count, MACs and seconds, one value a round.
    """
    sync = synchronize(cell.device)
    whole: dict[str, list[float]] = {}
    interleave(
        {role: work.step for role, work in works.items()}, whole, budget=budget / 3, sync=sync,
        rng=rng,
    )  # fmt: skip

    layers = {role: convolutions(work.model, work.step) for role, work in works.items()}

    profiles: dict[str, dict[str, list[float]]] = {
        role: {kind: [] for kind in KINDS} for role in works
    }
    for work in works.values():
        _mark_attention(work.model)
    order, start, done = list(works), time.perf_counter(), 0
    while done < 3 or time.perf_counter() - start < budget / 3:
        rng.shuffle(order)
        for role in order:
            for kind, seconds in self_times(works[role].step, cell.device).items():
                profiles[role][kind].append(seconds)
        done += 1

    calls = {
        str(layer): _convolve(layer, cell) for layer in {**layers['baseline'], **layers['subject']}
    }
    alone: dict[str, list[float]] = {}
    interleave(calls, alone, budget=budget / 3, sync=sync, rng=rng)
    return {
        'counts': {role: counts(getattr(pair, role), cell.size) for role in works},
        'seconds': whole,
        'profile': profiles,
        'alone': {
            role: [
                {
                    'layer': list(layer),
                    'count': count,
                    'macs': _macs(layer[1], calls[str(layer)]()),
                    'seconds': alone[str(layer)],
                }
                for layer, count in layers[role].items()
            ]
            for role in works
        },
    }


def _convolve(layer: tuple[Any, ...], cell: Cell) -> Callable[[], torch.Tensor]:
    """Return a function that runs a convolution of `convolutions` on a dense input."""
    shape, weight_shape, has_bias, *options = layer
    x, weight = (
        torch.randn(size, dtype=cell.compute_dtype, device=cell.device).contiguous(
            memory_format=cell.memory_format
        )
        for size in (shape, weight_shape)
    )
    bias = weight.new_zeros(weight_shape[0]) if has_bias else None

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return F.conv2d(x, weight, bias, *options)

    return step


SPLITTING = ('convolutions in place', 'concat/split/copy', 'add', 'norm+activation', 'pool')
"""Work that splitting a block adds: more operations, or operations on smaller tensors."""
CAUSES = (
    'extra', 'more MACs', 'less efficient convolutions', 'the splitting itself', *SPLITTING,
    'attention', 'other', 'unexplained',
)  # fmt: skip
"""Keys of `explain`, in the order of the tables."""


def explain(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the subject's extra time by cause, as shares of the baseline's time.

    Let T be the time of a step, C the sum of the convolutions timed alone, M their MACs and P the
    profiler's self time. Then
        extra = T_s - T_b;
        more MACs = C_b (M_s / M_b - 1), the cost of the MACs at the baseline's efficiency;
        less efficient convolutions = C_s - C_b M_s / M_b;
        convolutions in place = the difference of P - C of the convolutions, which is what they lose
        within the network, because there the input is a slice and not a whole tensor;
        every other kind = P_s - P_b;
        the splitting itself = the sum over `SPLITTING`;
        unexplained = the rest of `extra`.

    Args:
        found: Result of `attribute`.
    """
    time, alone, macs, inside = {}, {}, {}, {}
    kinds: dict[str, dict[str, float]] = {}
    for role in ('baseline', 'subject'):
        time[role] = statistics.median(found['seconds'][role])
        layers = found['alone'][role]
        rounds = zip(*(layer['seconds'] for layer in layers), strict=True)
        sums = [
            sum(layer['count'] * t for layer, t in zip(layers, row, strict=True)) for row in rounds
        ]
        alone[role] = statistics.median(sums) if sums else 0.0
        macs[role] = sum(layer['count'] * layer['macs'] for layer in layers)
        kinds[role] = {k: statistics.median(v) for k, v in found['profile'][role].items()}
        inside[role] = sum(v for k, v in kinds[role].items() if k.startswith('convolution'))
    more = macs['subject'] / macs['baseline'] if macs['baseline'] else 1.0
    parts = {
        'more MACs': alone['baseline'] * (more - 1),
        'less efficient convolutions': alone['subject'] - alone['baseline'] * more,
        'convolutions in place': (inside['subject'] - alone['subject'])
        - (inside['baseline'] - alone['baseline']),
    }
    for kind in KINDS:
        if not kind.startswith('convolution'):
            parts[kind] = kinds['subject'][kind] - kinds['baseline'][kind]
    extra = time['subject'] - time['baseline']
    parts['unexplained'] = extra - sum(parts.values())
    splitting = sum(parts[kind] for kind in SPLITTING)
    whole = {'extra': extra, **parts, 'the splitting itself': splitting}
    return {cause: whole[cause] / time['baseline'] for cause in CAUSES}
