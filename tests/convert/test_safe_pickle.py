"""Pickled arrays: numbers are read, and nothing else."""

import collections
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.convert.helpers import FIXTURES, Trap, refused
from timm_res2net.convert import dump_arrays, read_pdparams

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


@pytest.mark.parametrize(
    'function', [os.system, open, eval, getattr, __import__, np.fromfile, np.load, np.savetxt]
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_a_pickle_that_wants_more_is_refused(function, protocol, tmp_path):
    trap, path = tmp_path / 'trap', tmp_path / 'w.pdparams'
    argument = f'touch {trap}' if function is os.system else str(trap)
    path.write_bytes(pickle.dumps({'a': Trap(function, argument, 'w')}, protocol))
    with pytest.raises(ValueError) as error:
        read_pdparams(path)
    text = str(error.value)
    assert text.startswith(f'Cannot read {path} as a Paddle .pdparams file: it wants to load ')
    assert f".{function.__name__}'" in text
    assert list(tmp_path.iterdir()) == [path]


def test_a_command_in_a_pickle_would_run_elsewhere(tmp_path):
    """The trap of the test above is one: plain pickle walks into it."""
    pickle.loads(pickle.dumps({'a': Trap(os.system, f'touch {tmp_path}/trap')}))
    assert (tmp_path / 'trap').exists()


def test_another_codec_is_refused(tmp_path):
    import _codecs

    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': Trap(_codecs.encode, 'a', 'rot13')}, 2))
    with pytest.raises(ValueError, match="it wants to encode as 'rot13'"):
        read_pdparams(path)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', ['ends too early']),
        (b'<html></html>', []),
        (pickle.dumps(ARRAYS, 2)[:-9], []),
        (pickle.dumps([1]), ['holds list', 'not a dict']),
        (pickle.dumps({}), ['holds no arrays', 'Give the file with the weights']),
        (
            pickle.dumps({'StructuredToParameterName@@': {}}),
            ['holds no arrays', 'Give the file with the weights'],
        ),
        (pickle.dumps({'a': 1.5}), ["'a' is float", 'as float32']),
        # how Paddle writes bfloat16
        (pickle.dumps({'a': np.ones(3, np.uint16)}), ["'a' is uint16", 'bfloat16 as float32']),
        (pickle.dumps({'a': np.array([None])}, 2), ["'a' is object", 'as float32']),
    ],
)
def test_files_of_another_kind(content, words, tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_pdparams(path)
    assert str(error.value).startswith(f'Cannot read {path} as a Paddle .pdparams file: ')
    assert all(word in str(error.value) for word in words)


def test_protocols_that_no_framework_writes_are_refused(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': Trap(os.system, f'touch {tmp_path}/trap')}, 0))
    with pytest.raises(ValueError, match='not a pickled dictionary of arrays'):
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


HARMFUL = [
    (released(0x4847464544434241), "'a' is V8"),
    # 8 bytes that ask for a table of 32 GB
    (b'\x80\x02}r\xff\xff\xff\x7f.', 'holds no arrays'),
    (b'\x80\x04}\x8c\x01a\x96' + 8 * b'\xfe' + b's.', 'holds what a dictionary of arrays does not'),
    (b'\x80\x04}\x8c\x01aB\xff\xff\xff\x7fs.', 'ends too early'),
    # a key of a million nested tuples, and one of 2 ** 40 parts
    (
        b'\x80\x02})' + b'\x85' * 1_000_000 + b'K\x01s.',
        'holds what a dictionary of arrays does not',
    ),
    (
        b'\x80\x02})' + b'q\x01h\x01\x86' * 40 + b'K\x01s.',
        'holds what a dictionary of arrays does not',
    ),
    # an array of a shape that its bytes do not fill
    (
        pickle.dumps({'a': Trap(np.ndarray, (1 << 40,))}, 2),
        'holds what a dictionary of arrays does not',
    ),
    # calling what was made, and states for what has none
    (b'\x80\x02}(X\x01\x00\x00\x00a}}Ru.', 'holds what a dictionary of arrays does not'),
    (b'\x80\x02}}b.', 'holds what a dictionary of arrays does not'),
    (
        b'\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.',
        'holds what a dictionary of arrays does not',
    ),
]
# Reads each file in a process of its own, forked after the imports: they would take seconds each.
READ = """
import json, os, resource, sys
from timm_res2net.convert import read_pdparams

def read(path):
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_pdparams(path)
        text = ''
    except ValueError as error:
        text = str(error)
    return text, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        status = 1
        try:
            answer = read(path)
            with open(path + '.json', 'w') as file:
                json.dump(answer, file)
            status = 0
        finally:
            os._exit(status)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope='module')
def harmful(tmp_path_factory):
    """The files, with the answers of the processes that came to an end by themselves."""
    folder = tmp_path_factory.mktemp('harmful')
    paths = [folder / f'{i}.pdparams' for i in range(len(HARMFUL))]
    for path, (content, _) in zip(paths, HARMFUL, strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, '-c', READ, *map(str, paths)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return paths


@pytest.mark.parametrize('case', range(len(HARMFUL)))
def test_a_pickle_that_would_harm_as_it_is_read(case, harmful):
    text, grown = json.loads(harmful[case].with_suffix('.pdparams.json').read_text())
    assert text.startswith(f'Cannot read {harmful[case]} ')
    assert HARMFUL[case][1] in text
    assert grown < 300_000  # kilobytes: a million tuples take a part of it


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pdparams(tmp_path / 'w.pdparams')


def test_files_name_numpy_as_numpy_1_did(tmp_path):
    with open(tmp_path / 'w.pdparams', 'wb') as file:
        dump_arrays(read_pdparams(FIXTURES / 'paddle.pdparams'), file)
    content = (tmp_path / 'w.pdparams').read_bytes()
    assert len(content) <= (FIXTURES / 'paddle.pdparams').stat().st_size  # Paddle's own
    assert b'numpy.core.multiarray' in content and b'numpy._core' not in content
    arrays = pickle.loads(content)  # by numpy itself, whichever
    assert arrays['out.weight'].shape == (256, 10)


@pytest.mark.parametrize('function', [os.system, eval, getattr, np.load])
def test_a_pickle_that_wants_to_run_something(function, tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': Trap(function, f'touch {tmp_path}/trap')}))
    refused(path, 'wants to load', f".{function.__name__}'")


def test_an_array_of_numbers_that_torch_has_not(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickle.dumps({'a': np.ones(3, np.longdouble)}, 2))
    refused(path, "'a' is f16", 'as float32')
