"""`timm-res2net run`: scripts that are missing."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

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


@pytest.mark.parametrize(
    ('rank', 'size', 'gpus', 'said'),
    [('0', '2', False, True), ('1', '2', False, False), ('0', '2', True, False),
     ('0', '1', False, False)],
)  # fmt: skip
def test_several_processes_without_a_gpu(rank, size, gpus, said, tmp_path, monkeypatch, capsys):
    """One process says once what timm's train.py will do; the script runs."""
    (tmp_path / 'script.py').write_text('print("ran")')
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: gpus)
    monkeypatch.setattr('sys.argv', [])
    monkeypatch.setattr('sys.path', [''])
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('WORLD_SIZE', size)
    assert main(['run', str(tmp_path / 'script.py')]) == 0
    captured = capsys.readouterr()
    assert captured.out == 'ran\n'
    assert captured.err.count('\n') == ('device_ids=[cpu]' in captured.err) == said


def test_several_processes_are_why_it_is_said():
    """If torch takes `device_ids=[cpu]`, or timm stops passing it, the sentence can go."""
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match='device_ids'):
            DistributedDataParallel(nn.Linear(2, 2), device_ids=[torch.device('cpu')])
    finally:
        distributed.destroy_process_group()
