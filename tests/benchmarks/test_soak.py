"""The soak."""

import json

import pytest
import torch

from benchmarks import soak


def test_growth():
    """10 bytes a cycle, from the second of ten parts to the last."""
    samples = [{'resident': 1000 + 10 * cycle, 'files': 5} for cycle in range(100)]
    parts = soak.parts_of(samples)
    assert len(parts) == 10
    assert parts[0] == {'resident': 1045, 'files': 5}
    assert soak.growth(parts, 100) == 10


def test_a_leak_of_tensors_is_seen():
    before = soak.state()
    kept = [torch.ones(1 << 20) for _ in range(20)]  # 4 MB each
    after = soak.state()
    assert after['tensors'] == before['tensors'] + len(kept)
    assert after['resident'] - before['resident'] > 40e6


@pytest.mark.slow
def test_a_soak(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, 'NETWORKS', {'test_res2net_se': {}, 'test_res2net_se.digits': {}})
    soak.main(['--rounds', '10', '--out', str(tmp_path / 'soak.json')])
    report = json.loads((tmp_path / 'soak.json').read_text())['cells']
    assert report['cycles'] == 20
    assert len(report['parts']) == len(report['control']) == 10
    assert soak.sentence(report) in capsys.readouterr().out


def test_bad_rounds(capsys):
    for rounds in ('5', '15'):
        with pytest.raises(SystemExit):
            soak.main(['--rounds', rounds])
        assert f'--rounds must be a multiple of 10, got {rounds}.' in capsys.readouterr().err
