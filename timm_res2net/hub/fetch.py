"""What the Hub says of a repository, and a model's files from the Hub's cache, compared with it."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import hexdigits
from typing import Any

from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    scan_cache_dir,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..checks import PICKLES
from ..compat import HTTPError
from ..download import (
    NOT_CACHED,
    PATIENCE,
    TIMEOUT,
    WEIGHT_FILES,
    Limit,
    Unreadable,
    explain,
    explaining,
    readable,
)
from ..files import TEXT_LIMIT, git_sha1_of, sha256_of
from ..folder import CONFIG, FILES, PICKLE, WEIGHTS, ModelFolder, Origin
from ..models.figures import Pin

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Announced:
    """What the Hub says of a file's content.

    Attributes:
        sha256: Its sha256, for large files; '' for others.
        git_sha1: git's hash of it, for other files; '' if the Hub does not say it.
        bytes: Its size; 0 if the Hub does not say it.
    """

    sha256: str = ''
    git_sha1: str = ''
    bytes: int = 0

    def __str__(self) -> str:
        return f'sha256 {self.sha256[:12]}…' if self.sha256 else f'git hash {self.git_sha1[:12]}…'

    def fits(self, path: Path) -> bool:
        """Return whether a file has the content that the Hub announces."""
        if self.sha256:
            return sha256_of(path) == self.sha256
        return git_sha1_of(path) == self.git_sha1


@dataclass(frozen=True)
class Remote:
    """What the Hub says of a repository at a revision.

    Attributes:
        repo: OWNER/NAME, as the Hub writes it.
        commit: The commit; '' if the repository has none.
        private: Whether it is private.
        files: Its files by name.
    """

    repo: str
    commit: str
    private: bool
    files: Mapping[str, Announced]

    def check_sizes(self, names: Sequence[str]) -> None:
        """Raise an OSError if a file that is to be read whole, as weights are not, is too large."""
        for name in names:
            if name in WEIGHT_FILES:
                continue
            size = self.files[name].bytes if name in self.files else 0
            if size > TEXT_LIMIT:
                raise OSError(
                    f'{name} of {self.repo} has {size:,} bytes, and at most {TEXT_LIMIT:,} are '
                    'read. Nothing was downloaded; look at the repository.'
                )


def look(api: HfApi, repo: str, revision: str | None) -> Remote:
    """Ask the Hub what a repository holds.

    Args:
        api: The client.
        repo: OWNER/NAME.
        revision: Branch, tag or commit; None for main.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses.
        OSError: The Hub cannot be reached.
        timm_res2net.download.Unreadable: The answer is not what the Hub's API says.
    """
    _logger.info(f'Asking the Hub for {repo}')
    with readable():
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE)
        siblings = [*info.siblings] if info.siblings else []
        told = [(s.rfilename, s.lfs and s.lfs.sha256, s.blob_id, s.size) for s in siblings]
        validate_repo_id(info.id)
    files = {}
    for name, sha256, git_sha1, size in told:
        if not (isinstance(name, str) and name.isprintable()):
            raise Unreadable(f'{name!r:.100} is not the name of a file')
        if not (_is_hash(sha256, 64) and _is_hash(git_sha1, 40)):
            raise Unreadable(f'{name} has the hashes {sha256!r:.100} and {git_sha1!r:.100}')
        size = size if isinstance(size, int) else 0
        files[name] = Announced(sha256 or '', '' if sha256 else git_sha1 or '', size)
    if not _is_hash(info.sha, 40):
        raise Unreadable(f'{info.sha!r:.100} is not a commit')
    return Remote(info.id, info.sha or '', bool(info.private), files)


def _is_hash(value: Any, length: int) -> bool:
    """Return whether a value is a hash of a number of hexadecimal digits, or None."""
    is_text = isinstance(value, str) and len(value) == length
    return value is None or (is_text and set(value) <= set(hexdigits))


def get_file(
    repo: str, name: str, revision: str | None, token: str | bool | None, **kwargs: Any
) -> Path:
    """Download a file with the client, which names it in its cache by the ETag of the answer.

    The client takes any ETag, and one with `../` would lead out of the cache (huggingface_hub 2.4),
    so the Hub is asked beforehand. The client then asks once more itself, so this does not stop a
    Hub that gives two different answers or fails the first request.

    Args:
        repo: OWNER/NAME.
        name: The file.
        revision: Branch, tag or commit; None for main.
        token: Access token.
        **kwargs: Further arguments of `huggingface_hub.hf_hub_download`.

    Returns:
        Its path in the cache.

    Raises:
        timm_res2net.download.Unreadable: The ETag cannot be the name of a file.
    """
    etag: str | None = None
    with suppress(OSError, HTTPError):  # the client tries again, and says what is wrong
        url = hf_hub_url(repo, name, revision=revision)
        etag = get_hf_file_metadata(url, token=token, timeout=PATIENCE).etag
    if etag is not None and not re.fullmatch(r'[\w+=~-][\w.+=~-]*', etag):
        raise Unreadable(f'the ETag of {name} is {etag!r:.100}, which cannot be the name of a file')
    return Path(hf_hub_download(repo, name, revision=revision, token=token, **kwargs))


def fetch(
    repo: str,
    revision: str | None,
    token: str | bool | None = None,
    pin: Pin | None = None,
    timeout: float = TIMEOUT,
    files: Sequence[str] = FILES,
) -> ModelFolder:
    """Download the files of a model into the cache.

    The client compares the size of a file with what the Hub announces, but not its content. Weights
    with another content are downloaded once more. If they differ again, they are not kept, and the
    folder's origin says so. Without an answer of the Hub, nothing is removed from the cache.

    Args:
        repo: OWNER/NAME.
        revision: Branch, tag or commit; None for main.
        token: Access token.
        pin: What the weights must be.
        timeout: Seconds that this may take in total.
        files: The files that are wanted, weights first. Those that the repository lacks are left
            out, and so is the pickle of a repository that has safetensors.

    Raises:
        OSError: The Hub refuses, cannot be reached and the cache has no such model, takes too long,
            announces a config, card, module or golden tensors that are too large, or the repository
            changed during the download.
    """
    return Limit(timeout, repo).run(partial(_fetch, repo, revision, token, pin, files))


def _fetch(
    repo: str,
    revision: str | None,
    token: str | bool | None,
    pin: Pin | None,
    files: Sequence[str],
) -> ModelFolder:
    get: Callable[..., Path] = partial(get_file, repo, revision=revision, token=token)
    remote: Remote | None = None
    offline = ''
    with explaining(repo, revision):
        try:
            remote = look(HfApi(token=token), repo, revision)
        except HfHubHTTPError:
            raise
        except (OSError, HTTPError) as error:  # no network: use the cache
            offline = explain(error, repo, revision)
            get = partial(_get_cached, repo, revision)
            unreachable: BaseException = error
    if remote:
        remote.check_sizes(files)
    origin = Origin(repo, pin=pin or Pin(), offline=offline)
    folder = None
    for name in files:  # weights first: if they are damaged, all may have to go
        if remote and name not in remote.files:
            continue
        if name == PICKLE and folder is not None:
            continue
        try:
            with explaining(repo, revision), readable():
                path = get(name)
        except OSError as error:
            if remote or not isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
            continue  # the cache has what was loaded, which may be without a card or a config
        folder = path.parents[name.count('/')]
        if remote and remote.commit and folder.name != remote.commit:
            raise OSError(f'{repo} has changed during the download. Run again.')
        if name in WEIGHT_FILES:
            origin = _compare(origin, path, remote, get)
    if folder is None and not remote:
        raise OSError(offline + NOT_CACHED) from unreachable
    if folder is None:
        wanted = ' or '.join(name for name in (CONFIG, WEIGHTS) if name in files)
        raise OSError(f'{repo} has no {wanted}. Name a model of timm.')
    names = remote.files if remote else ()
    pickles = tuple(sorted(name for name in names if name.endswith(PICKLES)))
    return ModelFolder(folder, origin=replace(origin, commit=folder.name, pickles=pickles))


def _get_cached(repo: str, revision: str | None, name: str) -> Path:
    return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))


def _compare(origin: Origin, path: Path, remote: Remote | None, get: Callable[..., Path]) -> Origin:
    """Compare cached weights with what the Hub announces, and replace them if they differ."""
    if remote is None:
        return _compare_offline(origin, path)
    name = path.name
    announced = remote.files[name]
    if not (announced.sha256 or announced.git_sha1):
        return replace(origin, sha256=sha256_of(path))
    if not announced.fits(path):
        _logger.info(f'Downloading {name} again, because its content is not as announced')
        with explaining(origin.name):
            if not path.is_symlink():  # force_download would keep the file of the snapshot
                _forget(origin.name, path.parent.name)
            with readable():
                path = get(name, force_download=True)
        if not announced.fits(path):
            _forget(origin.name, path.parent.name)
            gone = f'Remove {path}' if path.exists() else 'It was removed from the cache'
            trouble = (
                f'{name} is not what the Hub announces ({announced}): it was damaged on its '
                f'way, or on the Hub. {gone}; run again.'
            )
            return replace(origin, trouble=trouble)
    return replace(origin, sha256=announced.sha256 or sha256_of(path), announced=True)


def _compare_offline(origin: Origin, path: Path) -> Origin:
    """Compare cached weights with the sha256 under which the cache keeps them, if it has one.

    A link of a snapshot leads to `blobs/SHA256` for large files. That file may itself be a link to
    a store whose names are other hashes, so only the first link is followed.
    """
    sha256, trouble = sha256_of(path), ''
    kept_as = os.path.basename(os.readlink(path)) if path.is_symlink() else ''
    if len(kept_as) == 64 and kept_as != sha256:
        trouble = (
            f'{path.name} has sha256 {sha256[:12]}…, and the cache keeps it as {kept_as[:12]}…: it '
            'was damaged. Nothing was removed; run again when the Hub can be asked.'
        )
    return replace(origin, sha256=sha256, trouble=trouble)


def _forget(repo: str, commit: str) -> None:
    """Let the client remove a revision of a repository from its cache."""
    cache = scan_cache_dir()
    # copies of a repository have the same commits
    one = frozenset(r for r in cache.repos if (r.repo_type, r.repo_id) == ('model', repo))
    replace(cache, repos=one).delete_revisions(commit).execute()
