"""Images for `train_keypoints`: stick figures of seven joints, drawn from a seed.

All joints look the same, a disc in the color of the limbs. Only the figure as a whole tells a hand
from a foot, and left from right.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

JOINTS = ('head', 'neck', 'left hand', 'right hand', 'hip', 'left foot', 'right foot')
LIMBS = ((0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6))
SIZE = 64
"""Height and width of an image in pixels."""
MARGIN = 4
"""Smallest distance of a joint from the border in pixels, so that no joint is in a border cell."""
SIDE = (0.5, 0.85)
"""Range of the longer side of the box around a figure's joints, as shares of the image."""
TURN = math.pi / 4
"""Largest rotation of a figure. Beyond it, left and right would change places."""


@dataclass(frozen=True)
class Figures:
    """Images with their joints.

    Shape:
        - images: (N, 3, SIZE, SIZE) uint8
        - points: (N, 7, 2) float32, x and y in pixels, with 0 at the center of the first pixel
    """

    images: torch.Tensor
    points: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> 'Figures':
        return Figures(self.images[part], self.points[part])


def _poses(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return joints (count, 7, 2) in pixels, bent, rotated, scaled and moved at random."""

    def between(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, count)

    def from_joint(start: np.ndarray, length: np.ndarray, angle: np.ndarray) -> np.ndarray:
        # the angle is measured from downwards, positive to the right
        return start + (length * np.stack([np.sin(angle), np.cos(angle)])).T

    neck = np.zeros((count, 2))
    head = from_joint(neck, between(0.4, 0.55), math.pi + between(-0.4, 0.4))
    hip = from_joint(neck, between(0.9, 1.1), between(-0.15, 0.15))
    hands = [from_joint(neck, between(0.7, 1), side * between(0.3, 2.5)) for side in (-1, 1)]
    # each foot may cross the middle a little, so that some feet are near each other
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
        count: Number of figures.
        seed: The same seed and count give the same figures on any machine, up to rounding.
    """
    rng = np.random.default_rng(seed)
    joints = _poses(rng, count)
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for image, at in zip(images, joints.astype(np.float32), strict=True):
        # a dark background and a light figure, or the reverse, in random tints
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
