"""Writing files and folders so that an error leaves nothing half-written."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE_SUFFIXES = (
    '.bin', '.ckpt', '.npz', '.onnx', '.pdparams', '.pkl', '.pt', '.pt2', '.pth', '.safetensors',
    '.tar', '.zip',
)  # fmt: skip
"""Suffixes that the name of a folder must not have. Others are parts of names, as in NAME.TAG."""


def check_writable(path: Path, *, folder: bool = False, replace: bool = False) -> Path:
    """Check that a file or a folder can be written at a path.

    Args:
        path: The path to write to.
        folder: Whether a folder will be written. An empty one may already exist.
        replace: Whether an existing file may be replaced.

    Returns:
        The path without symbolic links.

    Raises:
        ValueError: A folder is to be written and its name is a file's.
        FileExistsError: Something that may not be replaced exists at the path.
        IsADirectoryError: A file is to be written and the path is a folder.
        FileNotFoundError: The parent folder does not exist.
        OSError: The parent folder is not writable.
    """
    resolved = path.resolve()
    if folder and path.suffix.lower() in FILE_SUFFIXES:
        raise ValueError(
            f'A folder is written, and {path} is the name of a file. Name the folder {path.stem}.'
        )
    if replace and resolved.is_dir():
        raise IsADirectoryError(f'Cannot write {path}: it is a folder. Name a file.')
    is_empty = folder and resolved.is_dir() and not any(resolved.iterdir())
    if resolved == Path.cwd() or (resolved.exists() and not is_empty and not replace):
        raise FileExistsError(f'{path} already exists. Choose another name, or remove it first.')
    if not resolved.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {path}: there is no folder '{resolved.parent}'. Create it first."
        )
    try:
        with tempfile.TemporaryFile(dir=resolved.parent):
            pass
    except OSError as error:
        raise OSError(
            f'Cannot write {path} ({error.strerror}). Choose a path in a folder you can write to.'
        ) from error
    return resolved


def write_file(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file under a temporary name next to `path`, then rename it.

    Args:
        path: The file. It is replaced if it exists.
        write: Called with the open binary file.
    """
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, delete=False) as file:
        try:
            write(file)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # already renamed
                os.unlink(file.name)
            raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` that is renamed to `path` when the block ends."""
    made = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=f'.{path.name}-'))
    try:
        yield made
        made.chmod(0o755)
        os.replace(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
