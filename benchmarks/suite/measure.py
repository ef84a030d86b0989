"""Times in interleaved rounds of random order, the peak memory of one step, and where the time
goes: the profiler's self time by kind, every convolution alone, and the extra time by cause.

The clock and the synchronization are passed in, so that tests need no GPU and no time.
"""

import gc
import itertools
import json
import math
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from timm_res2net.export.measure import Ratio, ratio

from .cells import DTYPES, LAYOUTS, Cell, Pair, Spec
from .models import Work, build

Step = Callable[[], object]
Samples = dict[str, list[float]]  # seconds of each round, by role
TARGET = 0.02
"""Half width of the subject's interval, as a share, at which a ratio is settled."""
WARMUP, REBUILT = 3, 2
"""Warm-up runs of the first build and of later ones. The second call packs weights."""
BLOCKS = 6
"""Builds of the models before the first check whether the ratio is settled."""
BLOCK_SECONDS = 10.0
"""Most seconds of rounds with one build."""


def synchronize(device: str) -> Callable[[], None]:
    """Return a function that waits for the device's queue; on a CPU it does nothing."""
    return torch.cuda.synchronize if device == 'cuda' else lambda: None


def _t(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t.

    By its expansion in 1 / freedom (Abramowitz and Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def ratio_of_blocks(
    subject: Sequence[float], baseline: Sequence[float], blocks: Sequence[int], draws: int = 2000
) -> Ratio:
    """Return the median of the per-round ratios subject / baseline, as `ratio`, over blocks.

    Values of one block, here of one build of the models, share what that build brought with it.
    With several blocks, whole blocks are drawn (Davison and Hinkley 1997, 3.8), and the percentiles
    are widened because there are few blocks: to those of a normal variate at t * sqrt(n / (n - 1)),
    with n the number of blocks (Hesterberg 2015, Am. Stat. 69, 371).

    Args:
        subject: Seconds, one value a round, block after block.
        baseline: Seconds, one value a round.
        blocks: Number of rounds in each block; empty for one block.
        draws: Number of resamples.
    """
    if len(blocks) < 2:
        return ratio(subject, baseline)
    ratios = np.asarray(subject, dtype=float) / np.asarray(baseline, dtype=float)
    padded = np.full((len(blocks), max(blocks)), np.nan)
    for row, block in zip(padded, np.split(ratios, np.cumsum(blocks)[:-1]), strict=True):
        row[: len(block)] = block
    n = len(blocks)
    drawn = np.random.RandomState(0).randint(n, size=(draws, n))
    medians = np.nanmedian(padded[drawn].reshape(draws, -1), axis=1)
    tail = NormalDist().cdf(-_t(n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def settled(samples: Samples, blocks: Sequence[int] = ()) -> bool:
    """Return whether a ratio is known well enough.

    The half width of the subject's interval must be within `TARGET`, and so must the distance of
    the control's median from 1, if there is a control.
    """
    control = samples.get('control', samples['baseline'])
    apart = abs(float(np.median(np.divide(control, samples['baseline']))) - 1)
    width = ratio_of_blocks(samples['subject'], samples['baseline'], blocks).half_width
    return apart <= TARGET and width <= TARGET


def interleave(
    steps: Mapping[str, Step],
    *,
    budget: float,
    least_rounds: int = 3,
    warmup: int = WARMUP,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] = lambda: None,
    rng: random.Random | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> Samples:
    """Run every step once a round, in random order, until the budget ends.

    Args:
        steps: Functions to time, by role.
        budget: Seconds after the warm-up. A round that has begun is finished.
        least_rounds: Rounds to take even if the budget ends before.
        warmup: Untimed runs of every step before the first round, which include compiling.
        clock: Returns seconds.
        sync: Waits until queued work is finished.
        rng: Source of the order.
        on_round: Called after every round.
    """
    rng = rng or random.Random(0)
    for step in steps.values():
        for _ in range(warmup):
            step()
    sync()
    samples: Samples = {role: [] for role in steps}
    order, rounds = list(steps), 0
    start = clock()
    collecting = gc.isenabled()
    gc.disable()  # a collection would slow one of the models
    try:
        while rounds < least_rounds or clock() - start < budget:
            rng.shuffle(order)
            for role in order:
                sync()  # queued work is finished before both readings
                begin = clock()
                steps[role]()
                sync()
                samples[role].append(clock() - begin)
            rounds += 1
            on_round()
    finally:
        if collecting:
            gc.enable()
    return samples


def interleave_blocks(
    build: Callable[[], Mapping[str, Step]], *, budget: float, **options: Any
) -> tuple[Samples, list[int]]:
    """Interleave in blocks, each with new steps, until the ratio settles or the budget ends.

    The addresses of a model's memory change its time by some percent for as long as the model
    exists: within one build the rounds agree on a ratio that the next build does not repeat.

    Args:
        build: Makes the steps by role; 'baseline' and 'subject' must be among them.
        budget: Seconds of rounds, without builds and warm-up.
        **options: Passed to `interleave`.

    Returns:
        The samples of all blocks, and the number of rounds of every block. Whether the ratio has
        settled is checked after every block from the sixth (`BLOCKS`).
    """
    samples: Samples = {}
    blocks: list[int] = []
    spent = 0.0
    while spent < budget and not (len(blocks) >= BLOCKS and settled(samples, blocks)):
        part = interleave(
            build(), budget=min(BLOCK_SECONDS, budget / BLOCKS), least_rounds=2,
            warmup=REBUILT if blocks else WARMUP, **options,
        )  # fmt: skip
        for role, seconds in part.items():
            samples.setdefault(role, []).extend(seconds)
        blocks.append(len(part['baseline']))
        spent += sum(map(sum, part.values()))
    return samples, blocks


def _cpu_peak(step: Step) -> int:
    """Return the largest running sum of allocations and releases of a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    changes = [e for e in events if e.get('name') == '[memory]' and e['args']['Device Type'] == 0]
    changes.sort(key=lambda e: (e['ts'], e['args'].get('Ev Idx', 0)))
    return max(itertools.accumulate((e['args']['Bytes'] for e in changes), initial=0))


def peak_memory(work: Work, device: str) -> dict[str, int]:
    """Measure the peak memory of one step, after two for warm-up.

    Returns:
        Bytes: `resident_bytes` of what stays between steps (parameters, buffers, input, optimizer
        state), `beyond_bytes` of the peak beyond that during the step, and their sum `peak_bytes`.
    """
    for _ in range(2):
        work.step()
    if device == 'cuda':
        torch.cuda.synchronize()
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work.step()
        torch.cuda.synchronize()
        beyond = torch.cuda.max_memory_allocated() - before
    else:
        beyond = _cpu_peak(work.step)
    resident = sum(tensor.numel() * tensor.element_size() for tensor in work.held())
    peak = resident + beyond
    return {'resident_bytes': resident, 'beyond_bytes': beyond, 'peak_bytes': peak}


KINDS = (
    'convolution 1×1', 'convolution 3×3', 'convolution other', 'norm+activation', 'add',
    'concat/split/copy', 'pool', 'attention', 'other',
)  # fmt: skip

_OPERATORS = {
    'convolution': r'.*conv.*',
    'norm+activation': r'.*(batch_norm|relu|clamp_min|sigmoid|silu|hardtanh).*',
    'add': r'add_?',
    'concat/split/copy': r'cat|chunk|split.*|narrow|slice|copy_|clone|contiguous',
    'pool': r'.*pool2d.*|mean',
    'other': r'linear|addmm|flatten|.*softmax|to|_to_copy',
}
"""Expressions for the names of torch's operators, without `aten::`."""


def counts(spec: Spec, size: int) -> dict[str, int]:
    """Count the parameters, multiply-accumulates and activations of a model for one image.

    Both are those of convolutions and linear layers; activations are their output elements, as in
    Radosavovic et al. 2020 (arXiv:2003.13678). The size is the image's height and width in pixels.
    """
    model = build(spec, 'meta')
    sums = {'params': sum(p.numel() for p in model.parameters()), 'macs': 0, 'activations': 0}

    def count(module: Any, args: Any, output: torch.Tensor) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            sums['macs'] += _macs(module.weight.shape, output)
            sums['activations'] += output.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size, device='meta'))
    return sums


def _macs(weight: Sequence[int], output: torch.Tensor) -> int:
    return output.numel() * math.prod(weight[1:])  # one an output and weight of its channel


def kind_of(event: Any) -> str:
    """Return the kind of a profiler event.

    It is attention if the event is within the range of an attention module; otherwise the kind of
    the nearest known operator, which is the event itself or one that contains it.
    """
    known, ancestor = None, event
    while ancestor is not None:
        if ancestor.name == 'attention':
            return 'attention'
        name = ancestor.name.removeprefix('aten::')
        kind = next((k for k, text in _OPERATORS.items() if re.fullmatch(text, name)), None)
        # within a convolution a copy counts as a copy, and an add as the bias of the convolution
        if kind == 'convolution' and known in (None, 'add'):
            shapes = ancestor.input_shapes  # input, weight, ...
            size = '×'.join(map(str, shapes[1][2:])) if len(shapes) > 1 else ''
            known = f'convolution {size if size in ("1×1", "3×3") else "other"}'
        elif known is None or name == '_to_copy':  # the latter is autocast's, of weights
            known = kind
        ancestor = ancestor.cpu_parent
    return known or 'other'


def _is_attention(name: str) -> bool:
    """Return whether a module's name is that of an attention module or of one within it."""
    return not {'se', 'attn'}.isdisjoint(name.split('.'))


def mark_attention(model: nn.Module) -> None:
    """Put a profiler range around every attention module."""
    for name, module in model.named_modules():
        if not _is_attention(name.rpartition('.')[2]):
            continue
        forward = module.forward

        def marked(*args: Any, forward: Callable[..., Any] = forward) -> Any:
            with record_function('attention'):
                return forward(*args)

        module.forward = marked


def self_times(step: Step, device: str) -> dict[str, float]:
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
        if event.device_type == torch.autograd.DeviceType.CPU and event.name != 'attention':
            seconds[kind_of(event)] += spent / 1e6
    return seconds


def convolutions(model: nn.Module, step: Step) -> Counter[tuple[Any, ...]]:
    """Count how often each convolution occurs in a step, without those of attention.

    The keys are (input shape, weight shape, has a bias, stride, padding, dilation, groups).
    """
    layers: Counter[tuple[Any, ...]] = Counter()

    def count(module: Any, args: Any) -> None:
        layers[
            tuple(args[0].shape), tuple(module.weight.shape), module.bias is not None,
            module.stride, module.padding, module.dilation, module.groups,
        ] += 1  # fmt: skip

    hooks = [
        module.register_forward_pre_hook(count)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not _is_attention(name)
    ]
    step()
    for hook in hooks:
        hook.remove()
    return layers


def _convolve(layer: tuple[Any, ...], cell: Cell) -> Callable[[], torch.Tensor]:
    """Return a function that runs a convolution of `convolutions` on a dense input."""
    shape, weight_shape, has_bias, *options = layer
    kind: Any = {'dtype': DTYPES[cell.precision][1], 'device': cell.device}
    x, weight = (
        torch.randn(size, **kind).contiguous(memory_format=LAYOUTS[cell.layout])
        for size in (shape, weight_shape)
    )
    bias = weight.new_zeros(weight_shape[0]) if has_bias else None
    return torch.inference_mode()(lambda: F.conv2d(x, weight, bias, *options))


def attribute(
    pair: Pair, works: Mapping[str, Work], cell: Cell, budget: float, rng: random.Random
) -> dict[str, Any]:
    """Measure where the time of both models of a pair goes.

    The budget has three equal parts: the whole models in interleaved rounds; profiled steps in
    turn; and every distinct convolution alone in interleaved rounds, on dense inputs of the cell's
    type and layout.

    On a GPU the profiler's times are those of the kernels, but a convolution alone is timed with
    its launch. At small batches the columns that compare the two therefore say little.

    Returns:
        By role: `counts`; `seconds`, one value a round; `profile`, by kind one value a profiled
        step; `alone`, a list of convolutions with their count, MACs and seconds, one value a round.
    """
    options: Any = {'budget': budget / 3, 'sync': synchronize(cell.device), 'rng': rng}
    whole = interleave({role: work.step for role, work in works.items()}, **options)
    layers = {role: convolutions(work.model, work.step) for role, work in works.items()}
    calls = {str(layer): _convolve(layer, cell) for role in works for layer in layers[role]}
    alone = interleave(calls, **options)

    for work in works.values():
        mark_attention(work.model)
    profiles: dict[str, Samples] = {role: {kind: [] for kind in KINDS} for role in works}

    def profiled(role: str) -> None:
        for kind, seconds in self_times(works[role].step, cell.device).items():
            profiles[role][kind].append(seconds)

    interleave({role: partial(profiled, role) for role in works}, warmup=0, **options)
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


SPLITTING = ('convolutions in place', 'concat/split/copy', 'add', 'norm+activation', 'pool')
"""Work that splitting a block adds: more operations, or operations on smaller tensors."""
CAUSES = (
    'extra', 'more MACs', 'less efficient convolutions', 'the splitting itself', *SPLITTING,
    'attention', 'other', 'unexplained',
)  # fmt: skip
"""Keys of `explain`, in the order of the tables."""


def explain(attribution: Mapping[str, Any]) -> dict[str, float]:
    """Return the subject's extra time by cause, as shares of the baseline's time.

    For a result of `attribute`, let T be the time of a step, C the sum of the convolutions timed
    alone, M their MACs and P the profiler's self time. Then
        extra = T_s - T_b;
        more MACs = C_b (M_s / M_b - 1), the cost of the MACs at the baseline's efficiency;
        less efficient convolutions = C_s - C_b M_s / M_b;
        convolutions in place = the difference of P - C of the convolutions, which is what they lose
        within the network, because there the input is a slice and not a whole tensor;
        every other kind = P_s - P_b;
        the splitting itself = the sum over `SPLITTING`;
        unexplained = the rest of `extra`.
    """
    time, alone, macs, kinds = {}, {}, {}, {}
    for role in ('baseline', 'subject'):
        time[role] = statistics.median(attribution['seconds'][role])
        layers = attribution['alone'][role]
        number = [layer['count'] for layer in layers]
        alone[role] = float(np.median(np.dot(number, [layer['seconds'] for layer in layers])))
        macs[role] = sum(layer['count'] * layer['macs'] for layer in layers)
        kinds[role] = {k: statistics.median(v) for k, v in attribution['profile'][role].items()}
    apart = {kind: kinds['subject'][kind] - kinds['baseline'][kind] for kind in KINDS}
    more = macs['subject'] / macs['baseline']
    in_network = sum(apart.pop(kind) for kind in KINDS[:3])
    parts = {
        'more MACs': alone['baseline'] * (more - 1),
        'less efficient convolutions': alone['subject'] - alone['baseline'] * more,
        'convolutions in place': in_network - (alone['subject'] - alone['baseline']),
        **apart,
    }
    extra = time['subject'] - time['baseline']
    parts['unexplained'] = extra - sum(parts.values())
    splitting = sum(parts[kind] for kind in SPLITTING)
    whole = {'extra': extra, **parts, 'the splitting itself': splitting}
    return {cause: whole[cause] / time['baseline'] for cause in CAUSES}
