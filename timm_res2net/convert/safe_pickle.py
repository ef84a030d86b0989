"""Read and write pickled dictionaries of numpy arrays. The files are untrusted.

numpy's own unpickling is not safe: if a pickle changes a dtype after it has made an array with it,
the file can release memory of its choice. So no numpy object is made while a pickle is read. Arrays
and dtypes are read as inert records, and each record is checked as a whole before its numbers are
copied.
"""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch


class _Dtype:
    """The record of a dtype: its code, such as 'f4', and its byte order."""

    def __init__(self, code: Any = '', *_: Any):
        self.code, self.order, self.plain = code, '=', True

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, subdtype, names, fields = state[:5]
        self.plain = subdtype is None and names is None and fields is None

    def numpy(self) -> np.dtype[Any] | None:
        """Return the dtype if it is one of plain numbers that torch has, else None."""
        known = isinstance(self.code, str) and re.fullmatch('f[248]|[iu][1248]', self.code)
        return np.dtype(self.order + self.code) if known and self.plain else None


class Array:
    """The record of an array."""

    def __init__(self) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.fortran: Any = False
        self.raw: Any = b''

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self.dtype, self.fortran, self.raw = state[-4:]

    def kind(self) -> str:
        """Return the name of the dtype, for errors."""
        if not isinstance(self.dtype, _Dtype):
            return 'an array without a dtype'
        dtype = self.dtype.numpy()
        code = str(self.dtype.code)
        return dtype.name if dtype else {'O': 'object'}.get(code[:1], code)

    def tensor(self) -> torch.Tensor | None:
        """Return a copy of the numbers.

        Returns:
            The tensor, or None if the dtype is not one of plain numbers or the number of bytes does
            not fit the shape.
        """
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


def _reconstruct(*_: Any) -> Array:
    return Array()


def _scalar(dtype: Any = None, raw: Any = b'', *_: Any) -> Array:
    return _frombuffer(raw, dtype, (), 'C')


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.__setstate__((shape, dtype, order == 'F', raw))
    return array


def _encode(text: str, encoding: str) -> bytes:
    # A pickle of protocol 2 stores bytes as latin-1 text. A checkpoint needs no other codec.
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'it wants to encode as {encoding!r}')
    return text.encode('latin-1')


def _mapping(*_: Any) -> dict[str, Any]:
    return {}


_ALLOWED: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): None,  # an argument of _reconstruct, which is never called
    ('numpy', 'dtype'): _Dtype,
    # numpy 2 renamed numpy.core to numpy._core. A file has the name of the numpy that wrote it.
    ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy.core.multiarray', 'scalar'): _scalar,
    ('numpy._core.multiarray', 'scalar'): _scalar,
    ('numpy.core.numeric', '_frombuffer'): _frombuffer,
    ('numpy._core.numeric', '_frombuffer'): _frombuffer,
    ('_codecs', 'encode'): _encode,
    ('collections', 'OrderedDict'): _mapping,
}
_FUNCTIONS = (_Dtype, _reconstruct, _scalar, _frombuffer, _encode, _mapping)


class _Ignored:
    """The record of an object that is not read, whatever it is made of."""

    def __new__(cls, *_: Any) -> '_Ignored':
        return super().__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dictionary:
    """A subclass of dict, which becomes a dict."""

    def __new__(cls, *_: Any) -> dict[str, Any]:  # type: ignore[misc]
        return {}


def _sequence(*_: Any) -> list[Any]:
    return []


def _no_bytes(*_: Any) -> bytes:  # a pickle of protocol 2 calls bytes() for an empty array
    return b''


