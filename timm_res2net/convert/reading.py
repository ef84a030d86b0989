"""Read checkpoint files without running anything in them."""

import argparse
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import safetensors
import torch

from ..text import first_line
from .fit import is_counter
from .safe_pickle import Array, unpickle_arrays

# Paddle's table of parameter names, the only entry of its files that is not an array
_PADDLE_NAME_TABLE = 'StructuredToParameterName@@'
# Entries that hold the weights. Averaged weights come first, as in timm.
_ENTRIES = (
    'state_dict_ema', 'model_ema', 'state_dict', 'model', 'model_state_dict', 'net', 'network',
    'params',
)  # fmt: skip
# The counter that torch's AveragedModel adds to its state dict
_COUNTER = 'n_averaged'
# Prefixes that DistributedDataParallel and torch.compile add to every key
_WRAPPERS = ('module.', '_orig_mod.')
_LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # start of a file of torch before 1.6


class Checkpoint(NamedTuple):
    """The content of a checkpoint file.

    Attributes:
        tensors: Tensors on the CPU by their keys: float32 or wider, except the integers of
            `num_batches_tracked`.
        format: 'safetensors', 'torch', 'torch (legacy)' or 'pickled arrays'.
        entry: The entry of the file that holds the tensors; '' if the file holds nothing else.
        widened: Number of tensors that were converted from float16 or bfloat16.
        training: Arguments by name that timm's train.py saved with the weights.
    """

    tensors: dict[str, torch.Tensor]
    format: str
    entry: str = ''
    widened: int = 0
    training: Mapping[str, Any] = MappingProxyType({})


def _as_tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return arrays as tensors and free the arrays."""
    if not arrays:
        raise ValueError('it holds no arrays. Download it again.')
    tensors = {}
    for key, value in arrays.items():
        tensor = value.tensor() if isinstance(value, Array) else None
        # Integers are not weights: Paddle writes bfloat16 as uint16.
        if tensor is None or not (tensor.is_floating_point() or is_counter(key)):
            kind = value.kind() if isinstance(value, Array) else type(value).__name__
            if isinstance(value, Array) and kind.startswith('float'):
                raise ValueError(
                    f'the entry {key!r} does not have as many bytes as its shape needs. Download '
                    'the file again.'
                )
            raise ValueError(
                f'the entry {key!r} is {kind}, not floating-point numbers. Save bfloat16 as '
                'float32 in Paddle first.'
            )
        tensors[key] = tensor
        if isinstance(value, Array):
            value.raw = b''  # copied above; do not keep all arrays in memory twice
    return tensors


def read_pdparams(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a Paddle .pdparams file: a pickled dictionary of numpy arrays.

    The file is untrusted: nothing in it is run, and only arrays of numbers are made of it.

    Args:
        path: The file.

    Returns:
        Tensors by Paddle's structured names, without Paddle's table of parameter names.

    Raises:
        ValueError: The file is not a pickle, is cut short, holds anything but arrays, or has none.
    """
    try:
        return _as_tensors(_read_arrays(path))
    except ValueError as error:
        raise ValueError(f'Cannot read {path} as a Paddle .pdparams file: {error}') from error


def _read_arrays(path: str | Path) -> dict[str, Any]:
    content = unpickle_arrays(path)
    content.pop(_PADDLE_NAME_TABLE, None)
    return content


def _is_weights(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(value, torch.Tensor | Array) for value in content.values()
    )


def _find_weights(content: Any, wanted: str | None) -> tuple[Mapping[str, Any], str]:
    """Return the state dict in the content of a file, and the name of its entry or ''."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f'it holds {type(content).__name__}, not a state dict. Save '
            '`model.state_dict()`, not the model.'
        )
    if wanted is not None:
        if not _is_weights(content.get(wanted)):
            found = [str(key) for key, value in content.items() if _is_weights(value)]
            raise ValueError(
                f'it has no weights in an entry {wanted!r}. '
                + (f'Use one of {", ".join(found)}.' if found else 'Leave the entry out.')
            )
        return content[wanted], wanted
    for entry in _ENTRIES:
        if _is_weights(content.get(entry)):
            return content[entry], entry
    if _is_weights(content):
        return content, ''
    entries = ', '.join(str(key)[:80] for key in list(content)[:10] if isinstance(key, str))
    raise ValueError(
        f'none of its entries ({entries or "it has none"}) holds weights. Looked for '
        f'{", ".join(_ENTRIES)}. If another entry holds them, name it (--entry).'
    )


def _training(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of timm's train.py from a checkpoint of its CheckpointSaver."""
    args = content.get('args')
    noted = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    if isinstance(content.get('arch'), str):
        noted['model'] = content['arch']
    return noted


