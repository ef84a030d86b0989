"""Taking samples: which functions are called, in which order, and when it stops; peak memory; and
rounds with a known truth.
"""

import gc
import random

import numpy as np
import pytest
import timm
import torch
from torch import nn

from benchmarks.suite import measure
from benchmarks.suite.cells import Spec
from benchmarks.suite.measure import (
    REBUILT,
    TARGET,
    WARMUP,
    interleave,
    interleave_blocks,
    settled,
    synchronize,
    timed,
)
from benchmarks.suite.models import Work, make_input, prepare
from benchmarks.suite.stats import overlap, rounded, spread, verdict
from tests.common import noisy
from timm_res2net.export.measure import Ratio, ratio

from .common import cell

TRUE = 1.21


class Bench:
    """A clock, a synchronization and steps that log their calls."""

    def __init__(self, **seconds):
        self.log, self.now, self.seconds = [], 0.0, seconds
        self.options = {'clock': self.clock, 'sync': lambda: self.log.append('sync')}

    def clock(self):
        self.log.append('clock')
        return self.now

    def steps(self):
        def step(role):
            self.log.append(role)
            self.now += self.seconds[role]

        return {role: (lambda role=role: step(role)) for role in self.seconds}

    def interleave(self, **options):
        samples = {}
        interleave(self.steps(), samples, **self.options, **options)
        return samples


def test_a_sample_waits_for_the_queue_before_both_readings():
    bench = Bench(forward=2.0)
    assert timed(bench.steps()['forward'], **bench.options) == 2.0
    assert bench.log == ['sync', 'clock', 'forward', 'sync', 'clock']
    assert synchronize('cpu')() is None
    assert synchronize('cuda') is torch.cuda.synchronize


def test_warm_up_comes_first_and_is_not_timed():
    bench = Bench(forward=2.0)
    assert bench.interleave(budget=0, least_rounds=1, warmup=2) == {'forward': [2.0]}
    assert bench.log == [
        *('forward', 'forward', 'sync'),  # warm-up
        'clock',  # the budget begins
        *('sync', 'clock', 'forward', 'sync', 'clock'),
        'clock',  # and ends
    ]


def test_every_round_has_every_step_once_in_random_order():
    bench = Bench(baseline=1.0, subject=2.0, control=1.0)
    samples = bench.interleave(budget=80, warmup=0, rng=random.Random(1))
    roles = [entry for entry in bench.log if entry in bench.seconds]
    rounds = [tuple(roles[i : i + 3]) for i in range(0, len(roles), 3)]
    assert len(rounds) == 20
    assert all(sorted(one) == ['baseline', 'control', 'subject'] for one in rounds)
    assert len(set(rounds)) == 6  # all orders occur
    assert samples == {'baseline': [1.0] * 20, 'subject': [2.0] * 20, 'control': [1.0] * 20}


def test_it_ends_at_the_budget():
    bench = Bench(baseline=1.0, subject=1.2)
    # the round that began within the budget is finished
    assert len(bench.interleave(budget=10)['baseline']) == 5
    assert len(bench.interleave(budget=0, least_rounds=4)['baseline']) == 4


def test_blocks_build_again_and_add_up():
    bench, samples, blocks, built = Bench(baseline=1.0, subject=1.25), {}, [], [0]

    def build():
        built[0] += 1
        return bench.steps()

    def blocks_of(budget):
        return interleave_blocks(build, samples, blocks, budget=budget, **bench.options)

    assert blocks_of(1000)
    assert built == [6]  # settled at the first check
    # a block of 10 s: the rounds of 2.25 s that begin within it
    assert blocks == [5] * 6
    assert samples == {'baseline': [1.0] * 30, 'subject': [1.25] * 30}
    assert bench.log.count('subject') == 30 + WARMUP + 5 * REBUILT

    samples, blocks = {}, []
    assert not blocks_of(6)  # of 1 s each, at least two rounds
    assert blocks == [2, 2]


def test_an_interrupt_keeps_whole_rounds_of_all_blocks_and_the_garbage_collector():
    bench, samples, blocks = Bench(baseline=1.0, subject=1.25), {}, []

    def stop(part):
        assert not gc.isenabled()
        if len(blocks) == 1 and len(part['baseline']) == 3:
            del bench.seconds['subject']  # the next round fails half way

    steps = bench.steps
    with pytest.raises(KeyError):
        interleave_blocks(steps, samples, blocks, budget=1000, on_round=stop, clock=bench.clock)
    assert blocks == [5, 3]
    assert len(samples['baseline']) == len(samples['subject']) == 8
    assert gc.isenabled()


def test_settled():
    flat, rough = [1.0] * 20, [1.0, 1.2] * 10
    assert settled({'baseline': flat, 'subject': flat})
    assert not settled({'baseline': flat, 'subject': rough})
    assert not settled({'baseline': flat, 'subject': flat, 'control': [1.03] * 20})
    assert settled({'baseline': flat, 'subject': flat, 'control': [1.01] * 20})
    # ten rounds agree within each of two builds, and the builds do not
    apart = [1.0] * 10 + [1.1] * 10
    assert not settled({'baseline': flat, 'subject': apart}, [10, 10])


