"""Train keypoint models on HRNet and Res2Net features; tune one, save it and load it again.

    python -m benchmarks.trainings.train_keypoints

Data: `stick_figures`. The loss is the mean squared error of heatmaps, the optimizer Adam, the
measure PCK. The learning rate is the best of three for a network with fewer layers, on a validation
part of the training figures. The held-out figures have another seed and are used once a network.
One thread, fixed seeds.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.hrnet import cfg_cls
from torch import nn
from torch.nn import functional as F

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.files import write_file

from ..script import Script
from .heatmaps import RADIUS, heatmaps, hits, pck, points_of
from .stick_figures import JOINTS, SIZE, Figures, figures

BATCH = 8
RATES = (3e-4, 1e-3, 3e-3)
"""Learning rates to choose from."""
VALIDATION = 100
"""Number of figures for validation, the last ones of the training set."""
BODIES: dict[str, dict[str, Any]] = {
    'hrnet_w18_res2net': dict(feature_location='', out_indices=(1,)),
    'res2net50_se': dict(out_indices=(1, 2, 3, 4)),
}
"""The high-resolution branch of an HRNet, and the four levels of a pyramid. With one branch, layers
that lead only to the others get no gradient (DDP needs `find_unused_parameters=True`)."""
SHALLOW = {f'stage{i}': cfg_cls['hrnet_w18_small'][f'stage{i}'] for i in (1, 2, 3, 4)}
"""The stages of timm's smallest HRNet, with which the first body is tuned: the same code in fewer
layers, about six times as fast."""
COLORS = ('white', 'yellow', 'tab:cyan', 'tab:red', 'orange', 'tab:blue', 'magenta')


class HeatmapHead(nn.Module):
    """Heatmaps from feature levels, at the stride of the first level.

    A single level gets a 1x1 convolution. Several levels first get the same number of channels by a
    1x1 convolution each, are upsampled to the size of the first, and summed.

    Shape:
        - Input: a list of (B, C, H, W) with falling sizes
        - Output: (B, points, H, W) with the size of the first level
    """

    def __init__(self, channels: Sequence[int], points: int, width: int = 64):
        """
        Args:
            channels: Number of channels of each level.
            points: Number of heatmaps.
            width: Number of channels of the sum.
        """
        super().__init__()
        several = len(channels) > 1
        self.levels = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels if several)
        self.out = nn.Conv2d(width if several else channels[0], points, 1)
        # heatmaps are nearly 0 everywhere; larger weights would cost the first hundred steps
        for parameter in self.out.parameters():
            nn.init.normal_(parameter, std=1e-3)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Return heatmaps; for shapes see the class."""
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
            name: Name of the backbone in timm.
            points: Number of keypoints.
            **kwargs: Passed to `timm.create_model` (`out_indices`, `pretrained`, ...).
        """
        super().__init__()
        self.arguments = dict(kwargs, name=name, points=points)
        body: Any = timm.create_model(name, features_only=True, **kwargs)
        self.body = body
        self.head = HeatmapHead(body.feature_info.channels(), points)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return heatmaps; for shapes see the class."""
        return self.head(self.body(x - 0.5))


def train(
    model: nn.Module, data: Figures, steps: int, rate: float, seed: int = 0, batch: int = BATCH
) -> list[float]:
    """Train by Adam on the mean squared error of heatmaps, with a one-cycle learning rate.

    Args:
        model: The model, from images (B, 3, H, W) of 0 to 1 to heatmaps.
        data: The figures. Each is used once before any is used again.
        steps: Number of optimizer steps.
        rate: Largest learning rate.
        seed: Seed of the order.
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
    """Return a model's points (N, joints, 2) in pixels for images (N, 3, H, W) uint8."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([points_of(model(part / 255)) for part in images.split(32)])


def evaluate(model: nn.Module, data: Figures, radius: float = RADIUS) -> float:
    """Return the PCK of a model."""
    return pck(predict(model, data.images), data.points, radius)


def tune(
    arguments: dict[str, Any],
    data: Figures,
    validation: Figures,
    steps: int,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> dict[float, float]:
    """Train from the same weights with each learning rate.

    Args:
        arguments: Arguments of `Keypoints` without `points`.
        data: Figures to train on.
        validation: Figures to compare the rates on.
        steps: Number of optimizer steps for each rate.
        rates: Learning rates.
        seed: Seed of weights and order.

    Returns:
        PCK on the validation figures by learning rate.
    """
    found = {}
    for rate in rates:
        torch.manual_seed(seed)
        model = Keypoints(points=len(JOINTS), **arguments)
        train(model, data, steps, rate, seed)
        found[rate] = evaluate(model, validation)
    return found


def save(model: Keypoints, path: Path) -> None:
    """Write the weights, and in the file's metadata the arguments that rebuild the model."""
    save_file(model.state_dict(), path, {'keypoints': json.dumps(model.arguments)})


def load(path: Path) -> Keypoints:
    """Return the model of a file that `save` wrote."""
    with safe_open(path, 'pt') as file:
        arguments = json.loads(file.metadata()['keypoints'])
    # the file has all weights, pretrained ones included
    model = Keypoints(**dict(arguments, pretrained=False))
    model.load_state_dict(load_file(path))
    return model


def draw(data: Figures, found: torch.Tensor) -> Any:
    """Draw a row of images with true joints as pluses and found ones as dots, one color a joint.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
        axes.scatter(true[:, 0], true[:, 1], 60, COLORS, marker='+', linewidths=1)
        axes.scatter(points[:, 0], points[:, 1], 14, COLORS, edgecolors='black', linewidths=0.5)
        axes.axis('off')
    figure.supxlabel('plus: true joint; dot: found; a color is one joint', fontsize=8)
    return figure


def sentence(report: dict[str, Any]) -> str:
    """Return the figures in one sentence."""
    (first, one), (second, other) = report['models'].items()
    return (
        f'`{first}` finds {100 * one["pck"]:.1f} % of the joints of {report["held_out"]} held-out '
        f'figures within {report["radius"]:g} of their size (PCK) after {one["steps"]} steps of '
        f'{report["batch"]} figures; `{second}`, with the same head on its four levels, '
        f'{100 * other["pck"]:.1f} % after {other["steps"]}.'
    )


def main(argv: list[str] | None = None) -> None:
    """Tune, train, evaluate, save, load, and write the results and a picture."""
    script = Script('trainings.train_keypoints', __doc__, 'matplotlib')
    add = script.parser.add_argument
    add('--steps', type=int, default=200, help='of the first model (default: %(default)s)')
    add('--tune-steps', type=int, default=60, help='for each rate (default: %(default)s)')
    add('--other-steps', type=int, default=150, help='of the other model (default: %(default)s)')
    add('--figures', type=int, default=1700, help='training figures (default: %(default)s)')
    add('--held-out', type=int, default=250, help='held-out figures (default: %(default)s)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    add('--weights', type=Path, help='.safetensors file for the weights of the first model')
    args = script.parse(argv, 'weights')
    if args.figures <= VALIDATION:
        script.parser.error(f'--figures must be more than the {VALIDATION} of the validation part.')
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
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
            write_file(script.picture, partial(picture.savefig, format='png', dpi=100))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
