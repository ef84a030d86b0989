"""Train a detector on the small network `test_res2net_se` and draw what it finds.

    python -m benchmarks.train_detector

Data: textured discs, squares and triangles on crops of the photographs that scikit-image ships,
made here from a seed; the held-out images are made of other photographs than the training ones.

A Faster R-CNN. It starts from random weights and its BatchNorms learn, because the embedded
weights have seen nothing but 8x8 digits.
One thread, fixed seeds. Needs the extras `detection` and `plots`.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from torch import nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, nms

from timm_res2net import detection_backbone
from timm_res2net.files import write_file

from . import results

__all__ = [
    'CLASSES', 'HIDDEN', 'PHOTOGRAPHS', 'SIZE', 'Scene', 'detector', 'draw', 'evaluate', 'main',
    'scene', 'sentence', 'train',
]  # fmt: skip

CLASSES = ('disc', 'square', 'triangle')
SIZE = 128  # px, height and width of an image
# what the wheel of scikit-image holds, so that nothing is downloaded
PHOTOGRAPHS = {
    'train': ('astronaut', 'rocket', 'camera', 'stereo_motorcycle', 'grass', 'retina', 'brick'),
    'held out': ('chelsea', 'coffee', 'immunohistochemistry', 'gravel'),
}
HIDDEN = 0.4  # largest part of a shape that later ones may cover
BATCH, RATE = 8, 2e-3
CHANNELS = 64  # of every level of the pyramid
SHOWN = 0.5  # smallest score in the picture
COLOURS = ('tab:blue', 'tab:red', 'tab:green')
_SMOOTH = 4  # samples a pixel and axis at a shape's edge


@dataclass(frozen=True)
class Scene:
    """An image and what is on it.

    Shape:
        - image: (SIZE, SIZE, 3) uint8
        - masks: (N, SIZE, SIZE) bool, of what is visible of each shape
        - boxes: (N, 4) float32, x0, y0, x1, y1 in pixels, the tight ones around the masks
        - labels: (N,) int64, from 1 on, since 0 is torchvision's background
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@cache
def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, (H, W, 3) uint8."""
    found = getattr(skimage.data, name)()
    image = np.asarray(found[0] if isinstance(found, tuple) else found)
    return np.stack([image] * 3, axis=-1) if image.ndim == 2 else image


def crop(rng: np.random.Generator, name: str) -> np.ndarray:
    """A square piece of a photograph, made SIZE pixels wide."""
    image = photograph(name)
    side = int(rng.integers(SIZE, min(*image.shape[:2], 3 * SIZE) + 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    piece = Image.fromarray(image[y : y + side, x : x + side])
    return np.asarray(piece.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def texture(rng: np.random.Generator, photographs: Sequence[str]) -> np.ndarray:
    """Stripes, checks, noise or a tinted photograph, (SIZE, SIZE, 3) float32 from 0 to 255."""
    kind = rng.choice(['stripes', 'checks', 'noise', 'photograph'])
    one, other = rng.uniform(0, 255, (2, 3))
    if kind == 'photograph':
        return 0.6 * crop(rng, str(rng.choice(photographs))) + 0.4 * one
    y, x = np.mgrid[:SIZE, :SIZE]
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 12)
    u = np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period))
    v = np.sin((y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period))
    weight = {'stripes': u > 0, 'checks': u * v > 0, 'noise': rng.random((SIZE, SIZE))}[str(kind)]
    return one + (other - one) * np.asarray(weight, np.float64)[..., None]


def outline(rng: np.random.Generator, label: int) -> np.ndarray:
    """How far a shape covers each pixel, (SIZE, SIZE) from 0 to 1; it may touch the border."""
    radius = rng.uniform(0.09, 0.24) * SIZE
    cx, cy = rng.uniform(0.8 * radius, SIZE - 0.8 * radius, 2)
    corners = {1: 64, 2: 4, 3: 3}[label]
    turn = rng.uniform(0, 2 * math.pi)
    angles = turn + np.arange(corners) * (2 * math.pi / corners)
    points = np.stack([cx + radius * np.cos(angles), cy + radius * np.sin(angles)], axis=1)
    large = Image.new('L', (SIZE * _SMOOTH, SIZE * _SMOOTH))
    ImageDraw.Draw(large).polygon([(x * _SMOOTH, y * _SMOOTH) for x, y in points], fill=255)
    return np.asarray(large.reduce(_SMOOTH), np.float32) / 255


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes around masks (N, H, W), (N, 4) as x0, y0, x1, y1."""
    found = []
    for mask in masks:
        (ys,), (xs,) = mask.any(1).nonzero(), mask.any(0).nonzero()
        found.append([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return np.asarray(found, np.float32)


def scene(seed: int, part: str, index: int) -> Scene:
    """The image of this number; one seed, part and number always give the same."""
    names = PHOTOGRAPHS[part]
    rng = np.random.default_rng([seed, list(PHOTOGRAPHS).index(part), index])
    image = crop(rng, str(rng.choice(names))).astype(np.float64)
    masks: list[np.ndarray] = []
    sizes: list[int] = []
    labels: list[int] = []
    wanted = int(rng.integers(1, 5))
    for _ in range(8):
        if len(masks) == wanted:
            break
        label = int(rng.integers(1, len(CLASSES) + 1))
        alpha = outline(rng, label)
        mask = alpha > 0.5
        left = [before & ~mask for before in masks]
        if any(m.sum() < (1 - HIDDEN) * n for m, n in zip(left, sizes, strict=True)):
            continue
        masks = [*left, mask]
        sizes.append(int(mask.sum()))
        labels.append(label)
        image += alpha[..., None] * (texture(rng, names) - image)
    stacked = np.stack(masks)
    return Scene(
        image.round().clip(0, 255).astype(np.uint8),
        stacked,
        boxes_of(stacked),
        np.asarray(labels, np.int64),
    )


def detector() -> FasterRCNN:
    """A Faster R-CNN with random weights for the classes and the background."""
    backbone = detection_backbone(
        'test_res2net_se', (1, 2, 3), CHANNELS, extra_blocks=None, trainable_layers=5, norm='batch'
    )
    levels = ['0', '1', '2']
    return FasterRCNN(
        backbone,
        min_size=SIZE,
        max_size=SIZE,
        # two sizes a level, for shapes of 16 to 64 px
        rpn_anchor_generator=AnchorGenerator(((16, 24), (32, 40), (48, 64)), ((1.0,),) * 3),
        # from the finest level whatever is smaller than half the image
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2, canonical_scale=SIZE),
        box_head=TwoMLPHead(CHANNELS * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, len(CLASSES) + 1),
        # a few shapes an image need few proposals, and the rest would only take time
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )


def _tensors(found: Scene) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Image (3, SIZE, SIZE) from 0 to 1 and target, as torchvision's detectors take them."""
    image = torch.from_numpy(found.image).permute(2, 0, 1) / 255
    boxes, labels = torch.from_numpy(found.boxes), torch.from_numpy(found.labels)
    return image, {'boxes': boxes, 'labels': labels}


def _flipped(
    image: torch.Tensor, target: dict[str, torch.Tensor], axis: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Image and target mirrored along x (axis 0) or y (1)."""
    boxes = target['boxes'].clone()
    boxes[:, [axis, axis + 2]] = SIZE - boxes[:, [axis + 2, axis]]
    return image.flip(2 - axis), target | {'boxes': boxes}


def train(model: nn.Module, scenes: Sequence[Scene], steps: int, batch: int = BATCH) -> list[float]:
    """AdamW with a one-cycle learning rate on images mirrored at random; the loss of every step."""
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
    """Boxes, labels and scores for each image."""
    model.eval()
    found: list[dict[str, torch.Tensor]] = []
    with torch.inference_mode():
        for i in range(0, len(scenes), 10):
            found += model([_tensors(one)[0] for one in scenes[i : i + 10]])
    return found


def evaluate(model: nn.Module, scenes: Sequence[Scene]) -> dict[str, Any]:
    """COCO's mean average precision, from 0 to 1: at IoU 0.5 to 0.95, at 0.5, and of each class."""
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
    """Write a PNG of images, four in a row, with the detections that score above SHOWN; of several
    classes at one place the likeliest."""
    columns, cell, gap = 4, 2 * SIZE, 8  # px, so that a pixel becomes four
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
            colour = COLOURS[label - 1]
            x0, y0, x1, y1 = box
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=2))
            # inside the image, also for boxes at its border
            x, y = min(max(x0, 1), SIZE - 45), max(y0, 8)
            axes.text(
                x, y, f'{CLASSES[label - 1]} {score:.2f}', fontsize=8, color='w', va='bottom',
                bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 1},
            )  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # 256 colours, a third of the bytes
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256)
    write_file(path, lambda file: picture.save(file, format='PNG', optimize=True))


