"""Create the model that a text means: a registered name, a folder or a repository of the Hub."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..files import read_text
from ..folder.folder import CONFIG, ModelFolder, is_res2net
from ..folder.target import (
    File,
    Folder,
    Name,
    Repository,
    resolve,
)
from ..models.loading import WEIGHT_FILES, prepare_weights
from .fetch import fetch

_logger = logging.getLogger(__name__)


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
    found = resolve(target)
    _logger.info(f'Loading {target}')
    if isinstance(found, File):
        raise ValueError(
            f'{found.path} is a file. Make a folder of it with `timm-res2net convert`, and give '
            'that.'
        )
    if isinstance(found, Folder):
        return ModelFolder(found.path).create_model(pretrained, **kwargs)
    if isinstance(found, Repository):
        return _load_repository(found, pretrained, **kwargs)
    named = {'pretrained_cfg', 'pretrained_cfg_overlay'} & kwargs.keys()  # weights of the caller's
    if not pretrained or named:
        return timm.create_model(found.full, pretrained=pretrained, **kwargs)
    return _load_registered(found, **kwargs)


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


def _load_repository(found: Repository, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Create the model of a repository, whose files are fetched and compared first."""
    files = (*WEIGHT_FILES, CONFIG) if pretrained else (CONFIG,)
    folder = fetch(found.id, found.revision, files=files)
    if folder.origin and folder.origin.offline:
        _logger.warning(f'{folder.origin.offline} The copy in the cache is used.')
    if _is_of_others(folder.path / CONFIG):
        return timm.create_model(f'local-dir:{folder.path}', pretrained=pretrained, **kwargs)
    return folder.create_model(pretrained, **kwargs)


def _is_of_others(path: Path) -> bool:
    """Return whether a config names another network of timm than a Res2Net."""
    try:
        name = json.loads(read_text(path))['architecture'].partition('.')[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return not is_res2net(name) and timm.is_model(name)


def _load_registered(found: Name, **kwargs: Any) -> nn.Module:
    """Create a registered model, of this package or of timm, with its weights."""
    cfg = found.cfg
    if not (cfg and cfg.has_weights):
        raise ValueError(
            f"There are no published weights for '{found.full}'. Give a folder that `timm-res2net "
            'convert` wrote, or use random weights (pretrained=False, --random).'
        )
    prepare_weights(cfg)  # for models of timm, too
    return timm.create_model(found.full, pretrained=True, **kwargs)
