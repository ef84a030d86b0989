"""Pickled dictionaries of numpy arrays, read by rebuilding nothing but plain numbers.

Even numpy's own rebuilding is too much for a file that is not to be trusted: a dtype that a pickle
changes after an array was made of it lets the file release memory of its choice. So no numpy object
is built from a pickle; arrays and dtypes come as inert records and are checked as a whole.
"""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch

__all__ = ['Array', 'dump_arrays', 'unpickle_arrays']


class _Dtype:
    """What a pickle says of a dtype: its code, such as 'f4', and byte order."""

    def __init__(self, code: str):
        self.code, self.order, self.plain = code, '=', True

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, subdtype, names, fields = state[:5]
        self.plain = subdtype is None and names is None and fields is None

    def numpy(self) -> np.dtype[Any] | None:
        """The dtype, if it is one of plain numbers that torch has."""
        known = isinstance(self.code, str) and re.fullmatch('f[248]|[iu][1248]', self.code)
        return np.dtype(self.order + self.code) if known and self.plain else None


class Array:
    """What a pickle says of an array."""

    def __init__(self) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.fortran: Any = False
        self.raw: Any = b''

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self.dtype, self.fortran, self.raw = state[-4:]

    def kind(self) -> str:
        """Name of the dtype, for an error."""
        if not isinstance(self.dtype, _Dtype):
            return 'an array without a dtype'
        dtype = self.dtype.numpy()
        return dtype.name if dtype else {'O': 'object'}.get(self.dtype.code[:1], self.dtype.code)

    def tensor(self) -> torch.Tensor | None:
        """The numbers, copied; None if they are no plain ones or not as many as the shape says."""
        dtype = self.dtype.numpy() if isinstance(self.dtype, _Dtype) else None
        sizes = isinstance(self.shape, tuple) and all(type(n) is int and n >= 0 for n in self.shape)
        if dtype is None or not sizes or not isinstance(self.raw, bytes | bytearray):
            return None
        if math.prod(self.shape) * dtype.itemsize != len(self.raw):
            return None
        numbers = np.frombuffer(self.raw, dtype).reshape(
            self.shape, order='F' if self.fortran else 'C'
        )
        native = dtype.newbyteorder('=')
        return torch.from_numpy(np.array(numbers, dtype=native, order='C', copy=True))


def _dtype(code: str, *_: Any) -> _Dtype:
    return _Dtype(code)


def _reconstruct(*_: Any) -> Array:
    return Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.__setstate__((shape, dtype, order == 'F', raw))
    return array


def _encode(text: str, encoding: str) -> bytes:
    # A protocol-2 pickle holds bytes as latin-1 text; no other codec has a place in a checkpoint.
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'it wants to encode as {encoding!r}')
    return text.encode('latin-1')


def _mapping(*_: Any) -> dict[str, Any]:
    return {}


_ALLOWED: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): None,  # an argument of _reconstruct, never called
    ('numpy', 'dtype'): _dtype,
    # numpy 2 renamed numpy.core to numpy._core; files carry the name of the numpy that wrote them
    ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy.core.numeric', '_frombuffer'): _frombuffer,
    ('numpy._core.numeric', '_frombuffer'): _frombuffer,
    ('_codecs', 'encode'): _encode,
    ('collections', 'OrderedDict'): _mapping,
}
_FUNCTIONS = (_dtype, _reconstruct, _frombuffer, _encode, _mapping)
# What a dictionary of arrays is written with, in protocols 2 to 5
_OPCODES = [
    getattr(pickle, name)[0]
    for name in (
        'PROTO', 'FRAME', 'STOP', 'MARK', 'POP', 'POP_MARK', 'MEMOIZE', 'BINPUT', 'LONG_BINPUT',
        'BINGET', 'LONG_BINGET', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2',
        'LONG1', 'LONG4', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES',
        'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'EMPTY_TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3',
        'TUPLE', 'EMPTY_LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT', 'SETITEM', 'SETITEMS', 'GLOBAL',
        'STACK_GLOBAL', 'REDUCE', 'BUILD',
    )
]  # fmt: skip

