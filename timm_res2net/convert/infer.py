"""Infer the arguments of a network from the shapes of its state dict."""

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

    def fits(base_width: float) -> bool:
        return all(math.floor(p * (base_width / 64.0)) == w for p, w in widths)

    low = max(64 * w / p for p, w in widths)
    high = min(64 * (w + 1) / p for p, w in widths)
    # Prefer a whole number, as in the networks' names. Rounding may put `low` itself too low.
    for candidate in (math.ceil(low), low, math.nextafter(low, high), (low + high) / 2):
        if fits(candidate):
            return candidate
    raise ValueError(
        'No base_width gives splits of '
        + ', '.join(f'{w} channels to {p} planes' for p, w in widths)
    )


class _Shapes:
    """The shapes of a state dict, with an error for what every Res2Net has."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.state_dict = state_dict

    def __call__(self, key: str, dims: int = 4) -> tuple[int, ...]:
        if key not in self.state_dict:
            raise ValueError(f"It has no '{key}', which every Res2Net of four stages has")
        found = tuple(self.state_dict[key].shape)
        if len(found) != dims or not all(found):
            raise ValueError(f"Its '{key}' has the shape {found}, not {dims} sizes of at least 1")
        return found

    def planes(self, block: str) -> int:
        """Return the planes of a block, a quarter of its output channels."""
        planes, rest = divmod(self(f'{block}.conv3.weight')[0], 4)
        if rest:
            raise ValueError(
                f"Its '{block}.conv3.weight' has {4 * planes + rest} channels, not a multiple of 4"
            )
        return planes

    def blocks(self, *firsts: str) -> dict[str, Any]:
        """Return the arguments that all blocks have in common, read from some of them."""
        widths = [(self.planes(block), self(f'{block}.convs.0.weight')[1]) for block in firsts]
        width, in_group, *_ = self(f'{firsts[0]}.convs.0.weight')
        return {
            'cardinality': width // in_group,
            'base_width': _base_width(widths),
            'scale': self(f'{firsts[0]}.conv1.weight')[0] // width,
            'attn_layer': 'se' if self._has_se(firsts[0]) else '',
        }

    def _has_se(self, block: str) -> bool:
        if not any(map(is_gate, self.state_dict)):
            return False
        if f'{block}.se.fc1.weight' not in self.state_dict:
            raise ValueError('Its attention is not SE, and its kind cannot be inferred from shapes')
        reduced, whole, *_ = self(f'{block}.se.fc1.weight')
        if reduced != max(whole // 16, 1):
            raise ValueError(
                f'Its SE modules reduce {whole} channels to {reduced}. Only a reduction by 16, to '
                f'{max(whole // 16, 1)}, can be built'
            )
        return True


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
    shape = _Shapes(state_dict)
    blocks = {m.groups() for key in state_dict if (m := re.match(r'layer(\d+)\.(\d+)\.', key))}
    firsts = [f'layer{stage}.0' for stage in range(1, 5)]
    arguments: dict[str, Any] = {
        'layers': tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5)),
        'num_classes': shape('fc.weight', 2)[0] if 'fc.weight' in state_dict else 0,
        'channels': tuple(map(shape.planes, firsts)),
        **shape.blocks(*firsts),
    }
    if 'conv1.0.weight' in state_dict:
        stem_width, arguments['in_chans'], *_ = shape('conv1.0.weight')
        tiered = shape('conv1.3.weight')[0] != stem_width
        arguments.update(stem_type='deep_tiered' if tiered else 'deep')
        arguments['stem_width'] = shape('conv1.6.weight')[0] // 2
    else:
        arguments.update(stem_type='', in_chans=shape('conv1.weight')[1])
    # read in stage 2: stage 1 may have no shortcut convolution
    pooled = 'layer2.0.downsample.2.weight' in state_dict
    shortcut = f'layer2.0.downsample.{int(pooled)}.weight'
    arguments.update(
        avg_down=pooled,
        down_kernel_size=shape(shortcut)[-1],
        replace_stem_pool='maxpool.0.weight' in state_dict,
    )
    return arguments
