"""What ratios of times say about the claim."""

import math
from collections.abc import Sequence

import numpy as np

from timm_res2net.export.stats import Ratio

CLAIM = 'about 20 % slower'
BAND = (0.15, 0.25)
"""Shares that count as "about 20 %". The claim has two readings, and verdicts give both: 15 to 25 %
more time (time x 1.15 to 1.25), or 15 to 25 % less throughput (time x 1.18 to 1.33)."""


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
    return float((high - low) / middle)


def overlap(one: Ratio, other: Ratio) -> bool:
    """Return whether two intervals overlap."""
    return one.low <= other.high and other.low <= one.high


def _place(value: Ratio, low: float, high: float) -> str:
    if value.high < low:
        return 'less'
    if value.low > high:
        return 'more'
    return 'consistent' if low <= value.low and value.high <= high else 'undecided'


def verdict(time: Ratio) -> str:
    """Return one sentence: the ratio of times, of throughputs, and what they say about the claim.

    Each reading of the claim is `consistent` if the whole interval is in its band (`BAND`), `less`
    or `more` if the whole interval is below or above it, and otherwise at its edge.
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
            'consistent': 'consistent with',
            'less': 'less than',
            'more': 'more than',
            'undecided': 'at the edge of',
        }
        words = (
            f"{says[by_time]} '{CLAIM}' as more time, {says[by_throughput]} it as less throughput"
        )
    return f'time × {time}, throughput × {1 / time.median:.2f}: {words}'


def rounded(value: float, digits: int = 5) -> float:
    """Return the value with so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
