"""Reading checkpoint files without running anything in them."""

import collections
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

__all__ = ['read_pdparams']

# Paddle's parameter names by key, the only entry of its files that is not an array
_PADDLE_NAME_TABLE = 'StructuredToParameterName@@'


def _encode(text: str, encoding: str) -> bytes:
    # A protocol-2 pickle holds bytes as latin-1 text; no other codec has a place in a checkpoint.
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'it wants to encode as {encoding!r}')
    return text.encode('latin-1')


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_FROMBUFFER = np.empty(0).__reduce_ex__(5)[0]


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that rebuilds numpy arrays and nothing else."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ('numpy', 'ndarray'): np.ndarray,
        ('numpy', 'dtype'): np.dtype,
        # numpy 2 renamed numpy.core to numpy._core; files carry the name of the numpy that wrote
        # them
        ('numpy.core.multiarray', '_reconstruct'): _RECONSTRUCT,
        ('numpy._core.multiarray', '_reconstruct'): _RECONSTRUCT,
        ('numpy.core.numeric', '_frombuffer'): _FROMBUFFER,
        ('numpy._core.numeric', '_frombuffer'): _FROMBUFFER,
        ('_codecs', 'encode'): _encode,
        ('collections', 'OrderedDict'): collections.OrderedDict,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it wants to load '{module}.{name}', which is no part of a dictionary of arrays"
            ) from None


def read_pdparams(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a Paddle .pdparams file: a pickled dictionary of numpy arrays.

    The file is untrusted: only numpy's own array rebuilding is admitted, so no code in it can run.

    Returns:
        Tensors by Paddle's structured names, without Paddle's own table of parameter names.

    Raises:
        ValueError: The file is no pickle, is cut short, wants anything but arrays, or holds none.
    """
    what = f'Cannot read {path} as a Paddle .pdparams file'
    try:
        with open(path, 'rb') as file:
            content = _ArraysOnly(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails anywhere inside pickle and numpy
        raise ValueError(f'{what}: {error}.') from error
    if not isinstance(content, dict):
        raise ValueError(f'{what}: it holds {type(content).__name__}, not a dict.')
    content.pop(_PADDLE_NAME_TABLE, None)
    if not content:
        raise ValueError(f'{what}: it holds no arrays. Download it again.')
    for key, value in content.items():
        # Paddle writes bfloat16 as uint16, so integers are no weights to be had as they are
        if not isinstance(value, np.ndarray) or value.dtype.kind != 'f':
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(
                f'{what}: the entry {key!r} is {kind}, not floating-point numbers. '
                'Save bfloat16 as float32 in Paddle first.'
            )
    return {key: torch.tensor(value) for key, value in content.items()}