def test_coverage_with_the_stopping_rule():
    """Stopping at the first interval that is narrow enough costs little coverage."""
    rng = np.random.default_rng(2)
    runs, held, stopped = 100, 0, 0
    for run in range(runs):
        now, scale = [0.0], {}

        def step(role, now=now, scale=scale):
            now[0] += scale[role] * float(noisy(rng, 1)[0])

        def build(scale=scale, step=step):
            """A build shifts each model's time by its own percent."""
            for role, truth in (('baseline', 1.0), ('subject', TRUE), ('control', 1.0)):
                scale[role] = truth * (1 + 0.01 * rng.standard_normal())
            return {role: (lambda role=role: step(role)) for role in scale}

        samples, blocks = {}, []
        stopped += interleave_blocks(
            build, samples, blocks, budget=200, clock=lambda now=now: now[0],
            rng=random.Random(run),
        )  # fmt: skip
        found = ratio(samples['subject'], samples['baseline'], blocks)
        held += found.low <= TRUE <= found.high
    assert stopped > 0.5 * runs  # otherwise this would test nothing
    assert held / runs >= 0.88


def test_interleaving_cancels_a_drift_that_the_naive_order_does_not():
    """A machine that gets slower and slower, sampled in two orders."""
    rng = np.random.default_rng(3)
    rounds = 100
    # how slow it is at each sample
    slots = np.linspace(1, 1.5, 2 * rounds) * noisy(rng, 2 * rounds)

    pairs = slots.reshape(rounds, 2)
    first = rng.integers(2, size=rounds)
    baseline = pairs[np.arange(rounds), first]
    subject = TRUE * pairs[np.arange(rounds), 1 - first]
    found = ratio(subject, baseline)
    assert found.low < TRUE < found.high
    assert found.half_width < TARGET

    one_after_the_other = ratio(TRUE * slots[rounds:], slots[:rounds])
    assert one_after_the_other.low > 1.15 * TRUE  # a narrow interval, but wrong


def test_small_functions():
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert overlap(Ratio(1, 0.9, 1.1), Ratio(1.2, 1.1, 1.3))
    assert not overlap(Ratio(1, 0.9, 1.1), Ratio(1.2, 1.11, 1.3))
    assert not overlap(Ratio(1.2, 1.11, 1.3), Ratio(1, 0.9, 1.1))
    assert [rounded(v) for v in (0.0, 123456.7, 0.000123456)] == [0.0, 123460.0, 0.00012346]


@pytest.mark.parametrize(
    ('time', 'throughput', 'text'),
    [
        (Ratio(1.21, 1.18, 1.24), 0.83, "consistent with 'about 20 % slower'"),
        (
            Ratio(1.16, 1.155, 1.17), 0.86,
            "consistent with 'about 20 % slower' as more time, less than it as less throughput",
        ),
        (
            Ratio(1.30, 1.28, 1.32), 0.77,
            "more than 'about 20 % slower' as more time, consistent with it as less throughput",
        ),
        (
            Ratio(1.17, 1.16, 1.19), 0.85,
            "consistent with 'about 20 % slower' as more time, at the edge of it as less "
            'throughput',
        ),
        (Ratio(1.1, 1.05, 1.12), 0.91, "slower, by less than 'about 20 % slower'"),
        (Ratio(1.5, 1.4, 1.6), 0.67, "slower, by more than 'about 20 % slower'"),
        (Ratio(1.2, 1.1, 1.4), 0.83, "at the edge of 'about 20 % slower'"),
        (Ratio(0.8, 0.75, 0.85), 1.25, "faster, not 'about 20 % slower'"),
        (Ratio(1.0, 0.98, 1.02), 1.00, "no difference shown, not 'about 20 % slower'"),
        (
            Ratio(1.1, 0.9, 1.3), 0.91,
            "undecided on 'about 20 % slower', the interval is too wide",
        ),
    ],
)  # fmt: skip
def test_verdict(time, throughput, text):
    assert verdict(time) == f'time × {time}, throughput × {throughput:.2f}: {text}'


def test_peak_of():
    assert measure.peak_of([]) == 0
    assert measure.peak_of([-5, 3]) == 0
    assert measure.peak_of([10, 20, -10, 5, -25]) == 30


def test_peak_memory_of_a_step():
    model, x = nn.Linear(10, 10), torch.ones(1, 3, 16, 16)

    def step():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(500_000, dtype=torch.uint8)
        return second.shape, third.shape

    found = measure.peak_memory(Work(model, step, lambda: [*model.parameters(), x]), 'cpu')
    resident = 4 * (110 + x.numel())
    assert found == {
        'resident_bytes': resident, 'beyond_bytes': 3_000_000, 'peak_bytes': resident + 3_000_000,
    }  # fmt: skip


@pytest.mark.parametrize('name', ['res2net50_26w_4s', 'res2net50d', 'res2next50'])
def test_inference_needs_less_memory_than_timms_block(name):
    """The input of the splits is released before conv3 runs; allocations are counted, not timed."""
    arguments = {
        'res2net50d': dict(stem_type='deep', stem_width=32, avg_down=True),
        'res2next50': dict(base_width=4, cardinality=8),
    }
    assert timm.is_model(name)
    ours = Spec('res2net50_se', {'attn_layer': '', **arguments.get(name, {})})
    here = cell(batch=1, layout='contiguous')
    theirs, found = (
        measure.peak_memory(prepare(spec, 'eager', here, make_input(here)), 'cpu')
        for spec in (Spec(name), ours)
    )
    assert found['beyond_bytes'] < theirs['beyond_bytes']
