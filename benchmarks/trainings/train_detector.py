"""Train a Faster R-CNN on the small network `test_res2net_se` and draw its detections.

    python -m benchmarks.trainings.train_detector

Data: `textured_shapes`. The detector starts from random weights and its BatchNorms are trained,
because the embedded weights come from 8x8 digits alone. One thread, fixed seeds.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, nms

from timm_res2net import detection_backbone
from timm_res2net.files import write_file

from ..script import Script
from .textured_shapes import CLASSES, SIZE, Scene, scene

BATCH, RATE = 8, 2e-3
CHANNELS = 64
"""Channels of every level of the pyramid."""
SHOWN = 0.5
"""Smallest score in the picture."""
COLORS = ('tab:blue', 'tab:red', 'tab:green')


def detector() -> FasterRCNN:
    """Return a Faster R-CNN with random weights for the classes and the background."""
    backbone = detection_backbone(
        'test_res2net_se', (1, 2, 3), CHANNELS, extra_blocks=None, trainable_layers=5, norm='batch'
    )
    levels = ['0', '1', '2']
    return FasterRCNN(
        backbone,
        min_size=SIZE,
        max_size=SIZE,
        # two anchor sizes a level, for shapes of 16 to 64 px
        rpn_anchor_generator=AnchorGenerator(((16, 24), (32, 40), (48, 64)), ((1.0,),) * 3),
        # boxes smaller than half the image are read from the finest level
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2, canonical_scale=SIZE),
        box_head=TwoMLPHead(CHANNELS * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, len(CLASSES) + 1),
        # few shapes an image need few proposals; more would only take time
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )


def _tensors(found: Scene) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the image (3, SIZE, SIZE) from 0 to 1 and the target for torchvision's detectors."""
    image = torch.from_numpy(found.image).permute(2, 0, 1) / 255
    boxes, labels = torch.from_numpy(found.boxes), torch.from_numpy(found.labels)
    return image, {'boxes': boxes, 'labels': labels}