def sentence(report: dict[str, Any]) -> str:
    """What the README says of it."""
    before, after = report['before'], report['after']
    return (
        'A Faster R-CNN on `test_res2net_se`, from random weights, that finds textured discs, '
        f'squares and\ntriangles on photographs: {report["steps"]} steps of {report["batch"]} '
        f'images take its mAP on {report["held_out"]} held-out images of\nother photographs from '
        f'{before["map"]:.2f} to {after["map"]:.2f} (at an IoU of 0.5 from '
        f'{before["map_50"]:.2f} to {after["map_50"]:.2f}).'
    )


def _means(losses: Sequence[float], parts: int = 20) -> list[float]:
    """Means over successive parts of the training, since single steps are noise."""
    split = np.array_split(np.asarray(losses), min(parts, len(losses)))
    return [float(part.mean()) for part in split]


def main(argv: list[str] | None = None) -> None:
    """Train, and write the results and the picture."""
    folder = Path(__file__).parent / 'results'
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=1000, help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument(
        '--train', type=int, default=1000, help='training images (default: %(default)s)'
    )
    parser.add_argument(
        '--held-out', type=int, default=100, help='images to evaluate on (default: %(default)s)'
    )
    parser.add_argument('--out', type=Path, default=folder / 'train_detector.json')
    parser.add_argument('--picture', type=Path, default=folder / 'detections.png')
    args = parser.parse_args(argv)
    results.check_writable(args.out, args.picture)
    torch.set_num_threads(1)  # sums in one order: a seed gives the same weights on one machine
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
    # the first ones, whatever the detector makes of them
    draw(args.picture, held_out[:8], detect(model, held_out[:8]))
    print(sentence(report))
    results.save_script(args.out, 'train_detector', argv, report)


if __name__ == '__main__':
    main()
