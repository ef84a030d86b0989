"""`timm-res2net run`: scripts that are missing."""

import re
from pathlib import Path

import pytest
import timm

from timm_res2net.cli import main

REPOSITORY = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models'


@pytest.mark.parametrize('name', ['train.py', 'validate.py', 'inference.py'])
@pytest.mark.parametrize(('version', 'tag'), [('1.0.31', 'v1.0.31'), ('1.0.32.dev0', 'main')])
def test_where_timms_scripts_are(name, version, tag, monkeypatch, capsys):
    monkeypatch.setattr(timm, '__version__', version)
    assert main(['run', f'my scripts/{name}', 'DATA', '--model', 'res2net50_se']) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"timm-res2net run: There is no script 'my scripts/{name}'. ")
    assert told.endswith(f"curl -fLo 'my scripts/{name}' {REPOSITORY}/{tag}/{name}\n")
    assert f'timm {version}' in told
    assert told.count('\n') == 1


def test_the_readme_names_an_address_that_is_printed(monkeypatch, capsys):
    readme = (Path(__file__).parents[2] / 'README.md').read_text()
    (address,) = re.findall(rf'{REPOSITORY}/v[\d.]+/train\.py', readme)
    version = address.split('/v')[1].removesuffix('/train.py')
    assert f'timm {version}' in ' '.join(readme.split())  # a tested version
    monkeypatch.setattr(timm, '__version__', version)
    main(['run', 'train.py'])
    assert capsys.readouterr().err.endswith(f' {address}\n')


def test_another_script(capsys):
    assert main(['run', 'mine/training.py']) == 1
    told = capsys.readouterr().err
    assert "There is no script 'mine/training.py'. Give the path of a Python file." in told
    assert 'curl' not in told
