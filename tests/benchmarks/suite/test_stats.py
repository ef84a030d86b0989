"""Rounds with a known truth, and what ratios say about the claim."""

import random

import numpy as np
import pytest

from benchmarks.suite.measure import TARGET, interleave
from benchmarks.suite.stats import overlap, rounded, spread, verdict
from tests.common import noisy
from timm_res2net.export.stats import Ratio, ratio

TRUE = 1.21


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


def test_small_functions():
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert overlap(Ratio(1, 0.9, 1.1), Ratio(1.2, 1.1, 1.3))
    assert not overlap(Ratio(1, 0.9, 1.1), Ratio(1.2, 1.11, 1.3))
    assert not overlap(Ratio(1.2, 1.11, 1.3), Ratio(1, 0.9, 1.1))
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