def _is_narrow(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.element_size() < 4


def _clean(tensors: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors checked, widened to float32, and without the prefixes of wrappers.

    A prefix is removed only if all keys start with it. The counter of torch's AveragedModel is
    dropped because it is not part of the network.
    """
    odd = [key for key in tensors if not isinstance(key, str)]
    if odd:
        raise ValueError(f'it has keys of type {type(odd[0]).__name__}, not str.')
    tensors = {key: value for key, value in tensors.items() if key != _COUNTER}
    prefix = ''
    while wrapper := next(
        (w for w in _WRAPPERS if tensors and all(key.startswith(prefix + w) for key in tensors)), ''
    ):
        prefix += wrapper
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f'the entry {key!r} is {type(value).__name__}, not a tensor. Save a state '
                'dict that holds nothing but tensors.'
            )
        dense = value.layout == torch.strided and value.device.type == 'cpu'
        number = value.is_floating_point() or is_counter(name)
        if not dense or not number or value.is_quantized:
            raise ValueError(
                f'the entry {key!r} is a {value.layout} tensor of {value.dtype} on '
                f'{value.device.type}. Save dense floating-point tensors.'
            )
        # a tensor with strides of 0 can claim any size
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f'the entry {key!r} claims the shape {tuple(value.shape)}, but has less memory. '
                'Save `tensor.contiguous()`, or use another file.'
            )
        value = value.detach()
        if _is_narrow(value):
            value = value.float()  # exact
        yield name, value.contiguous()


def _has_one_directory(archive: zipfile.ZipFile, path: Path) -> bool:
    """Return whether every reader of the archive finds the same entries.

    Python searches the file's end for the directory, torch follows the offset in the end record.
    They agree if the directory stands at that offset, directly before the end records, and the file
    ends after them.
    """
    with open(path, 'rb') as file:
        file.seek(archive.start_dir)
        tail = file.read()
    end, locator, record = tail[-22:], tail[-42:-22], tail[-98:-42]
    size, offset, comment = struct.unpack('<2LH', end[12:])
    start = archive.start_dir
    if locator[:4] != b'PK\x06\x07':
        return (size, offset, comment) == (len(tail) - 22, start, 0)
    large = (len(tail) - 98, start)
    return (
        comment == 0
        and record[:4] == b'PK\x06\x06'
        and struct.unpack('<2Q', record[40:]) == large
        and struct.unpack('<Q', locator[8:16]) == (start + large[0],)
        and all(
            given in (real, 0xFFFFFFFF) for given, real in zip((size, offset), large, strict=True)
        )
    )


def _check_zip(path: Path) -> None:
    """Refuse an archive that unpacks to more bytes than it has. torch does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not _has_one_directory(archive, path):
                raise ValueError('it does not end as torch writes it. Download it again.')
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f'{error}. Download it again.') from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f'its entry {packed[0]!r} is compressed. torch compresses none.')
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > size:
        raise ValueError(
            f'its entries claim {total:,} bytes, but it has {size:,}. Download it again.'
        )


def _read_torch(path: Path, legacy: bool) -> Any:
    if not legacy:
        _check_zip(path)
    try:
        # timm's train.py saves its arguments as a Namespace, which only holds values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=not legacy)
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail anywhere inside torch
        wanted = re.search(r'GLOBAL (\S+)', str(error))
        if wanted or 'weights_only' in str(error):
            asked = f"it wants to load '{wanted[1]}'" if wanted else 'it wants more than tensors'
            raise ValueError(
                f'{asked}, which weights do not need. Nothing in it was run. If you trust its '
                'source, load it with the code that wrote it and save the state dict alone.'
            ) from error
        raise ValueError(f'{first_line(error)}. Download it again.') from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework='pt') as found:
            return {key: found.get_tensor(key) for key in found.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f'{error}. Download it again.') from error


def _read_content(path: Path) -> tuple[Any, str]:
    """Return the content of a file and its format, as in `Checkpoint`."""
    with open(path, 'rb') as file:
        start = file.read(16)
    if not start:
        raise ValueError('it is empty. Download it again.')
    header = int.from_bytes(start[:8], 'little')  # of safetensors: the length of its JSON
    if start[8:9] == b'{' and header <= path.stat().st_size:
        return _read_safetensors(path), 'safetensors'
    if start[:4] == b'PK\x03\x04':
        return _read_torch(path, legacy=False), 'torch'
    if start.startswith(_LEGACY_TORCH):
        return _read_torch(path, legacy=True), 'torch (legacy)'
    if start[:1] == b'\x80':
        return _read_arrays(path), 'pickled arrays'
    raise ValueError(
        f'it begins with {start!r}, unlike safetensors, .pth and .pdparams files. Download it '
        'again.'
    )


def read_checkpoint(path: str | Path, entry: str | None = None) -> Checkpoint:
    """Read the weights of a checkpoint file.

    It may be safetensors, a file of `torch.save` (.pth, .pt, .bin, .tar), or a pickled dictionary
    of arrays (.pdparams, detectron2's .pkl). The content decides, not the name.

    The file is untrusted: no code in it can run, and its tensors cannot exceed its size. A file of
    `torch.save` can still be made to keep torch's own reader busy, or crash it. Safetensors and
    files of `torch.save` since 1.6 are mapped into memory.

    Args:
        path: The file.
        entry: Entry of the file that holds the weights. By default it is the first of
            'state_dict_ema', 'model_ema', 'state_dict', 'model', 'model_state_dict', 'net',
            'network' and 'params' that the file has, or else the whole file.

    Returns:
        The tensors, and how they were found.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is of another kind, is damaged, asks for more than weights, or has no
            weights in the entry. The text says which.
    """
    try:
        content, kind = _read_content(Path(path))
        found, where = _find_weights(content, entry)
        if kind == 'pickled arrays':
            found = _as_tensors(found)
        narrow = sum(isinstance(v, torch.Tensor) and _is_narrow(v) for v in found.values())
        return Checkpoint(dict(_clean(found)), kind, where, narrow, _training(content))
    except ValueError as error:
        raise ValueError(f'Cannot read {path} as a checkpoint: {error}') from error
