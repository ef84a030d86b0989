"""The forms of a network on a CPU."""

import copy
import importlib.util
import json

import pytest
import torch

from benchmarks import forms
from benchmarks.script import load
from benchmarks.suite.cells import compiler
from tests.common import relative_error
from timm_res2net.export import measure
from timm_res2net.export.measure import FORMS

NAME = 'test_res2net_se'


@pytest.mark.slow  # exports and quantizes
@pytest.mark.skipif(importlib.util.find_spec('nncf') is None, reason='needs the extra int8')
@pytest.mark.skipif(compiler() is None, reason='needs a C++ compiler')
def test_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forms, 'CASES', {
        'batch 1': [(1, 3, 64, 64)], 'six sizes in turn': [(1, 3, 64, 64), (1, 3, 64, 96)],
    })  # fmt: skip
    kinds = ('eager', 'deployed', 'torch.compile, frozen', 'OpenVINO, int8')
    few = {name: FORMS[name] for name in kinds}
    monkeypatch.setattr(forms, 'FORMS', few)
    monkeypatch.setattr(measure, 'FORMS', few)
    out = tmp_path / 'forms.json'
    forms.main(['--models', NAME, '--slow', NAME, '--seconds', '0', '--out', str(out)])
    cells = json.loads(out.read_text())['cells'][NAME]
    names = {*few, forms.LOW}
    for case, cell in cells.items():
        assert set(cell['ratios']) == {*names, 'control'}
        assert cell['ratios']['eager'] == [1, 1, 1]
        assert set(cell['memory']) == (names if case == 'batch 1' else set())
        assert all(size > 0 for size in (*cell['bytes'].values(), *cell['memory'].values()))
        assert cell['rounds'] >= 5
    printed = capsys.readouterr().out
    assert forms.report_table({NAME: cells}) in printed
    assert forms.sentence({NAME: cells}) in printed
    again = ['--models', NAME, '--seconds', '0', '--out', str(out), '--forms', 'OpenVINO, int8']
    for usable in (True, False):
        before = json.loads(out.read_text())
        monkeypatch.setattr(forms, 'usable', lambda cell, answer=usable: answer)
        forms.main(again)
        after = json.loads(out.read_text())
        assert len(after['runs']) == len(before['runs']) + 1
        for case, cell in after['cells'][NAME].items():
            old = before['cells'][NAME][case]
            ratios = [one['ratios'].pop('OpenVINO, int8') for one in (old, cell)]
            assert (ratios[0] != ratios[1]) == usable
            assert cell['ratios'] == old['ratios']
            assert cell['memory'].keys() == old['memory'].keys()
        told = 'The control is out of its band; the file keeps its figures.'
        assert (told in capsys.readouterr().out) == (not usable)


@pytest.mark.parametrize('form', ['deployed', forms.LOW])
def test_deployed_rows(form):
    model = forms.build(NAME)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        got, expected = forms.deployed(copy.deepcopy(model), NAME, form)(x), model(x)
    assert got.dtype == (torch.bfloat16 if form == forms.LOW else torch.float32)
    # bfloat16 has 8 bits, and errors of many layers add up
    assert relative_error(got.float(), expected) < (0.05 if form == forms.LOW else 1e-5)


@pytest.mark.parametrize(
    ('option', 'content', 'text'),
    [
        (['--keep'], None, 'There is no'),
        (['--forms', 'eager'], None, 'Leave out --keep and --forms'),
        (['--forms', 'eager'], '{"cells": {}, "runs": []}', f'lacks {NAME}. Leave out --forms'),
    ],
)
def test_nothing_to_keep(option, content, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('benchmarks.script.require', lambda *args: None)
    out = tmp_path / 'forms.json'
    if content is not None:
        out.write_text(content)
    with pytest.raises(SystemExit) as end:
        forms.main(['--models', NAME, '--out', str(out), *option])
    assert end.value.code == 2
    assert text in capsys.readouterr().err


def test_no_figure_whose_control_failed():
    cell = {'ratios': {'eager': [1, 1, 1], 'deployed': [0.5] * 3, 'control': [1.1, 1.0, 1.2]}}
    cell |= {'milliseconds': {'eager': 10.0, 'deployed': 5.0}}
    report = {'m': {'batch 1': cell}}
    assert 'unusable' in forms.sentence(report)
    assert '0.50' not in forms.report_table(report)
    cell['ratios']['control'][0] = 1.01
    assert 'deployed for m (× 0.50' in forms.sentence(report)
    assert '5 ms, × 0.50 [0.50, 0.50]' in forms.report_table(report)


def test_the_committed_run():
    report = load('forms')
    assert list(report) == list(forms.MODELS)
    for name, cases in report.items():
        assert list(cases) == list(forms.CASES)
        assert all(forms.usable(cell) for cell in cases.values()), name
