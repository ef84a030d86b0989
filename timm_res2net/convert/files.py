"""Reading checkpoint files without running anything in them."""

import argparse
import collections
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import safetensors
import torch

__all__ = ['Checkpoint', 'read_checkpoint', 'read_pdparams']

# Paddle's parameter names by key, the only entry of its files that is not an array
_PADDLE_NAME_TABLE = 'StructuredToParameterName@@'
# Where checkpoints keep their weights, the averaged ones first, as timm prefers them
_ENTRIES = (
    'state_dict_ema', 'model_ema', 'ema_state_dict', 'state_dict', 'model', 'model_state_dict',
    'net', 'network', 'params',
)  # fmt: skip
# What DistributedDataParallel and torch.compile put in front of every key
_WRAPPERS = ('module.', '_orig_mod.')
_LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch.save before 1.6 begins so


class Checkpoint(NamedTuple):
    """What a file held.

    Attributes:
        tensors: Floating-point tensors on the CPU by their keys, float32 or wider; those of
            `num_batches_tracked` are integers.
        format: 'safetensors', 'torch', 'torch (legacy)' or 'pickled arrays'.
        entry: The entry of the file that held them, '' if they were the file.
        widened: How many were float16 or bfloat16.
    """

    tensors: dict[str, torch.Tensor]
    format: str
    entry: str = ''
    widened: int = 0


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


def _unpickle(path: str | Path, what: str) -> dict[Any, Any]:
    try:
        with open(path, 'rb') as file:
            content = _ArraysOnly(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails anywhere inside pickle and numpy
        raise ValueError(f'{what}: {error}.') from error
    if not isinstance(content, dict):
        raise ValueError(f'{what}: it holds {type(content).__name__}, not a dict.')
    return content


def _as_tensors(arrays: Mapping[Any, Any], what: str, size: int) -> dict[str, torch.Tensor]:
    """Arrays as tensors over the same memory.

    Args:
        arrays: What is left of the pickle.
        what: Beginning of an error.
        size: Bytes of the file, which arrays cannot exceed but by a trick.
    """
    if not arrays:
        raise ValueError(f'{what}: it holds no arrays. Download it again.')
    total = 0
    for key, value in arrays.items():
        integer = isinstance(value, np.ndarray) and str(key).endswith('num_batches_tracked')
        # Paddle writes bfloat16 as uint16, so integers are no weights to be had as they are
        if not isinstance(value, np.ndarray) or value.dtype.kind not in ('fi' if integer else 'f'):
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(
                f'{what}: the entry {key!r} is {kind}, not floating-point numbers. '
                'Save bfloat16 as float32 in Paddle first.'
            )
        total += value.nbytes
    if total > size:
        raise ValueError(f'{what}: its arrays claim {total:,} bytes and it has {size:,}.')
    tensors = {}
    for key, value in arrays.items():
        native = value.astype(value.dtype.newbyteorder('='), copy=False)
        # arrays that unpickling laid over the file's bytes are read-only, which torch warns of
        tensors[str(key)] = torch.from_numpy(native if native.flags.writeable else native.copy())
    return tensors


def read_pdparams(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a Paddle .pdparams file: a pickled dictionary of numpy arrays.

    The file is untrusted: only numpy's own array rebuilding is admitted, so no code in it can run.

    Returns:
        Tensors by Paddle's structured names, without Paddle's own table of parameter names.

    Raises:
        ValueError: The file is no pickle, is cut short, wants anything but arrays, or holds none.
    """
    what = f'Cannot read {path} as a Paddle .pdparams file'
    content = _unpickle(path, what)
    content.pop(_PADDLE_NAME_TABLE, None)
    return _as_tensors(content, what, Path(path).stat().st_size)


def _is_weights(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(value, torch.Tensor | np.ndarray) for value in content.values()
    )


def _find_weights(content: Any, wanted: str | None, what: str) -> tuple[Mapping[str, Any], str]:
    """The state dict in what a file held, and the entry that it stood in."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f'{what}: it holds {type(content).__name__}, not a state dict. Save '
            '`model.state_dict()`, not the model.'
        )
    if wanted is not None:
        if not _is_weights(content.get(wanted)):
            found = [str(key) for key, value in content.items() if _is_weights(value)]
            raise ValueError(
                f'{what}: it has no weights in an entry {wanted!r}. '
                + (f'Use one of {", ".join(found)}.' if found else 'Name none.')
            )
        return content[wanted], wanted
    if _is_weights(content):
        return content, ''
    for entry in _ENTRIES:
        if _is_weights(content.get(entry)):
            return content[entry], entry
    raise ValueError(
        f'{what}: none of its entries ({", ".join(map(str, list(content)[:10])) or "it is empty"}) '
        f'holds weights. Looked for {", ".join(_ENTRIES)}; name another as the entry.'
    )


def _clean(tensors: Mapping[str, Any], what: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Check and widen the tensors, and take wrappers' prefixes off their keys.

    A prefix goes only if all keys have it, and only from a key's start.
    """
    prefix = ''
    while wrapper := next(
        (w for w in _WRAPPERS if tensors and all(key.startswith(prefix + w) for key in tensors)), ''
    ):
        prefix += wrapper
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f'{what}: the entry {key!r} is {type(value).__name__}, not a tensor. Save a state '
                'dict, with nothing beside its tensors.'
            )
        counter = name.endswith('num_batches_tracked')
        plain = value.layout == torch.strided and value.device.type == 'cpu'
        if not plain or not (value.is_floating_point() or counter) or value.is_quantized:
            raise ValueError(
                f'{what}: the entry {key!r} is a {value.layout} tensor of {value.dtype} on '
                f'{value.device.type}. Save dense floating-point tensors.'
            )
        # a tensor with strides of 0 may claim any size
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f'{what}: the entry {key!r} claims {tuple(value.shape)} and has memory for less.'
            )
        value = value.detach()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()  # exact
        yield name, value.contiguous()


def _check_zip(path: Path, what: str) -> None:
    """Refuse an archive that unpacks to more than it is; torch stores its entries as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f'{what}: {error}. Download it again.') from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f'{what}: its entry {packed[0]!r} is compressed, which torch never does.')
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > size:
        raise ValueError(f'{what}: its entries claim {total:,} bytes and it has {size:,}.')


