"""The extra time by cause, from known medians."""

import pytest

from benchmarks.suite.attribution import KINDS
from benchmarks.suite.causes import CAUSES, explain


def attribution(**subject):
    """Known medians: 10 s for the baseline, of which convolutions take 8 s."""
    base = {'time': 10.0, 'alone': 8.0, 'macs': 100, 'inside': 8.0, 'add': 1.0, 'pool': 0.5}
    both = {'baseline': base, 'subject': {**base, **subject}}

    def profile(values):
        known = {'convolution 1×1': values['inside'], 'add': values['add'], 'pool': values['pool']}
        return {kind: [known.get(kind, 0.0)] * 3 for kind in KINDS}

    return {
        'seconds': {role: [v['time']] * 3 for role, v in both.items()},
        'alone': {
            role: [{'count': 2, 'macs': v['macs'], 'seconds': [v['alone'] / 2] * 3}]
            for role, v in both.items()
        },
        'profile': {role: profile(v) for role, v in both.items()},
    }


def test_explain():
    found = explain(attribution(time=13.0, alone=9.6, macs=110, inside=10.0, add=1.7, pool=0.6))
    assert found['extra'] == pytest.approx(0.3)
    assert found['more MACs'] == pytest.approx(0.08)  # 8 s * 10 % of 10 s
    assert found['less efficient convolutions'] == pytest.approx(0.08)  # 9.6 - 8.8
    assert found['convolutions in place'] == pytest.approx(0.04)  # (10 - 9.6) - (8 - 8)
    assert found['add'] == pytest.approx(0.07)
    assert found['pool'] == pytest.approx(0.01)
    assert found['unexplained'] == pytest.approx(0.02)
    assert found['the splitting itself'] == pytest.approx(0.12)  # in place, add and pool
    whole = ('extra', 'the splitting itself')
    assert sum(v for k, v in found.items() if k not in whole) == pytest.approx(found['extra'])
    assert set(explain(attribution()).values()) == {0.0}
    assert tuple(found) == CAUSES
