"""`timm-res2net export --int8`, as a user meets it."""

import importlib.util
import json

import pytest

from tests.export.test_quantize import draw
from timm_res2net.cli import main


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['--int8'], '--int8 needs images to quantize with. Name a folder: --calibrate FOLDER.'),
        (['--calibrate', 'x'], '--calibrate is for int8. Add --int8, or leave --calibrate out.'),
        (['--max-images', '9'], '--max-images is for int8. Add --int8, or leave'),
        (['--min-agreement', '0'], '--min-agreement is for int8. Add --int8, or leave'),
    ],
)
def test_options_that_do_not_go_together(words, text, tmp_path, capsys):
    out = tmp_path / 'net.xml'
    assert main(['export', 'test_res2net_se', '--out', str(out), *words]) == 1
    assert f'timm-res2net export: {text}' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('nncf') is None, reason='needs the extra int8')
@pytest.mark.parametrize('as_json', [False, True])
def test_int8(as_json, tmp_path, capsys):
    folder = draw(tmp_path / 'digits', 40)
    out = tmp_path / 'net.xml'
    words = ['--int8', '--calibrate', str(folder), '--max-images', '36', '--min-agreement', '0.9']
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
        assert lines[2].startswith('Quantized to int8 with 18 images, compared with 18 others: 100')
        assert f'off by {100 * stored["errors"]["logits"]:.1f} % (logits).' in lines[2]
        assert f'× {stored["time_ratio"]:.2f} of the time' in lines[3]
        assert 'INFERENCE_PRECISION_HINT' in lines[4]
