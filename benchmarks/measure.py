"""Taking samples: interleaved rounds in random order, with the clock and the synchronisation passed
in.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .stats import ratio

__all__ = ['BLOCKS', 'interleave', 'interleave_blocks', 'settled', 'synchronize', 'timed']

Step = Callable[[], object]
Samples = dict[str, list[float]]

TARGET = 0.02
WARMUP = 3
REBUILT = 2
"""Warm-up of a build after the first. A deploy form packs its weights in the second call."""
BLOCKS = 6
"""Builds of the models before the first look at whether a ratio is settled."""
BLOCK_SECONDS = 10.0
"""Rounds of one build, in seconds, at most."""


def synchronize(device: str) -> Callable[[], None]:
    """What to wait for before reading the clock: the GPU's queue, or on a CPU nothing."""
    return torch.cuda.synchronize if device == 'cuda' else lambda: None


def timed(step: Step, clock: Callable[[], float], sync: Callable[[], None]) -> float:
    """Seconds of one step, queued work done before and after."""
    sync()
    start = clock()
    step()
    sync()
    return clock() - start


def settled(
    samples: Samples, target: float, min_rounds: int = 10, blocks: Sequence[int] = ()
) -> bool:
    """Whether the subject's ratio has an interval within the target, and the control's, where there
    is one, a median within it of 1."""
    if len(samples['baseline']) < min_rounds:
        return False
    control = samples.get('control')
    if control and abs(float(np.median(np.divide(control, samples['baseline']))) - 1) > target:
        return False
    return ratio(samples['subject'], samples['baseline'], blocks).half_width <= target


def interleave(
    steps: Mapping[str, Step],
    samples: Samples,
    *,
    budget: float,
    target: float | None = TARGET,
    min_rounds: int = 10,
    least_rounds: int = 3,
    warmup: int = WARMUP,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] = lambda: None,
    rng: random.Random | None = None,
    on_round: Callable[[Samples], None] = lambda samples: None,
) -> bool:
    """Run every step once a round, in random order, until the ratio settles or the budget ends.

    Args:
        steps: What to time, by role; with a target, 'baseline' and 'subject' among them.
        samples: Filled with the seconds of every finished round, by role, also when the call ends
            by an exception.
        budget: Seconds after the warm-up; a round that began is finished.
        target: Half width of the subject's interval, as a share, at which to stop; None for all of
            the budget. Looked at whenever the rounds have grown by a tenth, as every look is one
            more chance to stop early.
        min_rounds: Rounds before the first look.
        least_rounds: Rounds to take whatever the budget.
        warmup: Untimed runs of every step before, compiling included.
        clock: Seconds, rising.
        sync: Waits until queued work is done.
        rng: Source of the order.
        on_round: Called after every round.

    Returns:
        Whether the target was reached.
    """
    rng = rng or random.Random(0)
    for step in steps.values():
        for _ in range(warmup):
            step()
    sync()
    for role in steps:
        samples[role] = []
    order, look, rounds = list(steps), min_rounds, 0
    start = clock()
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on one of the models
    try:
        while rounds < least_rounds or clock() - start < budget:
            rng.shuffle(order)
            seconds = {role: timed(steps[role], clock, sync) for role in order}
            for role in steps:
                samples[role].append(seconds[role])
            rounds += 1
            on_round(samples)
            if target is not None and rounds >= look:
                look = math.ceil(rounds * 1.1)
                if settled(samples, target, min_rounds):
                    return True
    finally:
        if collecting:
            gc.enable()
        whole = min(map(len, samples.values()))
        for seconds_of in samples.values():
            del seconds_of[whole:]  # an interrupt can fall between two of the appends
    return False


def interleave_blocks(
    build: Callable[[], Mapping[str, Step]],
    samples: Samples,
    blocks: list[int],
    *,
    budget: float,
    target: float = TARGET,
    on_round: Callable[[Samples], None] = lambda samples: None,
    **options: Any,
) -> bool:
    """Interleave in blocks, with newly built steps in each, until the ratio settles over the blocks
    or the budget ends.

    Where a model's memory happens to lie moves its time by some percent for as long as it lives: on
    one build the rounds agree with each other on a ratio that the next build does not repeat.

    Args:
        build: Makes the steps by role, 'baseline' and 'subject' among them.
        samples: Filled with the seconds of every finished round, by role, also when the call ends
            by an exception.
        blocks: Filled with the rounds of every block.
        budget: Seconds of rounds, builds and warm-ups apart.
        target: As in `interleave`; looked at after every block from the sixth (`BLOCKS`).
        on_round: Called after every round with the block's own samples.
        options: For `interleave`.

    Returns:
        Whether the target was reached.
    """
    spent = 0.0
    while spent < budget:
        part: Samples = {}
        try:
            interleave(
                build(), part, budget=min(BLOCK_SECONDS, budget / BLOCKS), target=None,
                least_rounds=2, warmup=REBUILT if blocks else WARMUP, on_round=on_round, **options,
            )  # fmt: skip
        finally:
            if part.get('baseline'):
                for role, seconds in part.items():
                    samples.setdefault(role, []).extend(seconds)
                blocks.append(len(part['baseline']))
        spent += sum(map(sum, part.values()))
        if len(blocks) >= BLOCKS and settled(samples, target, blocks=blocks):
            return True
    return False
