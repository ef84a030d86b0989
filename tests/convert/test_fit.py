"""Comparing a state dict with a model."""

import torch

from timm_res2net.convert.fit import Fit, fit, shapes, with_counters, without_counters

OWN = {'w': (2, 3), 'b': (2,), 'bn.num_batches_tracked': ()}


def test_what_fits():
    assert fit(OWN, {'w': (2, 3), 'b': (2,)}) == Fit()  # a counter may be missing
    assert fit(OWN, {'w': torch.Size([2, 3]), 'b': [2], 'bn.num_batches_tracked': ()}) == Fit()
    assert Fit().describe() == ''


def test_every_difference_is_named():
    found = fit(OWN, {'w': (3, 2), 'c': (1,)})
    assert found == Fit(missing=('b',), surplus=('c',), wrong={'w': ((3, 2), (2, 3))})
    text = found.describe()
    assert 'left without a value, 1: b' in text
    assert 'no place in the model, 1: c' in text
    assert 'shapes do not fit, 1: w (3, 2) for (2, 3)' in text
    assert not text.endswith('.')


def test_a_surplus_counter_is_a_difference():
    assert fit({}, {'bn.num_batches_tracked': ()}).surplus == ('bn.num_batches_tracked',)


def test_counters():
    own = torch.nn.BatchNorm1d(2, device='meta').state_dict()
    tensors = {key: torch.ones(2) for key in own if key != 'num_batches_tracked'}
    complete = with_counters(tensors, own)
    assert complete.keys() == own.keys()
    assert shapes(complete) == shapes(own)
    assert complete['num_batches_tracked'].equal(torch.tensor(0))
    assert without_counters(complete).keys() == tensors.keys()
    counted = {**tensors, 'num_batches_tracked': torch.tensor(3)}
    assert with_counters(counted, own)['num_batches_tracked'] == 3