def _read_torch(path: Path, what: str, legacy: bool) -> Any:
    if not legacy:
        _check_zip(path, what)
    try:
        # timm's train.py keeps its arguments in a Namespace, which only holds values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=not legacy)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails anywhere inside torch
        wanted = re.search(r'GLOBAL (\S+)', str(error))
        if wanted:
            raise ValueError(
                f"{what}: it wants to load '{wanted[1]}', which no weights need. Nothing in it was "
                'run. If you trust where it comes from, save its weights alone, with '
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')."
            ) from error
        first = (str(error) or type(error).__name__).splitlines()[0].rstrip('.')
        raise ValueError(f'{what}: {first}. Download it again.') from error


def read_checkpoint(path: str | Path, entry: str | None = None) -> Checkpoint:
    """Read the weights of a checkpoint: safetensors, a file of torch.save (.pth, .pt, .bin, .tar),
    or a pickled dictionary of arrays (.pdparams, detectron2's .pkl).

    The content decides, not the name. The file is untrusted: no code in it can run, and what it
    claims to hold cannot exceed its size. Files of torch.save (1.6 or newer) and safetensors are
    mapped into memory, not read.

    Args:
        path: The file.
        entry: Which entry of the file holds the weights. By default the file itself, or the first
            there is of 'state_dict_ema', 'model_ema', 'ema_state_dict', 'state_dict', 'model',
            'model_state_dict', 'net', 'network' and 'params'.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a file of another kind, damaged, wants to load more than weights, or has
            none in that entry; the text names what it was.
    """
    path = Path(path)
    what = f'Cannot read {path} as a checkpoint'
    with open(path, 'rb') as file:
        start = file.read(16)
    size = path.stat().st_size
    if not start:
        raise ValueError(f'{what}: it is empty. Download it again.')
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= size:
        try:
            with safetensors.safe_open(path, framework='pt') as found:
                content: Any = {key: found.get_tensor(key) for key in found.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f'{what}: {error}. Download it again.') from error
        kind = 'safetensors'
    elif start[:4] == b'PK\x03\x04' or start.startswith(_LEGACY_TORCH):
        legacy = start[:2] != b'PK'
        content = _read_torch(path, what, legacy)
        kind = 'torch (legacy)' if legacy else 'torch'
    elif start[:1] == b'\x80':
        content = _unpickle(path, what)
        content.pop(_PADDLE_NAME_TABLE, None)
        kind = 'pickled arrays'
    else:
        raise ValueError(
            f'{what}: it begins with {start!r}, as no safetensors, .pth or .pdparams does. '
            'Download it again.'
        )
    found_in, where = _find_weights(content, entry, what)
    if kind == 'pickled arrays':
        found_in = _as_tensors(found_in, what, size)
    narrow = sum(
        isinstance(value, torch.Tensor) and value.is_floating_point() and value.element_size() < 4
        for value in found_in.values()
    )
    return Checkpoint(dict(_clean(found_in, what)), kind, where, narrow)
