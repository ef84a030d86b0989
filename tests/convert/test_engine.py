"""The engine of key rules."""

import pytest
import torch

from timm_res2net.convert.engine import Rule, apply_rules, undo_rules
from timm_res2net.convert.sources import SOURCES

ONE = torch.ones(2, 3)


def test_rules_rename_shift_and_transpose():
    rules = [
        Rule('bb_{stage}_{block}.*_b_{i+1}.w', 'layer{stage+1}.{block}.convs.{i}.weight'),
        Rule('out.weight', 'fc.weight', transpose=True),
    ]
    given = {'bb_2_10.res4a_b_3.w': ONE, 'out.weight': ONE}
    out, moves = apply_rules(given, rules, 'test')
    assert list(out) == ['layer3.10.convs.2.weight', 'fc.weight']
    assert out['fc.weight'].shape == (3, 2)
    assert out['fc.weight'].is_contiguous()
    assert [(m.source, m.target, m.rule.how) for m in moves] == [
        ('bb_2_10.res4a_b_3.w', 'layer3.10.convs.2.weight', ''),
        ('out.weight', 'fc.weight', 'transposed'),
    ]


def test_the_first_rule_that_fits_wins():
    rules = [Rule('a.1', 'b'), Rule('a.{i}', 'c')]
    assert list(apply_rules({'a.1': ONE}, rules, 'test')[0]) == ['b']


def test_a_star_does_not_cross_a_dot():
    with pytest.raises(ValueError, match=r'no rule for, 1: a\.b\.w'):
        apply_rules({'a.b.w': ONE}, [Rule('*.w', 'w')], 'test')


def test_two_stars_cross_dots():
    rules = [Rule('neck.**', 'body.**'), Rule('bb.{i}.*', 'layer.{i}.*')]
    out, _ = apply_rules({'neck.a.b.c': ONE, 'bb.3.weight': ONE}, rules, 'test')
    assert list(out) == ['body.a.b.c', 'layer.3.weight']


def test_a_number_that_occurs_twice_is_the_same():
    rules = [Rule('bb_{i}.res{i+2}', 'layer{i+1}')]
    assert list(apply_rules({'bb_1.res3': ONE}, rules, 'test')[0]) == ['layer2']
    with pytest.raises(ValueError, match=r'no rule for, 1: bb_1\.res4'):
        apply_rules({'bb_1.res4': ONE}, rules, 'test')


BIAS = [
    Rule('c.weight', 'c.weight', rotate=(0, 3)),
    Rule('c.bias', 'n.running_mean', rotate=(0, 3), into_mean=True),
    Rule('n.*', 'n.*', rotate=(0, 3)),
    Rule('fc', 'fc', transpose=True),
]


def test_biases_go_into_means_and_splits_rotate():
    mean, bias = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.25, 0.5, 0.0])
    given = {'c.weight': torch.arange(6.0).view(6, 1), 'c.bias': bias, 'n.running_mean': mean}
    out, moves = apply_rules(given, BIAS, 'test')
    assert out['c.weight'].flatten().tolist() == [2, 3, 4, 5, 0, 1]  # splits of two
    assert out['n.running_mean'].tolist() == [1.5, 3.0, 0.75]
    assert [m.rule.how for m in moves] == [
        'first split moved to the end', 'subtracted from the running mean',
        'first split moved to the end',
    ]  # fmt: skip
    assert given['n.running_mean'] is mean and mean.tolist() == [1, 2, 3]  # not modified


def test_the_way_back():
    given = {'c.weight': torch.arange(6.0).view(6, 1), 'n.running_mean': torch.ones(3), 'fc': ONE}
    back = undo_rules(apply_rules(given, BIAS, 'test')[0], BIAS, 'test')
    assert back.keys() == given.keys() | {'c.bias'}
    assert not back['c.bias'].any()
    assert all(torch.equal(back[key], given[key]) for key in given)
    with pytest.raises(ValueError, match='the test table has no rule for, 1: x'):
        undo_rules({'x': ONE}, BIAS, 'test')


def test_a_bias_without_a_mean_is_an_error():
    with pytest.raises(
        ValueError, match=r'test checkpoint lacks for its biases, 1: n\.running_mean'
    ):
        apply_rules({'c.bias': torch.ones(3)}, BIAS, 'test')


def test_channels_that_are_no_splits_are_an_error():
    with pytest.raises(ValueError, match=r'4 channels .* 3 splits'):
        apply_rules({'c.weight': torch.ones(4, 1)}, BIAS, 'test')


def test_keys_without_a_rule_are_listed():
    given = {f'x{i:02d}': ONE for i in range(12)}
    with pytest.raises(ValueError) as error:
        apply_rules(given, [], 'paddle')
    assert str(error.value) == (
        'Keys that the paddle table has no rule for, 12: '
        'x00, x01, x02, x03, x04, x05, x06, x07, x08, x09, ...'
    )


def test_two_keys_for_one_name_are_an_error():
    with pytest.raises(ValueError, match=r'test checkpoint.* 1: b2 \(also w\)'):
        apply_rules({'b1': ONE, 'b2': ONE}, [Rule('b{i}', 'w')], 'test')


@pytest.mark.parametrize(
    ('key', 'name'),
    [
        ('conv1_2._batch_norm._variance', 'conv1.4.running_var'),
        ('conv1_3._conv.weight', 'conv1.6.weight'),
        ('conv1_3._batch_norm.bias', 'bn1.bias'),
        ('bb_2_21.res4b21_branch2b_3._conv.weight', 'layer3.21.convs.2.weight'),
        ('bb_0_0.res2a_branch2b_1._batch_norm._mean', 'layer1.0.bns.0.running_mean'),
        ('bb_3_2.conv2._batch_norm.weight', 'layer4.2.bn3.weight'),
        ('bb_1_0.short._conv.weight', 'layer2.0.downsample.1.weight'),
    ],
)
def test_paddle_keys(key, name):
    keys = {'conv1_1._conv.weight', key}
    out, _ = apply_rules(dict.fromkeys(keys, ONE), SOURCES['paddle'].rules(keys), 'paddle')
    assert name in out
