"""Quantization to int8."""

import json

import pytest

from benchmarks import quantize
from benchmarks.script import load


@pytest.mark.slow  # exports
def test_quantization(tmp_path, capsys):
    """The whole script, because it is small."""
    pytest.importorskip('onnxruntime', reason='needs the extra export')
    pytest.importorskip('onnxscript', reason='needs the extra export')
    quantize.main(['--out', str(tmp_path / 'int8.json')])
    again = json.loads((tmp_path / 'int8.json').read_text())['cells']
    report = load('quantize')
    # CPUs without int8 dot products round in other places: a few of 360 images may differ
    assert abs(again['accuracy'][1] - report['accuracy'][1]) <= 1


def test_the_committed_figures():
    report = load('quantize')
    assert report['accuracy'][1] > 99
    assert f'{report["accuracy"][1]:.1f} % of 360 images' in quantize.sentence(report)
