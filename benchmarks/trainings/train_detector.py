"""Train a Faster R-CNN on the small network `test_res2net_se`: the shortest example of a detector.

    python -m benchmarks.trainings.train_detector

The images are textured shapes on crops of the photographs in scikit-image's wheel.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes

from timm_res2net import detection_backbone

from ..script import Script

CLASSES = ('disc', 'square', 'triangle')
SIZE = 128  # height and width of an image in pixels
PHOTOGRAPHS = {
    'train': ('astronaut', 'rocket', 'camera', 'stereo_motorcycle', 'grass', 'retina', 'brick'),
    'held out': ('chelsea', 'coffee', 'immunohistochemistry', 'gravel'),
}
NUMBER = {'train': 1000, 'held out': 100}  # of images
BATCH, RATE = 8, 2e-3

Scene = tuple[torch.Tensor, dict[str, torch.Tensor]]  # an image, and its 'boxes' and 'labels'


@cache
def photograph(name: str) -> np.ndarray:
    """Return a photograph of scikit-image, (H, W, 3) uint8."""
    import skimage.data

    found = getattr(skimage.data, name)()
    image = np.asarray(found[0] if isinstance(found, tuple) else found)
    return image if image.ndim == 3 else np.stack([image] * 3, axis=-1)


def crop(rng: np.random.Generator, part: str) -> np.ndarray:
    """Return a square of a photograph of a part of the data, resized to (SIZE, SIZE, 3)."""
    image = photograph(str(rng.choice(PHOTOGRAPHS[part])))
    side = int(rng.integers(SIZE, min(*image.shape[:2], 3 * SIZE) + 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    piece = Image.fromarray(image[y : y + side, x : x + side])
    return np.asarray(piece.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64)


def texture(rng: np.random.Generator, part: str) -> np.ndarray:
    """Return stripes, checks, noise or a tinted photograph, (SIZE, SIZE, 3) from 0 to 255."""
    kind = rng.choice(['stripes', 'checks', 'noise', 'photograph'])
    one, other = rng.uniform(0, 255, (2, 3))
    if kind == 'photograph':
        return 0.6 * crop(rng, part) + 0.4 * one
    y, x = np.mgrid[:SIZE, :SIZE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    u = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
    v = np.sin((y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period))
    weight = {'stripes': u > 0, 'checks': u * v > 0, 'noise': rng.random((SIZE, SIZE))}[str(kind)]
    return one + (other - one) * np.asarray(weight, np.float64)[..., None]


def outline(rng: np.random.Generator, label: int) -> np.ndarray:
    """Return how much of each pixel a shape covers, (SIZE, SIZE) from 0 to 1."""
    radius = rng.uniform(0.09, 0.24) * SIZE
    center = rng.uniform(0.8 * radius, SIZE - 0.8 * radius, 2)
    corners = {1: 64, 2: 4, 3: 3}[label]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * (2 * np.pi / corners)
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    large = Image.new('L', (4 * SIZE, 4 * SIZE))  # four samples a pixel along each axis
    ImageDraw.Draw(large).polygon([(4 * x, 4 * y) for x, y in points], fill=255)
    return np.asarray(large.reduce(4), np.float32) / 255


def scene(part: str, index: int) -> Scene:
    """Return the image of a number in a part of the data; always the same one."""
    rng = np.random.default_rng([0, list(PHOTOGRAPHS).index(part), index])
    image = crop(rng, part)
    masks: list[np.ndarray] = []
    sizes: list[int] = []
    labels: list[int] = []
    wanted = int(rng.integers(1, 5))
    for _ in range(8):
        if len(masks) == wanted:
            break
        label = int(rng.integers(1, len(CLASSES) + 1))  # 0 is the background
        alpha = outline(rng, label)
        mask = alpha > 0.5
        left = [before & ~mask for before in masks]
        # later shapes may cover 40 % of one
        if all(m.sum() >= 0.6 * n for m, n in zip(left, sizes, strict=True)):
            masks = [*left, mask]
            sizes.append(int(mask.sum()))
            labels.append(label)
            image += alpha[..., None] * (texture(rng, part) - image)
    pixels = torch.from_numpy(image.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1) / 255
    boxes = masks_to_boxes(torch.from_numpy(np.stack(masks)))
    boxes[:, 2:] += 1  # to the end of the last pixel
    return pixels, {'boxes': boxes, 'labels': torch.tensor(labels)}


def detector() -> FasterRCNN:
    """Return a Faster R-CNN with random weights for the classes and the background."""
    backbone = detection_backbone(
        'test_res2net_se', (1, 2, 3), 64, extra_blocks=None, trainable_layers=5, norm='batch'
    )
    return FasterRCNN(
        backbone,
        min_size=SIZE,
        max_size=SIZE,
        # two anchor sizes a level, for shapes of 16 to 64 px
        rpn_anchor_generator=AnchorGenerator(((16, 24), (32, 40), (48, 64)), ((1.0,),) * 3),
        # boxes smaller than half the image are read from the finest level
        box_roi_pool=MultiScaleRoIAlign(['0', '1', '2'], 7, 2, canonical_scale=SIZE),
        box_head=TwoMLPHead(64 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, len(CLASSES) + 1),
        # few shapes an image need few proposals
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )


def train(model: FasterRCNN, scenes: list[Scene], steps: int) -> float:
    """Train by AdamW on randomly mirrored images; return the loss of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    model.train()
    for _ in range(steps):
        images, targets = [], []
        for pick in torch.randint(len(scenes), (BATCH,)).tolist():
            image, target = scenes[pick]
            boxes = target['boxes'].clone()
            for axis in (0, 1):  # x and y
                if torch.rand(()) < 0.5:
                    image = image.flip(2 - axis)
                    boxes[:, [axis, axis + 2]] = SIZE - boxes[:, [axis + 2, axis]]
            images.append(image)
            targets.append({'boxes': boxes, 'labels': target['labels']})
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def evaluate(model: FasterRCNN, scenes: list[Scene]) -> dict[str, float]:
    """Return COCO's mean average precision: `map` for IoU 0.5 to 0.95, `map_50` for IoU 0.5."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(backend='pycocotools')
    with torch.inference_mode():
        for image, target in scenes:
            metric.update(model.eval()([image]), [target])
    found = metric.compute()
    return {key: float(found[key]) for key in ('map', 'map_50')}


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


def main(argv: list[str] | None = None) -> None:
    """Train and write the results."""
    script = Script('trainings.train_detector', __doc__, 'torchmetrics', 'pycocotools', 'skimage')
    script.parser.add_argument('--steps', type=int, default=1000, help='default: %(default)s')
    args = script.parse(argv)
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
    torch.manual_seed(0)
    learned, held_out = ([scene(part, i) for i in range(number)] for part, number in NUMBER.items())
    model = detector()
    report: dict[str, Any] = {'steps': args.steps, 'batch': BATCH, 'held_out': len(held_out)}
    report['before'] = evaluate(model, held_out)
    report['loss'] = train(model, learned, args.steps)
    report['after'] = evaluate(model, held_out)
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
