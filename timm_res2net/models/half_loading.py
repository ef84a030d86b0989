"""Refuse checkpoints that would fill a part of a network only.

timm loads with strict=False for `features_only` or another class count. A checkpoint whose keys are
of another layout then leaves random weights, with a warning in a log alone.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from ..convert.fit import is_counter
from ..layers.bottle2neck import Bottle2neck
from ..text import list_some

_HEADS = ('fc.', 'classifier.')


def _body(keys: Collection[str]) -> set[str]:
    """Return the keys that every checkpoint has: se_identity.py can start the attention."""
    return {
        key
        for key in keys
        if not key.startswith(_HEADS) and '.se.' not in key and not is_counter(key)
    }


def describe_half(own: Collection[str], given: Collection[str]) -> str:
    """Return the refusal of a checkpoint that lacks weights of the body, '' if it has them.

    Args:
        own: Keys of the model.
        given: Keys of the checkpoint.
    """
    missing = _body(own) - set(given)
    if not missing:
        return ''
    foreign = [key for key in given if key not in own and not key.startswith(_HEADS)]
    layout = f' Its keys are of another layout, {list_some(foreign)}.' if foreign else ''
    return (
        f'The checkpoint lacks weights of the network, {list_some(missing)}.{layout} '
        '`timm-res2net convert FILE --out FOLDER` makes a folder of a checkpoint of another '
        "layout, which loads with timm.create_model('local-dir:FOLDER', pretrained=True)."
    )


def refuse_half(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Raise a RuntimeError if a checkpoint that timm loads lacks weights of the model's body."""
    refusal = describe_half(model.state_dict().keys(), state_dict.keys())
    if refusal:
        raise RuntimeError(refusal)


def _explain(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: Any,
    unexpected_keys: Any,
    error_msgs: list[str],
) -> None:
    # A part of a larger model, or a deployed model, whose keys are others
    if prefix or not any(isinstance(part, Bottle2neck) for part in module.modules()):
        return
    own = module.state_dict().keys()
    # Some of the model's own keys are a choice, or torch names those that are missing
    if any(key not in own and not key.startswith(_HEADS) for key in state_dict):
        refusal = describe_half(own, state_dict.keys())
        if refusal:
            error_msgs.append(refusal)


def watch_loading(model: nn.Module) -> None:
    """Let `load_state_dict` refuse another layout that lacks weights, with strict=False too.

    A state dict that has nothing but some of the model's own keys loads with strict=False as ever.

    Args:
        model: A network, or a wrapper that returns its features.
    """
    model.register_load_state_dict_pre_hook(_explain)
