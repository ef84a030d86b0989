"""Read checkpoint files without running anything in them, and say what other files are."""

import argparse
import hashlib
import io
import re
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..files import read_file
from ..layers.text import first_line
from .engine import COUNTER
from .mindspore import read_ckpt
from .pickles import HARMLESS, Array, unpickle_arrays

ENTRIES = (
    'state_dict_ema', 'model_ema', 'state_dict', 'model', 'model_state_dict', 'net', 'network',
    'params',
)  # fmt: skip
"""Entries that hold the weights. Averaged weights come first, as in timm."""
_DEPTH = 4  # of entries in entries
_LEGACY_TORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # start of a file of torch before 1.6


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: The file.
        format: 'safetensors', 'torch', 'torch (legacy)', 'pickled arrays' or 'MindSpore'.
        values: What the file holds by its keys. `take` makes tensors of it.
        entry: The entry of the file that holds the weights; '' if the file holds nothing else.
        others: Other entries that hold weights, such as 'ema.module'.
        training: Arguments by name that timm's train.py saved with the weights.
        sha256: The sha256 of the file.
    """

    path: Path
    format: str
    values: dict[str, Any]
    entry: str = ''
    others: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ''

    def take(self, keys: Collection[str]) -> dict[str, torch.Tensor]:
        """Return some of the tensors on the CPU.

        Args:
            keys: Their keys.

        Returns:
            Float32 or wider tensors by key, except the integers of `num_batches_tracked`.

        Raises:
            ValueError: One of them is not a dense tensor of floating-point numbers. The others may
                be anything.
        """
        try:
            tensors = {key: _dense(key, self.values[key]) for key in keys}
        except ValueError as error:
            raise ValueError(f'Cannot read {self.path} as a checkpoint: {error}') from error
        self.values.update(tensors)  # do not keep arrays in memory twice
        return {
            key: value.float() if value.is_floating_point() and value.element_size() < 4 else value
            for key, value in tensors.items()
        }

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors; errors as in `take`."""
        return self.take(self.values.keys())


SHARDED = (
    'it holds parts of tensors, of sharded training. Save whole ones with `get_model_state_dict('
    'model, options=StateDictOptions(full_state_dict=True))`, or make a file of a folder with '
    '`dcp_to_torch_save(FOLDER, FILE)`.'
)
"""What is said of files of FSDP and of torch.distributed.checkpoint."""


def _dense(key: str, value: Any) -> torch.Tensor:
    """Return a value as a tensor that is dense and floating-point."""
    tensor = value.tensor(key) if isinstance(value, Array) else value
    if hasattr(tensor, 'full_tensor'):  # a DTensor
        raise ValueError(SHARDED)
    number = tensor.is_floating_point() or key.endswith(COUNTER)
    if tensor.layout != torch.strided or not number:
        raise ValueError(
            f'the entry {key!r} is a {tensor.layout} tensor of {tensor.dtype}. Save dense '
            'floating-point tensors (Paddle writes bfloat16 as integers: cast it to float32 first).'
        )
    return tensor.detach().contiguous()


# --- which part of the content is weights ---------------------------------------------------------


def _flatten(content: Any, depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and arrays of a dictionary and of those in it, with the path as key."""
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, torch.Tensor | Array):
            yield key, value
        elif isinstance(value, Mapping) and depth:
            for inner, tensor in _flatten(value, depth - 1):
                yield f'{key}.{inner}', tensor


def _is_matrix(value: Any) -> bool:
    """Return whether a value has two dimensions or more, as no statistic of a training has."""
    shape = value.shape if isinstance(value, torch.Tensor | Array) else ()
    return isinstance(shape, tuple) and len(shape) > 1


def _entries(content: Any, path: str = '', depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield the dictionaries with weights that are in a dictionary, by path."""
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            inner = f'{path}.{key}' if path else key
            if any(map(_is_matrix, value.values())):
                yield inner, value
            elif depth:
                yield from _entries(value, inner, depth - 1)


def _find_weights(content: Any, wanted: str | None) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Return the state dict in the content of a file, its entry or '', and other entries."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f'it holds {type(content).__name__}, not a state dict. Save `model.state_dict()`, not '
            'the model.'
        )
    entries = dict(_entries(content))
    if wanted is not None and wanted not in entries:
        raise ValueError(
            f'it has no weights in an entry {wanted!r}. '
            + (f'Use one of {", ".join(entries)}.' if entries else 'Leave the entry out.')
        )
    entry = wanted or next((name for name in ENTRIES if name in entries), '')
    values = dict(_flatten(entries[entry] if entry else content))
    if values:
        return values, entry, tuple(name for name in entries if entry and name != entry)
    names = ', '.join(str(key)[:80] for key in list(content)[:10] if isinstance(key, str))
    raise ValueError(
        f'none of its entries ({names or "it has none"}) holds weights. Give the file that '
        '`torch.save(model.state_dict(), ...)` wrote.'
    )


def _training(content: Any) -> dict[str, Any]:
    """Return the arguments of timm's train.py from a checkpoint of its CheckpointSaver."""
    args = content.get('args')
    arguments = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    if isinstance(content.get('arch'), str):
        arguments['model'] = content['arch']
    optimizer = content.get('optimizer')
    if arguments and isinstance(optimizer, Mapping) and optimizer.get('state') == {}:
        groups = optimizer.get('param_groups') or [{}]
        # after a step it holds momenta, if there are any
        arguments['has_steps'] = groups[0].get('momentum') == 0
    return arguments


