"""Compare outputs: with the original code's, another model's, or golden tensors beside the weights.

Golden tensors are an input and what a model gave for it when its weights were written. timm's own
repositories on the Hub have them as `test/rand_tensors.safetensors`, with the tensors `input`,
`output` (the logits), `features` (the last feature map) and `pre_logits` (the pooled features). The
same names are used here, so that a tool for timm's repositories finds them.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

TOLERANCE = 1e-3
"""Largest relative difference that rounding explains. Wrong semantics differ by 8 % and more.

On a CPU, other instruction sets, numbers of threads and memory formats and the deploy form change
outputs by up to 2e-6 (measured with five models). The rest is for files that were written on a GPU,
whose TF32 has 10 bits; timm compares its own golden tensors with the same tolerance.
"""
GOLDEN = 'test/rand_tensors.safetensors'
"""File of the golden tensors, in a folder or repository."""

_OUTPUTS = ('output', 'features', 'pre_logits')
_LARGEST_SIDE = 384  # px
_LARGEST_TENSOR = 4 << 20  # bytes; larger tensors are not written


def read_tensors(path: str | os.PathLike[str]) -> list[torch.Tensor]:
    """Read a tensor, or a list or dictionary of tensors, without running anything in the file.

    Args:
        path: A file of `torch.save`, a .npy or a .safetensors.

    Raises:
        ValueError: The file holds anything else. The readers of torch, NumPy and safetensors raise
            errors of their own for damaged files.
    """
    path = Path(path)
    if path.suffix == '.npy':
        content: Any = torch.from_numpy(np.load(path, allow_pickle=False))
    elif path.suffix == '.safetensors':
        content = load_file(path)
    else:
        content = torch.load(path, map_location='cpu', weights_only=True)
    if isinstance(content, dict):
        content = list(content.values())
    tensors = list(content) if isinstance(content, list | tuple) else [content]
    if not tensors or not all(isinstance(t, torch.Tensor) for t in tensors):
        raise ValueError(
            f'{path} holds {type(content).__name__}, not tensors. Save a tensor or a list of '
            'tensors with torch.save, or one as .npy.'
        )
    return [tensor.detach().float() for tensor in tensors]


def relative_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference between two tensors over the largest expected value.

    It is infinite if the shapes differ, or if one of them holds NaN: NaN is a difference, and
    Python's `max` and `<` would lose it.
    """
    if got.shape != expected.shape:
        return math.inf
    difference = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(difference) else difference


def differences(
    got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Return the relative difference of every expected output by name."""
    return {name: relative_difference(got[name], tensor) for name, tensor in expected.items()}


def in_words(errors: Mapping[str, float]) -> str:
    """Return differences in words."""
    return ', '.join(f'{error:.2g} ({name})' for name, error in errors.items())


def _refuse(
    outputs: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    what: str,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Return the differences of a model's outputs from those of a file.

    Raises:
        ValueError: The shapes are others, or a difference is larger than rounding.
    """
    mine, theirs = (
        [tuple(tensors[name].shape) for name in expected] for tensors in (outputs, expected)
    )
    if mine != theirs:
        raise ValueError(
            f'{what} has the shapes {theirs}, and the model returns {mine}: it is another network, '
            'such as one with other strides. Give its arguments, or compare other outputs.'
        )
    errors = differences(outputs, expected)
    if max(errors.values()) > tolerance:
        raise ValueError(
            f'The outputs differ from {what} by {in_words(errors)}, and at most {tolerance:.1g} is '
            'rounding: it is another network under the same keys, or the weights are others or '
            'damaged. Give its semantics or arguments, or use the right weights.'
        )
    return errors


def noise_image(size: Sequence[int]) -> torch.Tensor:
    """Return a batch of one image of noise, the same at every call for a size.

    Args:
        size: Channels, height and width. Sides of more than 384 px become 384 px: a config that is
            not trusted may claim any.

    Returns:
        (1, C, H, W) with values from 0 to 1.
    """
    channels, *sides = size
    sides = [min(side, _LARGEST_SIDE) for side in sides]
    return torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))


