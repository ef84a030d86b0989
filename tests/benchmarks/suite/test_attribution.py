"""Where the time goes, on models small enough to know."""

from contextlib import nullcontext

import torch
from timm.layers import SEModule
from torch import nn

from benchmarks.suite import attribution
from benchmarks.suite.attribution import KINDS, convolutions, kind_of, self_times
from benchmarks.suite.steps import infer_step


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
