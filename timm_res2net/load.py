"""Create the model that a text means: a registered name, a folder or a repository of the Hub."""

import logging
import os
from contextlib import nullcontext
from typing import Any

import timm
from torch import nn

from .download import NOT_CACHED, explaining, prepare_weights
from .folder import CONFIG, PICKLE, WEIGHTS, ModelFolder
from .hub.fetch import fetch
from .resolve import File, Folder, Repository, file_refusal, resolve

_logger = logging.getLogger(__name__)


def load_model(target: str | os.PathLike[str], pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create the model that a text means, on every supported version of timm and torch.

    Args:
        target: Registered name, with or without a tag; folder; or repository of the Hub, OWNER/NAME
            with or without @REVISION.
        pretrained: Load its weights. Otherwise they are random, and no BatchNorm's weight is zero.
        **kwargs: Further arguments of `timm.create_model`.

    Raises:
        OSError: There is no such folder, or the Hub refuses, cannot be reached or sent other
            weights than it announces.
        ValueError: There is no such model, or it has no weights.
    """
    found = resolve(target)
    _logger.info(f'Loading {target}')
    if isinstance(found, File):
        raise ValueError(file_refusal(found))
    if isinstance(found, Folder):
        model = ModelFolder(found.path).create_model(pretrained, **kwargs)
    elif isinstance(found, Repository):
        model = _fetched(found, pretrained).create_model(pretrained, **kwargs)
    elif pretrained:
        model = _load_registered(found.full, found.cfg, **kwargs)
    else:
        model = timm.create_model(found.full, **kwargs)
    if not pretrained:
        _start_blocks(model)
    return model


def _fetched(found: Repository, pretrained: bool) -> ModelFolder:
    """Return the folder with a repository's config and, if they are wanted, its weights."""
    files = (WEIGHTS, PICKLE, CONFIG) if pretrained else (CONFIG,)
    folder = fetch(found.id, found.revision, files=files)
    origin = folder.origin
    assert origin is not None  # `fetch` says where the files come from
    if origin.trouble:
        raise OSError(origin.trouble)
    has_config = (folder.path / CONFIG).is_file()
    has_weights = any((folder.path / name).is_file() for name in (WEIGHTS, PICKLE))
    if origin.offline and not (has_config and (has_weights or not pretrained)):
        raise OSError(origin.offline + NOT_CACHED)
    return folder


def _load_registered(name: str, cfg: Any, **kwargs: Any) -> nn.Module:
    """Create a registered model, of this package or of timm, with its weights."""
    if not (cfg and cfg.has_weights):
        raise ValueError(
            f"There are no published weights for '{name}'. Give a folder that `timm-res2net "
            'convert` wrote, or use random weights (pretrained=False, --random).'
        )
    prepare_weights(cfg)  # for models of timm, too
    on_hub = cfg.hf_hub_id and not cfg.file
    with explaining(cfg.hf_hub_id) if on_hub else nullcontext():
        return timm.create_model(name, pretrained=True, **kwargs)


def _start_blocks(model: nn.Module) -> None:
    """Set BatchNorm weights that start at zero to one.

    timm starts the last BatchNorm of each block at zero. The block then passes its shortcut alone,
    and neither a run nor a comparison of outputs would depend on its other layers.
    """
    for module in model.modules():
        weight = getattr(module, 'weight', None)
        if isinstance(module, nn.BatchNorm2d) and weight is not None and not weight.any():
            nn.init.ones_(module.weight)
