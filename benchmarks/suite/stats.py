"""What ratios of times say about the claim."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from timm_res2net.export.measure import Ratio, ratio

CLAIM = 'about 20 % slower'
BAND = (0.15, 0.25)
"""Shares that count as "about 20 %". The claim has two readings, and verdicts give both: 15 to 25 %
more time (time x 1.15 to 1.25), or 15 to 25 % less throughput (time x 1.18 to 1.33)."""


def _t(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t.

    By its expansion in 1 / freedom (Abramowitz and Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


def ratio_of_blocks(
    subject: Sequence[float], baseline: Sequence[float], blocks: Sequence[int], draws: int = 2000
) -> Ratio:
    """Return the median of the per-round ratios subject / baseline, as `ratio`, over blocks.

    Values of one block, here of one build of the models, share what that build brought with it.
    With several blocks, whole blocks are drawn (Davison and Hinkley 1997, 3.8), and the percentiles
    are widened because there are few blocks: to those of a normal variate at t * sqrt(n / (n - 1)),
    with n the number of blocks (Hesterberg 2015, Am. Stat. 69, 371).

    Args:
        subject: Seconds, one value a round, block after block.
        baseline: Seconds, one value a round.
        blocks: Number of rounds in each block; empty for one block.
        draws: Number of resamples.
    """
    if len(blocks) < 2:
        return ratio(subject, baseline)
    ratios = np.asarray(subject, dtype=float) / np.asarray(baseline, dtype=float)
    padded = np.full((len(blocks), max(blocks)), np.nan)
    for row, block in zip(padded, np.split(ratios, np.cumsum(blocks)[:-1]), strict=True):
        row[: len(block)] = block
    n = len(blocks)
    drawn = np.random.RandomState(0).randint(n, size=(draws, n))
    medians = np.nanmedian(padded[drawn].reshape(draws, -1), axis=1)
    tail = NormalDist().cdf(-_t(n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Ratio(float(np.median(ratios)), float(low), float(high))


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
