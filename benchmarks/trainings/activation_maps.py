"""Measure whether a Res2Net's class activation maps fit objects better than a ResNet's.

    python -m benchmarks.trainings.activation_maps

The paper claims so by pictures (arXiv:1904.01169): the maps of Res2Net are said to cover whole
objects, and to be tighter on small ones. Here two networks of equal MACs learn from
random weights whether a disc, a square or a triangle is drawn on a darkened photograph; they are
not told where. On held-out images with other photographs, the class activation map
(arXiv:1512.04150) of the shape that is drawn is compared with it:

- energy: the share of the positive part of the map that is inside the shape's box
  (arXiv:1910.01279).
- pointing game: the maximum of the map is inside the box (arXiv:1608.00507).
- coverage: the share of the shape's pixels where the map has at least half of its maximum.

Each seed gives other weights and another order of the images, the same to both networks.
Differences are taken seed by seed; figures are medians over seeds with bootstrapped 95 % intervals.
One thread, fixed seeds.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.files import write_file
from timm_res2net.stats import interval
from timm_res2net.text import table

from ..script import Script
from .textured_shapes import CLASSES, PHOTOGRAPHS, boxes_of, crop, outline

SIZE = 64  # px; half of a crop's
DARK = 0.3
"""Factor that darkens the photographs. On bright ones the networks take too long to learn."""
BODY = {'layers': (2, 2, 2, 2), 'channels': (32, 64, 128, 256), 'output_stride': 8}
"""ResNet-26 of half the width. With a stride of 8, a map has 8 x 8 pixels."""
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    'ResNet': ('resnet26', BODY),
    'Res2Net': ('res2net_custom', BODY | {'base_width': 27, 'scale': 4}),
}
BATCH, RATE = 32, 1e-3
METRICS = ('energy', 'pointing', 'coverage')
GROUPS = ('all', 'small', 'large')
"""A shape is small if its area is at most the median, otherwise large."""


class Shapes(NamedTuple):
    """Images with a shape in each.

    Shape:
        - images: (N, 3, SIZE, SIZE) uint8
        - labels: (N,) from 0
        - masks: (N, SIZE, SIZE) bool
        - boxes: (N, 4), the tight boxes around the masks as x0, y0, x1, y1 in pixels
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: np.ndarray
    boxes: np.ndarray


def draw_shapes(part: str, number: int) -> Shapes:
    """Return images on photographs of a part, a key of `PHOTOGRAPHS`; always the same ones."""
    images, labels, masks = [], [], []
    for i in range(number):
        rng = np.random.default_rng([list(PHOTOGRAPHS).index(part), i])
        image = DARK * crop(rng, str(rng.choice(PHOTOGRAPHS[part])))
        label = int(rng.integers(len(CLASSES)))
        alpha = outline(rng, label + 1)[..., None]
        image += alpha * (rng.uniform(128, 255, 3) - image)
        images.append(_halved(image).round().astype(np.uint8))
        masks.append(_halved(alpha)[..., 0] > 0.5)
        labels.append(label)
    return Shapes(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        np.stack(masks),
        boxes_of(np.stack(masks)),
    )


def _halved(image: np.ndarray) -> np.ndarray:
    """Return the means of 2 x 2 pixels of an image (2 H, 2 W, C)."""
    return image.reshape(SIZE, 2, SIZE, 2, -1).mean((1, 3))


def network(name: str) -> nn.Module:
    """Return a network of `NETWORKS` with random weights and a class for every kind of shape."""
    registered, arguments = NETWORKS[name]
    return timm.create_model(registered, num_classes=len(CLASSES), **arguments)


