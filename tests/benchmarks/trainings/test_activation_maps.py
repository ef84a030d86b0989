"""Class activation maps: the metrics, a few steps of the training, and the committed results."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip('matplotlib', reason='needs the extra scripts')

from benchmarks.script import RESULTS, load
from benchmarks.trainings import activation_maps


@pytest.fixture
def shapes(monkeypatch) -> activation_maps.Shapes:
    """Twelve images on a gray photograph; scikit-image is not needed."""
    gray = np.full((2 * activation_maps.SIZE, 2 * activation_maps.SIZE, 3), 128)
    monkeypatch.setattr(activation_maps, 'crop', lambda rng, name: gray)
    return activation_maps.draw_shapes('held out', 12)


def test_a_shape_is_where_its_mask_is(shapes):
    again = activation_maps.draw_shapes('held out', 12)
    other = activation_maps.draw_shapes('train', 12)
    assert torch.equal(shapes.images, again.images)
    assert not torch.equal(shapes.images, other.images)
    assert set(shapes.labels.tolist()) == {0, 1, 2}
    for image, mask, box in zip(shapes.images, shapes.masks, shapes.boxes, strict=True):
        x0, y0, x1, y1 = box.astype(int)
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 20
        inside = image.numpy().transpose(1, 2, 0)[mask]
        assert inside.min() > image[:, 0, 0].max()  # brighter than the darkened photograph


def test_how_a_map_fits():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:6] = True
    box = np.array([2, 2, 6, 4])
    heat = np.where(mask, 1.0, -1.0)
    assert activation_maps.fit(heat, mask, box) == {'energy': 1, 'pointing': 1, 'coverage': 1}
    heat[2, 2:6] = 0.4
    heat[7, 7] = 4.0
    found = activation_maps.fit(heat, mask, box)
    assert found == {'energy': pytest.approx(5.6 / 9.6), 'pointing': 0, 'coverage': 0}
    flat = activation_maps.fit(np.ones((8, 8)), mask, box)
    assert (flat['energy'], flat['coverage']) == (8 / 64, 1)
    nothing = activation_maps.fit(-np.ones((8, 8)), mask, box)
    assert (nothing['energy'], nothing['coverage']) == (0, 0)


def test_the_networks_have_equal_macs():
    counted = {name: activation_maps.macs(activation_maps.network(name))
               for name in activation_maps.NETWORKS}  # fmt: skip
    assert 0.98 < counted['Res2Net'] / counted['ResNet'] < 1.02
    assert counted == load('activation_maps')['macs']


@pytest.mark.parametrize('name', activation_maps.NETWORKS)
def test_a_map_sums_to_the_logit(name):
    """Enlarging keeps the mean of a map, which is the logit without its bias."""
    torch.manual_seed(0)
    model = activation_maps.network(name).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    logits, maps = activation_maps.maps(model, images)
    assert maps.shape == (2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(logits, model(images.float() / 64 - 2))
    assert torch.allclose(maps.mean((2, 3)) + model.fc.bias, logits, rtol=1e-4, atol=1e-5)


def test_a_few_steps(tmp_path, monkeypatch, shapes, capsys):
    pytest.importorskip('skimage', reason='needs the extra scripts')
    monkeypatch.setattr(activation_maps, 'BATCH', 4)
    words = ['--steps', '2', '--seeds', '2', '--train', '8', '--held-out', '10']
    activation_maps.main([*words, '--out', str(tmp_path / 'maps.json')])
    report = json.loads((tmp_path / 'maps.json').read_text())['cells']
    assert activation_maps.sentence(report) in capsys.readouterr().out
    assert {len(found) for found in report['samples'].values()} == {2}
    assert (tmp_path / 'maps.png').stat().st_size > 5_000


def test_the_committed_maps():
    report = json.loads((RESULTS / 'activation_maps.json').read_text())
    assert report['runs'][0]['command'] == 'python -m benchmarks.trainings.activation_maps'
    cells = report['cells']
    again = activation_maps.summarize(cells['samples'])  # of figures with fewer digits
    assert cells['summary'].keys() == again.keys()
    for name, summary in again.items():
        for key, figures in summary.items():
            assert cells['summary'][name][key] == pytest.approx(figures, abs=2e-4)
    for found in cells['samples'].values():  # maps of networks that learned nothing tell nothing
        assert all(one['accuracy'] > 0.9 for one in found)
