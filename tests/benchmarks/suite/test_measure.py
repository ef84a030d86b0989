"""Taking samples: which functions are called, in which order, and when it stops; rounds with a
known truth; peak memory; and where the time goes, on models small enough to know.
"""

import gc
import random

import numpy as np
import pytest
import torch
from timm.layers import SEModule
from torch import nn

from benchmarks.suite.cells import Pair, Spec
from benchmarks.suite.measure import (
    CAUSES,
    KINDS,
    REBUILT,
    TARGET,
    WARMUP,
    attribute,
    convolutions,
    counts,
    explain,
    interleave,
    interleave_blocks,
    kind_of,
    mark_attention,
    peak_memory,
    self_times,
    settled,
    synchronize,
)
from benchmarks.suite.models import Work, make_input, prepare
from tests.common import noisy
from timm_res2net.export.stats import ratio

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
        return interleave(self.steps(), **self.options, **options)


def test_warm_up_is_not_timed_and_a_sample_waits_for_the_queue_before_both_readings():
    bench = Bench(forward=2.0)
    assert bench.interleave(budget=0, least_rounds=1, warmup=2) == {'forward': [2.0]}
    assert bench.log == [
        *('forward', 'forward', 'sync'),  # warm-up
        'clock',  # the budget begins
        *('sync', 'clock', 'forward', 'sync', 'clock'),
        'clock',  # and ends
    ]
    assert synchronize('cpu')() is None
    assert synchronize('cuda') is torch.cuda.synchronize


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

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.interleave(budget=10, on_round=stop)
    assert gc.isenabled()


def test_blocks_build_again_and_add_up():
    bench, built = Bench(baseline=1.0, subject=1.25), []

    def build():
        built.append(len(bench.log))
        return bench.steps()

    samples, blocks = interleave_blocks(build, budget=1000, **bench.options)
    assert len(built) == 6  # settled at the first check
    # a block of 10 s: the rounds of 2.25 s that begin within it
    assert blocks == [5] * 6
    assert samples == {'baseline': [1.0] * 30, 'subject': [1.25] * 30}
    assert bench.log.count('subject') == 30 + WARMUP + 5 * REBUILT
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

        options = {'clock': lambda now=now: now[0], 'rng': random.Random(run)}
        samples, blocks = interleave_blocks(build, budget=200, **options)
        stopped += settled(samples, blocks)
        interval = ratio(samples['subject'], samples['baseline'], blocks)
        held += interval.low <= TRUE <= interval.high
    assert stopped > 0.5 * runs  # otherwise this would test nothing
    assert held / runs >= 0.88


def test_interleaving_cancels_a_drift_that_the_naive_order_does_not():
    """A machine that gets slower and slower, sampled in two orders."""
    rng = np.random.default_rng(3)
    rounds = 100
    slots = np.linspace(1, 1.5, 2 * rounds) * noisy(rng, 2 * rounds)  # how slow it is
    pairs, first = slots.reshape(rounds, 2), rng.integers(2, size=rounds)
    baseline = pairs[np.arange(rounds), first]
    found = ratio(TRUE * pairs[np.arange(rounds), 1 - first], baseline)
    assert found.low < TRUE < found.high
    assert found.half_width < TARGET
    one_after_the_other = ratio(TRUE * slots[rounds:], slots[:rounds])
    assert one_after_the_other.low > 1.15 * TRUE  # a narrow interval, but wrong


def test_peak_memory_of_a_step():
    model, x = nn.Linear(10, 10), torch.ones(1, 3, 16, 16)

    def step():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(500_000, dtype=torch.uint8)
        return second.shape, third.shape

    peaks = peak_memory(Work(model, step, lambda: [*model.parameters(), x]), 'cpu')
    resident = 4 * (110 + x.numel())
    beyond = 3_000_000
    assert peaks == {
        'resident_bytes': resident, 'beyond_bytes': beyond, 'peak_bytes': resident + beyond,
    }  # fmt: skip


@pytest.mark.parametrize('name', ['res2net50_26w_4s', 'res2net50d', 'res2next50'])
def test_inference_needs_less_memory_than_timms_block(name):
    """The input of the splits is released before conv3 runs; allocations are counted, not timed."""
    small = {'layers': (1, 1, 1, 1)}
    arguments = {
        'res2net50d': dict(stem_type='deep', stem_width=32, avg_down=True),
        'res2next50': dict(base_width=4, cardinality=8),
    }
    ours = {'attn_layer': '', **small, **arguments.get(name, {})}
    here = cell(batch=1, layout='contiguous')
    theirs, peaks = (
        peak_memory(prepare(Spec(*spec), 'eager', here, make_input(here)), 'cpu')
        for spec in ((name, tuple(small.items())), ('res2net50_se', tuple(ours.items())))
    )
    assert peaks['beyond_bytes'] < theirs['beyond_bytes']


