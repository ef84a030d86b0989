"""Taking samples: which functions are called, in which order, and when it stops; rounds with a
known truth; peak memory; and where the time goes, on models small enough to know.
"""

import gc
import random
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.suite import measure
from benchmarks.suite.cells import Pair, Spec
from benchmarks.suite.measure import (
    CAUSES,
    KINDS,
    counts,
    explain,
    interleave_blocks,
    ratio_of_blocks,
    settled,
)
from benchmarks.suite.models import Work, make_input, prepare
from tests.common import noisy
from timm_res2net.export.measure import ratio

from .common import cell

TINY, TRUE = Spec('test_res2net_se'), 1.21


class Bench:
    """A clock, a synchronization and steps that log their calls."""

    def __init__(self, **seconds):
        self.log, self.now, self.seconds = [], 0.0, seconds
        self.options = {'clock': partial(self.call, 'clock'), 'sync': partial(self.call, 'sync')}

    def call(self, name):
        self.log.append(name)
        self.now += self.seconds.get(name, 0)
        return self.now

    def steps(self):
        return {role: partial(self.call, role) for role in self.seconds}

    def interleave(self, **options):
        return measure.interleave(self.steps(), **self.options, **options)


def test_warm_up_is_not_timed_and_a_sample_waits_for_the_queue_before_both_readings():
    bench = Bench(forward=2.0)
    assert bench.interleave(budget=0, least_rounds=1, warmup=2) == {'forward': [2.0]}
    assert bench.log == [
        *('forward', 'forward', 'sync'),  # warm-up
        'clock',  # the budget begins
        *('sync', 'clock', 'forward', 'sync', 'clock'),
        'clock',  # and ends
    ]
    assert measure.synchronize('cuda') is torch.cuda.synchronize


def test_every_round_has_every_step_once_in_random_order():
    bench = Bench(baseline=1.0, subject=2.0, control=1.0)
    samples = bench.interleave(budget=80, warmup=0, rng=random.Random(1))
    roles = [entry for entry in bench.log if entry in bench.seconds]
    rounds = [tuple(roles[i : i + 3]) for i in range(0, len(roles), 3)]
    assert len(rounds) == 20
    assert all(sorted(one) == ['baseline', 'control', 'subject'] for one in rounds)
    assert len(set(rounds)) == 6  # all orders occur
    assert samples == {'baseline': [1.0] * 20, 'subject': [2.0] * 20, 'control': [1.0] * 20}


def test_it_ends_at_the_budget_and_keeps_the_garbage_collector():
    bench, collecting = Bench(baseline=1.0, subject=1.2), []
    # the round that began within the budget is finished
    watch = {'on_round': lambda: collecting.append(gc.isenabled())}
    assert len(bench.interleave(budget=10, **watch)['baseline']) == 5
    assert collecting == [False] * 5
    assert gc.isenabled()
    assert len(bench.interleave(budget=0, least_rounds=4)['baseline']) == 4
    with pytest.raises(ZeroDivisionError):
        bench.interleave(budget=10, on_round=lambda: 1 / 0)
    assert gc.isenabled()


def test_blocks_build_again_and_add_up():
    bench = Bench(baseline=1.0, subject=1.25)
    build = Mock(side_effect=bench.steps)
    samples, blocks = interleave_blocks(build, budget=1000, **bench.options)
    assert build.call_count == 6  # settled at the first check
    # a block of 10 s: the rounds of 2.25 s that begin within it
    assert blocks == [5] * 6
    assert samples == {'baseline': [1.0] * 30, 'subject': [1.25] * 30}
    # blocks of 1 s, of at least two rounds
    assert interleave_blocks(build, budget=6, **bench.options)[1] == [2, 2]


def test_settled():
    flat, rough = [1.0] * 20, [1.0, 1.2] * 10
    assert settled({'baseline': flat, 'subject': flat})
    assert not settled({'baseline': flat, 'subject': rough})
    for control, answer in ((1.03, False), (0.97, False), (1.01, True), (np.nan, False)):
        samples = {'baseline': flat, 'subject': flat, 'control': [control] * 20}
        assert settled(samples) == answer
    # ten rounds agree within each of two builds, and the builds do not
    apart = [1.0] * 10 + [1.1] * 10
    assert not settled({'baseline': flat, 'subject': apart}, [10, 10])


