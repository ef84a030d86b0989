"""Train keypoint models on HRNet and Res2Net features, tune one, save it and load it again.

    python -m benchmarks.train_keypoints

Data: stick figures of seven joints, drawn here from a seed. Every joint is the same disc in the
colour of the limbs: what tells a hand from a foot, and left from right, is the figure. Heatmaps of
mean squared error, Adam, PCK. Of three learning rates it takes the best for a network of fewer
layers, on a validation part of the training figures. The held-out figures are of another seed and
looked at once a network. One thread, fixed seeds. Needs the extra `plots`.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.hrnet import cfg_cls
from torch import nn
from torch.nn import functional as F

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.files import write_file

from . import results

__all__ = [
    'BODIES', 'JOINTS', 'LIMBS', 'MARGIN', 'RADIUS', 'RATES', 'SHALLOW', 'SIDE', 'SIZE', 'STRIDE',
    'VALIDATION', 'Figures', 'HeatmapHead', 'Keypoints', 'draw', 'evaluate', 'figures', 'heatmaps',
    'hits', 'load', 'main', 'pck', 'points_of', 'predict', 'save', 'sentence', 'train', 'tune',
]  # fmt: skip

JOINTS = ('head', 'neck', 'left hand', 'right hand', 'hip', 'left foot', 'right foot')
LIMBS = ((0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6))
SIZE = 64  # px, height and width of an image
STRIDE = 4  # px, side of a heatmap's cell
MARGIN = 4  # px that no joint is nearer to the border, so that no joint's cell is at the border
SIDE = (0.5, 0.85)  # of the image: the longer side of the box around a figure's joints
TURN = math.pi / 4  # largest turn of a figure: farther, left and right would change places
SIGMA = 1.5  # cells, of a target's Gaussian
RADIUS = 0.1  # of the figure's size, within which a joint is found
BATCH = 8
RATES = (3e-4, 1e-3, 3e-3)  # what is tuned
VALIDATION = 100  # figures, the last ones of the training set
# The high-resolution branch alone, and the four levels of a pyramid. With one branch asked for,
# what only leads to the others gets no gradient (DDP needs `find_unused_parameters=True`).
BODIES: dict[str, dict[str, Any]] = {
    'hrnet_w18_res2net': dict(feature_location='', out_indices=(1,)),
    'res2net50_se': dict(out_indices=(1, 2, 3, 4)),
}
# Tuning takes the first body with the stages of timm's smallest HRNet: the same code in fewer
# layers, about six times as fast
SHALLOW = {f'stage{i}': cfg_cls['hrnet_w18_small'][f'stage{i}'] for i in (1, 2, 3, 4)}
COLOURS = ('white', 'yellow', 'tab:cyan', 'tab:red', 'orange', 'tab:blue', 'magenta')


@dataclass(frozen=True)
class Figures:
    """Images (N, 3, SIZE, SIZE) uint8 and where their joints are, (N, 7, 2): x and y in px, 0 at
    the centre of the first pixel."""

    images: torch.Tensor
    points: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> 'Figures':
        return Figures(self.images[part], self.points[part])


def _poses(rng: np.random.Generator, count: int) -> np.ndarray:
    """Joints (count, 7, 2) in px: bent, turned, scaled and moved at random."""

    def between(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, count)

    def from_joint(start: np.ndarray, length: np.ndarray, angle: np.ndarray) -> np.ndarray:
        # the angle is from downwards, positive to the right
        return start + (length * np.stack([np.sin(angle), np.cos(angle)])).T

    neck = np.zeros((count, 2))
    head = from_joint(neck, between(0.4, 0.55), math.pi + between(-0.4, 0.4))
    hip = from_joint(neck, between(0.9, 1.1), between(-0.15, 0.15))
    hands = [from_joint(neck, between(0.7, 1), side * between(0.3, 2.5)) for side in (-1, 1)]
    # each foot may cross the middle a little, so that the feet come near each other
    feet = [from_joint(hip, between(0.8, 1.1), side * between(-0.1, 0.8)) for side in (-1, 1)]
    joints = np.stack([head, neck, *hands, hip, *feet], axis=1)

    turn = between(-TURN, TURN)
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.stack([cos, sin], 1), np.stack([-sin, cos], 1)], 1)
    joints = joints @ rotation
    low, high = joints.min(1), joints.max(1)
    scale = between(*SIDE) * SIZE / (high - low).max(1)
    joints = (joints - low[:, None]) * scale[:, None, None]
    room = SIZE - 1 - 2 * MARGIN - (high - low) * scale[:, None]
    return joints + (MARGIN + rng.uniform(size=(count, 2)) * room)[:, None]


def figures(count: int, seed: int) -> Figures:
    """Draw stick figures over gradients with noise.

    Args:
        count: How many.
        seed: The same seed and count give the same figures, on any machine up to rounding.
    """
    rng = np.random.default_rng(seed)
    joints = _poses(rng, count)
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for image, at in zip(images, joints.astype(np.float32), strict=True):
        # a dark background and a light figure, or the reverse, in any tint
        ends = rng.uniform(0, 0.5, (2, 3, 1, 1))
        ramp = (np.cos(a := rng.uniform(0, 2 * math.pi)) * xs + np.sin(a) * ys) / SIZE
        ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
        picture = ends[0] + (ends[1] - ends[0]) * ramp
        far = np.full((SIZE, SIZE), np.inf, np.float32)
        for start, end in LIMBS:
            along = at[end] - at[start]
            dx, dy = xs - at[start, 0], ys - at[start, 1]
            t = ((dx * along[0] + dy * along[1]) / (along @ along)).clip(0, 1)
            far = np.minimum(far, np.hypot(dx - t * along[0], dy - t * along[1]))
        limb = (rng.uniform(0.6, 1.2) + 0.5 - far).clip(0, 1)
        near = np.hypot(xs - at[:, 0, None, None], ys - at[:, 1, None, None]).min(0)
        cover = np.maximum(limb, (2.5 - near).clip(0, 1))
        picture += (rng.uniform(0.7, 1, (3, 1, 1)) - picture) * cover
        picture += rng.normal(0, 0.05, picture.shape)
        if rng.random() < 0.5:
            picture = 1 - picture
        image[:] = np.round(picture.clip(0, 1) * 255)
    return Figures(torch.from_numpy(images), torch.from_numpy(joints).float())


def heatmaps(points: torch.Tensor, size: int = SIZE, sigma: float = SIGMA) -> torch.Tensor:
    """Gaussians of height 1 around points.

    Args:
        points: (..., 2), x and y in px of the image.
        size: Height and width of the image in px.
        sigma: Of the Gaussians, in cells of STRIDE px.

    Returns:
        (..., size / STRIDE, size / STRIDE).
    """
    cells = torch.arange(size // STRIDE, dtype=points.dtype)
    # a cell's centre lies between two pixels
    away = (cells - ((points + 0.5) / STRIDE - 0.5)[..., None]).square()  # [..., 2, n]
    return torch.exp(-(away[..., 0, None, :] + away[..., 1, :, None]) / (2 * sigma**2))


def points_of(maps: torch.Tensor) -> torch.Tensor:
    """Where heatmaps have their maximum, a quarter of a cell towards the larger neighbour.

    The quarter is that of Newell et al. 2016 (https://arxiv.org/abs/1603.06937). Of a Gaussian's
    own centre it misses a quarter of a cell at most, 1 px.

    Args:
        maps: (..., n, n) heatmaps.

    Returns:
        (..., 2), x and y in px of the image.
    """
    width = maps.shape[-1]
    best = maps.flatten(-2).argmax(-1)
    padded = F.pad(maps, (1, 1, 1, 1)).flatten(-2)
    at = (best // width + 1) * (width + 2) + best % width + 1

    def slope(step: int) -> torch.Tensor:
        after, before = (padded.gather(-1, (at + s)[..., None])[..., 0] for s in (step, -step))
        return (after - before).sign()

    cell = torch.stack([best % width + slope(1) / 4, best // width + slope(width + 2) / 4], -1)
    return (cell + 0.5) * STRIDE - 0.5


def hits(found: torch.Tensor, points: torch.Tensor, radius: float = RADIUS) -> torch.Tensor:
    """Which joints are found: those within `radius` of the figure's size.

    That size is the longer side of the box around the figure's true joints (Yang & Ramanan 2013,
    "Articulated Human Detection with Flexible Mixtures of Parts": alpha * max(h, w), with alpha
    0.1 for whole bodies).

    Args:
        found: (N, joints, 2), x and y in px.
        points: The true ones.
        radius: Share of the figure's size.

    Returns:
        (N, joints) bool.
    """
    size = (points.amax(1) - points.amin(1)).amax(-1)
    return (found - points).norm(dim=-1) <= radius * size[:, None]


def pck(found: torch.Tensor, points: torch.Tensor, radius: float = RADIUS) -> float:
    """Percentage of correct keypoints, as a share: that of `hits`."""
    return float(hits(found, points, radius).double().mean())


class HeatmapHead(nn.Module):
    """Heatmaps from feature levels, at the stride of the first.

    One level gets a 1x1 convolution. More than one are brought to the same channels by a 1x1
    convolution each, upsampled to the first one's size and summed before it.

    Shape:
        - Input: a list of (B, C, H, W), the later ones smaller
        - Output: (B, points, H, W) of the first one's size
    """

    def __init__(self, channels: Sequence[int], points: int, width: int = 64):
        """
        Args:
            channels: Of each level.
            points: Heatmaps.
            width: Channels of the sum.
        """
        super().__init__()
        several = len(channels) > 1
        self.levels = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels if several)
        self.out = nn.Conv2d(width if several else channels[0], points, 1)
        # heatmaps are nearly 0 everywhere: random ones would cost the first hundred steps
        for parameter in self.out.parameters():
            nn.init.normal_(parameter, std=1e-3)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = features[0]
        if len(self.levels):
            same = [
                F.interpolate(conv(y), x.shape[-2:], mode='bilinear', align_corners=False)
                for conv, y in zip(self.levels, features, strict=True)
            ]
            x = torch.stack(same).sum(0).relu()
        return self.out(x)


class Keypoints(nn.Module):
    """A backbone of timm and a `HeatmapHead` on its levels.

    Shape:
        - Input: (B, 3, H, W) with values of 0 to 1
        - Output: (B, points, H / 4, W / 4) heatmaps, if the first level has stride 4
    """

    def __init__(self, name: str, points: int, **kwargs: Any):
        """
        Args:
            name: The backbone's name in timm.
            points: Keypoints.
            **kwargs: What `timm.create_model` takes besides (`out_indices`, `pretrained`, ...).
        """
        super().__init__()
        self.arguments = dict(kwargs, name=name, points=points)
        body: Any = timm.create_model(name, features_only=True, **kwargs)
        self.body = body
        self.head = HeatmapHead(body.feature_info.channels(), points)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x - 0.5))


def train(
    model: nn.Module, data: Figures, steps: int, rate: float, seed: int = 0, batch: int = BATCH
) -> list[float]:
    """Adam on the mean squared error of heatmaps, the learning rate falling along a half cosine.

    Args:
        model: Images (B, 3, H, W) of 0 to 1 to heatmaps.
        data: Figures, each taken once before any is taken again.
        steps: Optimiser's steps.
        rate: Largest learning rate.
        seed: Of the order.
        batch: Figures a step.

    Returns:
        The loss of every step.
    """
    order = torch.Generator().manual_seed(seed)
    picks = torch.cat(
        [torch.randperm(len(data), generator=order) for _ in range(-(-steps * batch // len(data)))]
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    losses = []
    model.train()
    for pick in picks[: steps * batch].split(batch):
        target = heatmaps(data.points[pick])
        loss = F.mse_loss(model(data.images[pick] / 255), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Points (N, joints, 2) in px of images (N, 3, H, W) uint8."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([points_of(model(part / 255)) for part in images.split(32)])


def evaluate(model: nn.Module, data: Figures, radius: float = RADIUS) -> float:
    """PCK of a model."""
    return pck(predict(model, data.images), data.points, radius)


def tune(
    arguments: dict[str, Any],
    data: Figures,
    validation: Figures,
    steps: int,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> dict[float, float]:
    """PCK on the validation figures after a few steps at each learning rate, from one start.

    Args:
        arguments: Those of `Keypoints`, the points aside.
        data: Figures to train on.
        validation: Figures to compare by.
        steps: Optimiser's steps at each rate.
        rates: Learning rates.
        seed: Of weights and order.
    """
    found = {}
    for rate in rates:
        torch.manual_seed(seed)
        model = Keypoints(points=len(JOINTS), **arguments)
        train(model, data, steps, rate, seed)
        found[rate] = evaluate(model, validation)
    return found


def save(model: Keypoints, path: Path) -> None:
    """Write the weights and, as the file's metadata, the arguments that rebuild the model."""
    save_file(model.state_dict(), path, {'keypoints': json.dumps(model.arguments)})


