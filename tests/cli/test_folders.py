"""`convert`, `push`, and the names of classes that both take."""

import argparse
import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.common import PADDLE, save
from timm_res2net.cli import main
from timm_res2net.cli.folders import read_label_names


def test_convert_there_and_back(tmp_path, capsys):
    out = tmp_path / 'net'
    assert main(['convert', str(PADDLE), '--out', str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'{PADDLE}: pickled arrays, source paddle'
    assert 'semantics paddle' in lines[1] and lines[1].endswith(' parameters, 10 classes')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[4:-3]]
    assert ['`out.weight`', '`fc.weight`', '1', 'transposed'] in rows
    assert f'all {sum(int(row[2]) for row in rows)} tensors' in lines[-3]
    assert lines[-2].startswith('Assumed, because the file does not record it: input_size [3, 224')
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in lines[-1]
    assert {p.name for p in out.iterdir()} >= {'README.md', 'config.json', 'model.safetensors'}

    back = tmp_path / 'back.pdparams'
    assert main(['convert', str(out), '--to', 'paddle', '--out', str(back)]) == 0
    assert capsys.readouterr().out.endswith(f' {back}\n')
    assert back.is_file()

    # the folder, as JSON
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefghij'))
    command = ['push', str(out), 'me/net', '--license', 'mit', '--dry-run']
    command += ['--label-names', str(tmp_path / 'names.txt')]
    assert main(command) == 0
    assert "timm.create_model('hf-hub:me/net', pretrained=True)" in capsys.readouterr().out
    assert main([*command, '--json']) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed['config']['pretrained_cfg']['license'] == 'mit'
    assert pushed['config']['label_names'] == list('abcdefghij')
    assert len(pushed['files']['model.safetensors']['sha256']) == 64
    assert pushed['commit'] is None


def test_convert_looks_only(tmp_path, capsys):
    assert main(['convert', str(PADDLE), '--dry-run', '--json']) == 0
    record = json.loads(capsys.readouterr().out)
    assert record['out'] is None
    notes = record['notes']
    assert notes['source'] == 'paddle'
    assert notes['sha256'] == hashlib.sha256(PADDLE.read_bytes()).hexdigest()
    assert {'from': 'out.weight', 'to': 'fc.weight', 'how': 'transposed'} in notes['moved']
    assert main(['convert', str(PADDLE), '--dry-run', '--out', str(tmp_path / 'net')]) == 0
    assert list(tmp_path.iterdir()) == []
    assert main(['convert', str(PADDLE)]) == 1
    assert '--out' in capsys.readouterr().err


@pytest.mark.parametrize('key', ['last_linear', 'model.classifier'])
def test_convert_names_what_looks_like_a_lost_classifier(key, tmp_path, capsys):
    model = timm.create_model('test_res2net_se', pretrained=True)
    weights = {
        f'{key}{name[2:]}' if name.startswith('fc.') else name: tensor
        for name, tensor in model.state_dict().items()
    }
    weights['decoder.weight'] = torch.zeros(3, 5)
    torch.save(weights, tmp_path / 'net.pth')
    assert main(['convert', str(tmp_path / 'net.pth'), '--dry-run']) == 0
    out = capsys.readouterr().out
    assert f'look like a classifier, 1: {key}.weight\n' in out
    assert "'fc.weight' and 'fc.bias'" in out


def test_names_of_classes_from_a_file(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_bytes(b'\xef\xbb\xbfcat\r\ndog \r\n\r\n')
    assert read_label_names(path, None, '') == ['cat', 'dog']
    path.write_bytes(b'caf\xe9\n')
    with pytest.raises(ValueError, match=r'names\.txt is not a text in UTF-8'):
        read_label_names(path, None, '')
    with pytest.raises(FileNotFoundError, match='nothing'):
        read_label_names(tmp_path / 'nothing', None, '')
    assert read_label_names(None, None, '') is None


def put_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(path)


def test_names_of_classes_from_a_folder(tmp_path):
    """In the order of timm's datasets, which train.py trains on: numbers count as numbers."""
    put_images(tmp_path / 'train', 'c10/a.png', 'c9/a.png', 'Ant/x/bee/a.jpg', 'train/a.png')
    (tmp_path / 'train' / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'c9.*c10.*--label-order'):
        read_label_names(tmp_path / 'train', None, '')
    assert read_label_names(tmp_path / 'train', 'sorted', '') == ['bee', 'c10', 'c9', 'train']
    names = read_label_names(tmp_path / 'train', 'natural', '')
    assert names == ['bee', 'c9', 'c10', 'train']
    weights = timm.create_model('test_res2net_se').state_dict()
    save(
        {'args': argparse.Namespace(model='test_res2net_se'), 'state_dict': weights},
        tmp_path / 'best.pth',
    )
    assert read_label_names(tmp_path / 'train', None, str(tmp_path / 'best.pth')) == names
    data = timm.data.create_dataset('', str(tmp_path), split='train')
    assert {name: i for i, name in enumerate(names)} == data.reader.class_to_idx


def test_label_names_that_do_not_fit(tmp_path, capsys):
    """An empty line, and a folder without class folders: nothing is written."""
    (tmp_path / 'names.txt').write_text('cat\n\ndog\n')
    for labels in (tmp_path / 'names.txt', tmp_path):
        command = ['convert', str(PADDLE), '--dry-run', '--label-names', str(labels)]
        assert main(command) == 1
    few, none = capsys.readouterr().err.splitlines()
    assert "['cat', '', 'dog']" in few
    assert str(tmp_path) in none
