"""Measure whether a Res2Net's class activation maps fit objects better than a ResNet's.

    python -m benchmarks.trainings.activation_maps

The paper claims so by pictures (arXiv:1904.01169, section 4.4): the maps of Res2Net are said to
cover whole objects, and to be tighter on small ones. Here two networks of equal MACs learn from
random weights which of the shapes of `textured_shapes` are in an image; they are not told where. On
held-out images with other photographs, the class activation map (arXiv:1512.04150) of every class
that is in the image once is compared with the object:

- energy: the share of the positive part of the map that is inside the object's box
  (arXiv:1910.01279).
- pointing game: the maximum of the map is inside the box (arXiv:1608.00507).
- coverage: the share of the object's visible pixels where the map has at least half of its maximum.

Each seed gives other images and other weights, the same images and the same training to both
networks. Differences are taken seed by seed; figures are medians over seeds with bootstrapped 95 %
intervals. One thread, fixed seeds.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

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
from .textured_shapes import CLASSES, SIZE, Scene, scene

BODY = {'layers': (2, 2, 2, 2), 'channels': (32, 64, 128, 256)}
"""ResNet-26 of half the width; stage 4 keeps the stride of 16, so that a map has 8 x 8 pixels."""
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    'ResNet': ('resnet26', BODY),
    'Res2Net': ('res2net_custom', BODY | {'base_width': 28, 'scale': 4}),
}
BATCH, RATE = 16, 2e-3
METRICS = ('energy', 'pointing', 'coverage')
GROUPS = ('all', 'small', 'large')
"""Small and large objects have at most and more than the median of the visible areas."""


def network(name: str) -> nn.Module:
    """Return a network of `NETWORKS` with random weights and a class for every kind of shape."""
    registered, arguments = NETWORKS[name]
    return timm.create_model(registered, num_classes=len(CLASSES), output_stride=16, **arguments)


def macs(model: nn.Module) -> int:
    """Return the multiply-accumulates for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() // 2


