"""Read and write pickled dictionaries of numpy arrays. The files are untrusted.

A pickle can only call and change what `find_class` returns, so a table of inert records and
functions closes the unpickler. numpy's own unpickling is not safe: if a pickle changes a dtype
after it has made an array with it, the file can release memory of its choice. So no numpy object is
made while a pickle is read. Arrays and dtypes are read as records, and each record is checked as a
whole before its numbers are copied.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import torch

from ..layers.text import first_line


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
        if not known or not self.plain or self.order not in ('<', '>', '=', '|'):
            return None
        return np.dtype(self.order + self.code)


class Array:
    """The record of an array."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.fortran: Any = False
        self.raw: Any = b''

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self.dtype, self.fortran, self.raw = state[-4:]

    def tensor(self, key: str) -> torch.Tensor:
        """Return a copy of the numbers, and free the array's own.

        Args:
            key: The key of the array, for errors.

        Raises:
            ValueError: The array does not hold plain numbers, or has not as many as its shape.
        """
        dtype = self.dtype.numpy() if isinstance(self.dtype, _Dtype) else None
        if dtype is None:
            kind = repr(self.dtype.code) if isinstance(self.dtype, _Dtype) else 'none'
            raise ValueError(
                f'the entry {key!r} is an array of the type {kind}, not of numbers. Save it as '
                'float32.'
            )
        sizes = isinstance(self.shape, tuple) and all(type(n) is int and n >= 0 for n in self.shape)
        raw = self.raw if sizes and isinstance(self.raw, bytes | bytearray) else b''
        if not sizes or math.prod(self.shape) * dtype.itemsize != len(raw):
            raise ValueError(
                f'the entry {key!r} does not have as many bytes as its shape needs. Download the '
                'file again.'
            )
        numbers = np.frombuffer(raw, dtype).reshape(self.shape, order='F' if self.fortran else 'C')
        native = dtype.newbyteorder('=')
        tensor = torch.from_numpy(np.array(numbers, dtype=native, order='C', copy=True))
        self.raw = b''  # do not keep all arrays in memory twice
        return tensor


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


def _sequence(*_: Any) -> list[Any]:
    return []


def _no_bytes(*_: Any) -> bytes:  # a pickle of protocol 2 calls bytes() for an empty array
    return b''


_ALLOWED: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): Array,
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


class _Ignored:
    """The record of an object that is not read, with any arguments."""

    def __new__(cls, *_: Any) -> '_Ignored':
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _Dictionary:
    """A subclass of dict, which becomes a dict."""

    def __new__(cls, *_: Any) -> dict[str, Any]:  # type: ignore[misc]
        return {}


_PATHS = ('Path', 'PurePath', 'PosixPath', 'PurePosixPath', 'WindowsPath', 'PureWindowsPath')
_IGNORED = {
    # factories of a defaultdict; a HistoryBuffer asks for its methods with getattr
    'builtins': ('list', 'dict', 'tuple', 'int', 'float', 'str', 'bool', 'getattr'),
    'pathlib': _PATHS,
    'pathlib._local': _PATHS,
    'datetime': ('date', 'datetime', 'time', 'timedelta', 'timezone'),
    'types': ('SimpleNamespace',),
    'mmengine.logging.history_buffer': ('HistoryBuffer',),
    'numpy': ('mean', 'min', 'max'),  # the statistics of a HistoryBuffer
}
HARMLESS: dict[str, Any] = {
    **{
        f'{module}.{name}': record
        for (module, name), record in _ALLOWED.items()
        if module.startswith('numpy')
    },
    'collections.defaultdict': _mapping,
    'collections.deque': _sequence,
    'builtins.bytes': _no_bytes,
    'lightning.fabric.utilities.data.AttributeDict': _Dictionary,
    'lightning_fabric.utilities.data.AttributeDict': _Dictionary,
    'pytorch_lightning.utilities.parsing.AttributeDict': _Dictionary,
    **{f'{module}.{name}': _Ignored for module, names in _IGNORED.items() for name in names},
}
"""Inert records for what training scripts save beside weights, by the name in the file.

A file of `torch.save` that asks for one of these names gets the record. Nothing of the name's own
module is called or imported.
"""


class _UnknownName(ValueError):
    """A file asks for a name that is not in the table."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows nothing but the records of this module.

    The opcode BUILD can write attributes of a function. So every name gives a new function, which
    no other file gets and which leads to no class.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return a function that makes the record of a name. pickle calls this method."""
        record = _ALLOWED.get((module, name))
        if record is None:
            raise _UnknownName(
                f"it wants to load '{module}.{name}', which a dictionary of arrays does not need."
            )
        return lambda *args: record(*args)


def unpickle_arrays(raw: bytes) -> Any:
    """Unpickle a file, with each array as an `Array`.

    A crafted file runs no code, but can exhaust memory or end the process.

    Args:
        raw: The content of a file.

    Raises:
        ValueError: It is not a pickle, is cut short, or asks for more than arrays.
    """
    try:
        return _Unpickler(io.BytesIO(raw)).load()
    except _UnknownName:
        raise
    except Exception as error:  # a damaged pickle can fail anywhere inside pickle
        raise ValueError(
            f'it is cut short or damaged as a pickle ({first_line(error)}). Download it again.'
        ) from error


def dump_arrays(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Pickle tensors as a dictionary of numpy arrays, as `paddle.save` does.

    Args:
        tensors: Tensors on the CPU, by key.
        file: The open file.
    """
    # Protocol 2 would store bytes as text, half as large again.
    pickled = pickle.dumps({key: value.numpy() for key, value in tensors.items()}, 3)
    # numpy 2 reads the module's name of numpy 1, and numpy 1 only its own. It is written once.
    file.write(pickled.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n', 1))
