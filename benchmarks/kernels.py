"""Measure the layers of a deployed network, packed and in the plain form, shape by shape.

    python -m benchmarks.kernels

A deployed res2net50_26w_4s runs at 224 px on channels_last inputs, and both forms of every layer
are timed in interleaved rounds. The committed results are older and hold forms that the package no
longer has: merged convolutions, slices, linear layers and contiguous images.
"""

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn

from timm_res2net import reparameterize_model
from timm_res2net.export.measure import ratio

from .script import Script
from .suite.measure import interleave

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
SIZES = (56, 28, 14, 7)
"""Height and width after each stage in pixels."""


def _image(channels: int, size: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(batch, channels, size, size, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _plain(conv: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a call of the convolution and its activation as two layers."""
    apart = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups, device='meta',
    )  # fmt: skip
    apart.weight, apart.bias = conv.weight, conv.bias
    return _call(nn.Sequential(apart, conv.act), x)


def _call(module: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        with torch.inference_mode():
            return module(x)

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


def sites(batch: int, dtype: torch.dtype) -> Iterator[tuple[str, Any, Any]]:
    """Yield place, a call of the plain form and a call of the packed form of every layer."""
    plain: Any = timm.create_model('res2net50_26w_4s').eval()
    model: Any = reparameterize_model(plain).to(dtype, memory_format=torch.channels_last)
    for place, conv, x in layers(model, batch, dtype):
        yield place, _plain(conv, x), _call(conv, x)


def main(argv: list[str] | None = None) -> None:
    """Measure every layer and write the results."""
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
            for place, plain, packed in sites(batch, dtype):
                steps = {'baseline': plain, 'subject': packed}
                samples = interleave(steps, budget=args.budget)
                time = ratio(samples['subject'], samples['baseline'])
                key = f'packed/{place}/{precision}/b{batch}'
                cells[key] = {'ratio': list(time), 'samples': samples}
                print(f'{key:<36} time × {time}')
    script.save(cells)


if __name__ == '__main__':
    main()
