"""Ratios over blocks: several builds of the models, each with its own ratio."""

import numpy as np
import pytest

from benchmarks.suite.measure import _t, ratio_of_blocks
from tests.common import noisy
from timm_res2net.export.measure import ratio

TRUE = 1.21


@pytest.mark.parametrize(('blocks', 'rounds'), [(6, 8), (12, 6)])
def test_coverage_when_every_build_has_its_own_ratio(blocks, rounds):
    """Builds that differ by 2 %: an interval over the rounds of one build is too narrow."""
    rng = np.random.default_rng(5)
    runs, held = 200, 0
    for _ in range(runs):
        builds = np.repeat(np.exp(rng.normal(0, 0.02, blocks)), rounds)
        times = TRUE * builds * noisy(rng, blocks * rounds, outliers=0)
        found = ratio_of_blocks(times, np.ones(len(times)), [rounds] * blocks, draws=400)
        held += found.low <= TRUE <= found.high
    assert 0.88 <= held / runs <= 0.99  # few blocks cannot promise more


def test_blocks_of_several_lengths():
    """The median is that of all rounds, and one block is the plain ratio."""
    rng = np.random.default_rng(6)
    times, base = noisy(rng, 14), noisy(rng, 14)
    assert (
        ratio_of_blocks(times, base, [14]) == ratio_of_blocks(times, base, ()) == ratio(times, base)
    )
    found = ratio_of_blocks(times, base, [3, 5, 2, 4])
    assert found == ratio_of_blocks(times, base, [3, 5, 2, 4])
    assert found.median == ratio(times, base).median
    assert found.low < found.median < found.high


def test_students_t():
    # Abramowitz and Stegun 1964, table 26.10
    for freedom, t in ((5, 2.571), (10, 2.228), (30, 2.042)):
        assert _t(freedom) == pytest.approx(t, abs=0.004)
