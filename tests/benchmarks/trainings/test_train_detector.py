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


def test_scenes(monkeypatch):
    """A number gives one image, and its boxes are tight around the shapes, white on black."""
    assert torch.equal(scene('train', 5)[0], scene('train', 5)[0])
    for other in (('held out', 5), ('train', 6)):
        assert not torch.equal(scene('train', 5)[0], scene(*other)[0])
    train, held_out = PHOTOGRAPHS.values()
    assert not {*train} & {*held_out}
    black = np.zeros((SIZE, SIZE, 3))
    monkeypatch.setattr(train_detector, 'crop', lambda rng, part: black.copy())
    monkeypatch.setattr(train_detector, 'texture', lambda rng, part: black + 255)
    for i in range(40):
        image, target = scene('train', i)
        ys, xs = (image > 0.5).all(0).nonzero(as_tuple=True)
        # where one covers another, only the whole is compared
        first, last = target['boxes'][:, :2].min(0).values, target['boxes'][:, 2:].max(0).values
        assert first.tolist() == [int(xs.min()), int(ys.min())]
        assert last.tolist() == [int(xs.max()) + 1, int(ys.max()) + 1]


def test_the_truth_scores_one():
    scenes = [scene('held out', i) for i in range(12)]
    answers = [{**target, 'scores': torch.ones(len(target['labels']))} for _, target in scenes]
    oracle = torch.nn.Identity()
    oracle.forward = lambda images: [answers.pop(0)]
    assert train_detector.evaluate(oracle, scenes)['map'] == 1


@pytest.mark.slow
def test_a_few_steps_are_reproducible_and_the_loss_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(train_detector, 'NUMBER', {'train': 8, 'held out': 5})
    monkeypatch.setattr(train_detector, 'BATCH', 4)
    reports = []
    for i, steps in enumerate((1, 24, 24)):
        out = tmp_path / f'{i}.json'
        train_detector.main(['--steps', str(steps), '--out', str(out)])
        reports.append(json.loads(out.read_text())['cells'])
    assert reports[1] == reports[2]
    assert (reports[1]['steps'], reports[1]['held_out']) == (24, 5)
    assert reports[1]['loss'] < 0.8 * reports[0]['loss']


def test_the_committed_figures():
    report = load('train_detector')
    assert report['held_out'] == train_detector.NUMBER['held out']
    assert report['before']['map'] < 0.02
    assert report['after']['map'] > 0.4  # the goal
    assert report['after']['map_50'] > 0.75
