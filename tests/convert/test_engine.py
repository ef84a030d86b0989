"""Converters: the engine of key rules, and files that are not to be trusted."""

import collections
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from timm_res2net.convert import (
    Rule,
    apply_rules,
    paddle_rules,
    read_pdparams,
    require_keys,
    undo_rules,
)

ONE = torch.ones(2, 3)


def test_rules_rename_shift_drop_and_transpose():
    rules = [
        Rule('bb_{stage}_{block}.*_b_{i+1}.w', 'layer{stage+1}.{block}.convs.{i}.weight'),
        Rule('out.weight', 'fc.weight', transpose=True),
        Rule('seen', ''),
    ]
    given = {'bb_2_10.res4a_b_3.w': ONE, 'out.weight': ONE, 'seen': ONE}
    out, moves = apply_rules(given, rules, 'test')
    assert list(out) == ['layer3.10.convs.2.weight', 'fc.weight']
    assert out['fc.weight'].shape == (3, 2)
    assert out['fc.weight'].is_contiguous()
    assert [(m.source, m.target, m.rule.how) for m in moves] == [
        ('bb_2_10.res4a_b_3.w', 'layer3.10.convs.2.weight', ''),
        ('out.weight', 'fc.weight', 'transposed'),
        ('seen', '', 'dropped'),
    ]


def test_the_first_rule_that_fits_wins():
    rules = [Rule('a.1', 'b'), Rule('a.{i}', 'c')]
    assert list(apply_rules({'a.1': ONE}, rules, 'test').tensors) == ['b']


def test_a_star_does_not_cross_a_dot():
    with pytest.raises(ValueError, match=r'no rule for, 1: a\.b\.w'):
        apply_rules({'a.b.w': ONE}, [Rule('*.w', 'w')], 'test')


def test_two_stars_drop_all_below():
    rules = [Rule('neck.**', ''), Rule('bb.{i}.*', 'layer.{i}.*')]
    found = apply_rules({'neck.a.b.c': ONE, 'bb.3.weight': ONE}, rules, 'test')
    assert list(found.tensors) == ['layer.3.weight']
    assert [m.rule.how for m in found.moves] == ['dropped', '']


def test_a_number_that_occurs_twice_is_the_same():
    rules = [Rule('bb_{i}.res{i+2}', 'layer{i+1}')]
    assert list(apply_rules({'bb_1.res3': ONE}, rules, 'test').tensors) == ['layer2']
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
    back = undo_rules(apply_rules(given, BIAS, 'test').tensors, BIAS, 'test')
    assert back.keys() == given.keys() | {'c.bias'}
    assert not back['c.bias'].any()
    assert all(torch.equal(back[key], given[key]) for key in given)
    with pytest.raises(ValueError, match='the test table has no rule for, 1: x'):
        undo_rules({'x': ONE}, BIAS, 'test')


def test_a_bias_without_a_mean_is_an_error():
    with pytest.raises(ValueError, match=r'that biases of test need, 1: n\.running_mean'):
        apply_rules({'c.bias': torch.ones(3)}, BIAS, 'test')


def test_channels_that_are_no_splits_are_an_error():
    with pytest.raises(ValueError, match='4 channels cannot be cut into 3 splits'):
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
    with pytest.raises(ValueError, match=r'name is taken already, 1: b2 \(also w\)'):
        apply_rules({'b1': ONE, 'b2': ONE}, [Rule('b{i}', 'w')], 'test')


def test_parameters_without_a_value_are_listed():
    require_keys({'a': ONE}, ['a', 'bn.num_batches_tracked'], 'test')
    with pytest.raises(ValueError, match='test checkpoint leaves without a value, 1: b'):
        require_keys({'a': ONE}, ['a', 'b'], 'test')


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
    assert name in apply_rules(dict.fromkeys(keys, ONE), paddle_rules(keys), 'paddle').tensors


ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.zeros((), np.float64)}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_reading_pdparams(protocol, tmp_path):
    content = collections.OrderedDict({**ARRAYS, 'StructuredToParameterName@@': {'a': 'w_0'}})
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps(content, protocol))
    got = read_pdparams(path)
    assert list(got) == ['a', 'b']
    assert torch.equal(got['a'], torch.from_numpy(ARRAYS['a']))
    assert got['a'].dtype == torch.float32


def test_reading_what_another_numpy_wrote(tmp_path):
    """numpy 1 and numpy 2 name their modules differently inside the file."""
    path = tmp_path / 'w.pdparams'
    content = pickle.dumps(ARRAYS, 2)
    other = (
        content.replace(b'numpy._core', b'numpy.core')
        if b'numpy._core' in content
        else content.replace(b'numpy.core', b'numpy._core')
    )
    assert other != content
    path.write_bytes(other)
    assert torch.equal(read_pdparams(path)['a'], torch.from_numpy(ARRAYS['a']))


