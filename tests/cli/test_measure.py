"""`timm-res2net measure`, as a user meets it."""

import json

import pytest

from timm_res2net.cli import export, main
from timm_res2net.export.measure import Comparison, Ratio, Timing


def ratio(value: float) -> Ratio:
    return Ratio(value, value - 0.01, value + 0.01)


EAGER = Timing('eager', 100.0, Ratio(1, 1, 1))
DEPLOYED = Timing('deployed', 75.0, ratio(0.75))
INT8 = Timing('OpenVINO, int8', 20.0, ratio(0.2), 26_000_000)


def run(monkeypatch, timings, control=1.0, *words):
    given = []

    def compare(model, **kwargs):
        given.append((model, kwargs))
        return Comparison(tuple(timings), ratio(control), {'AOTInductor': 'takes minutes to make'})

    monkeypatch.setattr(export, 'compare_forms', compare)
    return main(['measure', 'res2net50_se', *words]), given[0]


def test_what_is_fastest(monkeypatch, capsys):
    code, (model, options) = run(monkeypatch, [INT8, DEPLOYED, EAGER], 1.0, '--batch-size', '8')
    out = capsys.readouterr().out
    assert code == 0
    assert (model, options) == ('res2net50_se', {'batch_size': 8, 'slow': False})
    assert '| OpenVINO, int8 | 20.00  | × 0.20 [0.19, 0.21] | 26.0       |' in out
    assert 'Not timed: AOTInductor (takes minutes to make).' in out
    assert 'The fastest form here is OpenVINO, int8.' in out
    assert 'In float32 the fastest is deployed.' in out
    run(monkeypatch, [DEPLOYED, EAGER])
    assert capsys.readouterr().out.splitlines()[-1] == 'The fastest form here is deployed.'
    assert run(monkeypatch, [DEPLOYED, EAGER], 1.2)[0] == 3  # a busy machine
    out = capsys.readouterr().out
    assert '× 1.20' in out
    assert 'fastest' not in out


def test_json(monkeypatch, capsys):
    run(monkeypatch, [INT8, EAGER], 1.0, '--json')
    found = json.loads(capsys.readouterr().out)
    assert found['timings'][0] == {
        'form': 'OpenVINO, int8',
        'milliseconds': 20.0,
        'ratio': {'median': 0.2, 'low': 0.19, 'high': pytest.approx(0.21)},
        'bytes': 26_000_000,
    }
    assert found['usable'] is True
    assert found['left_out'] == {'AOTInductor': 'takes minutes to make'}
