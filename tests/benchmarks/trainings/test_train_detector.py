"""The images of the detector, a few steps of its training, and its committed results."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip('torchmetrics', reason='needs the extra scripts')
pytest.importorskip('pycocotools', reason='needs the extra scripts')
pytest.importorskip('skimage', reason='needs the extra scripts')

from benchmarks.script import load
from benchmarks.trainings import train_detector
from benchmarks.trainings.train_detector import PHOTOGRAPHS, SIZE, scene


def test_a_number_gives_one_image():
    """The photographs need no download and are on one side."""
    (one, target), (same, again) = (scene('train', 5) for _ in range(2))
    assert torch.equal(one, same)
    assert all(torch.equal(target[key], again[key]) for key in ('boxes', 'labels'))
    for other in (('held out', 5), ('train', 6)):
        assert not torch.equal(one, scene(*other)[0])
    train, held_out = PHOTOGRAPHS.values()
    assert not {*train} & {*held_out}
    for name in (*train, *held_out):
        assert train_detector.photograph(name).shape[2] == 3


def test_boxes_are_tight_around_the_shapes(monkeypatch):
    """White shapes on black; where one covers another, only the whole is compared."""
    black = np.zeros((SIZE, SIZE, 3))
    monkeypatch.setattr(train_detector, 'crop', lambda rng, part: black.copy())
    monkeypatch.setattr(train_detector, 'texture', lambda rng, part: black + 255)
    labels, numbers = set(), set()
    for i in range(40):
        image, target = scene('train', i)
        ys, xs = (image > 0.5).all(0).nonzero(as_tuple=True)
        first, last = target['boxes'][:, :2].min(0).values, target['boxes'][:, 2:].max(0).values
        assert first.tolist() == [int(xs.min()), int(ys.min())]
        assert last.tolist() == [int(xs.max()) + 1, int(ys.max()) + 1]
        labels |= {*target['labels'].tolist()}
        numbers.add(len(target['labels']))
    assert (labels, numbers) == ({1, 2, 3}, {1, 2, 3, 4})


def test_the_truth_scores_one():
    scenes = [scene('held out', i) for i in range(12)]
    answers = [{**target, 'scores': torch.ones(len(target['labels']))} for _, target in scenes]

    class Oracle(torch.nn.Module):
        def forward(self, images):
            return [answers.pop(0)]

    assert train_detector.evaluate(Oracle(), scenes)['map'] == 1


@pytest.mark.slow
def test_a_few_steps_are_reproducible_and_the_loss_falls(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_detector, 'NUMBER', {'train': 8, 'held out': 5})
    monkeypatch.setattr(train_detector, 'BATCH', 4)
    reports = []
    for i, steps in enumerate((1, 24, 24)):
        out = tmp_path / f'{i}.json'
        train_detector.main(['--steps', str(steps), '--out', str(out)])
        reports.append(json.loads(out.read_text())['cells'])
        assert capsys.readouterr().out.startswith(train_detector.sentence(reports[-1]) + '\n')
    assert reports[1] == reports[2]
    assert (reports[1]['steps'], reports[1]['held_out']) == (24, 5)
    assert reports[0]['loss'] > 1.9  # the classifiers start at log 4 and log 2, and boxes add
    assert reports[1]['loss'] < 0.8 * reports[0]['loss']


def test_the_committed_figures():
    report = load('train_detector')
    assert report['held_out'] == train_detector.NUMBER['held out']
    assert report['before']['map'] < 0.02
    assert report['after']['map'] > 0.4  # the goal
    assert report['after']['map_50'] > 0.75
