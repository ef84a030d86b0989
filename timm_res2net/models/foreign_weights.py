"""Loading weights of other frameworks into a Res2Net, converted in memory."""

import os
from typing import Any

import torch
from timm.models import load_pretrained
from torch import nn

from ..convert import (
    SOURCES,
    Checkpoint,
    convert_network,
    find_network,
    read_checkpoint,
)
from ..convert.keys import is_head
from ..layers.text import list_some
from .se_identity import checkpoint_filter_fn


def load_foreign(model: Any, path: str) -> None:
    """Load a file of PaddleClas (.pdparams) or MindCV (.ckpt), as timm loads pretrained weights.

    New heads, other input channels and `features_only` work as with any weights of timm.

    Args:
        model: Res2Net with a `pretrained_cfg`.
        path: File to read. It may be untrusted: no code in it is run.

    Raises:
        RuntimeError: The file cannot be read or does not fit the model. An unreadable download is
            renamed to `<name>.broken`, so that the next call downloads the file again.
    """
    cfg = model.pretrained_cfg
    checkpoint = _read(path, is_download=not cfg.get('file'))
    load_pretrained(
        model,
        dict(cfg, state_dict=_convert(checkpoint, model)),
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        filter_fn=checkpoint_filter_fn,
    )


def _read(path: str, is_download: bool) -> Checkpoint:
    """Read a file, and rename it if it is an unreadable download."""
    try:
        return read_checkpoint(path)
    except ValueError as error:
        if not is_download:
            raise RuntimeError(str(error)) from error
        broken = f'{path}.broken'
        try:
            os.replace(path, broken)
        except OSError as refusal:
            raise RuntimeError(
                f'{error} The file could not be renamed ({refusal.strerror}). Delete it, and run '
                'again to download it again.'
            ) from error
        raise RuntimeError(
            f'{error} The download is kept as {broken}. Run again to download it again.'
        ) from error


def _convert(checkpoint: Checkpoint, model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename the tensors, and check that the model has a place for all but those of the head."""
    try:
        network = find_network(checkpoint.values)
    except ValueError as error:
        raise RuntimeError(
            f'{checkpoint.path} does not fit: {error} Make a folder of it with `timm-res2net '
            'convert`, and load that.'
        ) from error
    try:
        state_dict = convert_network(checkpoint, network).tensors
        arguments: Any = model.model_args
        known = SOURCES[network.source].semantics
        if arguments['semantics'] not in known:
            raise ValueError(
                f'its block semantics are {known[0]}, and the model computes '
                f'{arguments["semantics"]}'
            )
        # timm replaces the head, and ignores other weights too if it does
        surplus = {k for k in state_dict if not is_head(k)} - model.state_dict().keys()
        if surplus:
            raise ValueError(f'weights have no place in the model, {list_some(surplus)}')
    except ValueError as error:
        raise RuntimeError(
            f'{checkpoint.path} does not fit: {error}. Create the model with the layers, scale, '
            'stem and semantics of the checkpoint.'
        ) from error
    return state_dict
