"""The soak."""

import json
import mmap

import pytest
import torch

from benchmarks import soak
from benchmarks.script import load


def test_growth():
    """10 bytes a cycle, from the second of ten parts to the last."""
    samples = [{'resident': 1000 + 10 * cycle, 'files': 5} for cycle in range(100)]
    parts = soak.parts_of(samples)
    assert len(parts) == 10
    assert parts[0] == {'resident': 1045, 'files': 5}
    assert soak.growth(parts, 100) == 10


def test_a_leak_is_seen():
    before = soak.state()
    kept = [torch.ones(8) for _ in range(20)]
    block = mmap.mmap(-1, 128 << 20)  # a large tensor could get memory that the process has already
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1
    after = soak.state()
    assert after['tensors'] == before['tensors'] + len(kept)
    assert after['resident'] - before['resident'] > 100e6


@pytest.mark.slow
def test_a_soak(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, 'NETWORKS', {'test_res2net_se': {}, 'test_res2net_se.digits': {}})
    soak.main(['--rounds', '10', '--out', str(tmp_path / 'soak.json')])
    report = json.loads((tmp_path / 'soak.json').read_text())['cells']
    assert report['cycles'] == 20
    assert len(report['parts']) == len(report['control']) == 10
    assert soak.sentence(report) in capsys.readouterr().out


def test_nothing_grows():
    """Beyond what safetensors keeps of the tensors that it reads, within a tenth."""
    report = load('soak')
    assert report['cycles'] >= 1800
    assert {part['tensors'] for part in report['parts']} == {0}
    assert len({part['files'] for part in report['parts']}) == 1
    assert report['growth'] < 1.1 * report['control_growth']


def test_bad_rounds(capsys):
    for rounds in ('5', '15'):
        with pytest.raises(SystemExit):
            soak.main(['--rounds', rounds])
        assert f'--rounds must be a multiple of 10, got {rounds}.' in capsys.readouterr().err
