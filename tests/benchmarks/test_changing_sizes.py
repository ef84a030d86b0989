"""Inputs of changing sizes."""

import json

import pytest

from benchmarks import changing_sizes
from benchmarks.script import load


def test_a_run(tmp_path, capsys):
    out = tmp_path / 'sizes.json'
    changing_sizes.main(['--calls', '6', '--model', 'test_res2net_se', '--out', str(out)])
    report = json.loads(out.read_text())['cells']
    assert report['cases'].keys() == changing_sizes.cases(6).keys()
    for cell in report['cases'].values():
        assert cell['ratios'].keys() == {'control', 'deployed'}
        assert 0 < cell['memory'] <= 2  # the layers of a million multiply-adds, at most two packs
    assert report['cases']['one size']['memory'] < 1
    printed = capsys.readouterr().out
    assert changing_sizes.report_table(report) in printed
    assert changing_sizes.sentence(report) in printed


def test_sizes_that_do_not_come_again():
    shapes = changing_sizes.cases(48)['sizes that do not come again']
    assert len({shape[2] for shape in shapes}) == len({shape[3] for shape in shapes}) == 48


@pytest.mark.parametrize('apart', [False, True])
def test_every_model_sees_every_size_and_is_compared_by_size(apart, monkeypatch):
    """A model that takes twice the time of another one, however its time depends on the size."""
    seen = {'plain': [], 'twice': []}

    def seconds(model, x):
        seen[model].append(x.shape[2])
        return x.shape[2] ** 2 * (1 + (model == 'twice'))

    monkeypatch.setattr(changing_sizes, 'seconds', seconds)
    shapes = [(1, 1, side, 2) for side in range(1, 9)]
    models = {name: name for name in seen}
    found = changing_sizes.compare(models, shapes, 0, apart)
    assert found == {'milliseconds': 20500.0, 'ratios': {'twice': [2, 2, 2]}}
    assert seen['plain'] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert seen['twice'] == ([5, 6, 7, 8, 1, 2, 3, 4] if apart else seen['plain'])


def test_the_committed_run():
    """What the documentation promises of memory and of every case."""
    report = load('changing_sizes')
    for case, cell in report['cases'].items():
        assert changing_sizes.usable(cell)
        # packing for a size that comes once takes most of what it saves
        assert cell['ratios']['deployed'][0] < (1 if 'not come again' in case else 0.85)
        assert cell['memory'] < 2  # a layer keeps two packs at most


def test_no_figure_whose_control_failed():
    cell = {'ratios': {'deployed': [0.5, 0.5, 0.5], 'control': [0.95, 0.9, 0.99]}, 'memory': 1.0}
    report = {'model': 'm', 'cases': {'one size': cell}}
    assert 'no figure for one size' in changing_sizes.sentence(report)
    assert '0.50' not in changing_sizes.report_table(report)
