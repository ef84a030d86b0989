"""Refuse state dicts that would fill only part of a network.

With `features_only` or another class count, timm loads with strict=False. A checkpoint with other
keys then leaves random weights, and only a log message says so.
"""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from ..convert.keys import is_counter, is_gate, is_head
from ..layers.text import list_some


def _body(keys: Collection[str]) -> set[str]:
    """Return the keys that every checkpoint has: se_identity.py can start the attention."""
    return {key for key in keys if not (is_head(key) or is_gate(key) or is_counter(key))}


def refuse_half(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Raise a RuntimeError if a checkpoint that timm loads lacks weights of the model's body."""
    own = model.state_dict().keys()
    missing = _body(own) - state_dict.keys()
    if not missing:
        return
    foreign = [key for key in state_dict if key not in own and not is_head(key)]
    lacks = f'The checkpoint lacks weights of the network ({list_some(missing)})'
    if not foreign:
        raise RuntimeError(
            f'{lacks}. Create the model with the layers and the scale of the checkpoint, or give '
            'the whole checkpoint.'
        )
    raise RuntimeError(
        f'{lacks} and has other keys ({list_some(foreign)}). If its layout is another one, '
        '`timm-res2net convert FILE --out FOLDER` makes a folder of it, which loads with '
        "timm.create_model('local-dir:FOLDER', pretrained=True)."
    )


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make a state dict's tensors the parameters and buffers of a model.

    Args:
        model: A model that was built for this, best on the meta device. After an error it is to be
            thrown away.
        tensors: A tensor for each of the model's keys. BatchNorms start those of their counters
            that are missing.

    Raises:
        ValueError: Some are missing, are too many, or have other shapes. The text is a part of a
            sentence, without a full stop.
    """
    try:
        # without the versions in the metadata of a state dict, BatchNorm starts missing counters
        missing, unexpected = model.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:  # it has a line for each tensor
        _, *lines = (line.strip().rstrip('.') for line in str(error).splitlines())
        more = f'; and {len(lines) - 2} more' if len(lines) > 2 else ''
        raise ValueError('; '.join(lines[:2]) + more) from error
    parts = {
        'parameters are left without a value': missing,
        'weights have no place in the model': unexpected,
    }
    problem = '; '.join(f'{what}, {list_some(keys)}' for what, keys in parts.items() if keys)
    if problem:
        raise ValueError(problem)
