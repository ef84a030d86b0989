"""Inputs of changing sizes."""

import json

from benchmarks import changing_sizes
from benchmarks.script import load


def test_a_run(tmp_path, capsys):
    out = tmp_path / 'sizes.json'
    changing_sizes.main(['--calls', '6', '--model', 'test_res2net_se', '--out', str(out)])
    report = json.loads(out.read_text())['cells']
    assert report['cases'].keys() == changing_sizes.cases(6).keys()
    for cell in report['cases'].values():
        assert cell['ratios'].keys() == {'control', 'deployed', 'one pack a layer'}
        assert cell['memory'] >= 1
    assert report['cases']['one size']['memory'] == 1
    assert len(report['check']) == 3
    printed = capsys.readouterr().out
    assert changing_sizes.report_table(report) in printed
    assert changing_sizes.sentence(report) in printed


def test_sizes_that_do_not_come_again():
    shapes = changing_sizes.cases(48)['sizes that do not come again']
    assert len({shape[2] for shape in shapes}) == len({shape[3] for shape in shapes}) == 48


def test_the_committed_run():
    """What the documentation promises of memory, of the check, and of every case."""
    report = load('changing_sizes')
    assert report['check'][0] < 1.01
    usable = [cell for cell in report['cases'].values() if changing_sizes.usable(cell)]
    assert len(usable) >= 3
    for cell in usable:
        assert cell['ratios']['deployed'][0] < 0.85
        assert cell['memory'] <= 1.35


def test_no_figure_whose_control_failed():
    cell = {'ratios': {role: [0.5, 0.5, 0.5] for role in ('deployed', 'one pack a layer')}}
    cell |= {'memory': 1.0}
    cell['ratios']['control'] = [0.95, 0.9, 0.99]
    report = {'model': 'm', 'cases': {'one size': cell}}
    assert 'no figure for one size' in changing_sizes.sentence(report)
    assert '0.50' not in changing_sizes.report_table(report)
