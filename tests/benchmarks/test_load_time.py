"""Loading weights."""

import json

import pytest

from benchmarks import load_time
from benchmarks.script import load


@pytest.mark.slow
def test_loading_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load_time, 'MODEL', 'test_res2net_se')
    ways = {way: code for way, code in load_time.WAYS.items() if 'gates made' not in way}
    monkeypatch.setattr(load_time, 'WAYS', ways)
    monkeypatch.setattr(load_time, 'SOURCE', 'timm/none')
    load_time.main(['--rounds', '1', '--out', str(tmp_path / 'load.json')])
    cells = json.loads((tmp_path / 'load.json').read_text())['cells']
    assert cells['ways'].keys() == ways.keys()
    assert cells['ways'][load_time.BASE]['time_ratio'] == [1, 1, 1]
    assert capsys.readouterr().out.count('\n') == len(ways) + 3  # and where it is


def test_the_cache_is_laid_out_as_the_hubs(tmp_path, monkeypatch):
    monkeypatch.setattr(load_time, 'MODEL', 'test_res2net_se')
    size = load_time._lay_out(tmp_path)
    assert size == (tmp_path / 'weights.pth').stat().st_size
    snapshot = tmp_path / 'home/hub/models--me--warm/snapshots' / load_time.COMMIT
    assert sorted(p.name for p in snapshot.iterdir()) == ['config.json', 'model.safetensors']
    assert (snapshot / 'config.json').resolve().parent.name == 'blobs'
    assert (snapshot.parents[1] / 'refs/main').read_text() == load_time.COMMIT


def test_loading_from_the_cache_costs_no_more_than_torch_load():
    report = load('load_time')
    assert report['model'] == 'res2net50_se'
    assert report['ways'].keys() == load_time.WAYS.keys()
    base = report['ways'][load_time.BASE]
    for way in ('hf-hub: of a pushed model', load_time.NAMED):
        assert report['ways'][way]['time_ratio'][2] < 1
        assert report['ways'][way]['peak_over_file'] < 1.05 * base['peak_over_file']
