"""Receptive fields."""

import json

import numpy as np

from benchmarks import receptive_field
from benchmarks.script import RESULTS


def test_half_width():
    """A uniform field of 5 x 5 px: 9 of 25 px are within one px of the center."""
    weight = np.zeros((11, 11))
    weight[3:8, 3:8] = 1 / 25
    assert receptive_field.half_width(weight, 0.3) == 1
    assert receptive_field.half_width(weight, 9 / 25 + 1e-9) == 2
    assert receptive_field.half_width(weight, 0.9) == 2
    assert receptive_field.half_width(np.roll(weight, 2, 0), 0.9) == 2  # around its own center


def test_receptive_field_is_measured(tmp_path, monkeypatch):
    """The gradient of one unit ends at the theoretical field: 211 px in resnet18's stage 3."""
    field = receptive_field.field('resnet18', 0, 1, 256)
    assert abs(field.sum() - 1) < 1e-4
    assert 5 < receptive_field.half_width(field, 0.5) < receptive_field.half_width(field, 0.9)
    rows, columns = np.nonzero(field)
    assert 190 < max(np.ptp(rows), np.ptp(columns)) < 211
    assert np.array_equal(field, receptive_field.field('resnet18', 0, 1, 256))
    monkeypatch.setattr(receptive_field, 'NAMES', ('resnet50', 'res2net50_26w_4s'))
    small = receptive_field.field
    monkeypatch.setattr(receptive_field, 'field', lambda name, seed: small(name, seed, 1, 96))
    out = tmp_path / 'field.json'
    receptive_field.main(['--seeds', '1', '--out', str(out)])
    report = json.loads(out.read_text())['cells']
    assert report['networks']['resnet50']['ratio_90%'] == [1, 1, 1]


def test_the_committed_fields():
    report = json.loads((RESULTS / 'receptive_field.json').read_text())
    assert report['runs'][0]['command'] == 'python -m benchmarks.receptive_field'
    cells = report['cells']
    networks = cells['networks']
    assert networks['res2net50_26w_4s']['ratio_90%'][1] > 1  # the paper's claim
    assert networks['res2net50_48w_2s']['ratio_90%'][2] < 1  # does not hold for two splits
