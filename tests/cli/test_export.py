"""`timm-res2net export --int8`, as a user meets it."""

import json
from pathlib import Path

import pytest

from timm_res2net.cli import export, main
from timm_res2net.export import Exported
from timm_res2net.export.int8 import Int8

SIZES = {'float32': 3_000_000, 'int8': 1_000_000}
INT8 = Int8(
    0.99, {'logits': 0.05}, 18, 17, 9, SIZES, {'float32': 2.0, 'int8': 1.0}, 0.5, 'openvino'
)


@pytest.mark.parametrize('as_json', [False, True])
def test_int8(as_json, monkeypatch, capsys, tmp_path):
    given = []

    def write(target, out, **options):
        given.append((target, options))
        return Exported(out, 'openvino', ('logits',), 'any batch', 1e-6, INT8)

    monkeypatch.setattr(export, 'export_model', write)
    (tmp_path / 'names.txt').write_text('a\nb\n')
    words = ['--out', 'net.xml', '--int8', 'photos', '--max-images', '36', '--min-agreement', '0.9']
    words += ['--mean', '0.5', '0.4', '0.3', '--crop-pct', '0.9', '--interpolation', 'bicubic']
    words += ['--label-names', str(tmp_path / 'names.txt'), '--accept-loss']
    assert main(['export', 'test_res2net_se', *words, *(['--json'] if as_json else [])]) == 0
    options = {
        'int8': Path('photos'), 'max_images': 36, 'min_agreement': 0.9, 'accept_loss': True,
        'mean': [0.5, 0.4, 0.3], 'crop_pct': 0.9, 'interpolation': 'bicubic',
        'label_names': ['a', 'b'],
    }  # fmt: skip
    assert given == [('test_res2net_se', options)]
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)['path'] == 'net.xml'
        assert json.loads(out)['int8'] == INT8._asdict()
    else:
        assert 'with 18 images. On 17 other images, 99.0 %' in out
        assert 'the int8 file differ from float32 by 5.0 % (logits)' in out
        assert 'Verified by running the float32 file: ' in out
        assert '× 0.50 of the time' in out
        assert 'INFERENCE_PRECISION_HINT' in out
