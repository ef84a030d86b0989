"""The images of the detector, a few steps of its training, and its committed results."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('torchmetrics', reason='needs the extra scripts')
pytest.importorskip('pycocotools', reason='needs the extra scripts')
pytest.importorskip('skimage', reason='needs the extra scripts')
pytest.importorskip('matplotlib', reason='needs the extra scripts')

from benchmarks.script import RESULTS, load
from benchmarks.trainings import textured_shapes, train_detector

PARTS = ('train', 'held out')
# names on disk that differ from scikit-image's functions
FILES = {'stereo_motorcycle': 'motorcycle_left', 'immunohistochemistry': 'ihc'}


def test_a_seed_and_a_number_give_one_image():
    one, same = (textured_shapes.scene(3, 'train', 5) for _ in range(2))
    for field in ('image', 'masks', 'boxes', 'labels'):
        assert np.array_equal(getattr(one, field), getattr(same, field))
    for other in ((4, 'train', 5), (3, 'held out', 5), (3, 'train', 6)):
        assert not np.array_equal(one.image, textured_shapes.scene(*other).image)


@pytest.mark.parametrize('part', PARTS)
def test_boxes_are_tight_around_what_is_visible(part):
    scenes = [textured_shapes.scene(0, part, i) for i in range(40)]
    for one in scenes:
        assert one.masks.sum(0).max() == 1  # a pixel shows one shape
        assert len(one.masks) == len(one.boxes) == len(one.labels)
        for mask, (x0, y0, x1, y1) in zip(one.masks, one.boxes.astype(int), strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert mask[[y0, y1 - 1]].any(1).all() and mask[:, [x0, x1 - 1]].any(0).all()
            # the smallest triangle has 172 px, of which 0.6 are visible; the border may cut some
            assert mask.sum() > 90
    assert {int(n) for one in scenes for n in one.labels} == {1, 2, 3}
    assert {len(one.labels) for one in scenes} == {1, 2, 3, 4}
    covered = [one for one in scenes if len(one.boxes) > 1 and _overlap(one.boxes)]
    assert covered  # some overlap


def _overlap(boxes: np.ndarray) -> bool:
    (x0, y0, x1, y1), *others = boxes
    return any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in others)


def test_masks_are_where_the_shapes_are(monkeypatch):
    """White shapes on black show their masks in the image."""
    black = np.zeros((textured_shapes.SIZE, textured_shapes.SIZE, 3))
    monkeypatch.setattr(textured_shapes, 'crop', lambda rng, name: black)
    monkeypatch.setattr(textured_shapes, 'texture', lambda rng, names: black + 255)
    for i in range(10):
        one = textured_shapes.scene(0, 'train', i)
        visible = (one.image > 127).all(-1)
        assert (one.masks.any(0) <= visible).all()
        if len(one.masks) == 1:  # two soft edges that touch would add up
            assert np.array_equal(one.masks[0], visible)


def test_no_photograph_is_on_both_sides(monkeypatch):
    train, held_out = (textured_shapes.PHOTOGRAPHS[part] for part in PARTS)
    assert not set(train) & set(held_out)
    photograph = textured_shapes.photograph
    for part in PARTS:
        used = set()
        monkeypatch.setattr(
            textured_shapes,
            'photograph',
            lambda name, used=used: used.add(name) or photograph(name),
        )
        for i in range(40):  # each draws at least one of 4 or 7 photographs
            textured_shapes.scene(0, part, i)
        assert used == set(textured_shapes.PHOTOGRAPHS[part])


def test_the_photographs_need_no_download():
    shipped = {
        Path(file).stem
        for file in metadata.files('scikit-image')
        if file.parent == Path('skimage/data')
    }
    names = [name for part in PARTS for name in textured_shapes.PHOTOGRAPHS[part]]
    assert {FILES.get(name, name) for name in names} <= shipped


@pytest.mark.parametrize('axis', [0, 1])
def test_mirrored_boxes_fit_mirrored_masks(axis):
    one = textured_shapes.scene(0, 'train', 1)
    image, target = train_detector._tensors(one)
    mirrored, moved = train_detector._flipped(image, target, axis)
    where = 1 - axis  # of (H, W)
    assert np.array_equal(
        moved['boxes'].numpy(), textured_shapes.boxes_of(np.flip(one.masks, where + 1))
    )
    pixels = np.flip(one.image, where).transpose(2, 0, 1)
    assert np.array_equal((mirrored * 255).round().byte().numpy(), pixels)
    assert torch.equal(target['boxes'], torch.from_numpy(one.boxes))  # the input is unchanged


class Oracle(nn.Module):
    """Returns the true boxes with labels shifted by `shift`."""

    def __init__(self, scenes: list, shift: int) -> None:
        super().__init__()
        self.answers = [
            {
                'boxes': torch.from_numpy(one.boxes),
                'labels': torch.from_numpy((one.labels - 1 + shift) % 3 + 1),
                'scores': torch.ones(len(one.labels)),
            }
            for one in scenes
        ]

    def forward(self, images: list) -> list:
        found, self.answers = self.answers[: len(images)], self.answers[len(images) :]
        return found


def test_the_truth_scores_one_and_other_labels_nothing():
    scenes = [textured_shapes.scene(0, 'held out', i) for i in range(12)]  # two batches
    right = train_detector.evaluate(Oracle(scenes, 0), scenes)
    assert right == {
        'map': 1,
        'map_50': 1,
        'classes': {'disc': 1, 'square': 1, 'triangle': 1},
    }
    wrong = train_detector.evaluate(Oracle(scenes, 1), scenes)
    assert wrong['map'] < 0.1  # a box may be near one of the wrong class


@pytest.mark.slow
def test_a_few_steps_are_reproducible(tmp_path, capsys):
    reports = []
    for run in ('a', 'b'):
        out = tmp_path / f'{run}.json'
        train_detector.main(['--steps', '3', '--train', '6', '--held-out', '5', '--out', str(out)])
        reports.append(json.loads(out.read_text())['cells'])
        assert capsys.readouterr().out.startswith(train_detector.sentence(reports[-1]) + '\n')
    for report in reports:
        del report['cpu_seconds']
    assert reports[0] == reports[1]
    assert len(reports[0]['losses']) == reports[0]['steps'] == 3
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


@pytest.mark.slow
def test_the_loss_falls():
    scenes = [textured_shapes.scene(0, 'train', i) for i in range(8)]
    losses = train_detector.train(train_detector.detector(), scenes, 16, batch=4)
    # the classifiers start at log 4 and log 2, and the boxes add a little
    assert losses[0] > 1.9
    assert np.mean(losses[-4:]) < 0.7 * losses[0]


def test_the_committed_figures():
    file = json.loads((RESULTS / 'train_detector.json').read_text())
    assert file['runs'][0]['command'].endswith('train_detector')  # without options
    report = file['cells']
    assert report['held_out'] == 100
    assert report['before']['map'] < 0.02
    assert report['after']['map'] > 0.4  # the goal
    assert report['after']['map_50'] > 0.75
    found = report['after']['classes']
    assert found.keys() == set(textured_shapes.CLASSES)
    # COCO's mean is that over the classes; both are rounded to five digits
    assert np.mean(list(found.values())) == pytest.approx(report['after']['map'], abs=1e-4)
    assert report['losses'][-1] < 0.6 * max(report['losses'])


def test_the_readme():
    readme = ' '.join((RESULTS.parent / 'trainings' / 'README.md').read_text().split())
    assert train_detector.sentence(load('train_detector')) in readme


def test_the_picture():
    picture = (RESULTS / 'train_detector.png').read_bytes()
    assert picture.startswith(b'\x89PNG') and len(picture) < 200_000
