"""Weights from the Hub and from URLs: quick refusals without a network, and errors as sentences."""

import ctypes
import errno
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from .compat import HTTPError
from .files import write_file
from .text import first_line

NOT_CACHED = (
    " The cache does not have it either. Without a network, 'test_res2net_se' and local "
    'folders load.'
)
"""Appended to a network error if the cache has no copy."""
PATIENCE = constants.HF_HUB_ETAG_TIMEOUT
"""Seconds without an answer after which a server counts as unreachable: 10 by default, or the
environment variable HF_HUB_ETAG_TIMEOUT."""
TIMEOUT = 3600.0
"""Seconds that a verb waits for the Hub in total, unless told otherwise."""

WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
"""Files of weights, of which the first that exists is read: safetensors, and the pickle that timm
and transformers wrote before."""

_T = TypeVar('_T')
_REASON = 300  # characters of what the Hub says
_LONGEST = 1e6  # seconds; Python's locks overflow later
_GRACE = 1.0  # seconds that a thread gets to clean up
_LOGIN = 'log in with `hf auth login`, or set HF_TOKEN'
_UNREACHABLE = (ConnectionError, TimeoutError, HTTPError, HTTPException, urllib.error.URLError)
_FOREIGN = ('.pdparams', '.ckpt')  # files of PaddlePaddle and MindSpore


class Unreadable(Exception):
    """An answer of the Hub that its client cannot read, or does not understand."""


class _Failure:
    """An error of a download or upload, taken apart.

    Attributes:
        error: The error.
        cause: Its cause, or itself.
        repo: The repository, or a URL.
        is_url: Whether it is a URL.
        site: Who was asked.
        home: The environment variable that names the cache.
        revision: The revision that was asked for.
        status: HTTP status; 0 if there was no answer.
        number: Number of the operating system's error.
        kind: Name of the type of the cause.
        what: The first line of the cause.
        reason: What the Hub itself says of it, in one line, else `what`.
    """

    def __init__(self, error: BaseException, repo: str, revision: str | None):
        self.error, self.repo, self.revision = error, repo, revision or 'main'
        self.is_url = '://' in repo
        self.site = 'server' if self.is_url else 'Hub'
        self.home = 'TORCH_HOME' if self.is_url else 'HF_HOME'
        reason = getattr(error, 'reason', None)  # of urllib's errors; sometimes a text
        self.cause = error.__cause__ or (reason if isinstance(reason, OSError) else error)
        # a refusal may be the cause of "not in the cache"
        response = getattr(error, 'response', None) or getattr(self.cause, 'response', None)
        self.status: int = getattr(response, 'status_code', None) or getattr(error, 'code', 0) or 0
        self.number = getattr(error, 'errno', None)
        self.kind = type(self.cause).__name__
        self.what = first_line(self.cause)
        told = getattr(error, 'server_message', None) or getattr(self.cause, 'server_message', None)
        one_line = ' '.join(''.join(c if c.isprintable() else ' ' for c in told or '').split())
        self.reason = one_line[:_REASON].rstrip('.') or self.what

    def is_a(self, *kinds: type[BaseException]) -> bool:
        """Return whether the error or its cause is of these types."""
        return isinstance(self.error, kinds) or isinstance(self.cause, kinds)

    def says(self, text: str) -> bool:
        """Return whether the error's text contains a text in lower case."""
        return text in str(self.error).lower()


