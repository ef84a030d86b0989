"""Pickled arrays: numbers are read, and nothing else."""

import collections
import os
import pathlib
import pickle
import subprocess

import numpy as np
import pytest
import torch

from tests.common import FIXTURES, Trap
from tests.convert.helpers import refused
from timm_res2net.convert import pickles
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.pickles import dump_arrays

ARRAYS = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3),
    'b': np.zeros((), np.float64),
    'c': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'd': np.arange(3, dtype='>f4'),
}


def assert_arrays(path: pathlib.Path) -> None:
    checkpoint = read_checkpoint(path)
    got = checkpoint.tensors
    assert list(got) == list(ARRAYS)
    assert {type(value) for value in checkpoint.values.values()} == {torch.Tensor}  # not kept twice
    for key, array in ARRAYS.items():
        native = array.astype(array.dtype.newbyteorder('='), order='C')
        assert got[key].equal(torch.from_numpy(native))


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('core', [b'numpy._core', b'numpy.core'])
def test_reading_pdparams(protocol, core, tmp_path):
    """numpy 1 and numpy 2 name their modules differently inside the file."""
    content = collections.OrderedDict({**ARRAYS, 'StructuredToParameterName@@': {'a': 'w_0'}})
    pickled = pickle.dumps(content, protocol)
    if protocol < 4:  # later ones have the length of a name before it
        pickled = pickled.replace(b'numpy._core', core).replace(b'numpy.core', core)
    path = tmp_path / 'w.pdparams'
    path.write_bytes(pickled)
    assert_arrays(path)


# --- no code in a file is run ---------------------------------------------------------------------


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    return b'X' + len(value).to_bytes(4, 'little') + value.encode()


def find(module: str, name: str) -> bytes:
    """The opcodes of protocol 4 that find a name, which may have dots."""
    return text(module) + text(name) + b'\x93'


def call(function: bytes, *args: bytes) -> bytes:
    """The opcodes that call a function."""
    return function + b'(' + b''.join(args) + b'tR'


def build(thing: bytes, state: bytes) -> bytes:
    """The opcodes that give a thing a state: attributes by name, and slots by name."""
    return thing + b'(' + state + b'tb'


def file_of(*opcodes: bytes) -> bytes:
    """A pickle that runs the opcodes, and then gives an empty dictionary."""
    return b'\x80\x04' + b''.join(part + b'0' for part in opcodes) + b'}.'


ENCODE, DTYPE = find('_codecs', 'encode'), find('numpy', 'dtype')
# a state with an attribute in __dict__, and one that setattr writes
STATE = b'}' + text('x') + b'K\x01s}' + text('y') + b'K\x01s'


def trap(function, *args) -> bytes:
    return pickle.dumps({'a': Trap(function, *args)}, 2)


@pytest.mark.parametrize(
    ('content', 'name'),
    [
        (trap(os.system, 'touch trap'), 'posix.system'), (trap(open, 'trap', 'w'), 'io.open'),
        (trap(eval, '1'), '__builtin__.eval'), (trap(np.load, 'trap'), 'numpy.load'),
        (trap(subprocess.Popen, 'touch'), '.Popen'),
        # names in names: each would lead from a module that is known to anything
        (file_of(find('numpy', 'ndarray.tofile')), 'numpy.ndarray.tofile'),
        (file_of(find('numpy', 'dtype.__init__.__globals__')), 'numpy.dtype.__init__.__globals__'),
        (file_of(find('_codecs', '__builtins__.eval')), '_codecs.__builtins__.eval'),
        (file_of(find('collections', 'OrderedDict.__subclasses__')), 'OrderedDict.__subclasses__'),
        (file_of(find('timm_res2net.convert.pickles', 'pickle.loads')), 'pickle.loads'),
        # all ways to find and to make something
        (b'\x80\x02cos\nsystem\n.', 'os.system'),
        (b'\x80\x02(ios\nsystem\n.', 'os.system'),  # INST
        (b'\x80\x02(cos\nsystem\n' + text('touch trap') + b'o.', 'os.system'),  # OBJ
        (b'\x80\x02cbuiltins\nobject\n)\x81.', 'builtins.object'),  # NEWOBJ
        (b'\x80\x04' + find('builtins', 'object') + b')}\x92.', 'builtins.object'),  # NEWOBJ_EX
        (file_of(call(find('copyreg', '_reconstructor'), DTYPE)), 'copyreg._reconstructor'),
        (file_of(call(find('builtins', 'getattr'), ENCODE, text('x'))), 'builtins.getattr'),
    ],
)  # fmt: skip
def test_a_name_that_is_not_in_the_table(content, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'w.pdparams').write_bytes(content)
    refused(tmp_path / 'w.pdparams', 'wants to load ', name)


