"""Statistics of interleaved samples: ratios, their interval, when to stop, and what the result says
of the claim. Pure functions.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

__all__ = ['BAND', 'Ratio', 'interval', 'overlap', 'ratio', 'spread', 'verdict']

CLAIM = 'about 20 % slower'
BAND = (0.15, 0.25)
"""What counts as "about 20 %": 15 to 25 %. The phrase has two readings, and both are given: 15 to
25 % more time (time x 1.15 to 1.25), or 15 to 25 % less throughput (time x 1.18 to 1.33)."""


class Ratio(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The farther end of the interval's distance from the median, as a share of the median."""
        return max(self.high - self.median, self.median - self.low) / self.median

    def __str__(self) -> str:
        return f'{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]'


def _t(level: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, by its expansion in 1 / freedom (Abramowitz and Stegun
    1964, 26.7.5)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def interval(
    values: Sequence[float],
    blocks: Sequence[int] = (),
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval of the median (Efron 1979).

    Values that share a block, here a build of the models, share what came with it. With several
    blocks it is whole blocks that are drawn (Davison and Hinkley 1997, 3.8), and the percentiles
    are moved out as few blocks ask for: to those of a normal variate at t * sqrt(n / (n - 1)), n
    the blocks (Hesterberg 2015, Am. Stat. 69, 371).

    Args:
        values: Samples; at least one.
        blocks: How many of the values, in order, belong to each block; all to one when empty.
        level: Share of such intervals that should hold the true median.
        draws: Resamples.
        seed: Seed of the resampling: the same samples give the same interval.

    Raises:
        ValueError: No values, or blocks that do not add up to them.
    """
    if not len(values):
        raise ValueError('interval needs at least one value, got none.')
    if blocks and sum(blocks) != len(values):
        raise ValueError(f'blocks={list(blocks)} must add up to the {len(values)} values.')
    array = np.asarray(values, dtype=float)
    # numpy keeps the numbers of RandomState, and not those of its generators, between versions
    random = np.random.RandomState(seed)
    n = len(blocks)
    if n < 2:
        medians = np.median(array[random.randint(len(array), size=(draws, len(array)))], axis=1)
        tail = (1 - level) / 2
    else:
        parts = np.split(array, np.cumsum(blocks)[:-1])
        medians = np.empty(draws)
        for i in range(draws):
            medians[i] = np.median(np.concatenate([parts[k] for k in random.randint(n, size=n)]))
        tail = NormalDist().cdf(-_t(level, n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def ratio(subject: Sequence[float], baseline: Sequence[float], blocks: Sequence[int] = ()) -> Ratio:
    """Median of the per-round ratios subject / baseline.

    A round holds one sample of each, taken one right after the other: whatever slows the machine
    for longer than a round slows both and leaves the ratio alone.

    Args:
        subject: Seconds, one a round.
        baseline: The same.
        blocks: As in `interval`.

    Raises:
        ValueError: The two differ in length, or are empty.
    """
    if len(subject) != len(baseline):
        raise ValueError(
            f'ratio needs one sample of each in every round, got {len(subject)} and '
            f'{len(baseline)}.'
        )
    ratios = [s / b for s, b in zip(subject, baseline, strict=True)]
    low, high = interval(ratios, blocks)
    return Ratio(float(np.median(ratios)), low, high)


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
    return float((high - low) / middle)


def overlap(one: Ratio, other: Ratio) -> bool:
    """Whether two intervals share a value."""
    return one.low <= other.high and other.low <= one.high


def _place(value: Ratio, low: float, high: float) -> str:
    if value.high < low:
        return 'less'
    if value.low > high:
        return 'more'
    return 'consistent' if low <= value.low and value.high <= high else 'undecided'


def verdict(time: Ratio) -> str:
    """One sentence: the ratio of times, of throughputs, and what they say of the claim.

    Each reading of the claim is `consistent` where the whole interval lies in its band (`BAND`),
    `less` or `more` where the whole interval lies below or above it, else at its edge.
    """
    low, high = BAND
    by_time = _place(time, 1 + low, 1 + high)
    by_throughput = _place(time, 1 / (1 - low), 1 / (1 - high))
    if time.high < 1:
        words = f"faster, not '{CLAIM}'"
    elif time.low <= 1 and by_time == 'less':
        words = f"no difference shown, not '{CLAIM}'"
    elif time.low <= 1:
        words = f"undecided on '{CLAIM}', the interval is too wide"
    elif by_time == by_throughput:
        words = {
            'consistent': f"consistent with '{CLAIM}'",
            'less': f"slower, by less than '{CLAIM}'",
            'more': f"slower, by more than '{CLAIM}'",
            'undecided': f"at the edge of '{CLAIM}'",
        }[by_time]
    else:
        says = {
            'consistent': 'consistent',
            'less': 'less than that',
            'more': 'more than that',
            'undecided': 'at its edge',
        }
        words = (
            f"'{CLAIM}' read as more time: {says[by_time]}; "
            f'as less throughput: {says[by_throughput]}'
        )
    return f'time × {time}, throughput × {1 / time.median:.2f}: {words}'


def rounded(value: float, digits: int = 5) -> float:
    """The value to so many significant digits, for the JSON."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