HARMLESS: dict[str, Any] = {
    **{
        f'{module}.{name}': record
        for (module, name), record in _ALLOWED.items()
        if module.startswith('numpy')
    },
    'numpy.ndarray': Array,
    'collections.defaultdict': _mapping,
    'collections.deque': _sequence,
    'builtins.bytes': _no_bytes,
    **dict.fromkeys(
        (
            'lightning.fabric.utilities.data.AttributeDict',
            'lightning_fabric.utilities.data.AttributeDict',
            'pytorch_lightning.utilities.parsing.AttributeDict',
        ),
        _Dictionary,
    ),
    **dict.fromkeys(
        (
            # factories of a defaultdict; a HistoryBuffer asks for its methods with getattr
            *(
                f'builtins.{name}'
                for name in ('list', 'dict', 'tuple', 'int', 'float', 'str', 'bool', 'getattr')
            ),
            *(
                f'{module}.{name}'
                for module in ('pathlib', 'pathlib._local')
                for name in (
                    'Path', 'PurePath', 'PosixPath', 'PurePosixPath', 'WindowsPath',
                    'PureWindowsPath',
                )
            ),
            *(f'datetime.{name}' for name in ('date', 'datetime', 'time', 'timedelta', 'timezone')),
            'types.SimpleNamespace',
            'mmengine.logging.history_buffer.HistoryBuffer',
            # what the statistics of a HistoryBuffer are, by their names in numpy
            'numpy.mean', 'numpy.min', 'numpy.max',
        ),
        _Ignored,
    ),
}  # fmt: skip
"""Inert records for what training scripts save beside weights, by the name in the file.

A file of `torch.save` that asks for one of these names gets the record. Nothing of the name's own
module is called or imported.
"""

# The opcodes that a dictionary of arrays needs in protocols 2 to 5
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

# Python's unpickler: the one in C allocates its memo by an index that the file gives.
_Base: Any = pickle._Unpickler


class _Unpickler(_Base):
    """An unpickler with few opcodes, which only has string keys and only calls and fills the
    records of this module."""

    def __init__(self, file: IO[bytes], size: int):
        super().__init__(file)
        self.size = size

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it wants to load '{module}.{name}', which a dictionary of arrays does not need"
            ) from None

    def _refuse(self) -> None:
        raise pickle.UnpicklingError('it holds what a dictionary of arrays does not')

    def _reduce(self) -> None:
        # Compare by identity: hashing an object of the file could exhaust the stack.
        if not any(self.stack[-2] is function for function in _FUNCTIONS):
            self._refuse()
        _Base.load_reduce(self)

    def _build(self) -> None:
        if type(self.stack[-2]) not in (Array, _Dtype):
            self._refuse()
        _Base.load_build(self)

    def _check_keys(self, mapping: Any, keys: list[Any]) -> None:
        # Hashing a nested tuple could exhaust the stack, or take forever.
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
    """A file that refuses a read beyond its size before memory is allocated for it."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size = file, size
        self.readline = file.readline

    def read(self, length: int) -> bytes:
        """Read `length` bytes, as pickle expects of a file."""
        if length > self.size:
            raise pickle.UnpicklingError('it ends too early')
        return self.file.read(length)


def unpickle_arrays(path: str | Path) -> dict[str, Any]:
    """Unpickle a dictionary, with each array as an `Array`.

    Args:
        path: The file.

    Raises:
        ValueError: The file is not a pickle, is cut short, or holds more than arrays.
    """
    size = Path(path).stat().st_size
    try:
        with open(path, 'rb') as file:
            content = _Unpickler(_Limited(file, size), size).load()  # type: ignore[arg-type]
    except OSError:
        raise
    except KeyError as error:  # an opcode that `dispatch` does not have
        raise ValueError('it is not a pickled dictionary of arrays, or it is damaged.') from error
    except Exception as error:  # a damaged pickle can fail anywhere inside pickle
        text = str(error) or 'it ends too early'
        raise ValueError(f'{text}.') from error
    if not isinstance(content, dict):
        raise ValueError(
            f'it holds {type(content).__name__}, not a dict. Save a dictionary of arrays.'
        )
    return content


_BasePickler: Any = pickle._Pickler


class _Pickler(_BasePickler):
    """A pickler that names numpy's modules as numpy 1 did. numpy 2 reads both names."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write the name of a global. pickle calls this method."""
        if obj is np.empty(0).__reduce__()[0]:
            self.write(b'cnumpy.core.multiarray\n_reconstruct\n')
            self.memoize(obj)
        else:
            _BasePickler.save_global(self, obj, name)


def dump_arrays(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Pickle tensors as a dictionary of numpy arrays, as `paddle.save` does.

    Args:
        tensors: Tensors on the CPU, by key.
        file: The open file.
    """
    # Protocol 2 would store bytes as text, half as large again. 4 is the default of paddle.save.
    _Pickler(file, 4).dump({key: value.numpy() for key, value in tensors.items()})
