"""Squeeze-and-excitation gates that start at the identity, for weights of plain networks."""

from collections.abc import Mapping

import torch
from timm.layers import SEModule
from torch import nn

from ..convert.keys import is_gate
from ..layers.bottle2neck import Bottle2neck
from ..layers.text import list_some
from .half_loading import refuse_half


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor], model: nn.Module
) -> dict[str, torch.Tensor]:
    """Start the squeeze-and-excitation gates at the identity if a checkpoint has none.

    With the weight and bias of fc2 at zero, a gate is sigmoid(0) = 1/2 for every input, and a
    doubled bn3 compensates for it. Both are powers of two, so the outputs equal those of the plain
    network bit for bit, in training mode too, and the slope of the gates is at its largest. A state
    dict that has gates is returned unchanged.

    Args:
        state_dict: Checkpoint with timm's names. It is not changed.
        model: Model that will load it.

    Returns:
        The state dict to load.

    Raises:
        RuntimeError: The checkpoint lacks weights of the body, or attention weights that only the
            model or only the checkpoint has, except all of SE's. timm does not report them when it
            loads with strict=False, for example with `features_only`.
    """
    refuse_half(state_dict, model)
    own = model.state_dict()
    expected = set(filter(is_gate, own))
    given = set(filter(is_gate, state_dict))
    if given - expected:
        raise RuntimeError(
            'The checkpoint has attention weights that the model does not have, '
            f"{list_some(given - expected)}. Create the model with the checkpoint's attn_layer."
        )
    out = dict(state_dict)
    if not given:
        for name, block in model.named_modules():
            if isinstance(block, Bottle2neck) and _can_be_identity(block.se):
                out.update(_identity_gate(name, own, state_dict))
    missing = expected - out.keys()
    if missing:
        raise RuntimeError(
            f'The checkpoint has no attention weights of the model, {list_some(missing)}. Only SE '
            "with a sigmoid gate can start from a plain network's checkpoint. Use attn_layer='se', "
            "attn_layer='' for no attention, or pretrained=False."
        )
    return out


def _can_be_identity(attn: nn.Module | None) -> bool:
    """Return whether the gate of an attention layer is 1/2 if fc2 is zero."""
    return isinstance(attn, SEModule) and float(attn.gate(torch.zeros(()))) == 0.5


def _identity_gate(
    block: str, own: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the SE weights of a block with fc2 at zero, and its bn3 doubled."""
    gate = {key: value for key, value in own.items() if key.startswith(f'{block}.se.')}
    for key in gate:
        if '.fc2.' in key:
            gate[key] = torch.zeros_like(gate[key])
    for key in (f'{block}.bn3.weight', f'{block}.bn3.bias'):
        gate[key] = state_dict[key] * 2
    return gate