def load(path: Path) -> Keypoints:
    """A model from a file that `save` wrote."""
    with safe_open(path, 'pt') as file:
        arguments = json.loads(file.metadata()['keypoints'])
    # whatever weights it began with are in the file
    model = Keypoints(**dict(arguments, pretrained=False))
    model.load_state_dict(load_file(path))
    return model


def draw(data: Figures, found: torch.Tensor) -> Figure:
    """A row of images with true joints as pluses and found ones as dots, one colour a joint."""
    figure = Figure(figsize=(1.5 * len(data), 1.75), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, image, true, points in zip(
        figure.subplots(1, len(data), squeeze=False)[0],
        data.images,
        data.points,
        found,
        strict=True,
    ):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation='nearest')
        axes.scatter(true[:, 0], true[:, 1], 60, COLOURS, marker='+', linewidths=1)
        axes.scatter(points[:, 0], points[:, 1], 14, COLOURS, edgecolors='black', linewidths=0.5)
        axes.axis('off')
    figure.supxlabel('plus: true joint; dot: found; a colour is one joint', fontsize=8)
    return figure


def sentence(report: dict[str, Any]) -> str:
    """What the README says of it."""
    (first, one), (second, other) = report['models'].items()
    return (
        f'`{first}` finds {100 * one["pck"]:.1f} % of the joints of {report["held_out"]} held-out '
        f'figures within\n{report["radius"]:g} of their size (PCK) after {one["steps"]} steps of '
        f'{report["batch"]} figures; `{second}`, with the same\nhead on its four levels, '
        f'{100 * other["pck"]:.1f} % after {other["steps"]}.'
    )


