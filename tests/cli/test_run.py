"""`timm-res2net run`: the user's scripts, and where timm's are."""

import argparse
import json
import re
import sys

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver

from tests.common import ROOT
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


@pytest.mark.parametrize(
    ('options', 'world', 'refused'),
    [
        ('data --model x', 1, True),  # a batch is 128 by default
        ('data --model x -b 9', 1, True),
        ('data --model x --batch-size 8', 1, False),
        ('--model x --data-dir data --batch-size=8', 2, True),
        ('--model x --data-dir data --batch-size=4', 2, False),
        ('data -b 9 --train-split validation', 1, False),  # is not there, which is not counted
        ('data --dataset tfds/flowers', 1, False),
    ],
)
def test_a_batch_larger_than_the_training_folder(
    options, world, refused, script, tmp_path, monkeypatch, capsys
):
    """train.py would train nothing, and say nothing of it."""
    for i in range(8):
        path = tmp_path / 'data' / 'train' / 'ab'[i % 2] / f'{i}.JPG'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (path.parent / 'notes.txt').touch()
    script.write_text('')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('WORLD_SIZE', str(world))
    assert main(['run', 'train.py', *options.split()]) == refused
    told = capsys.readouterr().err
    assert told == '' or not refused or ('8 images' in told and '--batch-size 2' in told)
    script.with_name('mine.py').touch()
    assert main(['run', 'mine.py', *options.split()]) == 0  # only timm's script is known


@pytest.mark.parametrize('batch', [4, 100])
def test_convert_says_that_nothing_was_trained(batch, tmp_path, capsys):
    """As train.py records it: its optimizer has momenta after the first step."""
    model = timm.create_model('test_res2net_se')
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.01)
    for inputs in torch.rand(8, 3, 64, 64).split(batch)[: 8 // batch]:
        model(inputs).sum().backward()
        optimizer.step()
    args = argparse.Namespace(model='test_res2net_se')
    CheckpointSaver(model, optimizer, args=args, checkpoint_dir=tmp_path).save_checkpoint(0, 1.0)
    assert main(['convert', str(tmp_path / 'last.pth.tar'), '--dry-run']) == 0
    assert ('Not trained' in capsys.readouterr().out) is (batch > 8)


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
    readme = (ROOT / 'README.md').read_text()
    (address,) = re.findall(rf'{REPOSITORY}/v[\d.]+/train\.py', readme)
    version = address.split('/v')[1].removesuffix('/train.py')
    assert f'timm {version}' in ' '.join(readme.split())  # a tested version
    monkeypatch.setattr(timm, '__version__', version)
    main(['run', 'train.py'])
    assert capsys.readouterr().err.endswith(f' {address}\n')