_TABLE: tuple[tuple[Callable[[_Failure], bool], str], ...] = (
    (
        lambda f: isinstance(f.error, GatedRepoError),
        f'{{f.repo}} is gated. Accept its conditions on the Hub, then {_LOGIN}.',
    ),
    (
        lambda f: isinstance(f.error, RepositoryNotFoundError),
        f'There is no repository {{f.repo}}, or it is private. Check the name, or {_LOGIN}.',
    ),
    (
        lambda f: isinstance(f.error, RevisionNotFoundError),
        "{f.repo} has no revision '{f.revision}'. Name one of its branches, tags or commits.",
    ),
    (
        lambda f: f.is_a(OfflineModeIsEnabled),
        'HF_HUB_OFFLINE is set, so the Hub was not asked for {f.repo}. Unset it to ask the Hub.',
    ),
    (
        lambda f: f.status in (401, 403) and not f.is_url,
        'The Hub refuses access to {f.repo} ({f.status}: {f.reason}). '
        'Log in with `hf auth login`, or set HF_TOKEN to a token with this access.',
    ),
    (
        lambda f: isinstance(f.error, Unreadable),
        'The client cannot use what the Hub answers for {f.repo} ({f.what}). Check that '
        f'{constants.ENDPOINT} is a Hub, and run again later.',
    ),
    (
        lambda f: f.status in (400, 402, 409, 413, 422) and not f.is_url,
        'The Hub refuses the request for {f.repo} ({f.status}: {f.reason}). Change what it names, '
        'then run again.',
    ),
    (
        lambda f: f.status == 412 and not f.is_url,
        'Someone else has pushed to {f.repo} in the meantime. Nothing was changed; run again.',
    ),
    (
        lambda f: f.status == 429,
        'The {f.site} limits the number of requests (429 for {f.repo}). Wait a while and run '
        'again.',
    ),
    (
        lambda f: f.status >= 500,
        'The {f.site} has a problem ({f.status} for {f.repo}). Run again later.',
    ),
    (
        lambda f: f.number == errno.ENOSPC or f.says('not enough free disk space'),
        'There is no space left in the cache for {f.repo}. Free some, or set {f.home} to a folder '
        'on another disk; no part of the download was kept.',
    ),
    (
        lambda f: f.number in (errno.EROFS, errno.EACCES, errno.EPERM),
        'The cache is not writable ({f.what}). Set {f.home} to a folder you can write to.',
    ),
    (
        lambda f: f.says('consistency check failed'),
        'A file of {f.repo} arrived with another size than the {f.site} announces. It was not '
        'kept; run again.',
    ),
    (
        lambda f: f.status > 0,
        'The {f.site} answers {f.status} for {f.repo} ({f.what}). Check the name, '
        'or run again later.',
    ),
    (
        lambda f: f.is_a(*_UNREACHABLE),
        'The {f.site} cannot be reached for {f.repo} ({f.kind}: {f.what}). Check the network and '
        'run again.',
    ),
    (lambda f: True, '{f.repo}: {f.kind}: {f.what}. Run again.'),
)
"""Kinds of failure in the order in which they are tried, each with its text."""


def explain(error: BaseException, repo: str, revision: str | None = None) -> str:
    """Say what went wrong with a repository or a URL, and what to do.

    Args:
        error: What the client raised.
        repo: The repository, or a URL.
        revision: The revision that was asked for.
    """
    failure = _Failure(error, repo, revision)
    text = next(text for is_it, text in _TABLE if is_it(failure))
    return text.format(f=failure)


@contextmanager
def explaining(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's errors into an OSError with the text of `explain`; the cause is kept."""
    try:
        yield
    except (OSError, RuntimeError, HTTPError, Unreadable) as error:
        # an upload fails with a RuntimeError around the error itself; others are not the client's
        inner = error.__cause__ if isinstance(error, RuntimeError) else error
        if not isinstance(inner, (OSError, HTTPError, Unreadable)):
            raise
        raise OSError(explain(inner, repo, revision)) from error


@contextmanager
def readable() -> Iterator[None]:
    """Turn what the client raises over an answer that it does not understand into `Unreadable`.

    The client reads answers without checking them, so a wrong one ends in an error of any type. The
    block holds calls of the client and nothing else.
    """
    try:
        yield
    except (OSError, HTTPError, Unreadable):
        raise
    except Exception as error:
        if isinstance(error.__cause__, (OSError, HTTPError)):
            raise error.__cause__ from error
        raise Unreadable(f'{type(error).__name__}: {first_line(error)[:_REASON]}') from error


class Limit:
    """The time that a verb waits for the Hub, in total.

    The client has no such limit: it waits as long as a Retry-After header says, and its timeouts
    start again with each byte of an answer. So its calls run in a thread of their own. If that does
    not end, it is left behind, as a daemon.

    Args:
        seconds: The time.
        repo: OWNER/NAME, for the error.

    Raises:
        ValueError: `seconds` is no such number.
    """

    def __init__(self, seconds: float, repo: str):
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (is_number and 0 < seconds <= _LONGEST):
            raise ValueError(
                f'timeout must be a number of seconds above 0 and at most {_LONGEST:,.0f}, got '
                f'{seconds!r}.'
            )
        self.seconds, self.left, self.repo = seconds, float(seconds), repo

    def run(self, call: Callable[[], _T]) -> _T:
        """Return what a call returns, within the time that is left.

        Raises:
            OSError: The time is over.
        """
        results: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:  # raised below, in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        start = time.monotonic()
        thread.start()
        try:
            thread.join(max(self.left, 0))
        finally:  # after Ctrl-C, too
            self.left -= time.monotonic() - start
            is_late = thread.is_alive()
            if is_late:
                _interrupt(thread)
        if is_late:
            raise OSError(
                f'The Hub has not answered for {self.repo} in {self.seconds:g} seconds. Run again '
                'later; check, pull and push wait as long as timeout=SECONDS (--timeout) says.'
            )
        if errors:
            raise errors[0]
        return results[0]


def _interrupt(thread: threading.Thread) -> None:
    """Let a thread clean up and end, if it comes to run Python code soon."""
    kind = ctypes.py_object(KeyboardInterrupt)  # the client's Xet ends its transfers for that
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), kind)
    thread.join(_GRACE)


