"""Ratios and intervals of samples with a known truth."""

import numpy as np
import pytest

from tests.common import noisy
from timm_res2net.export.stats import Ratio, _medians_of_blocks, _t, interval, ratio

TRUE = 1.21


def test_the_known_ratio_is_recovered():
    rng = np.random.default_rng(0)
    found = ratio(TRUE * noisy(rng, 400), noisy(rng, 400))
    assert found.low < TRUE < found.high
    assert found.half_width < 0.01
    assert abs(found.median - TRUE) < 0.01


@pytest.mark.parametrize('rounds', [10, 30, 100])
def test_the_interval_covers_the_truth_19_times_in_20(rounds):
    rng = np.random.default_rng(1)
    runs = 1500
    held = 0
    for _ in range(runs):
        ratios = TRUE * noisy(rng, rounds) / noisy(rng, rounds)
        low, high = interval(ratios, draws=600)
        held += low <= TRUE <= high
    # the standard error of a share of 0.95 over 1500 runs is 0.006
    assert 0.93 <= held / runs <= 0.98


@pytest.mark.parametrize(('blocks', 'rounds'), [(6, 8), (12, 6)])
def test_coverage_when_every_build_has_its_own_ratio(blocks, rounds):
    """Builds that differ by 2 %: an interval over the rounds of one build is too narrow."""
    rng = np.random.default_rng(5)
    runs, held, held_by_rounds = 400, 0, 0
    for _ in range(runs):
        builds = np.repeat(np.exp(rng.normal(0, 0.02, blocks)), rounds)
        ratios = TRUE * builds * noisy(rng, blocks * rounds, outliers=0)
        low, high = interval(ratios, [rounds] * blocks, draws=800)
        held += low <= TRUE <= high
        one_build = TRUE * np.exp(rng.normal(0, 0.02)) * noisy(rng, 40, outliers=0)
        low, high = interval(one_build, draws=800)
        held_by_rounds += low <= TRUE <= high
    assert 0.88 <= held / runs <= 0.99  # few blocks cannot promise more
    assert held_by_rounds / runs < 0.6


def test_interval_is_the_same_for_the_same_samples():
    values = list(noisy(np.random.default_rng(4), 50))
    assert interval(values) == interval(values)
    assert interval([2.0] * 5) == (2.0, 2.0)
    low, high = interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert 1.0 <= low <= 1.2 <= high <= 1.4


def test_blocks_of_several_lengths():
    """Compared with joining the drawn blocks and taking the median."""
    rng = np.random.default_rng(6)
    blocks = [3, 5, 2, 4]
    values = rng.normal(1, 0.1, sum(blocks))
    parts = np.split(values, np.cumsum(blocks)[:-1])
    drawn = rng.integers(4, size=(50, 4))
    expected = [np.median(np.concatenate([parts[k] for k in row])) for row in drawn]
    assert list(_medians_of_blocks(values, blocks, drawn)) == expected


def test_errors():
    with pytest.raises(ValueError, match='at least one value, got none'):
        interval([])
    with pytest.raises(ValueError, match=r'blocks=\[2, 2\] must add up to the 3 values'):
        interval([1.0, 1.0, 1.0], [2, 2])
    with pytest.raises(ValueError, match='one sample of each in every round, got 2 and 1'):
        ratio([1.0, 1.0], [1.0])


def test_students_t():
    # Abramowitz and Stegun 1964, table 26.10
    for freedom, t in ((5, 2.571), (10, 2.228), (30, 2.042)):
        assert _t(freedom) == pytest.approx(t, abs=0.004)


def test_half_width():
    assert Ratio(2, 1.9, 2.2).half_width == pytest.approx(0.1)
