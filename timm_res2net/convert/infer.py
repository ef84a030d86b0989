"""Infer the arguments of a network from the shapes of its state dict."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from .keys import is_gate


def _base_width(widths: list[tuple[int, int]]) -> float:
    """Return a base width that gives every stage its width.

    A split of a block with p planes has floor(p * base_width / 64) channels in each group.

    Args:
        widths: Planes, and channels of a split in a group, of every stage.

    Raises:
        ValueError: No base width does.
    """
    low = max(64 * w / p for p, w in widths)
    high = min(64 * (w + 1) / p for p, w in widths)
    # Prefer a whole number, as in the networks' names. Rounding may put `low` itself too low.
    for candidate in (math.ceil(low), low, math.nextafter(low, high), (low + high) / 2):
        if all(math.floor(p * (candidate / 64.0)) == w for p, w in widths):
            return candidate
    raise ValueError(
        'No base_width gives splits of '
        + ', '.join(f'{w} channels to {p} planes' for p, w in widths)
    )


def _shape(state_dict: Mapping[str, torch.Tensor], key: str, dims: int = 4) -> tuple[int, ...]:
    """Return the shape of a tensor that every Res2Net has."""
    if key not in state_dict:
        raise ValueError(f"It has no '{key}', which every Res2Net of four stages has")
    sizes = tuple(state_dict[key].shape)
    if len(sizes) != dims or not all(sizes):
        raise ValueError(f"Its '{key}' has the shape {sizes}, not {dims} sizes of at least 1")
    return sizes


def _attention(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return 'se' if the first block has an SE module with reduction 16, '' without attention."""
    if not any(map(is_gate, state_dict)):
        return ''
    if 'layer1.0.se.fc1.weight' not in state_dict:
        raise ValueError('Its attention is not SE, and its kind cannot be inferred from shapes')
    reduced, channels, *_ = _shape(state_dict, 'layer1.0.se.fc1.weight')
    if reduced != max(channels // 16, 1):
        raise ValueError(
            f'Its SE modules reduce {channels} channels to {reduced}. Only a reduction by 16, to '
            f'{max(channels // 16, 1)}, can be built'
        )
    return 'se'


def infer_arguments(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the arguments of `Res2Net` that give these shapes, except `semantics`.

    Args:
        state_dict: Tensors by timm's keys. Only their shapes are read.

    Returns:
        layers, num_classes (0 without `fc`), in_chans, cardinality, base_width, scale, attn_layer
        ('' or 'se'), channels, stem_type, stem_width (if the stem is deep), replace_stem_pool,
        avg_down and down_kernel_size.

    Raises:
        ValueError: No Res2Net of four stages has these shapes, or the attention is not an SE module
            with reduction 16.
    """
    shape = functools.partial(_shape, state_dict)
    blocks = {m.groups() for key in state_dict if (m := re.match(r'layer(\d+)\.(\d+)\.', key))}
    planes, widths = [], []
    for stage in range(1, 5):
        channels = shape(f'layer{stage}.0.conv3.weight')[0]
        if channels % 4:
            raise ValueError(
                f"Its 'layer{stage}.0.conv3.weight' has {channels} channels, not a multiple of 4"
            )
        planes.append(channels // 4)
        widths.append((channels // 4, shape(f'layer{stage}.0.convs.0.weight')[1]))
    width, in_group, *_ = shape('layer1.0.convs.0.weight')
    pooled = 'layer2.0.downsample.2.weight' in state_dict
    arguments = {
        'layers': tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5)),
        'num_classes': shape('fc.weight', 2)[0] if 'fc.weight' in state_dict else 0,
        'channels': tuple(planes),
        'cardinality': width // in_group,
        'base_width': _base_width(widths),
        'scale': shape('layer1.0.conv1.weight')[0] // width,
        'attn_layer': _attention(state_dict),
        'avg_down': pooled,
        # read in stage 2: stage 1 may have no shortcut convolution
        'down_kernel_size': shape(f'layer2.0.downsample.{int(pooled)}.weight')[-1],
        'replace_stem_pool': 'maxpool.0.weight' in state_dict,
    }
    if 'conv1.0.weight' not in state_dict:
        return {**arguments, 'stem_type': '', 'in_chans': shape('conv1.weight')[1]}
    stem_width, in_chans, *_ = shape('conv1.0.weight')
    tiered = shape('conv1.3.weight')[0] != stem_width
    return {
        **arguments,
        'stem_type': 'deep_tiered' if tiered else 'deep',
        'in_chans': in_chans,
        'stem_width': shape('conv1.6.weight')[0] // 2,
    }
