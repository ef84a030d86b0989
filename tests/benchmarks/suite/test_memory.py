"""Peak memory of known allocations."""

from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn

from benchmarks.suite import memory
from benchmarks.suite.steps import Work, infer_step

X = torch.ones(1, 3, 16, 16)


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
    """The input of the splits is released before conv3 runs; allocations are counted, not timed."""
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