def outputs_of(model: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the feature levels and the logits of a model for a batch, by name."""
    with torch.no_grad():
        levels = model.forward_intermediates(batch, intermediates_only=True)
        return {**{f'level {i}': level for i, level in enumerate(levels)}, 'logits': model(batch)}


def compare_outputs(
    model: Any, image: str | os.PathLike[str], outputs: str | os.PathLike[str]
) -> dict[str, float]:
    """Compare a model's outputs for a batch with those of the original code.

    Args:
        model: A Res2Net in eval mode.
        image: File with the batch (B, C, H, W), as the original network takes it.
        outputs: File with the logits (B, classes), or with feature maps (B, channels, H, W), the
            last of which is the last stage's.

    Returns:
        For each output the largest difference, relative to the largest expected value.

    Raises:
        ValueError: A file cannot be read, the shapes are others, or the difference is larger than
            `TOLERANCE`.
    """
    (batch, *_), expected = read_tensors(image), read_tensors(outputs)
    if batch.ndim != 4:
        raise ValueError(f'{image} has the shape {tuple(batch.shape)}. Save a batch (B, C, H, W).')
    mine = outputs_of(model, batch)
    *levels, logits = mine
    names = [logits] if len(expected) == 1 and expected[0].ndim == 2 else levels[-len(expected) :]
    if len(names) != len(expected):
        raise ValueError(
            f'{outputs} holds {len(expected)} outputs, and the model has {len(names)} levels. Save '
            'the logits, or the levels that end with the last stage.'
        )
    return _refuse(mine, dict(zip(names, expected, strict=True)), str(outputs))


# --- golden tensors -------------------------------------------------------------------------------


def golden_tensors(model: Any, size: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return a noise image and what a model returns for it, under timm's names and in float32.

    The image is the same for every model of a size. Tensors of more than 4 MB are left out.

    Args:
        model: A Res2Net or HRNet in eval mode, with weights.
        size: Channels, height and width of its images.

    Returns:
        The tensors; none if the model cannot be run, has no logits, or returns values that are not
        finite.
    """
    image = noise_image(size)
    try:
        tensors = {'input': image, **_golden_outputs(model, image)}
    except (RuntimeError, ValueError):  # images too small, weights on the meta device
        return {}
    kept = {name: tensor for name, tensor in tensors.items() if tensor.nbytes <= _LARGEST_TENSOR}
    is_whole = 'input' in kept and all(bool(tensor.isfinite().all()) for tensor in kept.values())
    return kept if is_whole else {}


def _golden_outputs(model: Any, image: torch.Tensor) -> dict[str, torch.Tensor]:
    if not hasattr(model.global_pool, 'pool_type'):  # an HRNet without a head returns branches
        raise ValueError('The model has no logits.')
    with torch.no_grad():
        features = model.forward_features(image.to(next(model.parameters()).dtype))
        outputs = (
            model.forward_head(features),
            features,
            model.forward_head(features, pre_logits=True),
        )
    # without a head two of them are one tensor, which safetensors does not write
    return {
        name: tensor.float().contiguous().clone()
        for name, tensor in zip(_OUTPUTS, outputs, strict=True)
    }


def compare_golden(
    model: nn.Module, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Compare a model's outputs with golden tensors.

    Args:
        model: A Res2Net or HRNet in eval mode.
        path: The file, which is not trusted.
        dtype: The type in which its weights were saved. Weights of 16 bits may differ by 8 times
            their rounding, which is less than other semantics do.

    Returns:
        For each output the largest difference, relative to the largest expected value.

    Raises:
        ValueError: The file cannot be read or holds other tensors, or a difference is larger than
            `TOLERANCE`, or than the rounding of `dtype`.
    """
    remedy = 'Remove the file, or push the model again.'
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{GOLDEN} is damaged ({error}). {remedy}') from error
    expected = {name: tensors[name].float() for name in _OUTPUTS if name in tensors}
    image = tensors.get('input', torch.empty(0))
    if not expected or image.ndim != 4 or not all(map(torch.numel, expected.values())):
        raise ValueError(
            f'{GOLDEN} does not hold an input (B, C, H, W) and an output, features or pre_logits. '
            f'{remedy}'
        )
    try:
        outputs = _golden_outputs(model, image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f'The input of {GOLDEN} has the shape {tuple(image.shape)}, and the model does not run '
            f'on it. {remedy}'
        ) from error
    return _refuse(outputs, expected, GOLDEN, max(TOLERANCE, 8 * torch.finfo(dtype).eps))


def keep_golden(model: nn.Module, old: Path, new: Path) -> None:
    """Replace new golden tensors with old ones, if both exist and the model returns the old ones.

    Their last bits depend on the machine, so the same model would otherwise be pushed again.
    """
    if old.is_file() and new.is_file():
        with suppress(ValueError):
            compare_golden(model, old)
            shutil.copyfile(old, new)
