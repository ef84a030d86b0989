"""Where the time goes, on models small enough to know, and the extra time by cause."""

import random

import pytest
import torch
from timm.layers import SEModule
from torch import nn

from benchmarks.suite import attribution
from benchmarks.suite.attribution import (
    CAUSES,
    KINDS,
    attribute,
    convolutions,
    counts,
    explain,
    kind_of,
    self_times,
)
from benchmarks.suite.cells import Pair, Spec
from benchmarks.suite.models import make_input, prepare

from .common import cell


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


X = torch.ones(1, 3, 16, 16)


def step(model):
    model.eval()
    return torch.inference_mode()(lambda: model(X))


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
    assert kind_of(Event('aten::add_', conv((1, 1)))) == 'convolution 1×1'  # the bias
    cast = Event('aten::_to_copy', Event('aten::to', conv((3, 3))))
    assert kind_of(Event('aten::copy_', cast)) == 'other'  # by autocast
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


def test_counts():
    full, article = (counts(Spec(name), 224) for name in ('resnet50', 'res2net50_16w_4s_se'))
    # arXiv:2003.13678, table of ResNet-50: 25.6 M parameters, 4.1 GFLOPs, 11.1 M activations
    assert full['params'] == 25_557_032
    assert full['macs'] / 1e9 == pytest.approx(4.09, abs=5e-3)
    assert full['activations'] / 1e6 == pytest.approx(11.1, abs=0.05)
    assert article['macs'] / full['macs'] == pytest.approx(0.577, abs=5e-4)
    # the base_width of the pair article_equal_macs; MACs grow with the width
    widths = {w: counts(Spec('resnet50', {'base_width': w}), 224)['macs'] for w in (40, 41, 42)}
    apart = {width: macs / article['macs'] - 1 for width, macs in widths.items()}
    assert apart[40] == pytest.approx(-0.0235, abs=5e-5)
    assert apart[41] == pytest.approx(0.0036, abs=5e-5)
    assert apart[42] > apart[41]


def test_attribute():
    """Of two models that are one, in rounds as few as there can be."""
    tiny, here = Spec('test_res2net_se'), cell(kind='attribution')
    x = make_input(here)
    works = {role: prepare(tiny, 'eager', here, x) for role in ('baseline', 'subject')}
    found = attribute(Pair(tiny, tiny), works, here, 0, random.Random(0))
    macs = counts(tiny, here.size)['macs']
    for role in works:
        assert found['counts'][role]['macs'] == macs
        assert len(found['seconds'][role]) == 3
        assert {len(found['profile'][role][kind]) for kind in KINDS} == {3}
        alone = found['alone'][role]
        # without SE and the head; for two images
        assert 0.95 < sum(one['count'] * one['macs'] for one in alone) / (2 * macs) < 1
        assert all(len(one['seconds']) == 3 for one in alone)
    assert tuple(explain(found)) == CAUSES


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
    found = explain(measured(time=13.0, alone=9.6, macs=110, inside=10.0, add=1.7, pool=0.6))
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
    assert set(explain(measured()).values()) == {0.0}
    assert tuple(found) == CAUSES
