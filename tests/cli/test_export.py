"""`timm-res2net export --int8`, as a user meets it."""

import importlib.util
import json

import pytest

from tests.export.test_int8 import draw
from timm_res2net.cli import main


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('nncf') is None, reason='needs the extra int8')
@pytest.mark.parametrize('as_json', [False, True])
def test_int8(as_json, tmp_path, capsys):
    folder = draw(tmp_path / 'digits', 40)
    out = tmp_path / 'net.xml'
    words = ['--int8', str(folder), '--max-images', '36', '--min-agreement', '0.9']
    command = ['export', 'test_res2net_se', '--out', str(out), *words]
    assert main([*command, *(['--json'] if as_json else [])]) == 0
    told, stored = capsys.readouterr(), json.loads((tmp_path / 'net.json').read_text())
    assert 'Statistics' not in told.out + told.err  # NNCF's own bars
    assert stored['min_agreement'] == 0.9
    assert (stored['calibrated'], stored['compared']) == (18, 18)
    if as_json:
        found = json.loads(told.out)
        assert found['path'] == str(out)
        assert {key: stored[key] for key in found['int8']} == found['int8']
    else:
        lines = told.out.splitlines()
        assert len(lines) == 5
        assert lines[2].startswith('Quantized to int8 with 18 images. On 18 others 100')
        assert f'off by {100 * stored["errors"]["logits"]:.1f} % (logits).' in lines[2]
        assert f'× {stored["time_ratio"]:.2f} of the time' in lines[3]
        assert 'INFERENCE_PRECISION_HINT' in lines[4]
