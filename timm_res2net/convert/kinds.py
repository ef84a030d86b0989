"""Say what a file is if it is not a checkpoint, and what to do with it."""

import re
from collections.abc import Collection

_UNPACK = 'Unpack it, and give the checkpoint in it.'
_EXPORTED = 'has no state dict to convert. Give the checkpoint that it was exported from.'
SAVE_ONE = (
    'Weights in several files are not read: load them with the code that wrote them, and save one '
    "file, `torch.save(model.state_dict(), 'model.pth')`."
)
"""The remedy for a part of a checkpoint, or for the index of its parts."""
# How other files begin, and what to say of them
_STARTS: tuple[tuple[bytes, str], ...] = (
    (
        rb'version https://git-lfs',
        'it is a Git LFS pointer, a text in place of the file. Fetch the file with `git lfs pull`, '
        'or download it from its page.',
    ),
    (
        rb'(?i)\s*(<!doctype html|<html|<head|<!--|<script)',
        'it is an HTML page: the server sent a page in place of the file, such as a login or a '
        'confirmation. Download the file in a browser.',
    ),
    (rb'\s*<\?xml', 'it is XML, such as a refusal of the server. Download the file in a browser.'),
    (rb'\s*\{', f'it is JSON, such as an index of shards. {SAVE_ONE}'),
    (rb'\x1f\x8b', f'it is compressed with gzip. {_UNPACK}'),
    (rb'BZh', f'it is compressed with bzip2. {_UNPACK}'),
    (rb'\xfd7zXZ', f'it is compressed with xz. {_UNPACK}'),
    (rb'\x28\xb5\x2f\xfd', f'it is compressed with zstd. {_UNPACK}'),
    (rb'7z\xbc\xaf|Rar!', f'it is a 7z or RAR archive. {_UNPACK}'),
    (rb'(?s).{257}ustar', f'it is a tar archive. {_UNPACK}'),
    (
        rb'\x89HDF',
        'it is HDF5 (.h5), as Keras writes it, and no Keras layout is known. Give a .pth, '
        '.safetensors or .pdparams file.',
    ),
    (
        rb'\x93NUMPY',
        'it is a single numpy array (.npy). Give the file with all the weights.',
    ),
    (rb'(?s)\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]', f'it is ONNX, which {_EXPORTED}'),
    (rb'(?s).{4}TFL3', f'it is TensorFlow Lite, which {_EXPORTED}'),
    (rb'GGUF', f'it is GGUF, which {_EXPORTED}'),
)


def describe_start(start: bytes) -> str:
    """Return a sentence on a file that is no checkpoint, and the remedy.

    Args:
        start: Its first 512 bytes, or all of it if it is shorter.
    """
    for pattern, text in _STARTS:
        if re.match(pattern, start):
            return text
    return (
        f'it begins with {start[:16]!r}, unlike safetensors, .pth, .pdparams and .ckpt files. Give '
        'the file with the weights.'
    )


def describe_archive(names: Collection[str]) -> str:
    """Return a sentence on a zip archive that `torch.save` did not write, '' if it did.

    Args:
        names: The names in the archive.
    """
    inner = {name.partition('/')[2] for name in names}  # torch puts all of it in one folder
    if 'constants.pkl' in inner or any(name.startswith('code/') for name in inner):
        return (
            'it is a TorchScript archive. Load it with `torch.jit.load`, and save its state dict: '
            '`torch.save(model.state_dict(), ...)`.'
        )
    if 'data.pkl' in inner:
        return ''
    both = inner.union(names)
    if 'archive_format' in both or any('exported_program' in name for name in both):
        return (
            'it is a .pt2 of torch.export. Load it with `torch.export.load`, and save its state '
            'dict: `torch.save(program.state_dict, ...)`.'
        )
    if names and all(name.endswith('.npy') for name in names):
        return (
            'it is .npz, arrays of numpy. Save them as tensors: '
            '`torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, ...)`.'
        )
    some = ', '.join(sorted(names)[:3]) or 'nothing'
    return f'it is a zip archive, with {some} in it. {_UNPACK}'
