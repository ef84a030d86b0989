"""Statistics of samples with a known truth."""

import random

import numpy as np
import pytest

from benchmarks.suite.measure import TARGET, interleave
from benchmarks.suite.stats import overlap, rounded, spread, verdict
from timm_res2net.stats import Ratio, _medians_of_blocks, _t, interval, ratio

TRUE = 1.21


def noisy(rng, rounds, outliers=0.05):
    """Seconds of `rounds` steps of 1 s with log-normal noise of 3 %; some take 1.5 s."""
    seconds = np.exp(rng.normal(0, 0.03, rounds))
    return seconds * np.where(rng.random(rounds) < outliers, 1.5, 1.0)


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


def test_coverage_with_the_stopping_rule():
    """Stopping at the first interval that is narrow enough costs little coverage."""
    rng = np.random.default_rng(2)
    runs, held, stopped = 250, 0, 0
    for run in range(runs):
        now = [0.0]

        def step(scale, now=now):
            now[0] += scale * float(noisy(rng, 1)[0])

        samples = {}
        stopped += interleave(
            {
                'baseline': lambda: step(1.0),
                'subject': lambda: step(TRUE),
                'control': lambda: step(1.0),
            },
            samples,
            budget=320,  # 100 rounds
            clock=lambda now=now: now[0],
            rng=random.Random(run),
        )
        found = ratio(samples['subject'], samples['baseline'])
        held += found.low <= TRUE <= found.high
    assert stopped > 0.8 * runs  # otherwise this would test nothing
    assert held / runs >= 0.88


def test_interleaving_cancels_a_drift_that_the_naive_order_does_not():
    """A machine that gets slower and slower, sampled in two orders."""
    rng = np.random.default_rng(3)
    rounds = 100
    slots = np.linspace(1, 1.5, 2 * rounds) * noisy(
        rng, 2 * rounds
    )  # how slow it is at each sample

    pairs = slots.reshape(rounds, 2)
    first = rng.integers(2, size=rounds)
    baseline = pairs[np.arange(rounds), first]
    subject = TRUE * pairs[np.arange(rounds), 1 - first]
    found = ratio(subject, baseline)
    assert found.low < TRUE < found.high
    assert found.half_width < TARGET

    one_after_the_other = ratio(TRUE * slots[rounds:], slots[:rounds])
    assert one_after_the_other.low > 1.15 * TRUE  # a narrow interval, but wrong


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
        assert _t(0.95, freedom) == pytest.approx(t, abs=0.004)


def test_small_functions():
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert overlap(Ratio(1, 0.9, 1.1), Ratio(1.2, 1.1, 1.3))
    assert not overlap(Ratio(1, 0.9, 1.1), Ratio(1.2, 1.11, 1.3))
    assert not overlap(Ratio(1.2, 1.11, 1.3), Ratio(1, 0.9, 1.1))
    assert Ratio(2, 1.9, 2.2).half_width == pytest.approx(0.1)
    assert [rounded(v) for v in (0.0, 123456.7, 0.000123456)] == [0.0, 123460.0, 0.00012346]


@pytest.mark.parametrize(
    ('time', 'text'),
    [
        (
            Ratio(1.21, 1.18, 1.24),
            'time × 1.21 [1.18, 1.24], throughput × 0.83: '
            "consistent with 'about 20 % slower'",
        ),
        (
            Ratio(1.16, 1.155, 1.17),
            'time × 1.16 [1.16, 1.17], throughput × 0.86: '
            "consistent with 'about 20 % slower' as more time, less than it as less throughput",
        ),
        (
            Ratio(1.30, 1.28, 1.32),
            'time × 1.30 [1.28, 1.32], throughput × 0.77: '
            "more than 'about 20 % slower' as more time, consistent with it as less throughput",
        ),
        (
            Ratio(1.17, 1.16, 1.19),
            'time × 1.17 [1.16, 1.19], throughput × 0.85: '
            "consistent with 'about 20 % slower' as more time, at the edge of it as less "
            'throughput',
        ),
        (
            Ratio(1.1, 1.05, 1.12),
            "time × 1.10 [1.05, 1.12], throughput × 0.91: slower, by less than 'about 20 % slower'",
        ),
        (
            Ratio(1.5, 1.4, 1.6),
            "time × 1.50 [1.40, 1.60], throughput × 0.67: slower, by more than 'about 20 % slower'",
        ),
        (
            Ratio(1.2, 1.1, 1.4),
            "time × 1.20 [1.10, 1.40], throughput × 0.83: at the edge of 'about 20 % slower'",
        ),
        (
            Ratio(0.8, 0.75, 0.85),
            "time × 0.80 [0.75, 0.85], throughput × 1.25: faster, not 'about 20 % slower'",
        ),
        (
            Ratio(1.0, 0.98, 1.02),
            "time × 1.00 [0.98, 1.02], throughput × 1.00: no difference shown, not 'about 20 % "
            "slower'",
        ),
        (
            Ratio(1.1, 0.9, 1.3),
            "time × 1.10 [0.90, 1.30], throughput × 0.91: undecided on 'about 20 % slower', the "
            'interval is too wide',
        ),
    ],
)  # fmt: skip
def test_verdict(time, text):
    assert verdict(time) == text