def macs(model: nn.Module) -> int:
    """Return the multiply-accumulates for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() // 2


def _normalized(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 64 - 2


def train(name: str, seed: int, shapes: Shapes, steps: int) -> nn.Module:
    """Train a network by AdamW with a one-cycle learning rate on randomly mirrored images.

    It runs in bfloat16 and channels_last, which halves the time on a CPU that has instructions for
    bfloat16.
    """
    torch.manual_seed(seed)
    model = network(name).to(memory_format=torch.channels_last)
    torch.manual_seed(seed)  # the same images in the same order for every network
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    model.train()
    for _ in range(steps):
        picked = torch.randint(len(shapes.images), (BATCH,))
        x = _normalized(shapes.images[picked])
        for axis in (2, 3):
            mirrored = torch.rand(BATCH) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(axis), x)
        with torch.autocast('cpu', torch.bfloat16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), shapes.labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def maps(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, classes) and class activation maps (N, classes, SIZE, SIZE).

    The pooling is an average and the head is linear, so a map is the features weighted as the head
    weights them. It is enlarged bilinearly.
    """
    model.eval()
    logits, found = [], []
    with torch.inference_mode():
        for part in images.split(50):
            features = model.forward_features(_normalized(part))
            logits.append(model.forward_head(features))
            small = torch.einsum('nchw,kc->nkhw', features, model.fc.weight)
            found.append(F.interpolate(small, (SIZE, SIZE), mode='bilinear', align_corners=False))
    return torch.cat(logits), torch.cat(found)


def fit(heat: np.ndarray, mask: np.ndarray, box: np.ndarray) -> dict[str, float]:
    """Return how well a map fits an object, by metric.

    Args:
        heat: Map (H, W).
        mask: Pixels of the object, (H, W) bool.
        box: x0, y0, x1, y1 in pixels; the last two are outside.

    Returns:
        Shares from 0 to 1; energy and coverage are 0 for a map that is nowhere positive.
    """
    x0, y0, x1, y1 = (int(side) for side in box)
    positive = heat.clip(min=0)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    whole, highest = float(positive.sum()), float(positive.max())
    return {
        'energy': float(positive[y0:y1, x0:x1].sum()) / whole if whole else 0.0,
        'pointing': float(x0 <= x < x1 and y0 <= y < y1),
        'coverage': float((heat >= highest / 2)[mask].mean()) if highest else 0.0,
    }


def evaluate(model: nn.Module, shapes: Shapes) -> dict[str, Any]:
    """Return the accuracy, and each metric's mean in each of `GROUPS`."""
    logits, heat = maps(model, shapes.images)
    fits = [
        fit(heat[i, label].numpy(), shapes.masks[i], shapes.boxes[i])
        for i, label in enumerate(shapes.labels.tolist())
    ]
    areas = shapes.masks.sum((1, 2))
    small = areas <= np.median(areas)
    groups = dict(zip(GROUPS, (small | ~small, small, ~small), strict=True))
    found: dict[str, Any] = {'accuracy': float((logits.argmax(1) == shapes.labels).float().mean())}
    for group, members in groups.items():
        picked = [one for one, member in zip(fits, members, strict=True) if member]
        found[group] = {key: float(np.mean([one[key] for one in picked])) for key in METRICS}
    return found


