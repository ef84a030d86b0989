"""Times, taken in interleaved rounds of random order, and the peak memory of one step.

The clock and the synchronization are passed in, so that tests need no GPU and no time.
"""

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from .models import Work
from .stats import ratio_of_blocks

Step = Callable[[], object]
Samples = dict[str, list[float]]

TARGET = 0.02
"""Half width of the subject's interval, as a share, at which a ratio is settled."""
WARMUP = 3
REBUILT = 2
"""Warm-up runs of a build after the first. A deployed model packs weights in the second call."""
BLOCKS = 6
"""Builds of the models before the first check whether the ratio is settled."""
BLOCK_SECONDS = 10.0
"""Most seconds of rounds with one build."""


def synchronize(device: str) -> Callable[[], None]:
    """Return a function that waits for the device's queue; on a CPU it does nothing."""
    return torch.cuda.synchronize if device == 'cuda' else lambda: None


def timed(step: Step, clock: Callable[[], float], sync: Callable[[], None]) -> float:
    """Return the seconds of one step, with queued work finished before and after."""
    sync()
    start = clock()
    step()
    sync()
    return clock() - start


def settled(samples: Samples, blocks: Sequence[int] = ()) -> bool:
    """Return whether a ratio is known well enough.

    The half width of the subject's interval must be within `TARGET`, and so must the distance of
    the control's median from 1, if there is a control.
    """
    control = samples.get('control')
    if control and abs(float(np.median(np.divide(control, samples['baseline']))) - 1) > TARGET:
        return False
    return ratio_of_blocks(samples['subject'], samples['baseline'], blocks).half_width <= TARGET


def interleave(
    steps: Mapping[str, Step],
    samples: Samples,
    *,
    budget: float,
    least_rounds: int = 3,
    warmup: int = WARMUP,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] = lambda: None,
    rng: random.Random | None = None,
    on_round: Callable[[Samples], object] = lambda samples: None,
) -> None:
    """Run every step once a round, in random order, until the budget ends.

    Args:
        steps: Functions to time, by role.
        samples: Filled with the seconds of every finished round, by role, even if the call ends by
            an exception.
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
    for role in steps:
        samples[role] = []
    order, rounds = list(steps), 0
    start = clock()
    collecting = gc.isenabled()
    gc.disable()  # a collection would slow one of the models
    try:
        while rounds < least_rounds or clock() - start < budget:
            rng.shuffle(order)
            seconds = {role: timed(steps[role], clock, sync) for role in order}
            for role in steps:
                samples[role].append(seconds[role])
            rounds += 1
            on_round(samples)
    finally:
        if collecting:
            gc.enable()
        whole = min(map(len, samples.values()))
        for seconds_of in samples.values():
            del seconds_of[whole:]  # an interrupt can come between two appends


def interleave_blocks(
    build: Callable[[], Mapping[str, Step]],
    samples: Samples,
    blocks: list[int],
    *,
    budget: float,
    **options: Any,
) -> bool:
    """Interleave in blocks, each with newly built steps, until the ratio settles over the blocks or
    the budget ends.

    The addresses of a model's memory change its time by some percent for as long as the model
    exists: within one build the rounds agree on a ratio that the next build does not repeat.

    Args:
        build: Makes the steps by role; 'baseline' and 'subject' must be among them.
        samples: Filled with the seconds of every finished round, by role, even if the call ends by
            an exception.
        blocks: Filled with the number of rounds of every block.
        budget: Seconds of rounds, without builds and warm-up.
        **options: Passed to `interleave`.

    Returns:
        Whether the ratio settled. It is checked after every block from the sixth (`BLOCKS`).
    """
    spent = 0.0
    while spent < budget:
        part: Samples = {}
        try:
            interleave(
                build(), part, budget=min(BLOCK_SECONDS, budget / BLOCKS), least_rounds=2,
                warmup=REBUILT if blocks else WARMUP, **options,
            )  # fmt: skip
        finally:
            if part.get('baseline'):
                for role, seconds in part.items():
                    samples.setdefault(role, []).extend(seconds)
                blocks.append(len(part['baseline']))
        spent += sum(map(sum, part.values()))
        if len(blocks) >= BLOCKS and settled(samples, blocks):
            return True
    return False


HOW = {
    'cuda': 'CUDA allocator: memory_allocated before the step, max_memory_allocated after it',
    'cpu': "torch's CPU allocator: every allocation and release of one step as the profiler saw "
    'them, replayed; what oneDNN allocates for itself is not seen',
}
"""How memory is measured, by device; kept in the result file."""


def peak_of(changes: Sequence[int]) -> int:
    """Return the largest running sum of allocations (positive) and releases (negative), at least
    0.
    """
    now = peak = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    return peak


def _cpu_changes(step: Step) -> list[int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    found = [e for e in events if e.get('name') == '[memory]' and e['args']['Device Type'] == 0]
    found.sort(key=lambda e: (e['ts'], e['args'].get('Ev Idx', 0)))
    return [event['args']['Bytes'] for event in found]


def peak_memory(work: Work, device: str) -> dict[str, int]:
    """Measure the peak memory of one step, after two for warm-up.

    Returns:
        Bytes: `resident_bytes` for what stays between steps (parameters, buffers, input, optimizer
        state), `beyond_bytes` for the peak beyond that during the step, and `peak_bytes` for the
        sum.
    """
    sync = synchronize(device)
    for _ in range(2):
        work.step()
    sync()
    if device == 'cuda':
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work.step()
        sync()
        beyond = torch.cuda.max_memory_allocated() - before
    else:
        beyond = peak_of(_cpu_changes(work.step))
    resident = sum(tensor.numel() * tensor.element_size() for tensor in work.held())
    return {
        'resident_bytes': resident,
        'beyond_bytes': beyond,
        'peak_bytes': resident + beyond,
    }
