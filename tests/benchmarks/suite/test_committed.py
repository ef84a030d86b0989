"""The committed runs of the suite."""

import numpy as np
import pytest

from benchmarks.claim import load_files
from benchmarks.script import RESULTS
from benchmarks.suite import records
from benchmarks.suite.cells import load_pairs, load_suite
from benchmarks.suite.records import CONTROL, cell_of, select, time_ratio
from benchmarks.suite.stats import overlap


@pytest.fixture(scope='module')
def committed():
    return load_files()


@pytest.mark.parametrize('suite', ['cpu', 'deploy'])
def test_what_was_measured_of_a_suite_is_complete_and_usable(suite, committed):
    """A pair that was measured has all its cells; a new pair has none until it is measured."""
    rows = committed[suite]['cells']
    threads = committed[suite]['runs'][0]['environment']['threads']
    measured = {row['cell']['pair'] for row in rows.values()}
    for cell in load_suite(suite, {'threads': [threads]}):
        assert cell.key in rows or cell.pair not in measured
    for key, row in rows.items():
        assert cell_of(row).key == key
        assert records.is_measured(row) and 'interrupted' not in row
        assert not records.is_doubtful(row, rows)
        if row['cell']['kind'] == 'time':
            assert records.is_usable(row)
    assert {'main', 'control', 'article'} <= measured or suite != 'cpu'
    assert {'deploy', 'swap', 'swap_deploy'} <= measured or suite != 'deploy'
    assert len(measured & {*load_pairs()}) >= 13  # those that are no pair any more stay readable


def test_the_curves_are_complete(committed):
    cells = [cell_of(row) for row in committed['cpu']['cells'].values()]
    curves = [cell for cell in cells if cell.threads == 1]
    assert {c.batch for c in curves if c.size == 224} == {1, 4, 8, 16, 64}
    assert {c.size for c in curves if c.batch == 8} == {128, 192, 224, 288, 384}


def test_controls_are_within_two_percent(committed):
    for name, file in committed.items():
        for row in select({name: file}, 'time'):
            assert abs(time_ratio(row, 'control').median - 1) <= CONTROL == 0.02


def test_two_runs_of_the_main_pair_agree_and_settle_within_five_minutes(committed):
    one, two = (next(iter(committed[name]['cells'].values())) for name in ('main-1', 'main-2'))
    for row in (one, two):
        assert cell_of(row).describe() == (
            'infer, eager, fp32, channels_last, batch 8, 224 px, 2 threads'
        )
        assert row['cell']['pair'] == 'main'
        assert row['seconds'] < 300
    # the second run ended after its 180 s at 2.3 %
    assert one['settled']
    assert time_ratio(one).half_width <= 0.02
    assert overlap(time_ratio(one), time_ratio(two))


def test_builds_differ(committed):
    """The README gives the range of single builds."""
    row = next(iter(committed['main-1']['cells'].values()))
    ratios = np.divide(row['samples']['subject'], row['samples']['baseline'])
    medians = [np.median(part) for part in np.split(ratios, np.cumsum(row['blocks'])[:-1])]
    readme = ' '.join((RESULTS.parent / 'README.md').read_text().split())
    assert f'single builds are between {min(medians):.2f} and {max(medians):.2f}' in readme
