"""The training of the embedded model."""

import json

import pytest
import timm
import torch
from safetensors import safe_open

from benchmarks.script import load
from benchmarks.trainings import train_digits


@pytest.fixture
def few_images(monkeypatch):
    """A tenth of the images, because the transform takes most of the time."""
    train, held_out, train_labels, labels = train_digits.digits()
    few = train[:144], held_out[:60], train_labels[:144], labels[:60]
    monkeypatch.setattr(train_digits, 'digits', lambda: few)


def test_a_few_steps_of_the_training(tmp_path, few_images):
    for run in ('a', 'b'):
        train_digits.main(['--steps', '6', '--out', str(tmp_path / f'{run}.json')])
    report = json.loads((tmp_path / 'a.json').read_text())['cells']
    assert report['train'] == 144
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == [
        'README.md',
        'digits.png',
        'test_res2net_se.digits.safetensors',
    ]
    one, two = (
        timm.create_model(
            'test_res2net_se',
            pretrained=True,
            pretrained_cfg_overlay={'file': str(tmp_path / run / train_digits.FILE)},
        ).state_dict()
        for run in ('a', 'b')
    )
    assert all(torch.equal(one[key], two[key]) for key in one)  # the seed decides
    fresh = timm.create_model('test_res2net_se').state_dict()
    assert not torch.equal(one['layer4.0.bn3.weight'], fresh['layer4.0.bn3.weight'])  # it learns


def test_the_embedded_model_on_the_held_out_images():
    report = load('train_digits')
    model = timm.create_model('test_res2net_se', pretrained=True)
    _, images, _, labels = train_digits.digits()
    assert len(images) == report['held_out'] == 360
    assert report['train'] + report['held_out'] == 1797
    percent = train_digits.accuracy(model, train_digits.to_batch(model, images), labels)
    assert percent >= 97  # the goal
    assert abs(percent - report['accuracy']) <= 100 / 360  # one image may differ on other hardware
    with safe_open(train_digits.WEIGHTS / train_digits.FILE, 'pt') as file:
        note = file.metadata()
    assert note['command'].endswith('train_digits')  # without options
    assert float(note['accuracy']) == report['accuracy']


def test_train_and_held_out_images_share_none():
    train, held_out, _, _ = train_digits.digits()
    seen = {image.tobytes() for image in train}
    assert not [image for image in held_out if image.tobytes() in seen]


def test_the_readme_of_the_weights():
    readme = (train_digits.WEIGHTS / 'README.md').read_text()
    assert readme == train_digits.README.format(**load('train_digits'))