# --- the formats ----------------------------------------------------------------------------------


def _check_zip(raw: bytes) -> None:
    """Refuse an archive that is not torch's, or is damaged.

    torch ignores the checksums in its archives. It writes 0 for all if it is told to compute none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = sorted(archive.namelist())
            inner = [name.partition('/')[2] for name in names]  # torch puts all of it in one folder
            if 'data.pkl' not in inner or 'constants.pkl' in inner:
                raise ValueError(
                    f'it is a zip archive that `torch.save` did not write ({", ".join(names[:3])}).'
                    ' Load TorchScript with `torch.jit.load` or a .pt2 with `torch.export.load`, '
                    'and save its state dict; unpack any other archive.'
                )
            checked = any(entry.CRC for entry in archive.infolist())
            damaged = archive.testzip() if checked else None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise _damage(error) from error
    if damaged is not None:
        raise ValueError(
            f'its entry {damaged!r} is damaged: the archive has another checksum for it. Download '
            'or copy it again.'
        )


def _damage(error: Exception) -> ValueError:
    return ValueError(f'it is cut short or damaged ({first_line(error)}). Download it again.')


def _read_torch(raw: bytes) -> Any:
    try:
        # timm's train.py saves its arguments as a Namespace, which only holds values
        allowed = [argparse.Namespace, *((record, name) for name, record in HARMLESS.items())]
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
            return torch.load(io.BytesIO(raw), map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside torch
        wanted = re.search(r'GLOBAL (\S+)', str(error))
        if not wanted and 'weights_only' not in str(error):
            raise _damage(error) from error
        if wanted and wanted[1].startswith('torch.distributed.'):
            raise ValueError(SHARDED) from error
        asked = f"it wants to load '{wanted[1]}'" if wanted else 'it wants more than tensors'
        if wanted and all(part in raw for part in (b'_modules', b'_parameters')):
            asked = f'it is a whole model, pickled with its classes: {asked}'
        raise ValueError(
            f'{asked}. Nothing in it was run. If you trust the file, load it with the code that '
            'wrote it, and save the state dict: `torch.save(model.state_dict(), ...)`.'
        ) from error


def _read_safetensors(raw: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load(raw)
    except safetensors.SafetensorError as error:
        raise _damage(error) from error
    return {key: tensors[key] for key in sorted(tensors)}  # they come in any order


_OTHER_FILES = {
    rb'version https://git-lfs': 'it is a Git LFS pointer, a text in place of the file. Fetch the '
    'file with `git lfs pull`, or download it from its page.',
    rb'(?i)\s*(<!doctype html|<html|<head|<!--|<script|<\?xml)': 'it is a web page: the server '
    'sent HTML or XML in place of the file, such as a login. Download the file in a browser.',
    rb'(?s)\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar': 'it is an archive '
    '(gzip, bzip2, xz, zstd, 7z, RAR or tar). Unpack it, and give the checkpoint in it.',
}
"""What to say of a file, by the regular expression that its start matches."""


def _parse(raw: bytes) -> tuple[Any, str]:
    """Return the content of a file and its format, as in `Checkpoint`."""
    start = raw[:512]
    for pattern, text in _OTHER_FILES.items():
        if re.match(pattern, start):
            raise ValueError(text)
    header = int.from_bytes(start[:8], 'little')  # of safetensors: the length of its JSON
    if start[8:9] == b'{' and header <= len(raw):
        return _read_safetensors(raw), 'safetensors'
    if start[:4] == b'PK\x03\x04':
        _check_zip(raw)
        return _read_torch(raw), 'torch'
    if start.startswith(_LEGACY_TORCH):
        return _read_torch(raw), 'torch (legacy)'
    if start[:1] == b'\x80':
        return unpickle_arrays(raw), 'pickled arrays'
    if start[:1] == b'\n':
        return read_ckpt(raw), 'MindSpore'
    raise ValueError(
        f'it begins with {start[:16]!r}, unlike safetensors, .pth, .pdparams and .ckpt files. Give '
        'the file with the weights.'
    )


def read_checkpoint(path: str | Path, entry: str | None = None) -> Checkpoint:
    """Read a checkpoint file.

    It may be safetensors, a file of `torch.save` (.pth, .pt, .bin, .tar), a pickled dictionary of
    arrays (.pdparams, detectron2's .pkl), or a checkpoint of MindSpore (.ckpt). The content
    decides, not the name.

    The file is untrusted: no code in it can run. A crafted file can exhaust memory or end the
    process.

    Args:
        path: The file.
        entry: Entry of the file that holds the weights; 'ema.module' is the entry 'module' of the
            entry 'ema'. By default it is the first of 'state_dict_ema', 'model_ema', 'state_dict',
            'model', 'model_state_dict', 'net', 'network' and 'params' that the file has, or else
            the whole file.

    Returns:
        Its content, and the entry that it comes from.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is of another kind, is damaged, asks for more than weights, or has no
            weights in the entry. The text says which.
    """
    path = Path(path)
    try:
        if path.suffix == '.distcp' or path.name == '.metadata':  # of torch.distributed.checkpoint
            raise ValueError(SHARDED)
        raw = read_file(path, sys.maxsize)
        content, kind = _parse(raw)
        values, entry, others = _find_weights(content, entry)
    except ValueError as error:
        raise ValueError(f'Cannot read {path} as a checkpoint: {error}') from error
    sha256 = hashlib.sha256(raw).hexdigest()
    return Checkpoint(path, kind, values, entry, others, _training(content), sha256)
