"""Compare outputs: of a converted model with those that the original code gave, and others."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

TOLERANCE = 1e-3
"""Largest relative difference that rounding explains. Wrong semantics differ by 8 % and more."""


def read_tensors(path: str | os.PathLike[str]) -> list[torch.Tensor]:
    """Read a tensor, or a list or dictionary of tensors, without running anything in the file.

    Args:
        path: A file of `torch.save`, a .npy or a .safetensors.

    Raises:
        ValueError: The file holds anything else.
    """
    path = Path(path)
    try:
        if path.suffix == '.npy':
            content: Any = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == '.safetensors':
            content = load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files fail anywhere inside these readers
        raise ValueError(
            f'Cannot read {path} as tensors ({type(error).__name__}). Save a tensor or a list of '
            'tensors with torch.save, or one as .npy.'
        ) from error
    if isinstance(content, dict):
        content = list(content.values())
    tensors = list(content) if isinstance(content, list | tuple) else [content]
    if not tensors or not all(isinstance(t, torch.Tensor) for t in tensors):
        raise ValueError(
            f'{path} holds {type(content).__name__}, not tensors. Save a tensor or a list of '
            'tensors with torch.save.'
        )
    return [tensor.float() for tensor in tensors]


def relative_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference between two tensors over the largest expected value.

    It is NaN if one of them holds NaN.
    """
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def compare_outputs(
    model: Any,
    image: str | os.PathLike[str],
    outputs: str | os.PathLike[str],
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Compare a model's outputs for a batch with those of the original code.

    Args:
        model: A Res2Net in eval mode.
        image: File with the batch (B, C, H, W), as the original network takes it.
        outputs: File with the logits (B, classes), or with feature maps (B, channels, H, W), the
            last of which is the last stage's.
        tolerance: Largest relative difference.

    Returns:
        For each output the largest difference, relative to the largest expected value.

    Raises:
        ValueError: A file cannot be read, the shapes are others, or the difference is larger.
    """
    (batch, *_), expected = read_tensors(image), read_tensors(outputs)
    if batch.ndim != 4:
        raise ValueError(f'{image} has the shape {tuple(batch.shape)}. Save a batch (B, C, H, W).')
    with torch.no_grad():
        if len(expected) == 1 and expected[0].ndim == 2:
            found = {'logits': model(batch)}
        else:
            levels = model.forward_intermediates(batch, intermediates_only=True)
            named = {f'level {i}': level for i, level in enumerate(levels)}
            found = dict(list(named.items())[-len(expected) :])
    got, given = ([tuple(t.shape) for t in tensors] for tensors in (found.values(), expected))
    if got != given:
        raise ValueError(
            f'{outputs} has the shapes {given}, and the model gives {got}: it is another network, '
            'such as one with other strides. Give its arguments, or compare other outputs.'
        )
    errors = {
        name: relative_difference(mine, theirs)
        for (name, mine), theirs in zip(found.items(), expected, strict=True)
    }
    if not max(errors.values()) <= tolerance:
        raise ValueError(
            f'The outputs differ from {outputs} by {describe(errors)}, and at most '
            f'{tolerance:g} is rounding: it is another network under the same keys. Give its '
            'semantics or arguments.'
        )
    return errors


def describe(errors: dict[str, float]) -> str:
    """Return the differences in words."""
    return ', '.join(f'{error:.2g} ({name})' for name, error in errors.items())