_Base: Any = pickle._Unpickler  # the one in Python


class _Unpickler(_Base):
    """Python's unpickler (the one in C sizes its memo by an index of the file), with few opcodes,
    string keys, and calls and states for the records above alone."""

    def __init__(self, file: IO[bytes], size: int):
        super().__init__(file)
        self.size = size

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it wants to load '{module}.{name}', which is no part of a dictionary of arrays"
            ) from None

    def _refuse(self) -> None:
        raise pickle.UnpicklingError('it holds what a dictionary of arrays does not')

    def _reduce(self) -> None:
        # by identity: to hash what the file made could take all of the stack
        if not any(self.stack[-2] is function for function in _FUNCTIONS):
            self._refuse()
        _Base.load_reduce(self)

    def _build(self) -> None:
        if type(self.stack[-2]) not in (Array, _Dtype):
            self._refuse()
        _Base.load_build(self)

    def _check_keys(self, mapping: Any, keys: list[Any]) -> None:
        # a nested tuple as a key could take all of the stack, or all time
        if type(mapping) is not dict or not all(type(key) is str for key in keys):
            self._refuse()

    def _setitem(self) -> None:
        self._check_keys(self.stack[-3], self.stack[-2:-1])
        _Base.load_setitem(self)

    def _setitems(self) -> None:
        self._check_keys(self.metastack[-1][-1], self.stack[::2])
        _Base.load_setitems(self)

    def _bytearray8(self) -> None:
        (length,) = np.frombuffer(self.read(8), '<u8')
        if length > self.size:
            self._refuse()
        self.append(bytearray(self.read(int(length))))

    dispatch: ClassVar[dict[int, Any]] = {
        **{opcode: _Base.dispatch[opcode] for opcode in _OPCODES},
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.BYTEARRAY8[0]: _bytearray8,
    }


class _Limited:
    """A file that refuses to be read for more than it has, before memory is asked for."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size = file, size
        self.readline = file.readline

    def read(self, length: int) -> bytes:
        """Read so many bytes, as pickle wants it."""
        if length > self.size:
            raise pickle.UnpicklingError('it ends too early')
        return self.file.read(length)


def unpickle_arrays(path: str | Path, what: str) -> dict[str, Any]:
    """Unpickle a dictionary whose arrays come as `Array` records.

    Args:
        path: The file.
        what: Beginning of an error.

    Raises:
        ValueError: The file is no pickle, is cut short, or wants more than arrays.
    """
    size = Path(path).stat().st_size
    try:
        with open(path, 'rb') as file:
            content = _Unpickler(_Limited(file, size), size).load()  # type: ignore[arg-type]
    except OSError:
        raise
    except KeyError as error:  # an opcode that is not in the table
        raise ValueError(
            f'{what}: it is no pickled dictionary of arrays, or a damaged one.'
        ) from error
    except Exception as error:  # a damaged pickle fails anywhere inside pickle
        text = str(error) or 'it ends too early'
        raise ValueError(f'{what}: {text}.') from error
    if not isinstance(content, dict):
        raise ValueError(f'{what}: it holds {type(content).__name__}, not a dict.')
    return content


_BasePickler: Any = pickle._Pickler


class _Pickler(_BasePickler):
    """Names numpy's modules as numpy 1 did, which numpy 2 reads as well."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a global's name; pickle calls it."""
        if obj is np.empty(0).__reduce__()[0]:
            self.write(b'cnumpy.core.multiarray\n_reconstruct\n')
            self.memoize(obj)
        else:
            _BasePickler.save_global(self, obj, name)


def dump_arrays(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Pickle tensors as a dictionary of numpy arrays, as `paddle.save` does."""
    _Pickler(file, 2).dump({key: value.numpy() for key, value in tensors.items()})