class Calls:
    """A pickle that would call something when it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'function', [os.system, open, eval, getattr, __import__, np.fromfile, np.load, np.savetxt]
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_a_pickle_that_wants_more_is_refused(function, protocol, tmp_path):
    trap, path = tmp_path / 'trap', tmp_path / 'w.pdparams'
    argument = f'touch {trap}' if function is os.system else str(trap)
    path.write_bytes(pickle.dumps({'a': Calls(function, argument, 'w')}, protocol))
    with pytest.raises(ValueError) as error:
        read_pdparams(path)
    text = str(error.value)
    assert text.startswith(f'Cannot read {path} as a Paddle .pdparams file: it wants to load ')
    assert f".{function.__name__}', which is no part of a dictionary of arrays." in text
    assert list(tmp_path.iterdir()) == [path]


def test_a_command_in_a_pickle_would_run_elsewhere(tmp_path):
    """The trap of the test above is one: plain pickle walks into it."""
    pickle.loads(pickle.dumps({'a': Calls(os.system, f'touch {tmp_path}/trap')}))
    assert (tmp_path / 'trap').exists()


def test_another_codec_is_refused(tmp_path):
    import _codecs

    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': Calls(_codecs.encode, 'a', 'rot13')}, 2))
    with pytest.raises(ValueError, match="it wants to encode as 'rot13'"):
        read_pdparams(path)


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        (b'', 'it ends too early.'),
        (b'<html></html>', 'pdparams file: '),
        (pickle.dumps(ARRAYS, 2)[:-9], 'pdparams file: '),
        (pickle.dumps([1]), 'it holds list, not a dict.'),
        (pickle.dumps({}), 'it holds no arrays. Download it again.'),
        (
            pickle.dumps({'StructuredToParameterName@@': {}}),
            'it holds no arrays. Download it again.',
        ),
        (pickle.dumps({'a': 1.5}), "the entry 'a' is float, not floating-point numbers."),
        (
            # how Paddle writes bfloat16
            pickle.dumps({'a': np.ones(3, np.uint16)}),
            "the entry 'a' is uint16, not floating-point numbers.",
        ),
        (
            pickle.dumps({'a': np.array([None])}, 2),
            "the entry 'a' is object, not floating-point numbers.",
        ),
    ],
)
def test_files_of_another_kind(content, text, tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_pdparams(path)
    assert str(error.value).startswith(f'Cannot read {path} as a Paddle .pdparams file: ')
    assert text in str(error.value)


def test_protocols_that_no_framework_writes_are_refused(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': Calls(os.system, f'touch {tmp_path}/trap')}, 0))
    with pytest.raises(ValueError, match='it is no pickled dictionary of arrays, or a damaged one'):
        read_pdparams(path)
    assert list(tmp_path.iterdir()) == [path]


def released(address: int) -> bytes:
    """A pickle whose array, made of plain bytes, is said to hold objects before it is freed: plain
    numpy would release the object at that address."""
    plain, objects = (
        pickle.dumps(flags, 2)[2:-1]  # without PROTO and STOP
        for flags in (
            (3, '|', None, ('f',), {'f': (np.dtype('O'), 0)}, 8, 1, flag) for flag in (0, 1)
        )
    )
    raw = pickle.dumps(address.to_bytes(8, 'little').decode('latin-1'), 2)[2:-1]
    dtype = b'cnumpy\ndtype\n(X\x02\x00\x00\x00V8K\x00K\x01tRq\x63' + plain + b'b'
    array = (
        b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR'
        b'(K\x01(K\x01th\x63\x89c_codecs\nencode\n(' + raw + b'X\x06\x00\x00\x00latin1tRtb'
    )
    return (
        b'\x80\x02}X\x01\x00\x00\x00a' + dtype + b'0' + array + b's' + (b'h\x63' + objects + b'b0.')
    )


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        (released(0x4847464544434241), "the entry 'a' is V8, not floating-point numbers."),
        # 8 bytes that ask for a table of 32 GB
        (b'\x80\x02}r\xff\xff\xff\x7f.', 'it holds no arrays.'),
        (b'\x80\x04}\x8c\x01a\x96' + 8 * b'\xfe' + b's.', 'it holds what a dictionary of arrays'),
        (b'\x80\x04}\x8c\x01aB\xff\xff\xff\x7fs.', 'it ends too early.'),
        # a key of a million nested tuples, and one of 2 ** 40 parts
        (b'\x80\x02})' + b'\x85' * 1_000_000 + b'K\x01s.', 'it holds what a dictionary of arrays'),
        (b'\x80\x02})' + b'q\x01h\x01\x86' * 40 + b'K\x01s.', 'it holds what a dictionary of'),
        # an array of a shape that its bytes do not fill
        (
            pickle.dumps({'a': Calls(np.ndarray, (1 << 40,))}, 2),
            'it holds what a dictionary of arrays does not.',
        ),
        # calling what was made, and states for what has none
        (b'\x80\x02}(X\x01\x00\x00\x00a}}Ru.', 'it holds what a dictionary of arrays does not.'),
        (b'\x80\x02}}b.', 'it holds what a dictionary of arrays does not.'),
        (b'\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.', 'it holds what a dictionary'),
    ],
)  # fmt: skip
def test_a_pickle_that_would_harm_as_it_is_read(content, text, tmp_path):
    """In a process of its own, which must come to its end by itself."""
    path = tmp_path / 'w.pdparams'
    path.write_bytes(content)
    code = (
        'import resource, sys\n'
        'from timm_res2net.convert import read_pdparams\n'
        'resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n'
        'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        'try:\n    read_pdparams(sys.argv[1])\n'
        'except ValueError as error:\n    print(error)\n'
        'grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n'
        'print(grown < 300_000)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert text in done.stdout
    assert done.stdout.endswith('True\n')  # kilobytes: a million tuples take a part of it


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pdparams(tmp_path / 'w.pdparams')