def main(argv: list[str] | None = None) -> None:
    """Tune, train, evaluate, save, load, and write the results and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent / 'results'
    parser.add_argument('--steps', type=int, default=200, help='of the first; default: %(default)s')
    parser.add_argument(
        '--tune-steps', type=int, default=60, help='at each learning rate; default: %(default)s'
    )
    parser.add_argument(
        '--other-steps', type=int, default=150, help='of the other; default: %(default)s'
    )
    parser.add_argument('--figures', type=int, default=1700, help='to train; default: %(default)s')
    parser.add_argument('--held-out', type=int, default=250, help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument('--weights', type=Path, help='a .safetensors file for the first model')
    parser.add_argument('--picture', type=Path, default=here / 'keypoints.png')
    parser.add_argument('--out', type=Path, default=here / 'train_keypoints.json')
    args = parser.parse_args(argv)
    if args.figures <= VALIDATION:
        parser.error(f'--figures must be more than the {VALIDATION} of the validation part.')
    results.check_writable(args.out, args.picture, args.weights)
    torch.set_num_threads(1)  # sums in one order: a seed gives the same weights on one machine
    everything = figures(args.figures, seed=args.seed)
    data, validation = everything[:-VALIDATION], everything[-VALIDATION:]
    held_out = figures(args.held_out, seed=args.seed + 1)
    first = next(iter(BODIES))
    tuned = tune(
        dict(BODIES[first], name=first, **SHALLOW),
        data,
        validation,
        args.tune_steps,
        seed=args.seed,
    )
    rate = max(tuned, key=lambda rate: tuned[rate])
    print('tuned:', tuned, flush=True)
    report: dict[str, Any] = {
        'train': len(data),
        'validation': len(validation),
        'held_out': len(held_out),
        'size': SIZE,
        'radius': RADIUS,
        'batch': BATCH,
        'seed': args.seed,
        'tune_steps': args.tune_steps,
        'tuned_with': 'hrnet_w18_small',
        'tuned': {f'{rate:g}': value for rate, value in tuned.items()},
        'rate': rate,
        'models': {},
    }
    for name, kwargs in BODIES.items():
        steps = args.steps if name == first else args.other_steps
        torch.manual_seed(args.seed)
        started = time.process_time()
        model = Keypoints(name, len(JOINTS), **kwargs)
        losses = train(model, data, steps, rate, args.seed)
        seconds = time.process_time() - started
        found = predict(model, held_out.images)
        of_joints = hits(found, held_out.points).double().mean(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model.safetensors')
            if name == first and args.weights is not None:
                path = args.weights
            save(model, path)
            again = evaluate(load(path), held_out)
        report['models'][name] = {
            'params': sum(p.numel() for p in model.parameters()),
            'steps': steps,
            'pck': pck(found, held_out.points),
            'pck_half_radius': pck(found, held_out.points, RADIUS / 2),
            'pck_loaded': again,
            'pck_joints': {
                joint: float(share) for joint, share in zip(JOINTS, of_joints, strict=True)
            },
            'loss_first_50': float(np.mean(losses[:50])),
            'loss_last_50': float(np.mean(losses[-50:])),
            'cpu_seconds': seconds,
        }
        print(name, report['models'][name], flush=True)
        if name == first:
            picture = draw(held_out[:5], found[:5])
            write_file(args.picture, partial(picture.savefig, format='png', dpi=100))
    print(sentence(report))
    results.save_script(args.out, 'train_keypoints', argv, report)


if __name__ == '__main__':
    main()
