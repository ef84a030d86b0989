"""`predict`, `show`, as a user meets them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.common import model_folder
from timm_res2net import convert_checkpoint
from timm_res2net.cli import main
from timm_res2net.prediction import DIGITS


@pytest.fixture
def digits(tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    with Image.open(DIGITS) as strip:
        strip.crop((56, 0, 64, 8)).save(folder / '7.png')
        strip.crop((32, 0, 40, 8)).save(folder / 'more' / '4.png')
    return folder


def cells(out: str) -> list[list[str]]:
    """Cells of the table below its header."""
    return [[cell.strip() for cell in row.split('|')[1:-1]] for row in out.splitlines()[2:]]


def test_the_install_check(tmp_path):
    """Without arguments: the bundled digits, offline, and nothing is written."""
    done = subprocess.run(
        [sys.executable, '-m', 'timm_res2net', 'predict'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2]), 'HF_HUB_OFFLINE': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[1:] == lines[2].split()[1:] == [*'0123456789'] * 2
    assert lines[3:] == ['20 of 20 right']
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_digits_as_json(monkeypatch, capsys):
    """A model that takes every digit for a 3 has two of them right."""
    always_3 = timm.create_model('test_res2net_se')
    with torch.no_grad():
        always_3.fc.bias[3] = 1e3
    monkeypatch.setattr('timm_res2net.cli.images.load_model', lambda name, pretrained: always_3)
    assert main(['predict', '--json']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {'label': [*range(10)] * 2, 'predicted': [3] * 20, 'right': 2}


@pytest.mark.parametrize('as_json', [False, True])
def test_unreadable_images_are_named_and_the_others_shown(as_json, digits, capsys):
    flags = ['--json'] if as_json else []
    command = ['predict', 'test_res2net_se', str(digits), '--top', '1', *flags]
    assert main(command) == 0
    capsys.readouterr()
    for name in ('5.jpg', '8.png'):
        (digits / name).write_text('no image')
    assert main(command) == 1
    told = capsys.readouterr()
    for line, name in zip(told.err.splitlines(), ('5.jpg', '8.png'), strict=True):
        assert line.startswith('timm-res2net predict: ') and str(digits / name) in line
    if as_json:
        rows = json.loads(told.out)
        assert ['error' in row for row in rows] == [True, False, True, False]
        assert [row['image'] for row in rows][1::2] == [
            str(digits / name) for name in ('7.png', 'more/4.png')
        ]
        assert [row['top'][0]['class'] for row in rows[1::2]] == ['7', '4']
        assert 0.5 < rows[1]['top'][0]['probability'] < 1
    else:
        assert [row[1] for row in cells(told.out)] == ['7', '4']


def test_a_folder_that_was_converted(digits, tmp_path, capsys):
    """The names of the classes that `convert` wrote are those that are shown."""
    folder = model_folder(tmp_path / 'net', num_classes=2)
    convert_checkpoint(folder, tmp_path / 'named', label_names=['a rose', 'a tulip'])
    assert main(['predict', str(tmp_path / 'named'), str(digits / '7.png')]) == 0
    assert {row[1] for row in cells(capsys.readouterr().out)} == {'a rose', 'a tulip'}


def test_names_of_imagenet_and_80_columns(digits, monkeypatch, capsys):
    long = digits / ('very_long_name_' * 5 + '.png')
    (digits / '7.png').rename(long)
    arguments = ['predict', 'res2net50_se', str(long), '--random', '--top', '1000']
    # the tiny model with ImageNet's classes stands for the large one
    tiny = timm.create_model('test_res2net_se', num_classes=1000)
    monkeypatch.setattr('timm_res2net.cli.images.load_model', lambda name, pretrained: tiny)
    assert main(arguments) == 0
    assert str(long) in capsys.readouterr().out  # a pipe gets whole names
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '80')
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {80}
    assert lines[2].startswith('| ...') and '_long_name_.png |' in lines[2]
    assert any('| goldfish, Carassius auratus ' in line for line in lines)
    assert any('... |' in line for line in lines[3:])  # a name that is too long


@pytest.mark.parametrize(
    ('words', 'value'),
    [
        (['{digits}/7.png'], 'predict MODEL {digits}/7.png'),
        (['test_res2net_se', '{digits}/9.png'], '{digits}/9.png'),
        (['--top', '5'], '--top'),  # without a model it is not ignored
    ],
)
def test_what_cannot_be_predicted(words, value, digits, capsys):
    assert main(['predict', *(word.format(digits=digits) for word in words)]) == 1
    told = capsys.readouterr()
    assert told.out == ''
    assert told.err.count('\n') == 1
    assert value.format(digits=digits) in told.err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize('to_a_terminal', [False, True])
def test_progress(to_a_terminal, digits, monkeypatch):
    """A bar, unless the rows themselves appear on the terminal."""
    for i in range(20):
        Image.new('L', (8, 8)).save(digits / f'{i + 10}.png')
    errors, out = Terminal(), Terminal() if to_a_terminal else io.StringIO()
    monkeypatch.setattr('sys.stderr', errors)
    monkeypatch.setattr('sys.stdout', out)
    assert main(['predict', 'test_res2net_se', str(digits), '--top', '1']) == 0
    assert ('22/22' in errors.getvalue()) is not to_a_terminal
    assert len(out.getvalue().splitlines()) == 24


def test_show(capsys, tmp_path):
    pytest.importorskip('matplotlib', reason='needs the extra plots')
    out = tmp_path / 'seen.png'
    assert main(['show', 'test_res2net_se', '--out', str(out), '--json']) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown['path'] == str(out) and out.is_file()
    assert shown['top'][0]['class'] == '3'
    assert shown['levels'][-1] == ['layer4', 192, 2, 2]
