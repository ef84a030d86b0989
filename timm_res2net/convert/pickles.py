"""Read and write pickled dictionaries of numpy arrays. The files are untrusted.

A pickle can only call and change what `find_class` returns, so a table of inert records and
functions closes the unpickler. numpy's own unpickling is not safe: if a pickle changes a dtype
after it has made an array with it, the file can release memory of its choice. So no numpy object is
made while a pickle is read. Arrays and dtypes are read as records, and each record is checked as a
whole before its numbers are copied.
"""

import io
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
        _, self.order, *structure = state[:5]
        self.plain = structure == [None, None, None]


class Array:
    """The record of an array.

    Attributes:
        shape: Its shape, as the file has it.
    """

    def __init__(self, *_: Any) -> None:
        self.__setstate__(((), None, False, b''))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self._dtype, self._fortran, self._raw = state[-4:]

    def tensor(self, key: str) -> torch.Tensor:
        """Return a copy of the numbers.

        Args:
            key: The key of the array, for errors.

        Raises:
            ValueError: The array does not hold plain numbers, or has not as many as its shape.
        """
        kind = self._dtype if isinstance(self._dtype, _Dtype) else _Dtype()
        known = re.fullmatch('f[248]|[iu][1248]', str(kind.code)) and kind.order in tuple('<>=|')
        if not known or not kind.plain:
            raise ValueError(
                f'the entry {key!r} is an array of the type {kind.code!r}, not of numbers. Save it '
                'as float32.'
            )
        dtype = np.dtype(f'{kind.order}{kind.code}')
        try:
            numbers = np.frombuffer(self._raw, dtype)
            numbers = numbers.reshape(self.shape, order='F' if self._fortran else 'C')
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'the entry {key!r} is damaged ({first_line(error)}). Download the file again.'
            ) from error
        return torch.from_numpy(np.array(numbers, dtype=dtype.newbyteorder('='), order='C'))


def _reconstruct(*_: Any) -> Array:
    return Array()


def _scalar(dtype: Any = None, raw: Any = b'', *_: Any) -> Array:
    return _frombuffer(raw, dtype, (), 'C')


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.__setstate__((shape, dtype, order == 'F', raw))
    return array


def _encode(text: str, *_: Any) -> bytes:
    return text.encode('latin-1')  # a pickle of protocol 2 stores bytes so, and in no other codec


def _mapping(*_: Any) -> dict[str, Any]:
    return {}


def _sequence(*_: Any) -> list[Any]:
    return []


class _Dictionary:
    """A subclass of dict, which becomes a dict."""

    def __new__(cls, *_: Any) -> dict[str, Any]:  # type: ignore[misc]
        return {}


class _Ignored:
    """The record of an object that is not read, with any arguments."""

    def __new__(cls, *_: Any) -> '_Ignored':
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# numpy 2 renamed numpy.core to numpy._core. A file has the name of the numpy that wrote it.
_NUMPY: dict[str, Any] = {
    'numpy.ndarray': Array,
    'numpy.dtype': _Dtype,
    **{
        f'numpy.{core}.{name}': record
        for core in ('core', '_core')
        for name, record in {
            'multiarray._reconstruct': _reconstruct,
            'multiarray.scalar': _scalar,
            'numeric._frombuffer': _frombuffer,
        }.items()
    },
}
_ALLOWED = {**_NUMPY, '_codecs.encode': _encode, 'collections.OrderedDict': _mapping}
_PATHS = ('Path', 'PurePath', 'PosixPath', 'PurePosixPath', 'WindowsPath', 'PureWindowsPath')
_IGNORED = {
    # factories of a defaultdict; protocol 2 calls bytes() for an empty array; a HistoryBuffer asks
    # for its methods with getattr
    'builtins': ('bytes', 'list', 'dict', 'tuple', 'int', 'float', 'str', 'bool', 'getattr'),
    'pathlib': _PATHS,
    'pathlib._local': _PATHS,
    'datetime': ('date', 'datetime', 'time', 'timedelta', 'timezone'),
    'types': ('SimpleNamespace',),
    'mmengine.logging.history_buffer': ('HistoryBuffer',),
    'numpy': ('mean', 'min', 'max'),  # the statistics of a HistoryBuffer
}
HARMLESS: dict[str, Any] = {
    **_NUMPY,
    'collections.defaultdict': _mapping,
    'collections.deque': _sequence,
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
        record = _ALLOWED.get(f'{module}.{name}')
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
