"""Heatmaps of keypoints, the way back to points, and the percentage of correct keypoints (PCK)."""

import torch
from torch.nn import functional as F

from .stick_figures import SIZE

STRIDE = 4
"""Height and width of a heatmap's cell in pixels."""
SIGMA = 1.5
"""Standard deviation of a target's Gaussian in cells."""
RADIUS = 0.1
"""A joint is found if it is within this share of the figure's size."""


def heatmaps(points: torch.Tensor, size: int = SIZE, sigma: float = SIGMA) -> torch.Tensor:
    """Return Gaussians of height 1 around points.

    Args:
        points: (..., 2), x and y in pixels of the image.
        size: Height and width of the image in pixels.
        sigma: Standard deviation of the Gaussians in cells of `STRIDE` pixels.

    Returns:
        Heatmaps (..., size / STRIDE, size / STRIDE).
    """
    cells = torch.arange(size // STRIDE, dtype=points.dtype)
    # the center of a cell is between two pixels
    away = (cells - ((points + 0.5) / STRIDE - 0.5)[..., None]).square()  # [..., 2, n]
    return torch.exp(-(away[..., 0, None, :] + away[..., 1, :, None]) / (2 * sigma**2))


def points_of(maps: torch.Tensor) -> torch.Tensor:
    """Return the positions of the maxima, moved a quarter of a cell towards the larger neighbor.

    The quarter follows Newell et al. 2016 (https://arxiv.org/abs/1603.06937). The result is at most
    a quarter of a cell, 1 pixel, away from the center of a Gaussian.

    Args:
        maps: Heatmaps (..., n, n).

    Returns:
        Points (..., 2), x and y in pixels of the image.
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
    """Return which joints were found, (N, joints) bool.

    A joint is found within `radius` times the figure's size, which is the longer side of the box
    around its true joints (Yang & Ramanan 2013, "Articulated Human Detection with Flexible Mixtures
    of Parts": alpha * max(h, w), with alpha 0.1 for whole bodies).

    Args:
        found: (N, joints, 2), x and y in pixels.
        points: The true joints, of the same shape.
        radius: Share of the figure's size.
    """
    size = (points.amax(1) - points.amin(1)).amax(-1)
    return (found - points).norm(dim=-1) <= radius * size[:, None]


def pck(found: torch.Tensor, points: torch.Tensor, radius: float = RADIUS) -> float:
    """Return the share of correct keypoints, the mean of `hits`."""
    return float(hits(found, points, radius).double().mean())
