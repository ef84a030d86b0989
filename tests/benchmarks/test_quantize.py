"""What bfloat16 and int8 lose."""

import json

import pytest

from benchmarks import quantize
from benchmarks.script import load


@pytest.mark.slow  # exports and quantizes
def test_the_digits_model_again(tmp_path):
    """The half of the script that needs no training."""
    for package in ('mlxtend', 'nncf'):
        pytest.importorskip(package)
    quantize.main(['--only', quantize.NAME, '--out', str(tmp_path / 'int8.json')])
    again = json.loads((tmp_path / 'int8.json').read_text())['cells'][quantize.NAME]
    report = load('quantize')[quantize.NAME]
    assert {*again['forms']} == {*report['forms']} - {'torch, int8'}  # torchao's, no more measured
    assert again['float32'] == report['float32']
    for form, cell in again['forms'].items():
        # CPUs without int8 dot products round in other places: a few of 360 images may differ
        assert abs(cell['accuracy'] - report['forms'][form]['accuracy']) <= 1


def test_the_committed_figures():
    report = load('quantize')
    assert set(report) == {quantize.NAME, quantize.LARGE}
    for one in report.values():
        assert one['float32'] > 95
        int8 = one['forms']['OpenVINO, int8, preset mixed']
        assert int8['same'] >= 99
        assert f'{int8["same"]:.1f} % of {one["held_out"]} answers' in quantize.sentence(report)
        assert f'| {int8["same"]:.1f} % ' in quantize.report_table(report)
