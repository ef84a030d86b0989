"""Weights from the Hub and from URLs: asked for once, so that a missing network is said at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import HfApi, ModelInfo, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from ..layers.text import first_line

WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
"""Files of weights, of which the first that exists is read: safetensors, and the pickle that timm
and transformers wrote before."""

NOT_CACHED = (
    " The cache does not have it either. Without a network, 'test_res2net_se' and local "
    'folders load.'
)
"""Appended to the error of an unreachable Hub if the cache has no copy."""

_FOREIGN = ('.pdparams', '.ckpt')  # files of PaddlePaddle and MindSpore


def ask_hub(repo: str, revision: str | None = None, token: str | bool | None = None) -> ModelInfo:
    """Ask the Hub what a repository holds, with the hash of each file.

    Args:
        repo: OWNER/NAME.
        revision: Branch, tag or commit; None for main.
        token: Access token.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses.
        ConnectionError: The Hub cannot be reached, or HF_HUB_OFFLINE is set.
    """
    patience = constants.HF_HUB_ETAG_TIMEOUT  # the client's default is to wait without end
    try:
        return HfApi(token=token).model_info(
            repo, revision=revision, files_metadata=True, timeout=patience
        )
    except HfHubHTTPError:
        raise
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f'HF_HUB_OFFLINE is set, so the Hub was not asked for {repo}. Unset it to ask the Hub.'
        ) from error
    except (ConnectionError, HTTPError) as error:
        raise ConnectionError(
            f'The Hub cannot be reached for {repo} ({type(error).__name__}: {first_line(error)}). '
            'Check the network.'
        ) from error


def prepare_weights(cfg: Any, cache_dir: str | Path | None = None) -> None:
    """Make sure that timm can load the weights of a cfg, or fail within seconds.

    The Hub is asked once for weights that the cache does not have: the client itself tries for a
    minute or longer before it says that it cannot reach the Hub. Weights at a URL are downloaded to
    where timm looks for them.

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
        cached = (try_to_load_from_cache(repo, f, cache_dir, revision or None) for f in files)
        if any(isinstance(path, str) for path in cached):
            return
        try:
            ask_hub(repo, revision or None)
        except HfHubHTTPError:
            return  # what the Hub refuses, the download says
        except ConnectionError as error:
            raise ConnectionError(f'{error}{NOT_CACHED}') from error
    elif isinstance(cfg.url, str) and cfg.url and not is_local:
        _download(cfg.url, Path(cache_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')))


def _download(url: str, folder: Path) -> None:
    """Download a file into a folder, unless it is there, with a progress bar on stderr.

    torch compares no length. A file that ended early cannot be read, and loading renames it, so
    that the next run downloads it again.
    """
    path = folder / os.path.basename(urlsplit(url).path)
    if path.exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise OSError(
            f'Cannot download {url} ({type(error).__name__}: {first_line(error)}). Run again, or '
            "load a copy of the file with pretrained_cfg_overlay=dict(file='PATH')."
        ) from error


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
