"""Squeeze-and-excitation gates that start at the identity, on a plain network's weights."""

from collections.abc import Mapping

import torch
from timm.layers import SEModule
from torch import nn

from ..layers.bottle2neck import Bottle2neck
from ..text import list_some

__all__ = ['checkpoint_filter_fn']


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor], model: nn.Module
) -> dict[str, torch.Tensor]:
    """Start squeeze-and-excitation gates at the identity where a plain network's checkpoint lacks
    them.

    With fc2 at zero a gate is sigmoid(0) = 1/2 for every input, and bn3 doubled makes up for it.
    Both are powers of two, so the outputs equal the plain network's bit for bit, in training mode
    too, while the gates stand where their slope is largest. Without missing gates the state dict
    passes untouched.

    Args:
        state_dict: Checkpoint under timm's names; it is not modified.
        model: The model that it will be loaded into.

    Returns:
        The state dict to load.

    Raises:
        RuntimeError: Attention weights that the model or the checkpoint lacks, other than all of
            SE's. timm itself would not report those where it loads without `strict`, as it does for
            `features_only`.
    """
    own = model.state_dict()
    expected = {key for key in own if '.se.' in key}
    given = {key for key in state_dict if '.se.' in key}
    if given - expected:
        raise RuntimeError(
            'The checkpoint has attention weights that the model has no place for, '
            f"{list_some(given - expected)}. Give the model the checkpoint's attn_layer."
        )
    out = dict(state_dict)
    if not given:
        for name, block in model.named_modules():
            if isinstance(block, Bottle2neck) and _can_be_identity(block.se):
                out.update(_identity_gate(name, own, state_dict))
    missing = expected - out.keys()
    if missing:
        raise RuntimeError(
            f'The checkpoint lacks attention weights of the model, {list_some(missing)}. Only SE '
            "with a sigmoid gate can start from a plain network's checkpoint: use attn_layer='se', "
            "or attn_layer='' for none, or pretrained=False."
        )
    return out


def _can_be_identity(attn: nn.Module | None) -> bool:
    return isinstance(attn, SEModule) and float(attn.gate(torch.zeros(()))) == 0.5


def _identity_gate(
    block: str, own: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A block's SE weights as they are with fc2 at zero, and its bn3 doubled."""
    gate = {key: value for key, value in own.items() if key.startswith(f'{block}.se.')}
    for key in gate:
        if '.fc2.' in key:
            gate[key] = torch.zeros_like(gate[key])
    for key in (f'{block}.bn3.weight', f'{block}.bn3.bias'):
        if key not in state_dict:
            raise RuntimeError(f"The checkpoint has no '{key}': it is not a Res2Net's.")
        gate[key] = state_dict[key] * 2
    return gate
