"""Measure the forms that `timm_res2net.layers.rules` chooses between, shape by shape.

    python -m benchmarks.kernels

A deployed res2net50_26w_4s runs at 224 px on channels_last inputs, and every form is timed with and
without in interleaved rounds: packing on single layers, merging and slices on whole blocks. Packed
layers are also compared with two alternatives: a linear layer, and a convolution of a contiguous
image. The rules in `timm_res2net/layers/rules.py` come from benchmarks/results/kernels.json.
"""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from timm_res2net import reparameterize_model
from timm_res2net.layers.rules import override
from timm_res2net.stats import ratio

from .script import Script
from .suite.measure import interleave

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
SIZES = (56, 28, 14, 7)
"""Height and width after each stage in pixels."""


def _image(channels: int, size: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(batch, channels, size, size, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _call(module: nn.Module, x: torch.Tensor, **forms: bool) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        with torch.inference_mode(), override(**forms):
            return module(x)

    return step


def _linear(conv: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a 1x1 convolution as a linear layer over the pixels."""
    weight, relu = conv.weight.flatten(1), type(conv.act) is nn.ReLU

    def step() -> torch.Tensor:
        with torch.inference_mode():
            y = F.linear(x.permute(0, 2, 3, 1), weight, conv.bias).permute(0, 3, 1, 2)
            return y.relu_() if relu else y

    return step


def layers(model: Any, batch: int, dtype: torch.dtype) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Yield place, convolution and input for the layers of a deployed model, one of each kind a
    stage.
    """
    yield 'conv1', model.conv1, _image(3, 224, batch, dtype)
    for stage, size in enumerate(SIZES, 1):
        first, second, *_ = model.get_submodule(f'layer{stage}')
        before = size * (1 if stage == 1 else 2)  # input of the first block
        for name in ('conv1', 'convs.0', 'conv3'):
            conv = second.get_submodule(name)
            yield f'layer{stage}.1.{name}', conv, _image(conv.in_channels, size, batch, dtype)
        for name, conv in (('convs.0', first.convs[0]), ('downsample.0', first.downsample[0])):
            yield f'layer{stage}.0.{name}', conv, _image(conv.in_channels, before, batch, dtype)


def sites(batch: int, dtype: torch.dtype) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield form, place, a call without the form and a call with it, for every choice."""
    plain: Any = timm.create_model('res2net50_26w_4s').eval()
    model: Any = reparameterize_model(plain).to(dtype, memory_format=torch.channels_last)
    with override(merge=False):
        unmerged: Any = reparameterize_model(plain).to(dtype, memory_format=torch.channels_last)
    for place, conv, x in layers(model, batch, dtype):
        packed = _call(conv, x, packed=True)
        yield 'packed', place, _call(conv, x, packed=False), packed
        # the alternatives are slower, so they are not forms of the package
        apart = copy.deepcopy(conv).to(memory_format=torch.contiguous_format)
        yield 'contiguous', place, packed, _call(apart, x.contiguous(), packed=False)
        if conv.kernel_size == (1, 1) and conv.stride == (1, 1):
            yield 'linear', place, packed, _linear(conv, x)
    for stage, size in enumerate(SIZES, 1):
        first, second, *_ = model.get_submodule(f'layer{stage}')
        before = size * (1 if stage == 1 else 2)
        x = _image(first.conv1.in_channels, before, batch, dtype)
        apart = unmerged.get_submodule(f'layer{stage}.0')
        yield 'merge', f'layer{stage}.0', _call(apart, x), _call(first, x)
        x = _image(second.conv1.in_channels, size, batch, dtype)
        without, written = (_call(second, x, slices=slices) for slices in (False, True))
        yield 'slices', f'layer{stage}.1', without, written


def main(argv: list[str] | None = None) -> None:
    """Measure every choice and write the results."""
    script = Script('kernels', __doc__)
    script.parser.add_argument(
        '--budget', type=float, default=3.0, help='seconds a comparison (default: %(default)s)'
    )
    script.parser.add_argument(
        '--batch', type=int, nargs='+', default=[1, 8], help='batch sizes (default: 1 8)'
    )
    args = script.parse(argv)
    cells = {}
    for precision, dtype in DTYPES.items():
        for batch in args.batch:
            for form, place, plain, other in sites(batch, dtype):
                samples: dict[str, list[float]] = {}
                interleave(
                    {'baseline': plain, 'subject': other},
                    samples,
                    budget=args.budget,
                    rng=random.Random(0),
                )
                time = ratio(samples['subject'], samples['baseline'])
                key = f'{form}/{place}/{precision}/b{batch}'
                cells[key] = {'ratio': list(time), 'samples': samples}
                print(f'{key:<36} time × {time}')
    script.save(cells)


if __name__ == '__main__':
    main()
