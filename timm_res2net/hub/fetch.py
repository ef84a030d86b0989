"""Files of the Hub in the client's cache, and the model that a text means."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download, try_to_load_from_cache
from torch import nn

from ..files import read_text
from ..folder.checks import PICKLES
from ..folder.config import CONFIG, is_res2net
from ..folder.folder import FILES, PICKLE, WEIGHTS, ModelFolder
from ..folder.target import Target, find_target
from ..models.loading import NOT_CACHED, WEIGHT_FILES, ask_hub, prepare_weights
from .repository import is_same, siblings_of

_logger = logging.getLogger(__name__)


def fetch(
    target: Target, token: str | bool | None = None, files: Sequence[str] = FILES
) -> ModelFolder:
    """Turn a repository into a folder: the client's cache of its files. A folder stays as it is.

    The client compares the size of a file with what the Hub announces, but not its content, so the
    weights are compared here. If the Hub cannot be reached, the cache is used as it is, and the
    folder says so. Nothing in the cache is removed.

    Args:
        target: Repository or folder.
        token: Access token.
        files: The files that are wanted. Those that the repository lacks are left out, and so is
            the pickle of a repository that has safetensors.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses.
        ConnectionError: The Hub cannot be reached, and the cache has no such model.
        ValueError: The repository holds no model, changed during the download, or its weights are
            not what the Hub announces.
    """
    if target.kind == 'folder':
        return ModelFolder(Path(target.value))
    repo, revision = target.value, target.revision
    _logger.info(f'Asking the Hub for {repo}')
    try:
        info = ask_hub(repo, revision, token)
    except ConnectionError as error:
        return _from_cache(target, files, error)
    there = siblings_of(info)
    wanted = [n for n in files if n in there and (n != PICKLE or WEIGHTS not in there)]
    if not wanted:
        needed = ' or '.join(name for name in (CONFIG, WEIGHTS) if name in files)
        raise ValueError(f'{repo} has no {needed}. Name a model of timm.')
    # Under the name of the revision, not the commit: the cache keeps which commit it was, and
    # finds the model by that name without a network.
    path = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, token=token))
    # The client returns what it has cached if the Hub fails in the meantime.
    if path.name != info.sha or not all((path / name).is_file() for name in wanted):
        raise ValueError(
            f'{repo} changed while it was downloaded, or was not downloaded whole. Run again.'
        )
    for name in WEIGHT_FILES:
        if name in wanted and not is_same(path / name, there[name]):
            raise ValueError(
                f'{name} of {repo} is not what the Hub announces: it was damaged. Remove '
                f'{(path / name).resolve()} and run again.'
            )
    pickles = tuple(sorted(name for name in there if name.endswith(PICKLES)))
    return ModelFolder(path, repo, pickles=pickles)


def _from_cache(target: Target, files: Sequence[str], error: ConnectionError) -> ModelFolder:
    """Return what the cache has of a model, which must be the config, and weights if wanted."""
    config = try_to_load_from_cache(target.value, CONFIG, revision=target.revision)
    path = Path(config).parent if isinstance(config, str) else None
    weights = [name for name in WEIGHT_FILES if name in files]
    if path is None or (weights and not any((path / name).is_file() for name in weights)):
        raise ConnectionError(f'{error}{NOT_CACHED}') from error
    return ModelFolder(path, target.value, offline=str(error))


# --- models ---------------------------------------------------------------------------------------


def create_model(
    target: str | os.PathLike[str], pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """Create the model that a text means.

    Args:
        target: Registered name, with or without a tag; folder; or repository of the Hub, OWNER/NAME
            with or without @REVISION.
        pretrained: Load its weights.
        **kwargs: Further arguments of `timm.create_model`.

    Raises:
        OSError: There is no such folder, or the Hub refuses or cannot be reached.
        ValueError: There is no such model, it has no weights, or the Hub sent other weights than it
            announces.
    """
    named = find_target(target)
    _logger.info(f'Loading {target}')
    if named.kind == 'file':
        raise ValueError(
            f'{named.value} is a checkpoint file. Convert it first: `timm-res2net convert '
            f'{named.value} --out DIR`.'
        )
    if named.kind == 'name':
        own = {'pretrained_cfg', 'pretrained_cfg_overlay'} & kwargs.keys()  # weights of the caller
        if pretrained and not own:
            prepare_weights(weights_of(named))  # for models of timm, too
        return timm.create_model(named.value, pretrained, **kwargs)
    folder = fetch(named, files=(*WEIGHT_FILES, CONFIG) if pretrained else (CONFIG,))
    if folder.offline:
        _logger.warning(f'{folder.offline} Using the cached copy.')
    if named.kind == 'repository' and _is_of_others(folder.path / CONFIG):
        return timm.create_model(f'local-dir:{folder.path}', pretrained, **kwargs)
    return folder.load(pretrained, **kwargs)


def weights_of(named: Target) -> Any:
    """Return the `PretrainedCfg` of a registered name, which has weights.

    Raises:
        ValueError: It has none.
    """
    if not (named.cfg and named.cfg.has_weights):
        raise ValueError(
            f"There are no published weights for '{named.value}'. Give a folder that "
            '`timm-res2net convert` wrote, or use random weights (pretrained=False, --random).'
        )
    return named.cfg


def _is_of_others(path: Path) -> bool:
    """Return whether a config names another network of timm than a Res2Net."""
    try:
        name = json.loads(read_text(path))['architecture'].partition('.')[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return not is_res2net(name) and timm.is_model(name)


def load_model(target: str | os.PathLike[str], pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create a model to run or export, as `create_model`.

    Without weights they are random, and no BatchNorm's weight is zero. timm starts the last
    BatchNorm of each block at zero. The block then passes its shortcut alone, and neither a run nor
    a comparison of outputs would depend on its other layers.
    """
    model = create_model(target, pretrained, **kwargs)
    if not pretrained:
        for module in model.modules():
            weight = getattr(module, 'weight', None)
            if isinstance(module, nn.BatchNorm2d) and weight is not None and not weight.any():
                nn.init.ones_(module.weight)
    return model
