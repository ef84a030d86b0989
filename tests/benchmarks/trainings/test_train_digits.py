"""The training of the embedded model."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.script import load
from benchmarks.trainings import train_digits


def test_a_few_steps_of_the_training(tmp_path, monkeypatch):
    """Of a few images, because the transform takes most of the time."""
    train, held_out, train_labels, labels = train_digits.digits()
    few = train[:64], held_out[:60], train_labels[:64], labels[:60]
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}
    monkeypatch.setattr(train_digits, 'digits', lambda: few)
    for run in ('a', 'b'):
        train_digits.main(['--steps', '2', '--out', str(tmp_path / f'{run}.json')])
    assert json.loads((tmp_path / 'a.json').read_text())['cells']['train'] == 64
    files = [train_digits.FILE, 'README.md', 'digits.png']
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == sorted(files)
    one, two = (load_file(tmp_path / run / train_digits.FILE) for run in ('a', 'b'))
    assert all(torch.equal(one[key], two[key]) for key in one)  # the seed decides
    assert one['layer4.0.bn3.weight'].any()  # it learns, from 0


def test_the_embedded_model_on_the_held_out_images():
    report = load('train_digits')
    model = timm.create_model('test_res2net_se', pretrained=True)
    _, images, _, labels = train_digits.digits()
    assert len(images) == report['held_out'] == 360
    assert report['train'] + report['held_out'] == 1797
    percent = train_digits.accuracy(model, train_digits.to_batch(model, images), labels)
    assert percent >= 97  # the goal
    # one image may differ on other hardware
    assert percent == pytest.approx(report['accuracy'], abs=100 / 360)
    with safe_open(train_digits.WEIGHTS / train_digits.FILE, 'pt') as file:
        note = file.metadata()
    assert float(note['accuracy']) == report['accuracy']
    readme = (train_digits.WEIGHTS / 'README.md').read_text()
    assert readme == train_digits.README.format(**report)
