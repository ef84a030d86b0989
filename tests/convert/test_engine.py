"""The engine of key rules."""

import pytest
import torch

from timm_res2net.convert.engine import Rule, apply_rules, undo_rules
from timm_res2net.convert.sources import SOURCES

ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ('rules', 'theirs', 'ours'),
    [
        ([Rule('bb_{s}_{b}.b_{i+1}.w', 'layer{s+1}.{b}.c.{i}')], 'bb_2_10.b_3.w', 'layer3.10.c.2'),
        ([Rule('a.1', 'b'), Rule('a.{i}', 'c{i}')], 'a.1', 'b'),  # the first that matches
        ([Rule('*.{i-1}.*', '*.{i}.*')], 'x.0.y', 'x.1.y'),
        ([Rule('neck.**', 'body.**'), Rule('**.a', '**.b')], 'neck.a.b.c', 'body.a.b.c'),
        ([Rule('a.*', 'b.*', stars=(('gamma', 'weight'),))], 'a.gamma', 'b.weight'),
        ([Rule('a.*', 'b.*', stars=(('gamma', 'weight'),))], 'a.bias', 'b.bias'),
    ],
)
def test_keys_there_and_back(rules, theirs, ours):
    out, moves = apply_rules({theirs: ONE}, rules, 'test')
    assert list(out) == [ours]
    assert out[ours].equal(ONE)
    assert [(m.theirs, m.ours, m.rule.how) for m in moves] == [(theirs, ours, '')]
    assert list(undo_rules(out, rules, 'test')) == [theirs]


@pytest.mark.parametrize(
    ('rule', 'key'),
    [
        (Rule('*.w', 'w'), 'a.b.w'),  # a star does not cross a dot
        (Rule('a.{i}', 'b.{i}'), 'a.01'),
        (Rule('a.{i}', 'b.{i}'), 'a.x'),
        (Rule('a', 'b'), 'a.w'),
        (Rule('a.w', 'b'), 'a_w'),
    ],
)
def test_keys_without_a_rule_are_an_error(rule, key):
    with pytest.raises(ValueError, match=f'test table has no rule for, 1: {key}'):
        apply_rules({key: ONE}, [rule], 'test')
    with pytest.raises(ValueError, match=f'test table has no rule for, 1: {key}'):
        undo_rules({key: ONE}, [Rule(rule.ours, rule.theirs)], 'test')


BIAS = [
    Rule('c.weight', 'c.weight', rotate=(0, 3)),
    Rule('c.bias', 'n.running_mean', rotate=(0, 3), into_mean=True),
    Rule('n.*', 'n.*', rotate=(0, 3)),
    Rule('fc', 'fc', transpose=True),
    Rule('var', 'var', shift=-0.25),
    Rule('linear.weight', 'conv.weight', linear=True),
]


def test_what_rules_do_to_tensors():
    mean, bias = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.25, 0.5, 0.0])
    given = {
        'c.weight': torch.arange(6.0).view(6, 1), 'c.bias': bias, 'n.running_mean': mean,
        'fc': torch.arange(6.0).view(2, 3), 'var': torch.tensor([1.0]), 'linear.weight': ONE,
    }  # fmt: skip
    out, moves = apply_rules(given, BIAS, 'test')
    assert out['c.weight'].flatten().tolist() == [2, 3, 4, 5, 0, 1]  # splits of two
    assert out['n.running_mean'].tolist() == [1.5, 3.0, 0.75]
    assert out['fc'].is_contiguous()
    assert out['fc'].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert out['var'].tolist() == [0.75]
    assert out['conv.weight'].shape == (2, 3, 1, 1)
    assert out['conv.bias'].tolist() == [0, 0]
    assert [m.rule.how for m in moves] == [
        'first split moved to the end', 'subtracted from the running mean',
        'first split moved to the end', 'transposed', '-0.25', 'made a 1x1 convolution',
    ]  # fmt: skip
    assert mean.tolist() == [1, 2, 3]  # not modified
    del out['conv.weight'], out['conv.bias']
    back = undo_rules(out, BIAS, 'test')
    assert back.keys() == given.keys() - {'linear.weight'}
    assert not back['c.bias'].any()
    # the same mean less bias
    assert back['n.running_mean'].equal(mean - bias)
    assert all(back[key].equal(given[key]) for key in ('c.weight', 'fc', 'var'))


@pytest.mark.parametrize(
    ('given', 'rules', 'words'),
    [
        ({'c.weight': torch.ones(4, 1)}, BIAS, '4 channels .* 3 splits'),
        ({'b1': ONE, 'b2': ONE}, [Rule('b{i}', 'w')], r'test checkpoint.* 1: b2 \(also w\)'),
        ({f'x{i:02d}': ONE for i in range(12)}, [], 'no rule for, 12: x00, .*, x09, ...$'),
    ],
)
def test_errors(given, rules, words):
    with pytest.raises(ValueError, match=words):
        apply_rules(given, rules, 'test')


@pytest.mark.parametrize(
    ('key', 'name'),
    [
        ('conv1_2._batch_norm._variance', 'conv1.4.running_var'),
        ('bb_2_21.res4b21_branch2b_3._conv.weight', 'layer3.21.convs.2.weight'),
        ('bb_0_0.res2a_branch2b_1._batch_norm._mean', 'layer1.0.bns.0.running_mean'),
        ('bb_1_0.short._conv.weight', 'layer2.0.downsample.1.weight'),
    ],
)
def test_paddle_keys(key, name):
    # PaddleClas counts the blocks of stage 3 from 101 layers on; before, they go by letters
    keys = {'conv1_1._conv.weight', 'bb_2_6.conv0._conv.weight', key}
    rules = SOURCES['paddle'].rules(keys)
    out, _ = apply_rules(dict.fromkeys(keys, ONE), rules, 'paddle')
    assert name in out
    assert key in undo_rules(out, rules, 'paddle')