def ask_hub(
    repo: str, *files: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> None:
    """Ask the Hub once for the first of some files, unless the cache has one of them.

    The client itself tries for a minute or longer before it says that it cannot reach the Hub.

    Args:
        repo: OWNER/NAME.
        *files: Names of files.
        revision: Branch, tag or commit.
        cache_dir: The cache, if it is not the client's own.

    Raises:
        OSError: The Hub cannot be reached. What the Hub refuses is left to the download.
    """
    for file in files:
        if isinstance(try_to_load_from_cache(repo, file, cache_dir, revision), str):
            return
    try:
        get_hf_file_metadata(hf_hub_url(repo, files[0], revision=revision), timeout=PATIENCE)
    except HfHubHTTPError:
        return
    except (OSError, HTTPError) as error:
        raise OSError(explain(error, repo, revision) + NOT_CACHED) from error


def download(url: str, path: Path) -> None:
    """Download a file, with a progress bar on stderr.

    Args:
        url: Where it is.
        path: File to write. After an error it does not exist.

    Raises:
        OSError: The server refuses or cannot be reached, the connection ended early, or the file
            cannot be written.
    """

    def write(file: BinaryIO) -> None:
        request = urllib.request.Request(url, headers={'User-Agent': 'timm-res2net'})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            size = int(answer.headers.get('Content-Length') or 0)
            bar = dict(total=size or None, desc=path.name, unit='B', unit_scale=True)
            with tqdm.wrapattr(file, 'write', **bar) as out:
                shutil.copyfileobj(answer, out)
            if size and file.tell() != size:
                raise OSError(f'Consistency check failed: {file.tell()} of {size} bytes came')

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write)
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is an answer of the server, too
        raise OSError(
            f'{explain(error, url)} If you have the file, load it with pretrained_cfg_overlay='
            "dict(file='PATH'), or make a folder of it with `timm-res2net convert`."
        ) from error


def prepare_weights(cfg: Any, cache_dir: str | Path | None = None) -> None:
    """Make sure that timm can load the weights of a cfg, or fail within seconds.

    Weights on the Hub are asked for. Weights at a URL are downloaded to where timm looks for them.

    Args:
        cfg: The `PretrainedCfg`.
        cache_dir: The cache, if it is not the usual one.

    Raises:
        FileNotFoundError: The cfg names a file that does not exist.
        OSError: A server cannot be reached, or a download failed.
    """
    is_local = cfg.source == 'local-dir' or cfg.file or cfg.state_dict
    if cfg.file and not os.path.exists(cfg.file):
        raise FileNotFoundError(f'There is no file or folder {cfg.file}. Check the path.')
    if cfg.hf_hub_id and (cfg.source == 'hf-hub' or not is_local):
        repo, _, revision = cfg.hf_hub_id.partition('@')
        files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else WEIGHT_FILES
        ask_hub(repo, *files, revision=revision or None, cache_dir=cache_dir)
    elif isinstance(cfg.url, str) and cfg.url and not is_local:
        folder = Path(cache_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
        path = folder / os.path.basename(urlsplit(cfg.url).path)
        if not path.exists():
            download(cfg.url, path)


def mark_foreign_files(overlay: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a `pretrained_cfg_overlay` that says whether its file or URL is another framework's.

    Without this, timm would read such a file with `torch.load`, or, before timm 1.0.31, other files
    as such a file if the registered weights are.
    """
    marked = dict(overlay or {})
    source = marked.get('file') or marked.get('url')
    if source:
        marked.setdefault('custom_load', str(source).endswith(_FOREIGN))
    return marked
