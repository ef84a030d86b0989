"""`predict`, `show`, as a user meets them."""

import csv
import io
import itertools
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image

from tests.common import model_folder
from timm_res2net import predict
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


def test_the_install_check(tmp_path, monkeypatch, capsys):
    """`python -m timm_res2net predict`: the bundled digits, offline, and nothing is written."""
    monkeypatch.setattr(sys, 'argv', ['timm-res2net', 'predict'])
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module('timm_res2net', run_name='__main__')
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
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


@pytest.mark.parametrize('option', ['--csv no.csv', '--shard 1/2', '--top 2', '--no-deploy'])
def test_the_digits_take_no_options_of_images(option, capsys):
    assert main(['predict', *option.split()]) == 1
    name = option.split()[0].replace('--no-', '--')
    assert f'Name a model and images to use {name}.' in capsys.readouterr().err


def predict_lines(*words: str, capsys, code: int = 0) -> list[dict]:
    """The rows that `predict --json` prints."""
    assert main(['predict', 'test_res2net_se', *words, '--json']) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize('as_json', [False, True])
def test_unreadable_images_are_rows_and_the_others_shown(as_json, digits, capsys):
    command = ['predict', 'test_res2net_se', str(digits), '--top', '1', *['--json'] * as_json]
    assert main(command) == 0
    capsys.readouterr()
    (digits / '5.jpg').write_text('no image')
    (digits / '8.png').symlink_to('gone')
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.err == 'timm-res2net predict: 2 of 4 images cannot be read.\n'
    names = ['5.jpg', '7.png', '8.png', 'more/4.png']
    if as_json:
        rows = [json.loads(line) for line in told.out.splitlines()]
        assert ['error' in row for row in rows] == [True, False, True, False]
        assert [row['image'] for row in rows] == [str(digits / name) for name in names]
        assert [row['top'][0]['class'] for row in rows[1::2]] == ['7', '4']
        assert 0.5 < rows[1]['top'][0]['probability'] < 1
    else:
        first, seven, third, four = cells(told.out)
        assert [seven[1], four[1]] == ['7', '4']
        assert str(digits / '5.jpg') in first[1] and str(digits / '8.png') in third[1]


KINDS = ('--csv', '--jsonl')


def images_in(path: Path) -> list[str]:
    """The images of a file of results in order, each once."""
    lines = path.read_text('utf-8', 'surrogateescape').splitlines()
    if path.suffix == '.csv':
        assert lines.pop(0) == 'image,class,probability,error'
        return list(dict.fromkeys(row[0] for row in csv.reader(lines)))
    return [json.loads(line)['image'] for line in lines]


@pytest.mark.parametrize('option', KINDS)
def test_a_file_is_continued(option, digits, tmp_path, capsys):
    """Wherever it was cut, it ends as if it had not been cut."""
    (digits / 'a, "b".png').symlink_to('7.png')
    os.symlink('7.png', os.fsencode(digits) + b'/z\xff.png')  # no UTF-8
    (digits / 'bad.png').write_text('no image')
    out = tmp_path / f'out.{option[2:]}'
    words = ['predict', 'test_res2net_se', str(digits), '--batch-size', '1', option, str(out)]

    def content(text: bytes) -> bytes:  # runs may differ in the last bits of a probability
        return re.sub(rb'\d\.\d{5,}(e-\d+)?', lambda number: b'%.5f' % float(number[0]), text)

    assert main(words) == 1
    whole = out.read_bytes()
    assert len(images_in(out)) == 5
    assert main(words) == 1
    assert str(out) in capsys.readouterr().err  # it exists
    for end in (1, len(whole) // 3, len(whole) - 9):
        out.write_bytes(whole[:end])
        main([*words, '--resume'])
        assert content(out.read_bytes()) == content(whole), end
    assert main([*words, '--resume']) == 1  # nothing is left to do, but one image was not read
    assert capsys.readouterr().err.splitlines()[-1].endswith(': 1 of 5 images cannot be read.')
    words[1] = str(model_folder(tmp_path / 'other'))
    for options in ([], ['--top', '1']):
        assert main([*words, *options, '--resume']) == 1
        assert f'{out} has other results of ' in capsys.readouterr().err
        assert content(out.read_bytes()) == content(whole)


def test_the_rows_of_a_csv(digits, tmp_path):
    out = tmp_path / 'out.csv'
    words = ['predict', 'test_res2net_se', str(digits / '7.png'), str(digits / 'more' / '4.png')]
    assert main([*words, '--csv', str(out), '--top', '2']) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row['image'] for row in rows] == [words[2]] * 2 + [words[3]] * 2
    assert [row['class'] for row in rows][::2] == ['7', '4']
    assert 0.5 < float(rows[0]['probability']) < 1
    assert main([*words[:2], str(tmp_path / 'out.csv'), '--csv', str(tmp_path / 'bad.csv')]) == 1
    (row,) = csv.DictReader((tmp_path / 'bad.csv').read_text().splitlines())
    assert (row['class'], row['probability']) == ('', '')
    assert 'out.csv' in row['error']