@pytest.mark.slow
def test_coverage_with_the_stopping_rule():
    """Stopping at the first interval that is narrow enough costs little coverage."""
    rng = np.random.default_rng(2)
    now, runs, held, stopped = [0.0], 100, 0, 0

    def build():
        """A build shifts each model's time by its own percent."""

        def step(scale):
            now[0] += scale * float(noisy(rng, 1)[0])

        truths = {'baseline': 1.0, 'subject': TRUE, 'control': 1.0}
        scales = {role: t * (1 + 0.01 * rng.standard_normal()) for role, t in truths.items()}
        return {role: partial(step, scale) for role, scale in scales.items()}

    for run in range(runs):
        options = {'clock': lambda: now[0], 'rng': random.Random(run)}
        samples, blocks = interleave_blocks(build, budget=200, **options)
        stopped += settled(samples, blocks)
        interval = ratio_of_blocks(samples['subject'], samples['baseline'], blocks)
        held += interval.low <= TRUE <= interval.high
    assert stopped > 0.5 * runs  # otherwise this would test nothing
    assert held / runs >= 0.88


# --- ratios over several builds, each with its own ratio ------------------------------------------


@pytest.mark.parametrize(('blocks', 'rounds'), [(6, 8), (12, 6)])
def test_coverage_when_every_build_has_its_own_ratio(blocks, rounds):
    """Builds that differ by 2 %: an interval over the rounds of one build is too narrow."""
    rng = np.random.default_rng(5)
    runs, held = 200, 0
    for _ in range(runs):
        builds = np.repeat(np.exp(rng.normal(0, 0.02, blocks)), rounds)
        times = TRUE * builds * noisy(rng, blocks * rounds, outliers=0)
        found = ratio_of_blocks(times, np.ones(len(times)), [rounds] * blocks, draws=400)
        held += found.low <= TRUE <= found.high
    assert 0.88 <= held / runs <= 0.99  # few blocks cannot promise more


def test_blocks_of_several_lengths():
    """The median is that of all rounds, and one block is the plain ratio."""
    rng = np.random.default_rng(6)
    times, base = noisy(rng, 14), noisy(rng, 14)
    assert ratio_of_blocks(times, base, [14]) == ratio(times, base)
    found = ratio_of_blocks(times, base, [3, 5, 2, 4])
    assert found.low < found.median == ratio(times, base).median < found.high


# --- memory, and where the time goes --------------------------------------------------------------


def test_peak_memory_of_a_step():
    model, x = nn.Linear(10, 10), torch.ones(1, 3, 16, 16)

    def step():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(500_000, dtype=torch.uint8)
        return second.shape, third.shape

    peaks = measure.peak_memory(Work(model, step, lambda: [*model.parameters(), x]), 'cpu')
    resident = 4 * (110 + x.numel())
    beyond = 3_000_000
    assert peaks == {
        'resident_bytes': resident, 'beyond_bytes': beyond, 'peak_bytes': resident + beyond,
    }  # fmt: skip


def test_inference_needs_less_memory_than_timms_block():
    """The input of the splits is released before conv3 runs; allocations are counted, not timed."""
    small, here = ('layers', (1, 1, 1, 1)), cell(batch=1, layout='contiguous')
    specs = Spec('res2net50_26w_4s', (small,)), Spec('res2net50_se', (small, ('attn_layer', '')))
    works = (prepare(spec, 'eager', here, make_input(here)) for spec in specs)
    theirs, ours = (measure.peak_memory(work, 'cpu')['beyond_bytes'] for work in works)
    assert ours < theirs


