"""Statistics of interleaved samples: ratios and their intervals.

All functions are pure.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_LEVEL = 0.95  # share of the intervals that should contain the true median


class Ratio(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Distance from the median to the farther end of the interval, as a share of the median."""
        return max(self.high - self.median, self.median - self.low) / self.median

    def __str__(self) -> str:
        return f'{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]'


def _t(freedom: int) -> float:
    """Return the two-sided quantile of Student's t at `_LEVEL`.

    By its expansion in 1 / freedom (Abramowitz and Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def _medians_of_blocks(values: np.ndarray, blocks: Sequence[int], drawn: np.ndarray) -> np.ndarray:
    """Return the median of the values of the blocks that each row of `drawn` lists.

    Args:
        values: All values, block after block.
        blocks: Number of values in each block.
        drawn: (draws, n) numbers of blocks, with repetition.
    """
    padded = np.full((len(blocks), max(blocks)), np.nan)
    for row, block in zip(padded, np.split(values, np.cumsum(blocks)[:-1]), strict=True):
        row[: len(block)] = block
    return np.nanmedian(padded[drawn].reshape(len(drawn), -1), axis=1)


def interval(
    values: Sequence[float],
    blocks: Sequence[int] = (),
    draws: int = 2000,
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the median, of 95 % (Efron 1979).

    The same samples give the same interval.

    Values of one block, here of one build of the models, share what that build brought with it.
    With several blocks, whole blocks are drawn (Davison and Hinkley 1997, 3.8), and the percentiles
    are widened because there are few blocks: to those of a normal variate at t * sqrt(n / (n - 1)),
    with n the number of blocks (Hesterberg 2015, Am. Stat. 69, 371).

    Args:
        values: At least one sample.
        blocks: How many of the values, in order, belong to each block; empty for one block.
        draws: Number of resamples.

    Raises:
        ValueError: There are no values, or the blocks do not add up to them.
    """
    if not len(values):
        raise ValueError('interval needs at least one value, got none.')
    if blocks and sum(blocks) != len(values):
        raise ValueError(f'blocks={list(blocks)} must add up to the {len(values)} values.')
    array = np.asarray(values, dtype=float)
    # numpy keeps the numbers of RandomState between versions, unlike those of its generators
    random = np.random.RandomState(0)
    n = len(blocks)
    if n < 2:
        drawn = random.randint(len(array), size=(draws, len(array)))
        medians = np.median(array[drawn], axis=1)
        tail = (1 - _LEVEL) / 2
    else:
        medians = _medians_of_blocks(array, blocks, random.randint(n, size=(draws, n)))
        tail = NormalDist().cdf(-_t(n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def ratio(subject: Sequence[float], baseline: Sequence[float], blocks: Sequence[int] = ()) -> Ratio:
    """Return the median of the per-round ratios subject / baseline.

    A round holds one sample of each, taken one right after the other. Whatever slows the machine
    for longer than a round slows both and leaves the ratio unchanged.

    Args:
        subject: Seconds, one value a round.
        baseline: Seconds, one value a round.
        blocks: As in `interval`.

    Raises:
        ValueError: The two differ in length or are empty.
    """
    if len(subject) != len(baseline):
        raise ValueError(
            f'ratio needs one sample of each in every round, got {len(subject)} and '
            f'{len(baseline)}.'
        )
    ratios = [s / b for s, b in zip(subject, baseline, strict=True)]
    low, high = interval(ratios, blocks)
    return Ratio(float(np.median(ratios)), low, high)
