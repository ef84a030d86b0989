"""The plain and the packed form of a layer."""

import torch

from benchmarks import kernels
from benchmarks.script import load
from tests.common import relative_error


def test_both_sides_compute_the_same():
    found = kernels.sites(1, torch.float32)
    for _ in range(3):  # the stem, a 1x1 and a 3x3 convolution
        place, plain, packed = next(found)
        assert f'packed/{place}/fp32/b1' in load('kernels')
        assert relative_error(packed(), plain()) < 1e-5  # float32
