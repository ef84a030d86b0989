"""Loading PaddleClas weights into a Res2Net, converted in memory."""

import os

import torch
from timm.models import load_pretrained
from torch import nn

from ..convert import apply_rules, paddle_rules, read_pdparams, require_keys
from ..text import list_some
from .protocol import as_timm
from .se_identity import checkpoint_filter_fn

__all__ = ['load_paddle']


def load_paddle(model: nn.Module, path: str) -> None:
    """Load a PaddleClas file (.pdparams) into a Res2Net, as timm loads pretrained weights.

    New heads, other input channels and `features_only` work as with any weights of timm.

    Args:
        model: Res2Net with a `pretrained_cfg`.
        path: File to read. It may be untrusted: no code in it is run.

    Raises:
        RuntimeError: The file cannot be read or does not fit the model. An unreadable download is
            renamed to `<name>.broken`, so that the next call downloads the file again.
    """
    timm_model = as_timm(model)
    cfg = timm_model.pretrained_cfg
    tensors = _read(path, is_download=not cfg.get('file'))
    load_pretrained(
        model,
        dict(cfg, state_dict=_convert(tensors, model, path)),
        num_classes=timm_model.num_classes,
        in_chans=timm_model.in_chans,
        filter_fn=checkpoint_filter_fn,
    )


def _read(path: str, is_download: bool) -> dict[str, torch.Tensor]:
    """Read a file, and rename it if it is an unreadable download."""
    try:
        return read_pdparams(path)
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


def _convert(
    tensors: dict[str, torch.Tensor], model: nn.Module, path: str
) -> dict[str, torch.Tensor]:
    """Rename the tensors, and check that every one except those of the head fits the model."""
    try:
        state_dict = apply_rules(tensors, paddle_rules(tensors), 'paddle').tensors
        own = model.state_dict()
        inner = [key for key in own if not key.startswith('fc.') and '.se.' not in key]
        require_keys(state_dict, inner, 'paddle')
        surplus = [key for key in state_dict if key not in own and not key.startswith('fc.')]
        if surplus:
            raise ValueError(f'the model has no parameters for {list_some(surplus)}')
    except ValueError as error:
        raise RuntimeError(
            f"{path} does not fit: {error}. Create the model with the checkpoint's layers, scale "
            'and stem.'
        ) from error
    return state_dict