def summarize(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return medians over seeds with their intervals, and those of Res2Net minus ResNet.

    Args:
        samples: What `evaluate` returns for each network, seed by seed.
    """

    def summary(values: Sequence[float]) -> list[float]:
        return [round(value, 4) for value in (median(values), *interval(values))]

    values: dict[str, dict[str, list[float]]] = {}
    for name, found in samples.items():
        values[name] = {'accuracy': [one['accuracy'] for one in found]}
        for group in GROUPS:
            for key in METRICS:
                values[name][f'{key}, {group}'] = [one[group][key] for one in found]
    values['difference'] = {
        key: [a - b for a, b in zip(ours, values['ResNet'][key], strict=True)]
        for key, ours in values['Res2Net'].items()
    }
    return {
        name: {key: summary(found) for key, found in one.items()} for name, one in values.items()
    }


def report_table(report: Mapping[str, Any]) -> str:
    """Return the results as a table."""
    names = ('ResNet', 'Res2Net', 'difference')
    rows = [
        (key, *('{:.3f} [{:.3f}, {:.3f}]'.format(*report['summary'][name][key]) for name in names))
        for key in report['summary']['difference']
    ]
    return table(('metric, shapes', *names), rows)


def sentence(report: Mapping[str, Any]) -> str:
    """Return the figures of all shapes in one sentence."""
    summary = report['summary']

    def told(key: str, of: str) -> str:
        theirs, ours = (100 * summary[name][f'{key}, all'][0] for name in ('ResNet', 'Res2Net'))
        low, high = (100 * value for value in summary['difference'][f'{key}, all'][1:])
        return f'{theirs:.1f} and {ours:.1f} % of the {of} (difference {low:+.1f} to {high:+.1f})'

    return (
        f'In a small ResNet and a Res2Net of equal MACs, {report["seeds"]} trainings each, the '
        f'highest point of the map is in the box of the shape in {told("pointing", "images")}; the '
        f'box contains {told("energy", "map")}; the map covers {told("coverage", "shape")}.'
    )


def draw(path: Path, shapes: Shapes, models: Mapping[str, nn.Module]) -> None:
    """Write a PNG: a column for each of the first images, with the networks' maps below it."""
    from matplotlib.figure import Figure

    columns, rows = 8, 1 + len(models)
    figure = Figure(figsize=(1.5 * columns, 1.6 * rows), layout='constrained')
    cells: Any = figure.subplots(rows, columns)
    found = {name: maps(model, shapes.images[:columns])[1] for name, model in models.items()}
    for i, label in enumerate(shapes.labels[:columns].tolist()):
        x0, y0, x1, y1 = shapes.boxes[i]
        for cell, name in zip(cells[:, i], ('', *models), strict=True):
            cell.imshow(shapes.images[i].permute(1, 2, 0).numpy())
            if name:
                heat = found[name][i, label].clamp(min=0)
                cell.imshow(heat.numpy(), cmap='inferno', alpha=0.65)
            cell.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color='w', linewidth=1)
            cell.set_title(name or CLASSES[label], fontsize=9)
            cell.axis((0, SIZE, SIZE, 0))
            cell.axis('off')
    write_file(path, lambda file: figure.savefig(file, format='png', dpi=80))


def main(argv: list[str] | None = None) -> None:
    """Train and measure, and write the results and a picture beside them."""
    script = Script('trainings.activation_maps', __doc__, 'skimage', 'matplotlib')
    add = script.parser.add_argument
    add('--steps', type=int, default=450, help='optimizer steps (default: %(default)s)')
    add('--seeds', type=int, default=6, help='trainings a network (default: %(default)s)')
    add('--train', type=int, default=4000, help='training images (default: %(default)s)')
    add('--held-out', type=int, default=500, help='held-out images (default: %(default)s)')
    args = script.parse(argv)
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
    learned, held_out = draw_shapes('train', args.train), draw_shapes('held out', args.held_out)
    samples: dict[str, list[Any]] = {name: [] for name in NETWORKS}
    started = time.process_time()
    for seed in range(args.seeds):
        models = {name: train(name, seed, learned, args.steps) for name in NETWORKS}
        for name, model in models.items():
            samples[name].append(evaluate(model, held_out))
            print(f'seed {seed}, {name}: {samples[name][-1]["accuracy"]:.1%} correct', flush=True)
        if not seed:  # the first images, not chosen by their results
            draw(script.picture, held_out, models)
    report = {
        'size': SIZE,
        'train': args.train,
        'held_out': args.held_out,
        'steps': args.steps,
        'batch': BATCH,
        'seeds': args.seeds,
        'macs': {name: macs(network(name)) for name in NETWORKS},
        'cpu_seconds': round(time.process_time() - started),
        'summary': summarize(samples),
        'samples': samples,
    }
    print(report_table(report))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
