"""Images for `train_detector`: textured shapes on crops of photographs, made from a seed.

The photographs are those in scikit-image's wheel, so nothing is downloaded. Training and held-out
images are made from different photographs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ('disc', 'square', 'triangle')
SIZE = 128
"""Height and width of an image in pixels."""
PHOTOGRAPHS = {
    'train': ('astronaut', 'rocket', 'camera', 'stereo_motorcycle', 'grass', 'retina', 'brick'),
    'held out': ('chelsea', 'coffee', 'immunohistochemistry', 'gravel'),
}
HIDDEN = 0.4
"""Largest part of a shape that later shapes may cover."""
_SMOOTH = 4  # samples a pixel and axis at the edge of a shape


@dataclass(frozen=True)
class Scene:
    """An image with its objects.

    Shape:
        - image: (SIZE, SIZE, 3) uint8
        - masks: (N, SIZE, SIZE) bool, the visible part of each shape
        - boxes: (N, 4) float32, the tight boxes around the masks as x0, y0, x1, y1 in pixels
        - labels: (N,) int64 from 1, because 0 is torchvision's background
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@cache
def photograph(name: str) -> np.ndarray:
    """Return a photograph of scikit-image, (H, W, 3) uint8."""
    import skimage.data

    found = getattr(skimage.data, name)()
    image = np.asarray(found[0] if isinstance(found, tuple) else found)
    return np.stack([image] * 3, axis=-1) if image.ndim == 2 else image


def crop(rng: np.random.Generator, name: str) -> np.ndarray:
    """Return a square part of a photograph, resized to (SIZE, SIZE, 3)."""
    image = photograph(name)
    side = int(rng.integers(SIZE, min(*image.shape[:2], 3 * SIZE) + 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    piece = Image.fromarray(image[y : y + side, x : x + side])
    return np.asarray(piece.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def texture(rng: np.random.Generator, photographs: Sequence[str]) -> np.ndarray:
    """Return stripes, checks, noise or a tinted photograph, (SIZE, SIZE, 3) from 0 to 255."""
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
    """Return how much of each pixel a shape covers, (SIZE, SIZE) from 0 to 1.

    The shape may touch the border.
    """
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
    """Return the smallest boxes around masks (N, H, W), as (N, 4) of x0, y0, x1, y1."""
    found = []
    for mask in masks:
        (ys,), (xs,) = mask.any(1).nonzero(), mask.any(0).nonzero()
        found.append([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return np.asarray(found, np.float32)


def scene(seed: int, part: str, index: int) -> Scene:
    """Return the image of a number. The same seed, part and number always give the same image.

    Args:
        seed: Random seed.
        part: A key of `PHOTOGRAPHS`.
        index: Number of the image.
    """
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
