"""Compiling with weights as constants; exported models are tested in test_steps.py."""

import pytest
import torch
from torch import nn

from benchmarks.suite import runtimes
from benchmarks.suite.checks import compiler
from tests.common import image, relative_error


@pytest.mark.slow  # compiles
@pytest.mark.skipif(compiler() is None, reason='needs a C++ compiler')
def test_frozen_weights_are_constants():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    x = image(1, 8)

    def run():
        with torch.inference_mode():
            return model(x)

    expected = run().clone()
    assert runtimes.freeze(model, run) is model
    assert not torch._inductor.config.freezing
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].running_mean.add_(1)
    assert relative_error(run(), expected) < 1e-5
    torch.compiler.reset()