def _flipped(
    image: torch.Tensor, target: dict[str, torch.Tensor], axis: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return image and target mirrored along x (axis 0) or y (axis 1)."""
    boxes = target['boxes'].clone()
    boxes[:, [axis, axis + 2]] = SIZE - boxes[:, [axis + 2, axis]]
    return image.flip(2 - axis), target | {'boxes': boxes}


def train(model: nn.Module, scenes: Sequence[Scene], steps: int, batch: int = BATCH) -> list[float]:
    """Train by AdamW with a one-cycle learning rate on randomly mirrored images.

    Returns:
        The loss of every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    losses = []
    model.train()
    for _ in range(steps):
        images, targets = [], []
        for pick in torch.randint(len(scenes), (batch,)).tolist():
            image, target = _tensors(scenes[pick])
            for axis in (0, 1):
                if torch.rand(()) < 0.5:
                    image, target = _flipped(image, target, axis)
            images.append(image)
            targets.append(target)
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def detect(model: nn.Module, scenes: Sequence[Scene]) -> list[dict[str, torch.Tensor]]:
    """Return boxes, labels and scores for each image."""
    model.eval()
    found: list[dict[str, torch.Tensor]] = []
    with torch.inference_mode():
        for i in range(0, len(scenes), 10):
            found += model([_tensors(one)[0] for one in scenes[i : i + 10]])
    return found


def evaluate(model: nn.Module, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return COCO's mean average precision from 0 to 1.

    Returns:
        `map` for IoU 0.5 to 0.95, `map_50` for IoU 0.5, and `classes` with `map` of each class.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(class_metrics=True, backend='pycocotools')
    metric.update(detect(model, scenes), [_tensors(one)[1] for one in scenes])
    found = metric.compute()
    of_class = dict(zip(found['classes'].tolist(), found['map_per_class'].tolist(), strict=True))
    return {
        'map': float(found['map']),
        'map_50': float(found['map_50']),
        'classes': {name: of_class.get(i) for i, name in enumerate(CLASSES, 1)},
    }


def draw(path: Path, scenes: Sequence[Scene], found: Sequence[dict[str, torch.Tensor]]) -> None:
    """Write a PNG of images, four in a row, with the detections that score above `SHOWN`.

    If several classes were found at one place, the likeliest is shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns, cell, gap = 4, 2 * SIZE, 8  # px; a pixel of an image becomes four
    rows = math.ceil(len(scenes) / columns)
    width, height = columns * (cell + gap) + gap, rows * (cell + gap) + gap
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for i, (one, answer) in enumerate(zip(scenes, found, strict=True)):
        row, column = divmod(i, columns)
        corner = gap + column * (cell + gap), height - (row + 1) * (cell + gap)
        axes = figure.add_axes((corner[0] / width, corner[1] / height, cell / width, cell / height))
        axes.imshow(one.image, interpolation='nearest', extent=(0, SIZE, SIZE, 0))
        axes.axis('off')
        kept = nms(answer['boxes'], answer['scores'], 0.5)
        fields = (answer[key][kept].tolist() for key in ('boxes', 'labels', 'scores'))
        for box, label, score in zip(*fields, strict=True):
            if score < SHOWN:
                continue
            color = COLORS[label - 1]
            x0, y0, x1, y1 = box
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=color, lw=2))
            # keep the text inside the image for boxes at its border
            x, y = min(max(x0, 1), SIZE - 45), max(y0, 8)
            axes.text(
                x, y, f'{CLASSES[label - 1]} {score:.2f}', fontsize=8, color='w', va='bottom',
                bbox={'facecolor': color, 'edgecolor': 'none', 'pad': 1},
            )  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # 256 colors take a third of the bytes
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256)
    write_file(path, lambda file: picture.save(file, format='PNG', optimize=True))


def sentence(report: dict[str, Any]) -> str:
    """Return the figures in one sentence."""
    before, after = report['before'], report['after']
    return (
        'A Faster R-CNN on `test_res2net_se` learns from random weights to find textured discs, '
        f'squares and triangles on photographs: {report["steps"]} steps of {report["batch"]} '
        f'images raise its mAP on {report["held_out"]} held-out images with other photographs from '
        f'{before["map"]:.2f} to {after["map"]:.2f} (at IoU 0.5 from {before["map_50"]:.2f} to '
        f'{after["map_50"]:.2f}).'
    )


def _means(losses: Sequence[float], parts: int = 20) -> list[float]:
    """Return means over successive parts of the training, because single steps are noisy."""
    split = np.array_split(np.asarray(losses), min(parts, len(losses)))
    return [float(part.mean()) for part in split]


def main(argv: list[str] | None = None) -> None:
    """Train, and write the results and a picture beside them."""
    script = Script(
        'trainings.train_detector', __doc__, 'torchmetrics', 'pycocotools', 'skimage', 'matplotlib'
    )
    add = script.parser.add_argument
    add('--steps', type=int, default=1000, help='optimizer steps (default: %(default)s)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    add('--train', type=int, default=1000, help='training images (default: %(default)s)')
    add('--held-out', type=int, default=100, help='held-out images (default: %(default)s)')
    args = script.parse(argv)
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
    torch.manual_seed(args.seed)
    learned = [scene(args.seed, 'train', i) for i in range(args.train)]
    held_out = [scene(args.seed, 'held out', i) for i in range(args.held_out)]
    model = detector()
    report: dict[str, Any] = {
        'model': 'FasterRCNN on test_res2net_se',
        'params': sum(p.numel() for p in model.parameters()),
        'size': SIZE,
        'train': len(learned),
        'held_out': len(held_out),
        'seed': args.seed,
        'steps': args.steps,
        'batch': BATCH,
        'before': evaluate(model, held_out),
    }
    started = time.process_time()
    losses = train(model, learned, args.steps)
    report['cpu_seconds'] = round(time.process_time() - started)
    report |= {'after': evaluate(model, held_out), 'losses': _means(losses)}
    # the first images, not chosen by their results
    draw(script.picture, held_out[:8], detect(model, held_out[:8]))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
