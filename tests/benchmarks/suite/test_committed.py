"""The committed runs of the suite."""

import numpy as np
import pytest

from benchmarks.claim import load_files
from benchmarks.script import RESULTS
from benchmarks.suite.answer import cell_of, is_doubtful, is_usable, time_ratio
from benchmarks.suite.cells import load_pairs, load_suite

FILES = load_files()


@pytest.mark.parametrize('name', FILES)
def test_rows_are_complete_and_usable(name):
    rows = FILES[name]['cells']
    for key, row in rows.items():
        assert cell_of(row).key == key
        assert row['cell']['kind'] in ('time', *row)  # the result of another kind has its name
        assert not is_doubtful(row, rows)
        assert row['cell']['kind'] != 'time' or is_usable(row)


@pytest.mark.parametrize(
    ('suite', 'pairs'),
    [('cpu', {'main', 'control', 'article'}), ('deploy', {'deploy', 'swap', 'swap_deploy'})],
)
def test_a_pair_that_was_measured_has_all_its_cells(suite, pairs):
    """A new pair has none until it is measured, and one that is no pair any more stays."""
    rows = FILES[suite]['cells']
    threads = FILES[suite]['runs'][0]['environment']['threads']
    measured = {row['cell']['pair'] for row in rows.values()}
    for cell in load_suite(suite, {'threads': [threads]}):
        assert cell.key in rows or cell.pair not in measured
    assert pairs <= measured
    assert len(measured & {*load_pairs()}) >= 13


def test_two_runs_of_the_main_pair_agree():
    """They settle within five minutes, and the README gives the range of single builds."""
    one, two = (next(iter(FILES[name]['cells'].values())) for name in ('main-1', 'main-2'))
    words = 'main: infer, eager, fp32, channels_last, batch 8, 224 px, 2 threads'
    for row in (one, two):
        assert str(cell_of(row)) == words
        assert row['seconds'] < 300
    first, second = time_ratio(one), time_ratio(two)
    assert one['settled']  # the second ended after its 180 s at 2.3 %
    assert first.half_width <= 0.02
    assert first.low <= second.high and second.low <= first.high
    ratios = np.divide(one['samples']['subject'], one['samples']['baseline'])
    medians = [np.median(part) for part in np.split(ratios, np.cumsum(one['blocks'])[:-1])]
    readme = ' '.join((RESULTS.parent / 'README.md').read_text().split())
    assert f'single builds are between {min(medians):.2f} and {max(medians):.2f}' in readme
