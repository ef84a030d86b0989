"""Refuse checkpoints that would fill only part of a network, and files that are no checkpoints.

With `features_only` or another class count, timm loads with strict=False. A checkpoint with other
keys then leaves random weights, and only a log message says so.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..keys import is_counter, is_gate, is_head
from ..layers.bottle2neck import Bottle2neck
from ..text import list_some


def _body(keys: Collection[str]) -> set[str]:
    """Return the keys that every checkpoint has: se_identity.py can start the attention."""
    return {key for key in keys if not (is_head(key) or is_gate(key) or is_counter(key))}


def describe_half(own: Collection[str], given: Collection[str]) -> str:
    """Return the refusal of a checkpoint that lacks weights of the body, '' if it has them.

    Args:
        own: Keys of the model.
        given: Keys of the checkpoint.
    """
    missing = _body(own) - set(given)
    if not missing:
        return ''
    foreign = [key for key in given if key not in own and not is_head(key)]
    lacks = f'The checkpoint lacks weights of the network ({list_some(missing)})'
    if not foreign:
        return (
            f'{lacks}. Create the model with the layers and the scale of the checkpoint, or give '
            'the whole checkpoint.'
        )
    return (
        f'{lacks} and has other keys ({list_some(foreign)}). If its layout is another one, '
        '`timm-res2net convert FILE --out FOLDER` makes a folder of it, which loads with '
        "timm.create_model('local-dir:FOLDER', pretrained=True)."
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
    # Skip a part of a larger model, and a deployed model, whose keys differ.
    if prefix or not any(isinstance(part, Bottle2neck) for part in module.modules()):
        return
    own = module.state_dict().keys()
    # A state dict with nothing but the model's own keys is the caller's choice; with strict=True
    # torch names the missing ones.
    if any(key not in own and not is_head(key) for key in state_dict):
        refusal = describe_half(own, state_dict.keys())
        if refusal:
            error_msgs.append(refusal)


@contextmanager
def explaining_file(path: str | None) -> Iterator[None]:
    """Replace the errors of timm and torch over a file that is no checkpoint by a sentence.

    Args:
        path: The file that the block loads; None if it loads none.

    Raises:
        RuntimeError: The file cannot be read as a checkpoint. Other errors pass.
    """
    try:
        yield
    except Exception as error:  # a file of any kind can fail anywhere
        if path and os.path.isfile(path):  # a local-dir: may be a folder
            from ..convert import read_checkpoint  # not needed to load a model

            try:
                read_checkpoint(path)
            except ValueError as refusal:
                raise RuntimeError(str(refusal)) from error
        raise


def watch_loading(model: nn.Module) -> None:
    """Let `load_state_dict` refuse another layout that lacks weights, with strict=False too.

    A state dict that has nothing but some of the model's own keys loads with strict=False as ever.

    Args:
        model: A network, or a wrapper that returns its features.
    """
    model.register_load_state_dict_pre_hook(_explain)
