"""Reading within bounds, and writing so that an error leaves nothing half-written.

A file or folder is written in a temporary folder `.NAME.XXXXXXXX.partial` beside its place, and
moved to its place when it is complete. The writer holds a lock on the temporary folder, so that the
next writer of the same name can remove what a killed one left, and nothing else.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing is removed
    fcntl = None  # type: ignore[assignment]

FILE_SUFFIXES = (
    '.bin', '.ckpt', '.npz', '.onnx', '.pdparams', '.pkl', '.pt', '.pt2', '.pth', '.safetensors',
    '.tar', '.zip',
)  # fmt: skip
"""Suffixes that the name of a folder must not have. Others are parts of names, as in NAME.TAG."""

TEXT_LIMIT = 16 << 20
"""The most bytes of a file that is read whole: config, card, module, labels, golden tensors."""

_PARTIAL = '.partial'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LITTLE = 1 << 20  # free bytes of a disk that is full


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
        OSError: The parent folder is not writable, or what is to be replaced is not a file, such as
            a device, or is read-only.
    """
    resolved = path.resolve()
    if folder and path.suffix.lower() in FILE_SUFFIXES:
        raise ValueError(
            f'A folder is written, and {path} is the name of a file. Name the folder {path.stem}.'
        )
    if replace:
        _check_replaceable(resolved, path)
    is_empty = folder and resolved.is_dir() and not any(resolved.iterdir())
    if resolved == Path.cwd() or (os.path.lexists(resolved) and not is_empty and not replace):
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


def _check_replaceable(resolved: Path, path: Path) -> None:
    """Raise an OSError if something exists at a path that is not a file, or is read-only."""
    try:
        mode = resolved.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f'Cannot write {path}: it is a folder. Name a file.')
    if not stat.S_ISREG(mode):
        raise OSError(f'Cannot write {path}: it is a device or a pipe. Name a file.')
    if not mode & 0o222:  # renaming would replace it all the same
        raise PermissionError(f'Cannot write {path}: it is read-only. Choose another name.')


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path, and remove it afterwards.

    What a killed process left under the same name is removed first.

    Args:
        path: What is written in the end. It need not exist.

    Raises:
        OSError: The disk is full; other errors of the block pass as they are.
    """
    path = path.absolute()
    _remove_leftovers(path)
    with _explaining(path):
        made, lock = _make_locked(path)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            if lock is not None:
                os.close(lock)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder in the system's folder for temporary files, and remove it afterwards."""
    with scratch_folder(Path(tempfile.gettempdir()) / 'timm_res2net') as made:
        yield made


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends, as in `place`."""
    with scratch_folder(path) as scratch:
        made = scratch / path.name
        made.mkdir()
        yield made
        place(made, path)


@contextlib.contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield the path of a file that becomes `path` when the block ends, as in `place`."""
    with scratch_folder(path) as scratch:
        made = scratch / path.name
        yield made
        made.chmod(0o644)
        place(made, path, replace=replace)


def write_file(path: Path, write: Callable[[Any], object], *, replace: bool = True) -> None:
    """Write a file: all of it, or nothing.

    Args:
        path: The file. A symbolic link stays, and the file that it leads to is written.
        write: Called with the open binary file.
        replace: Whether the file is replaced if it exists.
    """
    with new_file(path.resolve(), replace=replace) as made, open(made, 'wb') as file:
        write(file)