def test_a_file_of_another_process_stays(digits, tmp_path, monkeypatch, capsys):
    """It was written while the model was loaded."""
    out = tmp_path / 'out.csv'

    def load(target, pretrained):
        out.write_text('theirs')
        return timm.create_model(target)

    monkeypatch.setattr('timm_res2net.cli.images.load_model', load)
    assert main(['predict', 'test_res2net_se', str(digits), '--csv', str(out)]) == 1
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == 'theirs'


@pytest.mark.parametrize('line', ['{"image": 5', '{"picture": "a"}', '[]'])
def test_a_damaged_file_is_not_continued(line, digits, tmp_path, capsys):
    out = tmp_path / 'out.jsonl'
    out.write_text('{"image": "a.png", "top": []}\n' + line + '\n')
    before = out.read_bytes()
    command = ['predict', 'test_res2net_se', str(digits), '--jsonl', str(out), '--resume']
    assert main(command) == 1
    assert f'Line 2 of {out} is no result' in capsys.readouterr().err
    assert out.read_bytes() == before


def test_shards_are_parts_of_the_whole(digits, capsys):
    for i in range(30):
        (digits / f'{i}0.png').symlink_to('7.png')
    whole = [row['image'] for row in predict_lines(str(digits), capsys=capsys)]
    parts = [
        [row['image'] for row in predict_lines(str(digits), '--shard', f'{k}/2', capsys=capsys)]
        for k in (1, 2)
    ]
    assert sorted(itertools.chain(*parts)) == sorted(whole)
    assert all(parts)
    assert len(whole) == 32


def test_no_class_is_probable(digits, monkeypatch, capsys):
    """With --multi-label each class stands for itself; prediction.py's tests have the others."""
    model = timm.create_model('test_res2net_se').eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.fill_(-3)
    monkeypatch.setattr('timm_res2net.cli.images.load_model', lambda name, pretrained: model)
    assert main(['predict', 'm', str(digits / '7.png'), '--multi-label']) == 0
    assert 'no class above 50 %' in capsys.readouterr().out


def test_a_pipe_is_read(digits, capsys):
    read, write = os.pipe()
    os.write(write, (digits / '7.png').read_bytes())
    os.close(write)
    (row,) = predict_lines(f'/dev/fd/{read}', capsys=capsys)
    os.close(read)
    assert row['top'][0]['class'] == '7'


@pytest.mark.parametrize('options', [['--deploy'], ['--no-deploy'], ['--amp', 'bf16']])
def test_how_the_model_runs(options, digits, monkeypatch, capsys):
    seen = []

    def predictions(model, images, **others):
        seen.append((any('Fused' in type(m).__name__ for m in model.modules()), others))
        return predict(model, images, **others)

    monkeypatch.setattr('timm_res2net.cli.images.predict', predictions)
    path = str(digits / '7.png')
    (row,) = predict_lines(path, '--device', 'cpu', '--workers', '0', *options, capsys=capsys)
    assert row['top'][0]['class'] == '7'
    amp = {'amp': 'bf16'} if '--amp' in options else {}
    assert seen == [('--no-deploy' not in options, {'workers': 0, **amp})]


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
        (['{digits}/7.png', '{digits}/7.png'], '7.png is an image. Name a model before it'),
        (['test_res2net_se', '{digits}/7.png', '--resume'], '--csv'),
        (['test_res2net_se', '{digits}/7.png', '--csv', '{digits}/7.png'], '{digits}/7.png'),
        (
            ['test_res2net_se', '{digits}', '--jsonl', '{digits}/7.png', '--resume'],
            '{digits}/7.png',
        ),
        (['test_res2net_se', '{digits}', '--csv', '{digits}/7.png', '--resume'], '{digits}/7.png'),
        (['test_res2net_se', '{digits}', '--device', 'cpu7000x'], 'cpu7000x'),
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
    assert ('22image' in errors.getvalue()) is not to_a_terminal
    assert len(out.getvalue().splitlines()) == 24


def test_show(capsys, tmp_path):
    pytest.importorskip('matplotlib', reason='needs the extra plots')
    out = tmp_path / 'seen.png'
    assert main(['show', 'test_res2net_se', '--out', str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1:] == ['%', '3']  # the digit of the package is a three
    assert lines[0].split()[0] > '80'  # 91.3 measured
    assert (lines[5], lines[-1]) == ('act1    16 x 32 x 32', f'Picture written to {out}')
    out.unlink()
    assert main(['show', 'test_res2net_se', '--out', str(out), '--json']) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown['path'], shown['top'][0]['class']) == (str(out), '3')
    assert shown['levels'][-1] == ['layer4', 192, 2, 2]
