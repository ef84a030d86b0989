"""Compare outputs: with the original code's, another model's, or golden tensors beside the weights.

Golden tensors are an input and what a model gave for it when its weights were written. timm's own
repositories on the Hub have them as `test/rand_tensors.safetensors`, with the tensors `input`,
`output` (the logits), `features` (the last feature map) and `pre_logits` (the pooled features). The
same names are used here, so that a tool for timm's repositories finds them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..files import TEXT_LIMIT

TOLERANCE = 1e-3
"""Largest relative difference that rounding explains. Wrong semantics differ by 8 % and more.

On a CPU, other instruction sets, numbers of threads and memory formats and the deploy form change
outputs by up to 2e-6 (measured with five models). The rest is for files that were written on a GPU,
whose TF32 has 10 bits; timm compares its own golden tensors with the same tolerance.
"""
GOLDEN = 'test/rand_tensors.safetensors'
"""File of the golden tensors, in a folder or repository."""

_LARGEST_SIDE = 384  # px; the input of a larger model is smaller than its config says
_LARGEST_TENSOR = 4 << 20  # bytes; larger tensors are not written


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


def describe(errors: Mapping[str, float]) -> str:
    """Return differences in words."""
    return ', '.join(f'{error:.2g} ({name})' for name, error in errors.items())


def _refuse(
    got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str
) -> dict[str, float]:
    """Return the differences of a model's outputs from those of a file.

    Raises:
        ValueError: The shapes are others, or a difference is larger than rounding.
    """
    mine, theirs = (
        [tuple(tensors[name].shape) for name in expected] for tensors in (got, expected)
    )
    if mine != theirs:
        raise ValueError(
            f'{what} has the shapes {theirs}, and the model gives {mine}: it is another network, '
            'such as one with other strides. Give its arguments, or compare other outputs.'
        )
    errors = differences(got, expected)
    if max(errors.values()) > TOLERANCE:
        raise ValueError(
            f'The outputs differ from {what} by {describe(errors)}, and at most {TOLERANCE:g} is '
            'rounding: it is another network under the same keys, or the weights are others or '
            'damaged. Give its semantics or arguments, or use the right weights.'
        )
    return errors


def _levels(model: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    levels = model.forward_intermediates(batch, intermediates_only=True)
    return {f'level {i}': level for i, level in enumerate(levels)}


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
    with torch.no_grad():
        if len(expected) == 1 and expected[0].ndim == 2:
            got = {'logits': model(batch)}
        else:
            got = dict([*_levels(model, batch).items()][-len(expected) :])
    if len(got) != len(expected):
        raise ValueError(
            f'{outputs} holds {len(expected)} outputs, and the model has {len(got)} levels. Save '
            'the logits, or the levels that end with the last stage.'
        )
    return _refuse(got, dict(zip(got, expected, strict=True)), str(outputs))


def compare_models(model: Any, other: Any, size: Sequence[int]) -> dict[str, float]:
    """Compare the feature levels and the outputs of two models for a noise image.

    Args:
        model: A Res2Net or HRNet in eval mode.
        other: One that should compute the same.
        size: Channels, height and width of the image.

    Returns:
        For each level from the first to the last, and for the outputs, the largest difference,
        relative to the largest value of `model`.
    """
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = (
            {**_levels(one, image), 'the output': one(image)} for one in (model, other)
        )
    return differences(got, expected)


# --- golden tensors -------------------------------------------------------------------------------


def golden_tensors(model: Any, size: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return a noise image and what a model gives for it, under timm's names and in float32.

    The image is the same for every model of a size. Tensors of more than 4 MB are left out.

    Args:
        model: A Res2Net or HRNet in eval mode, with weights.
        size: Channels, height and width of its images.

    Returns:
        The tensors; none if the model cannot be run, has no logits, or gives values that are not
        finite.
    """
    channels, *sides = size
    shape = (1, channels, *(min(side, _LARGEST_SIDE) for side in sides))
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    try:
        found = {'input': image, **_golden_outputs(model, image)}
    except (RuntimeError, ValueError):  # images too small, weights on the meta device
        return {}
    kept = {name: tensor for name, tensor in found.items() if tensor.nbytes <= _LARGEST_TENSOR}
    is_whole = 'input' in kept and all(bool(tensor.isfinite().all()) for tensor in kept.values())
    return kept if is_whole else {}


def _golden_outputs(model: Any, image: torch.Tensor) -> dict[str, torch.Tensor]:
    if not hasattr(model.global_pool, 'pool_type'):  # an HRNet without a head returns branches
        raise ValueError('The model has no logits.')
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        features = model.forward_features(image.to(dtype))
        found = {
            'output': model.forward_head(features),
            'features': features,
            'pre_logits': model.forward_head(features, pre_logits=True),
        }
    # without a head two of them are one tensor, which safetensors does not write
    return {name: tensor.float().contiguous().clone() for name, tensor in found.items()}


def compare_golden(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, float]:
    """Compare a model's outputs with golden tensors.

    Args:
        model: A Res2Net or HRNet in eval mode.
        path: The file, which is not trusted.

    Returns:
        For each output the largest difference, relative to the largest expected value.

    Raises:
        ValueError: The file is too large, cannot be read or holds other tensors, or the difference
            is larger than `TOLERANCE`.
    """
    expected = _read_golden(Path(path))
    image = expected.pop('input')
    try:
        got = _golden_outputs(model, image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f'The input of {GOLDEN} has the shape {tuple(image.shape)}, and the model does not run '
            'on it. Remove the file, or push the model again.'
        ) from error
    return _refuse(got, expected, GOLDEN)


def _read_golden(path: Path) -> dict[str, torch.Tensor]:
    """Read golden tensors: the input and one output or more."""
    remedy = 'Remove the file, or push the model again.'
    size = path.stat().st_size
    if size > TEXT_LIMIT:
        raise ValueError(
            f'{GOLDEN} has {size:,} bytes, and at most {TEXT_LIMIT:,} are read. {remedy}'
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{GOLDEN} is damaged ({error}). {remedy}') from error
    names = ('input', 'output', 'features', 'pre_logits')
    kept = {name: tensors[name] for name in names if name in tensors}
    usable = all(tensor.is_floating_point() and tensor.numel() for tensor in kept.values())
    if not usable or 'input' not in kept or len(kept) == 1 or kept['input'].ndim != 4:
        raise ValueError(
            f'{GOLDEN} does not hold an input (B, C, H, W) and an output, features or pre_logits '
            f'as floating-point numbers. {remedy}'
        )
    return {name: tensor.float() for name, tensor in kept.items()}
