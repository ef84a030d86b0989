"""Atomic writes, reading within bounds, hashes, and which packages are installed.

A file or folder is written in a temporary folder `.NAME.XXXXXXXX.partial` beside its place, and
renamed when it is complete.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj

FILE_SUFFIXES = (
    '.bin', '.ckpt', '.npz', '.onnx', '.pdparams', '.pkl', '.pt', '.pt2', '.pth', '.safetensors',
    '.tar', '.zip',
)  # fmt: skip
"""Suffixes that the name of a folder must not have. Others are parts of names, as in NAME.TAG."""

try:
    VERSION = importlib.metadata.version('timm-res2net')
except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
    VERSION = '0+source'
"""Version of this package, as pyproject.toml states it."""

TEXT_LIMIT = 16 << 20
"""The most bytes of a file that is read whole: config, card, module, labels, golden tensors."""


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
        FileNotFoundError: The parent folder does not exist.
        OSError: The parent folder is not writable, or what is to be replaced is not a file or is
            read-only.
    """
    resolved = path.resolve()
    if folder and path.suffix.lower() in FILE_SUFFIXES:
        raise ValueError(
            f'A folder is written, and {path} is the name of a file. Name the folder {path.stem}.'
        )
    if replace and resolved.exists():
        if not resolved.is_file():
            raise OSError(f'Cannot write {path}: it is a folder, a device or a pipe. Name a file.')
        if not resolved.stat().st_mode & 0o222:  # renaming would replace it all the same
            raise OSError(f'Cannot write {path}: it is read-only. Choose another name.')
    taken = os.path.lexists(resolved) and not (folder and _is_empty(resolved))
    if resolved == Path.cwd() or (taken and not replace):
        raise FileExistsError(f'{path} already exists. Choose another name, or remove it first.')
    if not resolved.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {path}: there is no folder '{resolved.parent}'. Create it first."
        )
    with tempfile.TemporaryFile(dir=resolved.parent):  # it is writable
        return resolved


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path, and remove it afterwards.

    Args:
        path: What is written in the end. It need not exist.
    """
    with tempfile.TemporaryDirectory(
        dir=path.absolute().parent,
        prefix=f'.{path.name[:50]}.',  # a longer name could exceed what file systems take
        suffix='.partial',
        ignore_cleanup_errors=True,
    ) as made:
        yield Path(made)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder in the system's folder for temporary files, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix='timm_res2net.') as made:
        yield Path(made)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends, as in `place`."""
    with scratch_folder(path) as scratch:
        made = scratch / path.name
        made.mkdir()
        yield made
        place(made, path)


def write_file(path: Path, write: Callable[[Any], object], *, replace: bool = True) -> None:
    """Write a file: all of it, or nothing.

    Args:
        path: The file. A symbolic link stays, and the file that it leads to is written.
        write: Called with the open binary file.
        replace: Whether the file is replaced if it exists.
    """
    path = path.resolve()
    with scratch_folder(path) as scratch:
        made = scratch / path.name
        with open(made, 'wb') as file:
            write(file)
        place(made, path, replace=replace)


def place(made: Path, path: Path, *, replace: bool = False) -> None:
    """Give a finished file or folder its name.

    Args:
        made: The file or folder, on the same file system.
        path: Its name.
        replace: Whether an existing file is replaced.

    Raises:
        FileExistsError: Something else took the name since it was checked. An empty folder is
            replaced by a folder.
    """
    if os.path.lexists(path) and not (replace or (made.is_dir() and _is_empty(path))):
        raise FileExistsError(
            f'{path} was written by another process in the meantime, and was not changed. Look at '
            'it, or choose another name.'
        )
    os.replace(made, path)


def _is_empty(path: Path) -> bool:
    """Return whether a path is an empty folder."""
    return path.is_dir() and not any(path.iterdir())


def read_file(path: Path, limit: int = TEXT_LIMIT, *, pipe: bool = False) -> bytes:
    """Read a small file.

    Args:
        path: The file. A device or a pipe, which may never end, is refused.
        limit: The most bytes that are read.
        pipe: Whether a pipe is read, too, such as /dev/stdin.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is not a regular file, or is larger.
    """
    size = path.stat().st_size  # or there is no such file
    is_pipe = pipe and path.is_fifo()
    if not is_pipe and not path.is_file():
        raise ValueError(f'{path} is not a file, but a folder, a device or a pipe. Give a file.')
    if size <= limit:
        with open(path, 'rb') as file:
            content = file.read(limit + 1) if is_pipe else file.read()
        if len(content) <= limit:
            return content
    raise ValueError(
        f'{path} has more than {limit:,} bytes, which is too large. Give another file.'
    )


def read_text(path: Path, encoding: str = 'utf-8', *, pipe: bool = False) -> str:
    """Read a small text file, as `read_file`, with `\\n` at the end of each line."""
    content = io.BytesIO(read_file(path, pipe=pipe))
    try:
        return io.TextIOWrapper(content, encoding).read()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not a text in UTF-8 ({error}). Save it as UTF-8.') from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with open(path, 'rb') as file:
        return sha_fileobj(file).hex()


# --- packages -------------------------------------------------------------------------------------


def require(extra: str, *packages: str) -> None:
    """Raise a ValueError if a package of an extra is missing. None of them is imported.

    Args:
        extra: An extra of this package.
        *packages: Packages by the names that are imported.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{package} is not installed. Install it: pip install 'timm-res2net[{extra}]'."
            )
