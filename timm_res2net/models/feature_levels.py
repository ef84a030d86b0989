"""Choosing feature levels: the `out_indices` of `features_only` models."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any


def sorted_indices(out_indices: int | Sequence[int], levels: int = 5) -> tuple[int, ...]:
    """Return feature levels as sorted, non-negative indices.

    timm's list, dict, fx and getter classes return features in the order of the network, while
    `feature_info` keeps the order of `out_indices`. With sorted indices both agree.

    Args:
        out_indices: Levels, negative ones counted from the last, or the number of last levels.
        levels: Number of levels of the network.

    Raises:
        ValueError: No level, an unknown level, or a level twice.
    """
    asked: Any = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    whole = isinstance(asked, Iterable) and all(isinstance(index, Integral) for index in asked)
    indices = sorted(int(index) % levels for index in asked) if whole else []
    in_range = whole and all(-levels <= index < levels for index in asked)
    if not indices or not in_range or len(set(indices)) < len(indices):
        raise ValueError(
            f'out_indices={out_indices!r} must be different levels from 0 to {levels - 1} '
            f'(or -{levels} to -1), or the number of last levels, 1 to {levels}.'
        )
    return tuple(indices)
