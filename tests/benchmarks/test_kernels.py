"""The forms that the package chooses between."""

import torch

from benchmarks import kernels
from benchmarks.script import load
from tests.common import relative_error


def test_both_sides_compute_the_same(monkeypatch):
    found = kernels.sites(1, torch.float32)
    for _ in range(3):  # the stem, and a 1x1 convolution
        form, place, plain, other = next(found)
        assert f'{form}/{place}/fp32/b1' in load('kernels')
        assert relative_error(other(), plain()) < 1e-5  # float32
