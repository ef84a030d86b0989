"""The images of the detector, a few steps of its training, and its committed results."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('torchmetrics', reason='needs the extra scripts')
pytest.importorskip('pycocotools', reason='needs the extra scripts')
pytest.importorskip('skimage', reason='needs the extra scripts')

from benchmarks.script import load
from benchmarks.trainings import train_detector
from benchmarks.trainings.train_detector import CLASSES, PHOTOGRAPHS, SIZE, scene

# names on disk that differ from scikit-image's functions
FILES = {'stereo_motorcycle': 'motorcycle_left', 'immunohistochemistry': 'ihc'}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(train_detector, 'NUMBER', {'train': 6, 'held out': 5})


def test_a_number_gives_one_image():
    (one, target), (same, again) = (scene('train', 5) for _ in range(2))
    assert torch.equal(one, same)
    assert all(torch.equal(target[key], again[key]) for key in ('boxes', 'labels'))
    for other in (('held out', 5), ('train', 6)):
        assert not torch.equal(one, scene(*other)[0])


def test_boxes_are_tight_around_the_shapes(monkeypatch):
    """White shapes on black; where one covers another, only the whole is compared."""
    black = np.zeros((SIZE, SIZE, 3))
    monkeypatch.setattr(train_detector, 'crop', lambda rng, part: black.copy())
    monkeypatch.setattr(train_detector, 'texture', lambda rng, part: black + 255)
    labels, numbers = set(), set()
    for i in range(40):
        image, target = scene('train', i)
        ys, xs = (image > 0.5).all(0).nonzero(as_tuple=True)
        x0, y0 = target['boxes'][:, :2].min(0).values.tolist()
        x1, y1 = target['boxes'][:, 2:].max(0).values.tolist()
        assert (x0, y0) == (int(xs.min()), int(ys.min()))
        assert (x1, y1) == (int(xs.max()) + 1, int(ys.max()) + 1)
        labels |= {*target['labels'].tolist()}
        numbers.add(len(target['labels']))
    assert labels == {1, 2, 3}
    assert numbers == {1, 2, 3, 4}


def test_the_photographs_need_no_download_and_are_on_one_side():
    shipped = {
        Path(file).stem
        for file in metadata.files('scikit-image')
        if file.parent == Path('skimage/data')
    }
    train, held_out = PHOTOGRAPHS.values()
    assert {FILES.get(name, name) for name in (*train, *held_out)} <= shipped
    assert not {*train} & {*held_out}


class Oracle(torch.nn.Module):
    """Returns the true boxes with labels shifted by `shift`."""

    def __init__(self, scenes, shift):
        super().__init__()
        self.answers = [
            target | {'labels': (target['labels'] - 1 + shift) % 3 + 1,
                      'scores': torch.ones(len(target['labels']))}
            for _, target in scenes
        ]  # fmt: skip

    def forward(self, images):
        return [self.answers.pop(0)]


def test_the_truth_scores_one_and_other_labels_nothing():
    scenes = [scene('held out', i) for i in range(12)]
    assert train_detector.evaluate(Oracle(scenes, 0), scenes) == {'map': 1, 'map_50': 1}
    # a box may be near one of the wrong class
    assert train_detector.evaluate(Oracle(scenes, 1), scenes)['map'] < 0.1


@pytest.mark.slow
def test_a_few_steps_are_reproducible(tmp_path, capsys, small):
    reports = []
    for run in ('a', 'b'):
        out = tmp_path / f'{run}.json'
        train_detector.main(['--steps', '3', '--out', str(out)])
        reports.append(json.loads(out.read_text())['cells'])
        assert capsys.readouterr().out.startswith(train_detector.sentence(reports[-1]) + '\n')
    assert reports[0] == reports[1]
    assert (reports[0]['steps'], reports[0]['held_out']) == (3, 5)


@pytest.mark.slow
def test_the_loss_falls(monkeypatch):
    monkeypatch.setattr(train_detector, 'BATCH', 4)
    torch.manual_seed(0)
    model = train_detector.detector()
    scenes = [scene('train', i) for i in range(8)]
    first = train_detector.train(model, scenes, 1)
    assert first > 1.9  # the classifiers start at log 4 and log 2, and the boxes add a little
    assert train_detector.train(model, scenes, 24) < 0.8 * first


def test_the_committed_figures():
    report = load('train_detector')
    assert report['held_out'] == train_detector.NUMBER['held out']
    assert report['before']['map'] < 0.02
    assert report['after']['map'] > 0.4  # the goal
    assert report['after']['map_50'] > 0.75
    assert len(CLASSES) == 3