def to_batch(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 3, SIZE, SIZE) from -2 to 2, and which classes they show, (N, 3)."""
    images = torch.from_numpy(np.stack([one.image for one in scenes])).permute(0, 3, 1, 2)
    shown = torch.zeros(len(scenes), len(CLASSES))
    for row, one in zip(shown, scenes, strict=True):
        row[torch.from_numpy(one.labels) - 1] = 1
    return images.contiguous(), shown


def _normalized(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 64 - 2


def train(model: nn.Module, images: torch.Tensor, shown: torch.Tensor, steps: int) -> list[float]:
    """Train by AdamW with a one-cycle learning rate on randomly mirrored images.

    In bfloat16 and channels_last, which take half the time on a CPU that has both.

    Returns:
        The loss of every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    losses = []
    model.train().to(memory_format=torch.channels_last)
    for _ in range(steps):
        picked = torch.randint(len(images), (BATCH,))
        x = _normalized(images[picked])
        for axis in (2, 3):
            mirrored = torch.rand(BATCH) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(axis), x)
        with torch.autocast('cpu', torch.bfloat16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(logits.float(), shown[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def maps(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, 3) and class activation maps (N, 3, SIZE, SIZE) of all classes.

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
        mask: Visible pixels of the object, (H, W) bool.
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


def objects(scenes: Sequence[Scene]) -> list[tuple[int, int, int]]:
    """Return number of the image, class from 0 and number of the object, for single objects.

    Objects of a class that the image shows more than once are left out: a map of their class
    belongs to all of them.
    """
    return [
        (i, int(label) - 1, place)
        for i, one in enumerate(scenes)
        for place, label in enumerate(one.labels)
        if (one.labels == label).sum() == 1
    ]


def groups(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Return which of the `objects` are in each of `GROUPS`."""
    areas = np.array([scenes[i].masks[place].sum() for i, _, place in objects(scenes)])
    small = areas <= np.median(areas)
    return {'all': small | ~small, 'small': small, 'large': ~small}


def evaluate(model: nn.Module, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the accuracy of the classes, and each metric's mean in each group of objects."""
    images, shown = to_batch(scenes)
    logits, heat = maps(model, images)
    fits = [
        fit(heat[i, label].numpy(), scenes[i].masks[place], scenes[i].boxes[place])
        for i, label, place in objects(scenes)
    ]
    return {
        'accuracy': float(((logits > 0) == shown.bool()).float().mean()),
        **{
            group: {key: float(np.mean([one[key] for one in np.array(fits)[picked]]))
                    for key in METRICS}
            for group, picked in groups(scenes).items()
        },
    }  # fmt: skip


def trained(name: str, seed: int, scenes: Sequence[Scene], steps: int) -> nn.Module:
    """Return a network after its training."""
    images, shown = to_batch(scenes)
    torch.manual_seed(seed)
    model = network(name)
    torch.manual_seed(seed)  # the same images in the same order for every network
    train(model, images, shown, steps)
    return model


def uniform(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return the metrics of a map that is the same everywhere: the share of the boxes' areas."""
    heat = np.ones((SIZE, SIZE))
    shares = np.array([
        fit(heat, scenes[i].masks[place], scenes[i].boxes[place])['energy']
        for i, _, place in objects(scenes)
    ])  # fmt: skip
    return {key: float(shares[picked].mean()) for key, picked in groups(scenes).items()}


def summarize(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return medians over seeds with their intervals, and those of Res2Net minus ResNet.

    Args:
        samples: What `evaluate` returns for each network, seed by seed.
    """

    def summary(values: Sequence[float]) -> list[float]:
        return [round(value, 4) for value in (median(values), *interval(values))]

    values = {
        name: {f'{group} {key}': [one[group][key] for one in found]
               for group in GROUPS for key in METRICS}
        | {'accuracy': [one['accuracy'] for one in found]}
        for name, found in samples.items()
    }  # fmt: skip
    res2net, resnet = values['Res2Net'], values['ResNet']
    differences = {
        key: [ours - theirs for ours, theirs in zip(res2net[key], resnet[key], strict=True)]
        for key in res2net
    }
    return {
        name: {key: summary(found) for key, found in one.items()}
        for name, one in (*values.items(), ('difference', differences))
    }


def report_table(report: Mapping[str, Any]) -> str:
    """Return the results as a table."""
    names = [*report['networks'], 'difference']
    rows = [
        (key, *('{:.3f} [{:.3f}, {:.3f}]'.format(*report['summary'][name][key]) for name in names))
        for key in report['summary']['difference']
    ]
    return table(('objects, metric', *names), rows)


def sentence(report: Mapping[str, Any]) -> str:
    """Return the figures in a few sentences."""
    parts = []
    for group in GROUPS:
        for key in METRICS:
            low, high = report['summary']['difference'][f'{group} {key}'][1:]
            answer = 'better' if low > 0 else 'worse' if high < 0 else 'no different'
            parts.append((f'{key} ({group})', answer))
    listed = [
        f'{answer} in {", ".join(name for name, one in parts if one == answer)}'
        for answer in ('better', 'worse', 'no different')
        if any(one == answer for _, one in parts)
    ]
    energy = '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*report['summary']['difference']['all energy'])
    return (
        f"Over {report['seeds']} seeds, a small Res2Net's class activation maps of textured shapes "
        f"have {energy} more of their energy inside the objects' boxes than those of a ResNet of "
        f'equal MACs. They are {"; ".join(listed)}.'
    )


def draw(path: Path, scenes: Sequence[Scene], models: Mapping[str, nn.Module]) -> None:
    """Write a PNG: images in the first row, and the maps of each network in a row below."""
    from matplotlib.figure import Figure

    columns = [(i, label, place) for i, label, place in objects(scenes)][:6]
    figure = Figure(figsize=(2 * len(columns), 2.1 * (1 + len(models))), layout='constrained')
    cells: Any = figure.subplots(1 + len(models), len(columns))
    images, _ = to_batch(scenes)
    found = {name: maps(model, images)[1] for name, model in models.items()}
    for column, (i, label, place) in enumerate(columns):
        x0, y0, x1, y1 = scenes[i].boxes[place]
        for row, name in enumerate(('', *models)):
            cell = cells[row, column]
            cell.imshow(scenes[i].image)
            if name:
                heat = found[name][i, label].clamp(min=0)
                cell.imshow(heat.numpy(), cmap='inferno', alpha=0.65)
            corners = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
            cell.plot(*corners, color='w', linewidth=1)
            cell.set_title(f'{name} {CLASSES[label]}'.strip(), fontsize=9)
            cell.set_xlim(0, SIZE)
            cell.set_ylim(SIZE, 0)
            cell.axis('off')
    write_file(path, lambda file: figure.savefig(file, format='png', dpi=70))


def main(argv: list[str] | None = None) -> None:
    """Train and measure, and write the results and a picture beside them."""
    script = Script('trainings.activation_maps', __doc__, 'skimage', 'matplotlib')
    add = script.parser.add_argument
    add('--steps', type=int, default=1000, help='optimizer steps (default: %(default)s)')
    add('--seeds', type=int, default=6, help='trainings a network (default: %(default)s)')
    add('--train', type=int, default=3000, help='training images (default: %(default)s)')
    add('--held-out', type=int, default=400, help='held-out images (default: %(default)s)')
    args = script.parse(argv)
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
    samples: dict[str, list[Any]] = {name: [] for name in NETWORKS}
    flat: list[Any] = []
    started = time.process_time()
    for seed in range(args.seeds):
        learned = [scene(seed, 'train', i) for i in range(args.train)]
        held_out = [scene(seed, 'held out', i) for i in range(args.held_out)]
        models = {name: trained(name, seed, learned, args.steps) for name in NETWORKS}
        for name, model in models.items():
            samples[name].append(evaluate(model, held_out))
            print(f'seed {seed}, {name}: {samples[name][-1]}', flush=True)
        flat.append(uniform(held_out))
        if not seed:  # the first images, not chosen by their results
            draw(script.picture, held_out[:20], models)
    report = {
        'size': SIZE,
        'train': args.train,
        'held_out': args.held_out,
        'steps': args.steps,
        'batch': BATCH,
        'seeds': args.seeds,
        'networks': {
            name: {'arguments': [*NETWORKS[name]], 'macs': macs(network(name))} for name in NETWORKS
        },
        'cpu_seconds': round(time.process_time() - started),
        'samples': samples,
        'uniform': flat,
        'summary': summarize(samples),
    }
    print(report_table(report))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