class Small(nn.Module):
    """A network with an operator of every kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, padding=3)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.se = SEModule(8, rd_channels=2)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pointwise(self.stem(x))
        a, b = x.split(4, 1)
        x = torch.cat([self.convs[0](a), self.convs[1](b)], 1) + x
        x = self.pool(self.se(self.relu(self.bn(x))))
        return self.fc(x.mean((2, 3)))


def test_operators_and_convolutions_of_a_step():
    model, x = Small().eval(), torch.ones(1, 3, 16, 16)
    step = torch.inference_mode()(lambda: model(x))
    layers = convolutions(model, step)  # without those of attention
    assert {(layer[0][1], layer[1][2:]): count for layer, count in layers.items()} == {
        (3, (7, 7)): 1,
        (8, (1, 1)): 1,
        (4, (3, 3)): 2,
    }
    assert not [hook for m in model.modules() for hook in m._forward_pre_hooks]
    without = self_times(step, 'cpu')
    assert without['attention'] == 0
    assert all(without[kind] > 0 for kind in KINDS if kind != 'attention')
    mark_attention(model)
    assert self_times(step, 'cpu')['attention'] > 0


def test_kind_of_an_event():
    class Event:
        def __init__(self, name, parent=None, shapes=()):
            self.name, self.cpu_parent, self.input_shapes = name, parent, shapes

    def conv(size, name='aten::mkldnn_convolution'):
        return Event(name, None, [[1, 8, 9, 9], [8, 8, *size]])

    assert kind_of(conv((1, 1))) == 'convolution 1×1'
    assert kind_of(conv((3, 3), 'aten::_conv_depthwise2d')) == 'convolution 3×3'
    assert kind_of(conv((7, 7))) == 'convolution other'
    assert kind_of(Event('aten::empty', conv((3, 3)))) == 'convolution 3×3'
    assert kind_of(Event('aten::copy_', conv((3, 3)))) == 'concat/split/copy'
    assert kind_of(Event('aten::add_', conv((1, 1)))) == 'convolution 1×1'  # the bias
    cast = Event('aten::_to_copy', Event('aten::to', conv((3, 3))))
    assert kind_of(Event('aten::copy_', cast)) == 'other'  # by autocast
    assert kind_of(Event('aten::add_', Event('attention'))) == 'attention'
    assert kind_of(Event('aten::clamp_min_', Event('aten::relu_'))) == 'norm+activation'
    assert kind_of(Event('aten::sum', Event('aten::mean'))) == 'pool'
    assert kind_of(Event('aten::erfinv')) == 'other'


def test_counts():
    full, article = (counts(Spec(name), 224) for name in ('resnet50', 'res2net50_16w_4s_se'))
    # arXiv:2003.13678, table of ResNet-50: 25.6 M parameters, 4.1 GFLOPs, 11.1 M activations
    assert full['params'] == 25_557_032
    assert full['macs'] / 1e9 == pytest.approx(4.09, abs=5e-3)
    assert full['activations'] / 1e6 == pytest.approx(11.1, abs=0.05)
    assert article['macs'] / full['macs'] == pytest.approx(0.577, abs=5e-4)
    # README: the widths of the pairs article_equal_macs, the closest one, and article_aligned
    specs = {width: Spec('resnet50', (('base_width', width),)) for width in (40, 41, 42)}
    apart = [counts(spec, 224)['macs'] / article['macs'] - 1 for spec in specs.values()]
    assert apart[:2] == pytest.approx([-0.0235, 0.0036], abs=5e-5)
    assert apart[2] > apart[1]


def test_attribute():
    """Of two models that are one, in rounds as few as there can be."""
    tiny, here = Spec('test_res2net_se'), cell(kind='attribution')
    x = make_input(here)
    works = {role: prepare(tiny, 'eager', here, x) for role in ('baseline', 'subject')}
    result = attribute(Pair(tiny, tiny), works, here, 0, random.Random(0))
    macs = counts(tiny, here.size)['macs']
    for role in works:
        assert result['counts'][role]['macs'] == macs
        assert len(result['seconds'][role]) == 3
        assert {len(result['profile'][role][kind]) for kind in KINDS} == {3}
        alone = result['alone'][role]
        # without SE and the head; for two images
        assert 0.95 < sum(one['count'] * one['macs'] for one in alone) / (2 * macs) < 1
        assert all(len(one['seconds']) == 3 for one in alone)
    assert tuple(explain(result)) == CAUSES


def measured(**subject):
    """Known medians: 10 s for the baseline, of which convolutions take 8 s."""
    base = {'time': 10.0, 'alone': 8.0, 'macs': 100, 'inside': 8.0, 'add': 1.0, 'pool': 0.5}
    both = {'baseline': base, 'subject': {**base, **subject}}

    def profile(values):
        known = {'convolution 1×1': values['inside'], 'add': values['add'], 'pool': values['pool']}
        return {kind: [known.get(kind, 0.0)] * 3 for kind in KINDS}

    return {
        'seconds': {role: [v['time']] * 3 for role, v in both.items()},
        'alone': {
            role: [{'count': 2, 'macs': v['macs'], 'seconds': [v['alone'] / 2] * 3}]
            for role, v in both.items()
        },
        'profile': {role: profile(v) for role, v in both.items()},
    }


def test_explain():
    causes = explain(measured(time=13.0, alone=9.6, macs=110, inside=10.0, add=1.7, pool=0.6))
    expected = {
        'extra': 0.3, 'more MACs': 0.08,  # 8 s * 10 % of 10 s
        'less efficient convolutions': 0.08,  # 9.6 - 8.8
        'the splitting itself': 0.12,  # in place, add and pool
        'convolutions in place': 0.04,  # (10 - 9.6) - (8 - 8)
        'add': 0.07, 'pool': 0.01, 'unexplained': 0.02,
    }  # fmt: skip
    assert causes == pytest.approx(dict.fromkeys(CAUSES, 0.0) | expected)
    assert tuple(causes) == CAUSES
    assert set(explain(measured()).values()) == {0.0}
