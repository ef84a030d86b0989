"""`timm-res2net run`: the user's scripts, and where timm's are."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm

from timm_res2net.cli import main

REPOSITORY = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models'
SCRIPT = """
import json, sys
import helper
import timm
assert __name__ == '__main__'
model = timm.create_model('res2net50_se', device='meta')
print(json.dumps([sys.argv, type(model).__name__, helper.VALUE]))
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / 'helper.py').write_text('VALUE = 5')
    path = tmp_path / 'train.py'
    path.write_text(SCRIPT)
    monkeypatch.setattr(sys, 'argv', [])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    return path


def test_arguments_and_exit_code_pass(script, capsys):
    arguments = ['data', '--model', 'x', '-h', '--', '--json', '3']
    with pytest.raises(SystemExit) as stop:
        main(['run', str(script), *arguments])
    assert stop.value.code == 3
    assert json.loads(capsys.readouterr().out) == [[str(script), *arguments], 'Res2Net', 5]


@pytest.mark.parametrize('dashes', [[], ['--']])
def test_an_exception_passes(dashes, script):
    script.write_text('raise ValueError("of the script")')
    with pytest.raises(ValueError, match='of the script'):
        main(['run', *dashes, str(script)])


@pytest.mark.parametrize(('version', 'tag'), [('1.0.31', 'v1.0.31'), ('1.0.32.dev0', 'main')])
def test_where_timms_scripts_are(version, tag, monkeypatch, capsys):
    monkeypatch.setattr(timm, '__version__', version)
    assert main(['run', 'my scripts/validate.py', 'DATA', '--model', 'res2net50_se']) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith('timm-res2net run: ')
    assert told.endswith(f"curl -fLo 'my scripts/validate.py' {REPOSITORY}/{tag}/validate.py")
    assert main(['run', 'mine/training.py']) == 1
    told = capsys.readouterr().err
    assert "'mine/training.py'" in told and 'curl' not in told


def test_the_readme_names_an_address_that_is_printed(monkeypatch, capsys):
    readme = (Path(__file__).parents[2] / 'README.md').read_text()
    (address,) = re.findall(rf'{REPOSITORY}/v[\d.]+/train\.py', readme)
    version = address.split('/v')[1].removesuffix('/train.py')
    assert f'timm {version}' in ' '.join(readme.split())  # a tested version
    monkeypatch.setattr(timm, '__version__', version)
    main(['run', 'train.py'])
    assert capsys.readouterr().err.endswith(f' {address}\n')
