"""Keypoint models: data, heads, points, the measure, and the committed run."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.script import RESULTS
from benchmarks.trainings import train_keypoints
from benchmarks.trainings.heatmaps import RADIUS, STRIDE, heatmaps, pck, points_of
from benchmarks.trainings.stick_figures import JOINTS, MARGIN, SIDE, SIZE, figures
from benchmarks.trainings.train_keypoints import (
    BODIES,
    SHALLOW,
    HeatmapHead,
    Keypoints,
    evaluate,
    load,
    save,
    train,
)

NAME = 'hrnet_w18_res2net'
# fewer layers, to be quick
TINY = {NAME: dict(BODIES[NAME], **SHALLOW), 'test_res2net_se': BODIES['res2net50_se']}


def keypoints(name: str = NAME) -> Keypoints:
    torch.manual_seed(0)
    return Keypoints(name, len(JOINTS), **TINY[name])


def test_figures_are_decided_by_the_seed():
    one, same, other = figures(3, seed=5), figures(3, seed=5), figures(3, seed=6)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.points, same.points)
    assert not torch.equal(one.points, other.points)
    assert one.images.shape == (3, 3, SIZE, SIZE)
    assert one.images.dtype == torch.uint8


def test_figures_are_within_the_image_and_of_the_stated_size():
    points = figures(50, seed=5).points
    # float32 keeps 64 px to 4e-6 px
    assert points.min() >= MARGIN - 1e-5
    assert points.max() <= SIZE - 1 - MARGIN + 1e-5
    side = (points.amax(1) - points.amin(1)).amax(-1)
    assert side.min() >= SIDE[0] * SIZE - 1e-5
    assert side.max() <= SIDE[1] * SIZE + 1e-5
    feet = (points[:, 5] - points[:, 6]).norm(dim=-1)
    assert feet.min() < 2 * STRIDE  # some are in neighboring cells


def test_joints_look_the_same():
    """The pixels at two joints differ by noise only."""
    data = figures(50, seed=5)
    at = data.points.round().long()
    pixels = data.images[torch.arange(50)[:, None], :, at[..., 1], at[..., 0]].float() / 255
    away = (pixels - pixels.mean(1, keepdim=True)).mean((0, 2))  # [joints], of 150 values each
    assert away.abs().max() < 5 * 0.05 / 150**0.5  # noise of 0.05, five standard errors
    assert (pixels - pixels.mean(1, keepdim=True)).std() < 0.05


@pytest.mark.parametrize('sigma', [0.7, 1.0, 2.0])
def test_points_through_heatmaps_and_back(sigma):
    """A maximum is known to half a cell; with the quarter, to a quarter of a cell."""
    generator = torch.Generator().manual_seed(0)
    points = MARGIN + torch.rand(200, 7, 2, generator=generator) * (SIZE - 1 - 2 * MARGIN)
    maps = heatmaps(points, sigma=sigma)
    assert maps.shape == (200, 7, SIZE // STRIDE, SIZE // STRIDE)
    error = (points_of(maps) - points).abs()
    assert error.max() <= STRIDE / 4 + 1e-4  # float32 at 64 px
    assert error.max() > STRIDE / 8  # so the bound is at most twice the largest error


def test_a_heatmap_by_hand():
    """A joint at the center of a cell: pixels 8 to 11 are cell 2, so 9.5 px is its center."""
    points = torch.tensor([9.5, 29.5])
    maps = heatmaps(points, sigma=1)
    assert maps[7, 2] == 1
    assert maps[7, 3] == maps[6, 2]
    assert abs(float(maps[7, 3]) - math.exp(-1 / 2)) < 1e-6  # float32
    assert points_of(maps).tolist() == [9.5, 29.5]  # equal neighbors: no quarter
    maps[7, 3] += 0.1
    assert points_of(maps).tolist() == [10.5, 29.5]
    corner = torch.zeros(4, 4)
    corner[0, 3] = 1  # has neighbors on two sides only
    assert points_of(corner).tolist() == [13.5, 1.5]


def test_pck_by_hand():
    """Two figures, 40 px wide and 20 px high, so a joint is found within 4 and 2 px."""
    points = torch.tensor([[[0, 0], [40, 10]], [[0, 0], [10, 20]]]).float()
    found = points.clone()
    assert pck(found, points, 0.1) == 1
    found[0, 0, 0] += 3.9
    found[1, 1, 1] -= 2.1
    assert pck(found, points, 0.1) == 3 / 4
    found[0, 0, 1] += 3.9  # both together are 5.5 px
    assert pck(found, points, 0.1) == 2 / 4
    assert pck(found, points, 0.2) == 1


def test_head_of_one_level_is_a_convolution():
    head = HeatmapHead([18], 7)
    assert [(key, tuple(p.shape)) for key, p in head.named_parameters()] == [
        ('out.weight', (7, 18, 1, 1)),
        ('out.bias', (7,)),
    ]
    plain = nn.Conv2d(18, 7, 1)
    plain.load_state_dict(head.out.state_dict())
    x = torch.randn(2, 18, 16, 16)
    assert torch.equal(head([x]), plain(x))


def test_head_of_several_levels():
    """Constant levels need no upsampling, so the result can be computed by hand."""
    head = HeatmapHead([2, 3], 7, width=5)
    levels = [torch.randn(1, c, 1, 1) for c in (2, 3)]
    total = sum(conv(y) for conv, y in zip(head.levels, levels, strict=True))
    expected = head.out(F.relu(total)).expand(1, 7, 8, 8)
    maps = head([levels[0].expand(1, 2, 8, 8), levels[1].expand(1, 3, 4, 4)])
    torch.testing.assert_close(maps, expected)
    with pytest.raises(ValueError, match='zip'):
        head([levels[0]])


@pytest.mark.parametrize('name', BODIES)
def test_the_models_of_the_run(name):
    """One head class; the high-resolution branch alone, or four levels."""
    model = Keypoints(name, len(JOINTS), **BODIES[name], device='meta')
    model.head.to('meta')
    x = torch.empty(2, 3, SIZE, SIZE, device='meta')
    assert model(x).shape == (2, 7, SIZE // STRIDE, SIZE // STRIDE)
    assert len(model.head.levels) == {'hrnet_w18_res2net': 0, 'res2net50_se': 4}[name]


@pytest.mark.parametrize('name', TINY)
def test_a_few_steps(name):
    """The loss falls, the seed decides the result, and every figure is used once an epoch."""
    data = figures(24, seed=5)
    models = keypoints(name), keypoints(name)
    losses, again = (train(model, data, 12, 3e-3) for model in models)
    assert losses == again
    weights = [model.state_dict() for model in models]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # the last and the first epoch of three steps over the same 24 figures; measured: 0.65 and 0.83
    # of it
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert train(keypoints(name), data, 2, 3e-3, seed=1) != losses[:2]


def test_only_what_leads_to_other_branches_gets_no_gradient():
    model = keypoints()
    model(torch.rand(2, 3, SIZE, SIZE)).square().sum().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None]
    last = len(model.body.stage4) - 1
    assert idle
    fuses = tuple(f'body.stage4.{last}.fuse_layers.{i}.' for i in (1, 2, 3))
    assert [key for key in idle if not key.startswith(fuses)] == []


@pytest.mark.parametrize('name', TINY)
def test_saved_and_loaded(name, tmp_path):
    data = figures(16, seed=5)
    model = keypoints(name)
    train(model, data, 4, 3e-3)  # BatchNorm statistics that are not a new model's
    save(model, tmp_path / 'model.safetensors')
    again = load(tmp_path / 'model.safetensors')
    x = data.images[:2] / 255
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))
    for radius in (0.05, RADIUS, 0.5):
        assert evaluate(again, data, radius) == evaluate(model, data, radius)


def test_the_whole_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_keypoints, 'BODIES', TINY)
    monkeypatch.setattr(train_keypoints, 'VALIDATION', 8)
    paths = [
        f'--{key}={tmp_path / name}'
        for key, name in (('out', 'k.json'), ('weights', 'k.safetensors'))
    ]
    numbers = ['--steps=3', '--other-steps=2', '--tune-steps=1', '--figures=24', '--held-out=8']
    train_keypoints.main([*numbers, *paths])
    report = json.loads((tmp_path / 'k.json').read_text())['cells']
    assert (report['train'], report['validation'], report['held_out']) == (16, 8, 8)
    assert {key: model['steps'] for key, model in report['models'].items()} == {
        NAME: 3,
        'test_res2net_se': 2,
    }
    assert report['rate'] == max(train_keypoints.RATES, key=lambda r: report['tuned'][f'{r:g}'])
    assert train_keypoints.sentence(report) in capsys.readouterr().out
    # the file has the first model's weights, and the held-out figures have the next seed
    found = evaluate(load(tmp_path / 'k.safetensors'), figures(8, seed=1))
    assert abs(found - report['models'][NAME]['pck']) < 1e-5  # five digits are kept
    assert (tmp_path / 'k.png').read_bytes()[:4] == b'\x89PNG'


def test_the_run_that_was_committed():
    report = json.loads((RESULTS / 'train_keypoints.json').read_text())
    assert report['runs'][0]['command'].endswith('train_keypoints')  # without options
    cells = report['cells']
    assert cells['models'].keys() == BODIES.keys()
    assert cells['rate'] == max(train_keypoints.RATES, key=lambda r: cells['tuned'][f'{r:g}'])
    assert cells['models'][NAME]['pck'] >= 0.9  # the goal
    for model in cells['models'].values():
        # five digits are kept; one more joint found would change the fourth
        assert model['pck_loaded'] == model['pck']
        assert cells['held_out'] * len(JOINTS) < 10_000
        assert model['loss_last_50'] < model['loss_first_50']
    assert (RESULTS / 'train_keypoints.png').stat().st_size < 150_000  # the goal
