"""A model's files from the Hub's cache, with their content compared with what the Hub announces."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..checks import PICKLES
from ..compat import HTTPError
from ..download import NOT_CACHED, PATIENCE, explain, explaining
from ..files import sha256_of
from ..folder import CARD, CONFIG, WEIGHTS, ModelFolder, Origin
from ..models.figures import Pin

_logger = logging.getLogger(__name__)


def fetch(
    repo: str, revision: str | None, token: str | bool | None = None, pin: Pin | None = None
) -> ModelFolder:
    """Download a model's config, weights and card into the cache.

    The client compares the size of a file with what the Hub announces, but not its content. Weights
    with another content are downloaded once more. If they differ again, they are not kept, and the
    folder's origin says so.

    Args:
        repo: OWNER/NAME.
        revision: Branch, tag or commit; None for main.
        token: Access token.
        pin: What the weights must be.

    Raises:
        OSError: The Hub refuses, cannot be reached and the cache has no such model, or the
            repository changed during the download.
    """
    get = partial(hf_hub_download, repo, revision=revision, token=token)
    there: dict[str, Any] | None = None
    commit: str | None = None
    offline: BaseException | None = None
    _logger.info(f'Asking the Hub for {repo}')
    with explaining(repo, revision):
        try:
            info = HfApi(token=token).model_info(
                repo, revision=revision, files_metadata=True, timeout=PATIENCE
            )
            there, commit = {s.rfilename: s for s in info.siblings or []}, info.sha
        except HfHubHTTPError:
            raise
        except (OSError, HTTPError) as error:  # no network: use the cache
            offline, get = error, partial(get, local_files_only=True)
    sha256, trouble, folder = '', '', None
    for name in (CONFIG, WEIGHTS, CARD):
        if there is not None and name not in there:
            continue
        try:
            with explaining(repo, revision):
                path = Path(get(name))
        except OSError as error:
            if offline is None or not isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
            if folder is None:
                raise OSError(explain(offline, repo, revision) + NOT_CACHED) from error
            continue  # loading a model does not download the card
        if commit and path.parent.name != commit:
            raise OSError(f'{repo} has changed during the download. Run again.')
        folder = path.parent
        if name == WEIGHTS:
            lfs = there[name].lfs if there else None
            # the cache names large files by their sha256
            sha256 = lfs.sha256 if lfs else path.resolve().name
            if len(sha256) != 64:
                sha256 = ''
            elif not _is_whole(path, sha256):
                with explaining(repo, revision):
                    again = None if offline else Path(get(name))
                if again is None or not _is_whole(again, sha256):
                    trouble = (
                        f'{name} is not what the Hub announces (sha256 {sha256[:12]}…): it was '
                        'damaged on its way, or on the Hub. It was removed from the cache; run '
                        'again.'
                    )
    if folder is None:
        raise OSError(f'{repo} has neither {CONFIG} nor {WEIGHTS}. Name a model of timm.')
    pickles = tuple(sorted(name for name in there or () if name.endswith(PICKLES)))
    origin = Origin(repo, folder.name, sha256, trouble, pickles, pin or Pin())
    return ModelFolder(folder, origin=origin)


def _is_whole(path: Path, sha256: str) -> bool:
    """Return whether a file of the cache has this sha256; remove it from the cache if not."""
    whole = sha256_of(path) == sha256
    if not whole:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    return whole
