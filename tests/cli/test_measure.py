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


def run(monkeypatch, timings, control=1.0, *words, models=('res2net50_se',)):
    given = []

    def compare(model, **kwargs):
        given.append((model, kwargs))
        return Comparison(tuple(timings), ratio(control), {'AOTInductor': 'takes minutes to make'})

    monkeypatch.setattr(export, 'compare_forms', compare)
    return main(['measure', *models, *words]), given


def test_what_is_fastest(monkeypatch, capsys):
    code, given = run(monkeypatch, [INT8, DEPLOYED, EAGER], 1.0, '--batch-size', '8')
    out = capsys.readouterr().out
    assert code == 0
    assert given == [('res2net50_se', {'batch_size': 8, 'slow': False})]
    assert '| OpenVINO, int8 | 20.00  | × 0.20 [0.19, 0.21] | 26.0       |' in out
    assert 'Not timed: AOTInductor of res2net50_se (takes minutes to make).' in out
    assert 'For res2net50_se, OpenVINO, int8 is the fastest of the forms timed.' in out
    assert 'In float32, deployed is the fastest.' in out
    run(monkeypatch, [DEPLOYED, EAGER])
    assert 'deployed is the fastest' in capsys.readouterr().out.splitlines()[-1]


def test_ties(monkeypatch, capsys):
    """Forms whose intervals overlap are named together, in float32 as well."""
    lower = Timing('OpenVINO, bfloat16', 21.0, ratio(0.215))
    other = Timing('ONNX Runtime', 76.0, ratio(0.76))
    run(monkeypatch, [INT8, lower, DEPLOYED, other, EAGER])
    out = capsys.readouterr().out
    assert 'OpenVINO, int8 and OpenVINO, bfloat16 (whose intervals overlap) are the fastest' in out
    assert 'In float32, deployed and ONNX Runtime (whose intervals overlap) are' in out


@pytest.mark.parametrize(
    ('fastest', 'control'),
    [
        *((DEPLOYED, control) for control in (1.2, float('nan'))),
        (DEPLOYED._replace(ratio=Ratio(0.75, 0.5, 0.8)), 1.0),
        (DEPLOYED._replace(ratio=Ratio(0.75, 0.7, 0.9)), 1.0),
    ],
)
def test_a_busy_machine_has_no_winner(fastest, control, monkeypatch, capsys):
    assert run(monkeypatch, [fastest, EAGER], control)[0] == 3
    out = capsys.readouterr().out
    assert f'× {ratio(control)}' in out
    assert 'Of the forms' not in out


def test_several_models(monkeypatch, capsys):
    """In one table, with published accuracies; one of them has none."""
    models = ('res2net50_26w_4s', 'res2net50_vd_26w_4s', 'res2net152d')
    code, given = run(monkeypatch, [DEPLOYED, EAGER], models=models)
    assert (code, [name for name, _ in given]) == (0, list(models))
    rows = [
        line.split('|')[1:4] for line in capsys.readouterr().out.splitlines() if '× 1.0' in line
    ]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [[models[0], '77.95', 'eager'], [models[1], '83.1', 'eager'],
                     [models[2], '', 'eager']]  # fmt: skip
    run(monkeypatch, [INT8, EAGER], 1.0, '--json', models=models)
    several = json.loads(capsys.readouterr().out)
    assert [one['top1'] for one in several] == [77.95, 83.1, None]
    run(monkeypatch, [INT8, EAGER], 1.0, '--json')
    found = json.loads(capsys.readouterr().out)
    assert {**several[0], 'model': found['model'], 'top1': found['top1']} == found
    assert found['timings'][0] == {
        'form': 'OpenVINO, int8',
        'milliseconds': 20.0,
        'ratio': {'median': 0.2, 'low': 0.19, 'high': pytest.approx(0.21)},
        'bytes': 26_000_000,
    }
    assert found['usable'] is True
    assert found['model'] == 'res2net50_se'
    assert found['left_out'] == {'AOTInductor': 'takes minutes to make'}