def test_operators_and_convolutions_of_a_step():
    model, _, _ = work = prepare(TINY, 'eager', cell(), make_input(cell()))
    layers = measure.convolutions(model, work.step)
    assert sum(layers.values()) == sum(
        isinstance(m, nn.Conv2d) and '.se.' not in name for name, m in model.named_modules()
    )
    stem = ((2, 3, 64, 64), (16, 3, 7, 7), False, (2, 2), (3, 3), (1, 1), 1)
    assert layers[stem] == 1
    measure.mark_attention(model)
    assert all(seconds > 0 for seconds in measure.self_times(work.step, 'cpu').values())


@pytest.mark.parametrize(
    ('names', 'kind'),  # of an event and of those that contain it
    [
        ('empty _conv_depthwise2d', 'convolution 1×1'),
        ('add_ conv2d', 'convolution 1×1'),  # the bias
        ('copy_ conv2d', 'concat/split/copy'),
        ('copy_ _to_copy to conv2d', 'other'),  # by autocast
        ('sum mean', 'pool'),
    ],
)
def test_kind_of_an_event(names, kind):
    event, shapes = None, [[1, 8, 9, 9], [8, 8, 1, 1]]
    for name in reversed(names.split()):
        event = SimpleNamespace(name=f'aten::{name}', cpu_parent=event, input_shapes=shapes)
    assert measure.kind_of(event) == kind


def test_counts():
    full, article = (counts(Spec(name), 224) for name in ('resnet50', 'res2net50_16w_4s_se'))
    # arXiv:2003.13678, table of ResNet-50: 25.6 M parameters, 4.1 GFLOPs, 11.1 M activations
    assert full['params'] == 25_557_032
    assert full['macs'] / 1e9 == pytest.approx(4.09, abs=5e-3)
    assert full['activations'] / 1e6 == pytest.approx(11.1, abs=0.05)
    # README: 41 is the width of resnet50 with the closest MACs
    specs = (Spec('resnet50', (('base_width', width),)) for width in (40, 41, 42))
    apart = [abs(counts(spec, 224)['macs'] / article['macs'] - 1) for spec in specs]
    assert apart[1] == min(apart) < 0.005


def test_attribute():
    """Of two models that are one, in rounds as few as there can be."""
    here = cell(kind='attribution')
    x = make_input(here)
    works = {role: prepare(TINY, 'eager', here, x) for role in ('baseline', 'subject')}
    result = measure.attribute(Pair(TINY, TINY), works, here, 0, random.Random(0))
    macs = counts(TINY, here.size)['macs']
    for role in works:
        assert result['counts'][role]['macs'] == macs
        assert len(result['seconds'][role]) == 3
        assert {len(result['profile'][role][kind]) for kind in KINDS} == {3}
        alone = result['alone'][role]
        # without SE and the head; for two images
        assert 0.95 < sum(one['count'] * one['macs'] for one in alone) / (2 * macs) < 1
        assert all(len(one['seconds']) == 3 for one in alone)


def test_explain():
    def alone(seconds, macs):
        return [{'count': 2, 'macs': macs, 'seconds': [seconds / 2]}]

    def profile(convolution, add, pool):
        known = {'convolution 1×1': [convolution], 'add': [add], 'pool': [pool]}
        return {kind: [0.0] for kind in KINDS} | known

    causes = explain(
        {
            'seconds': {'baseline': [10.0], 'subject': [13.0]},
            'alone': {'baseline': alone(8.0, 100), 'subject': alone(9.6, 110)},
            'profile': {'baseline': profile(8.0, 1.0, 0.5), 'subject': profile(10.0, 1.7, 0.6)},
        }
    )
    expected = {
        'extra': 0.3, 'more MACs': 0.08,  # 8 s * 10 % of 10 s
        'less efficient convolutions': 0.08,  # 9.6 - 8.8
        'the splitting itself': 0.12,  # in place, add and pool
        'convolutions in place': 0.04,  # (10 - 9.6) - (8 - 8)
        'add': 0.07, 'pool': 0.01, 'unexplained': 0.02,
    }  # fmt: skip
    assert causes == pytest.approx(dict.fromkeys(CAUSES, 0.0) | expected)
    assert tuple(causes) == CAUSES
