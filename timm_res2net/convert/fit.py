"""Compare the keys and shapes of a state dict with those that a model expects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..keys import is_counter
from ..text import list_some

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """The differences between a state dict and a model.

    Attributes:
        missing: Keys of the model without a tensor, except counters (see `keys.is_counter`).
        surplus: Keys of the state dict that the model does not have.
        wrong: Keys whose tensor has another shape than the model's: the tensor's shape, the
            model's.
    """

    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    wrong: Mapping[str, tuple[_Shape, _Shape]] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the differences as one sentence without a full stop, or '' if there are none."""
        wrong = [f'{key} {given} for {own}' for key, (given, own) in self.wrong.items()]
        parts = {
            'parameters are left without a value': self.missing,
            'weights have no place in the model': self.surplus,
            'shapes do not fit': wrong,
        }
        return '; '.join(f'{what}, {list_some(keys)}' for what, keys in parts.items() if keys)


def shapes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, _Shape]:
    """Return the shapes of a state dict's tensors by key."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def fit(own: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]) -> Fit:
    """Compare the shapes that a model expects with those of a state dict.

    Shapes are enough, so that a file's header can be compared without its tensors.

    Args:
        own: Shapes of the model's parameters and buffers by key.
        given: Shapes of the state dict's tensors by key.
    """
    both = {key: (tuple(given[key]), tuple(own[key])) for key in own if key in given}
    return Fit(
        missing=tuple(key for key in own if key not in given and not is_counter(key)),
        surplus=tuple(key for key in given if key not in own),
        wrong={key: pair for key, pair in both.items() if pair[0] != pair[1]},
    )


def with_counters(
    tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a state dict with the counters that it lacks, as zeros.

    Args:
        tensors: The state dict.
        own: The model's state dict, which may be on the meta device.
    """
    counters = {
        key: torch.zeros((), dtype=value.dtype) for key, value in own.items() if is_counter(key)
    }
    return {**counters, **tensors}


def without_counters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict without its counters."""
    return {key: value for key, value in tensors.items() if not is_counter(key)}
