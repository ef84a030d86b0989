"""Create the model that a text means: a registered name, a folder or a repository of the Hub."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..files import read_text
from ..folder.config import CONFIG, is_res2net
from ..folder.target import Target, find_target
from ..models.download import WEIGHT_FILES, prepare_weights
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
    named = find_target(target)
    _logger.info(f'Loading {target}')
    if named.kind == 'file':
        raise ValueError(
            f'{named.path} is a checkpoint file. Convert it first: `timm-res2net convert '
            f'{named.path} --out DIR`.'
        )
    if named.kind == 'name':
        return _create_registered(named, pretrained, **kwargs)
    folder = fetch(named, files=(*WEIGHT_FILES, CONFIG) if pretrained else (CONFIG,))
    if folder.offline:
        _logger.warning(f'{folder.offline} The copy in the cache is used.')
    if named.kind == 'repository' and _is_of_others(folder.path / CONFIG):
        return timm.create_model(f'local-dir:{folder.path}', pretrained=pretrained, **kwargs)
    return folder.load(pretrained, **kwargs)


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


def _is_of_others(path: Path) -> bool:
    """Return whether a config names another network of timm than a Res2Net."""
    try:
        name = json.loads(read_text(path))['architecture'].partition('.')[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return not is_res2net(name) and timm.is_model(name)


def _create_registered(named: Target, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Create a registered model, of this package or of timm."""
    own = {'pretrained_cfg', 'pretrained_cfg_overlay'} & kwargs.keys()  # weights of the caller
    if pretrained and not own:
        if not (named.cfg and named.cfg.has_weights):
            raise ValueError(
                f"There are no published weights for '{named.value}'. Give a folder that "
                '`timm-res2net convert` wrote, or use random weights (pretrained=False, --random).'
            )
        prepare_weights(named.cfg)  # for models of timm, too
    return timm.create_model(named.value, pretrained=pretrained, **kwargs)
