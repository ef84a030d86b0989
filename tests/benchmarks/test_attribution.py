"""Where time and memory go, on models small enough to know."""

from contextlib import nullcontext

import pytest
import timm
import torch
from timm.layers import SEModule
from torch import nn

from benchmarks import attribution, memory
from benchmarks.attribution import KINDS, convolutions, kind_of, self_times
from benchmarks.report import explain
from benchmarks.subjects import Work, infer_step


class Small(nn.Module):
    """One of every kind."""

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


X = torch.ones(1, 3, 16, 16)


def step(model):
    return infer_step(model.eval(), X, nullcontext())


def test_every_kind_of_operator_has_its_time():
    model = Small()
    run = step(model)
    run()
    without = self_times(run, 'cpu')
    assert without['attention'] == 0
    assert all(without[kind] > 0 for kind in KINDS if kind != 'attention')
    attribution._mark_attention(model)
    assert self_times(run, 'cpu')['attention'] > 0


def test_kind_of_an_event():
    class Event:
        def __init__(self, name, parent=None, shapes=()):
            self.name, self.cpu_parent, self.input_shapes = name, parent, shapes

    def conv(size):
        return Event('aten::mkldnn_convolution', None, [[1, 8, 9, 9], [8, 8, *size]])

    assert kind_of(conv((1, 1))) == 'convolution 1×1'
    assert kind_of(conv((3, 3))) == 'convolution 3×3'
    assert kind_of(conv((7, 7))) == 'convolution other'
    assert kind_of(Event('aten::empty', conv((3, 3)))) == 'convolution 3×3'
    assert kind_of(Event('aten::copy_', conv((3, 3)))) == 'concat/split/copy'
    assert kind_of(Event('aten::add_', conv((1, 1)))) == 'convolution 1×1'  # its bias
    cast = Event('aten::_to_copy', Event('aten::to', conv((3, 3))))
    assert kind_of(Event('aten::copy_', cast)) == 'other'  # autocast's
    assert kind_of(Event('aten::add_', Event('attention'))) == 'attention'
    assert kind_of(Event('aten::clamp_min_', Event('aten::relu_'))) == 'norm+activation'
    assert kind_of(Event('aten::sum', Event('aten::mean'))) == 'pool'
    assert kind_of(Event('aten::erfinv')) == 'other'


def test_convolutions_of_a_step_without_those_of_attention():
    model = Small()
    found = convolutions(model, step(model))
    assert {(layer[0][1], layer[1][2:]): count for layer, count in found.items()} == {
        (3, (7, 7)): 1,
        (8, (1, 1)): 1,
        (4, (3, 3)): 2,
    }
    assert not [hook for m in model.modules() for hook in m._forward_pre_hooks]


def record(**subject):
    """A record whose every median is known: baseline 10 s, of which 8 s are convolutions."""
    base = {'time': 10.0, 'alone': 8.0, 'macs': 100, 'inside': 8.0, 'add': 1.0, 'pool': 0.5}
    both = {'baseline': base, 'subject': {**base, **subject}}

    def profile(values):
        known = {'convolution 1×1': values['inside'], 'add': values['add'], 'pool': values['pool']}
        return {kind: [known.get(kind, 0.0)] * 3 for kind in KINDS}

    return {
        'cell': {'kind': 'attribution'},
        'attribution': {
            'seconds': {role: [v['time']] * 3 for role, v in both.items()},
            'alone': {
                role: [{'count': 2, 'macs': v['macs'], 'seconds': [v['alone'] / 2] * 3}]
                for role, v in both.items()
            },
            'profile': {role: profile(v) for role, v in both.items()},
        },
    }


def test_convolutions_of_aligned_widths_have_their_padding():
    model = timm.create_model('test_res2net_se', width_multiple=8).eval()
    found = convolutions(model, lambda: model(torch.zeros(1, 3, 64, 64)))
    assert ((1, 8, 16, 16), (8, 8, 3, 3), False, (1, 1), (1, 1), (1, 1), 1) in found
    assert not [shape for _, shape, *_ in found if 6 in shape]


def test_explain():
    found = explain(record(time=13.0, alone=9.6, macs=110, inside=10.0, add=1.7, pool=0.6))
    assert found['extra'] == pytest.approx(0.3)
    assert found['more MACs'] == pytest.approx(0.08)  # 8 s * 10 % of 10 s
    assert found['less efficient convolutions'] == pytest.approx(0.08)  # 9.6 - 8.8
    assert found['convolutions in place'] == pytest.approx(0.04)  # (10 - 9.6) - (8 - 8)
    assert found['add'] == pytest.approx(0.07)
    assert found['pool'] == pytest.approx(0.01)
    assert found['unexplained'] == pytest.approx(0.02)
    assert found['the splitting itself'] == pytest.approx(0.12)  # in place, add and pool
    whole = ('extra', 'the splitting itself')
    assert sum(v for k, v in found.items() if k not in whole) == pytest.approx(found['extra'])
    assert set(explain(record()).values()) == {0.0}


def test_peak_of():
    assert memory.peak_of([]) == 0
    assert memory.peak_of([-5, 3]) == 0
    assert memory.peak_of([10, 20, -10, 5, -25]) == 30


def test_peak_memory_of_a_step():
    model = nn.Linear(10, 10)

    def step():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(500_000, dtype=torch.uint8)
        return second.shape, third.shape

    found = memory.measure(Work(model, step, lambda: [*model.parameters(), X]), 'cpu')
    assert found['resident_bytes'] == 4 * (110 + X.numel())
    assert found['beyond_bytes'] == 3_000_000
    assert found['peak_bytes'] == found['resident_bytes'] + found['beyond_bytes']


@pytest.mark.parametrize('name', ['res2net50_26w_4s', 'res2net50d', 'res2next50'])
def test_inference_needs_less_memory_than_timms_block(name):
    """What the cascade read is released before conv3 runs; allocations are counted, not timed."""
    x = torch.zeros(1, 3, 64, 64)
    theirs = timm.create_model(name).eval()
    arguments = {
        'res2net50d': dict(stem_type='deep', stem_width=32, avg_down=True),
        'res2next50': dict(base_width=4, cardinality=8),
    }
    ours = timm.create_model('res2net50_se', attn_layer='', **arguments.get(name, {})).eval()
    found = [
        memory.measure(Work(model, infer_step(model, x, nullcontext()), list), 'cpu')
        for model in (theirs, ours)
    ]
    assert found[1]['beyond_bytes'] < found[0]['beyond_bytes']