@pytest.mark.parametrize(
    'opcodes',
    [
        DTYPE + b')\x81',  # a class is asked for an object: there are none, only functions
        DTYPE + b')}\x92',
        b'\x82\x01',  # an object of copyreg's registry of extensions
        text('x') + b'Q',  # an object that stands outside of the pickle
        b'\x97',  # a buffer outside of it
        call(b'}'),  # calling what was made
        call(call(DTYPE, text('f4'))),
        build(b'}', STATE),  # a state for what has none
        *(
            build(ENCODE, b'}}' + text(name) + value + b's')
            for name, value in {
                '__code__': text('x'), '__globals__': b'}', '__closure__': b')', '__class__': DTYPE,
            }.items()
        ),
        build(call(find('numpy', 'ndarray')), b'}}' + text('__class__') + DTYPE + b's'),
        call(ENCODE, call(DTYPE), text('latin1')),
    ],
)  # fmt: skip
def test_opcodes_that_lead_nowhere(opcodes, tmp_path):
    (tmp_path / 'w.pdparams').write_bytes(file_of(opcodes))
    refused(tmp_path / 'w.pdparams', 'damaged as a pickle')


def test_what_a_file_writes_does_not_outlive_it(tmp_path):
    """BUILD sets any attribute of what find_class returns, also of a function, and with it what a
    call of it takes. The next file gets another function."""
    path = tmp_path / 'w.pdparams'
    before = {name: dict(vars(record)) for name, record in pickles._ALLOWED.items()}
    names = [find(*name.rsplit('.', 1)) for name in before]
    defaults = b'}}' + text('__defaults__') + text('x') + b'\x85s'
    setstate = b'}' + text('__setstate__') + ENCODE + b's}' + text('__doc__') + ENCODE + b's'
    for state in (STATE, defaults, setstate):
        path.write_bytes(file_of(*(build(name, state) for name in names)))
        refused(path, 'none of its entries')  # it was read to the end, and is empty
        assert before == {name: dict(vars(record)) for name, record in pickles._ALLOWED.items()}
        path.write_bytes(pickle.dumps(ARRAYS, 2))
        assert_arrays(path)


# --- what is not an array -------------------------------------------------------------------------


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


ONES = pickle.dumps({'a': np.ones(3)}, 2)


@pytest.mark.parametrize(
    ('content', 'word'),
    [
        (ONES[:-9], 'damaged as a pickle'),
        (b'\x80\x04}\x8c\x01a\x96' + 8 * b'\xfe' + b's.', 'damaged as a pickle'),  # a length
        (pickle.dumps([1]), 'holds list'),
        (pickle.dumps({}), 'it has none'),
        (pickle.dumps({'a': 1.5}), 'entries (a)'),
        # how Paddle writes bfloat16
        (pickle.dumps({'a': np.ones(3, np.uint16)}), 'torch.uint16'),
        (pickle.dumps({'a': np.array([None])}, 2), "'a' is an array of the type 'O8'"),
        (pickle.dumps({'a': np.ones(3, np.longdouble)}, 2), "of the type 'f16'"),
        # an array that is said to have more numbers than bytes
        (ONES.replace(b'K\x03\x85', b'K\x04\x85'), "'a' is damaged"),
        # numpy would take this byte order for a part of a structure with objects
        (ONES.replace(text('<'), text('O,')), "of the type 'f8'"),
        (pickle.dumps({'a': np.zeros(2, [('f', 'f4')])}, 2), "of the type 'V4'"),
        (pickle.dumps({'a': Trap(np.ndarray, (1 << 40,))}, 2), "of the type ''"),
        (released(0x4847464544434241), "of the type 'V8'"),
    ],
)
def test_files_of_another_kind(content, word, tmp_path):
    (tmp_path / 'w.pdparams').write_bytes(content)
    refused(tmp_path / 'w.pdparams', word)


def test_files_name_numpy_as_numpy_1_did(tmp_path):
    tensors = read_checkpoint(FIXTURES / 'paddle.pdparams').tensors
    with open(tmp_path / 'w.pdparams', 'wb') as file:
        dump_arrays(tensors, file)
    content = (tmp_path / 'w.pdparams').read_bytes()
    # Paddle's own file, of protocol 4: 2 would store bytes as text
    assert len(content) < 1.01 * (FIXTURES / 'paddle.pdparams').stat().st_size
    assert b'numpy.core.multiarray' in content and b'numpy._core' not in content
    arrays = pickle.loads(content)  # by numpy itself, whichever
    assert arrays.keys() == tensors.keys()
    assert all(np.array_equal(arrays[key], tensors[key]) for key in tensors)
