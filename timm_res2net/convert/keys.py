"""What the keys of a state dict under timm's names stand for."""

from collections.abc import Mapping

import torch


def is_counter(key: str) -> bool:
    """Return whether a key is a BatchNorm's `num_batches_tracked`.

    A state dict may lack these integers: a BatchNorm with a momentum does not read them, and Paddle
    and detectron2 do not have them.
    """
    return key.endswith('num_batches_tracked')


def without_counters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict without its counters."""
    return {key: value for key, value in tensors.items() if not is_counter(key)}


def is_head(key: str) -> bool:
    """Return whether a key is one of the classifier, which timm replaces for other classes."""
    return key.startswith(('fc.', 'classifier.'))  # of a ResNet, of an HRNet


def is_branch(key: str) -> bool:
    """Return whether a key is one of an HRNet's four branches, which no Res2Net has."""
    return key.startswith('stage4.')


def is_gate(key: str) -> bool:
    """Return whether a key belongs to a block's attention layer."""
    return '.se.' in key