def place(made: Path, path: Path, *, replace: bool = False) -> None:
    """Give a finished file or folder its name.

    Args:
        made: The file or folder, on the same file system.
        path: Its name.
        replace: Whether an existing file is replaced.

    Raises:
        FileExistsError: Something else took the name since it was checked. An empty folder is
            replaced by a folder.
        OSError: What exists is not a file, such as a device, or is read-only.
    """
    if replace:
        _check_replaceable(path, path)
        os.replace(made, path)
        return
    try:
        if made.is_dir():
            os.rename(made, path)
        else:
            _rename_to_new(made, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise FileExistsError(
            f'{path} was written by another process in the meantime, and was not changed. Look at '
            'it, or choose another name.'
        ) from error


def _rename_to_new(made: Path, path: Path) -> None:
    """Rename a file, and fail if something has the name. `os.rename` would replace that."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(made, path)


def _start(path: Path) -> str:
    return f'.{path.name[:50]}.'  # a longer name could exceed what file systems take


def _make_locked(path: Path) -> tuple[Path, int | None]:
    """Make a temporary folder and lock it; the lock is None where there are no locks."""
    while True:
        made = Path(tempfile.mkdtemp(dir=path.parent, prefix=_start(path), suffix=_PARTIAL))
        lock = _lock(made, wait=True)
        # another process may have taken it for a leftover before it was locked
        if made.is_dir():
            return made, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a folder and return the lock.

    Returns:
        None if there are no locks here, or another process has this one and it is not waited for.
    """
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        return None
    return lock


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders of writers of a path that were killed."""
    pattern = re.compile(rf'{re.escape(_start(path))}[a-z0-9_]{{8}}{re.escape(_PARTIAL)}')
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if pattern.fullmatch(name) and (lock := _lock(path.parent / name)) is not None:
                shutil.rmtree(path.parent / name, ignore_errors=True)
                os.close(lock)


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Replace the error of a full disk, which writers raise in several forms, by one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _number(error)
        if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < _LITTLE:
            number = errno.ENOSPC  # writers in C++ do not tell
        if number not in _FULL:
            raise
        refusal = OSError(
            f'Cannot write {path} ({os.strerror(number)}). Free some space, or write to another '
            'disk. No part of it was kept.'
        )
        refusal.errno = number
        raise refusal from error


def is_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or a file larger than allowed."""
    return _number(error) in _FULL


def _number(error: BaseException) -> int:
    """Return the number of the operating system's error, or 0.

    safetensors and torch's compiler give it as text.
    """
    pattern = ''
    if isinstance(error, SafetensorError):
        pattern = r'(?:os error |code: )(\d+)'
    elif isinstance(error, RuntimeError):
        pattern = r'\[Errno (\d+)\]'
    told = re.search(pattern, str(error)) if pattern else None
    in_words = int(told[1]) if told else 0
    return getattr(error, 'errno', None) or in_words


# --- reading --------------------------------------------------------------------------------------


def read_file(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a small file.

    Args:
        path: The file. A device or a pipe, which may never end, is refused.
        limit: The most bytes that are read.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is not a regular file, or is larger.
    """
    opened = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))  # waits for no pipe
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(
                f'{path} is not a file, but a folder, a device or a pipe. Give a file.'
            )
        content = b''
        if found.st_size <= limit:
            with open(opened, 'rb', closefd=False) as file:
                content = file.read(limit + 1)  # it may grow meanwhile
    finally:
        os.close(opened)
    if max(found.st_size, len(content)) > limit:
        raise ValueError(
            f'{path} has more than {limit:,} bytes, which is too large for what it is read as. '
            'Give another file.'
        )
    return content


def read_text(path: Path, encoding: str = 'utf-8') -> str:
    """Read a small text file, as `read_file`, with `\\n` at the end of each line."""
    return io.TextIOWrapper(io.BytesIO(read_file(path)), encoding).read()


class FileState(NamedTuple):
    """What tells that a file is as it was.

    Attributes:
        path: The file.
        size: Its bytes.
        changed: When it was last written, in nanoseconds.
        number: Its number in the file system, which is another one if it was replaced.
    """

    path: Path
    size: int
    changed: int
    number: int

    @classmethod
    def of(cls, path: Path) -> 'FileState':
        """Return the state of a file."""
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)

    def check(self) -> None:
        """Raise a ValueError if the file has changed since."""
        if not self.path.exists() or self != FileState.of(self.path):
            raise ValueError(
                f'{self.path} changed while it was read. Run again when nothing writes to it.'
            )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    return _digest(path, hashlib.sha256())


def git_sha1_of(path: Path) -> str:
    """Return the name that git gives a file's content, in hexadecimal."""
    return _digest(path, hashlib.sha1(b'blob %d\0' % path.stat().st_size))


def _digest(path: Path, digest: Any) -> str:
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
