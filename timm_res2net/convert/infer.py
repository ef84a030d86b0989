"""Which network a state dict belongs to, read off its shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ['infer_arguments']


def _base_width(widths: list[tuple[int, int]]) -> float:
    """A base width that gives every stage its width.

    A block of p planes has splits of floor(p * base_width / 64) channels a group.

    Args:
        widths: Planes, and channels of a split in a group, of every stage.

    Raises:
        ValueError: There is none.
    """

    def fits(base_width: float) -> bool:
        return all(math.floor(p * (base_width / 64.0)) == w for p, w in widths)

    low = max(64 * w / p for p, w in widths)
    high = min(64 * (w + 1) / p for p, w in widths)
    # whole numbers are what the networks are named by; rounding may put the limit itself below
    for candidate in (math.ceil(low), low, math.nextafter(low, high), (low + high) / 2):
        if fits(candidate):
            return candidate
    raise ValueError(
        'No base_width gives splits of '
        + ', '.join(f'{w} channels to {p} planes' for p, w in widths)
    )


def infer_arguments(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of `Res2Net` that give a state dict's shapes, all but `semantics`.

    Args:
        state_dict: Tensors by timm's names.

    Raises:
        ValueError: No Res2Net of four stages has these tensors, or its attention is no SE that can
            be built.
    """

    def shape(key: str, dims: int = 4) -> tuple[int, ...]:
        if key not in state_dict:
            raise ValueError(f"It has no '{key}', which every Res2Net of four stages has")
        found = tuple(state_dict[key].shape)
        if len(found) != dims or not all(found):
            raise ValueError(f"Its '{key}' has the shape {found}, not {dims} sizes of at least 1")
        return found

    blocks = {m.groups() for key in state_dict if (m := re.match(r'layer(\d+)\.(\d+)\.', key))}
    layers = tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5))
    channels, widths = [], []
    for stage in range(1, 5):
        first = f'layer{stage}.0'
        width, in_group, *_ = shape(f'{first}.convs.0.weight')
        outside = shape(f'{first}.conv3.weight')[0]
        if outside % 4:
            raise ValueError(f"Its '{first}.conv3.weight' has {outside} channels, no multiple of 4")
        channels.append(outside // 4)
        widths.append((channels[-1], in_group))
    scale = shape('layer1.0.conv1.weight')[0] // shape('layer1.0.convs.0.weight')[0]
    width, in_group, *_ = shape('layer1.0.convs.0.weight')
    arguments: dict[str, Any] = {
        'layers': layers,
        'num_classes': shape('fc.weight', 2)[0] if 'fc.weight' in state_dict else 0,
        'cardinality': width // in_group,
        'base_width': _base_width(widths),
        'scale': scale,
        'attn_layer': '',
        'channels': tuple(channels),
    }
    if 'conv1.0.weight' in state_dict:
        stem_width, arguments['in_chans'], *_ = shape('conv1.0.weight')
        tiered = shape('conv1.3.weight')[0] != stem_width
        arguments.update(stem_type='deep_tiered' if tiered else 'deep')
        arguments['stem_width'] = shape('conv1.6.weight')[0] // 2
    else:
        arguments.update(stem_type='', in_chans=shape('conv1.weight')[1])
    # stage 1 may do without a shortcut of its own
    pooled = 'layer2.0.downsample.2.weight' in state_dict
    shortcut = f'layer2.0.downsample.{int(pooled)}.weight'
    arguments.update(
        avg_down=pooled,
        down_kernel_size=shape(shortcut)[-1],
        replace_stem_pool='maxpool.0.weight' in state_dict,
    )
    if any('.se.' in key for key in state_dict):
        if 'layer1.0.se.fc1.weight' not in state_dict:
            raise ValueError('Its attention is none of SE, and shapes do not tell which')
        reduced, whole, *_ = shape('layer1.0.se.fc1.weight')
        if reduced != max(whole // 16, 1):
            raise ValueError(
                f'Its SE modules reduce {whole} channels to {reduced}; only a reduction to '
                f'{max(whole // 16, 1)} (by 16) can be built'
            )
        arguments['attn_layer'] = 'se'
    return arguments
