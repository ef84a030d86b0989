"""Measure the forms that `timm_res2net.kernels` chooses between, shape by shape.

    python -m benchmarks.kernels

Every form is timed with and without in interleaved rounds, on the layers (packed) and whole blocks
(merge, slices) of res2net50_26w_4s at 224 px, on channels_last inputs. The rules in
`timm_res2net/kernels.py` were read off benchmarks/results/kernels.json.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from timm_res2net.bottle2neck import FusedBottle2neck
from timm_res2net.kernels import override

from . import results
from .measure import interleave
from .stats import ratio

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
SIZES = (56, 28, 14, 7)


def _image(channels: int, size: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(batch, channels, size, size, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _call(module: nn.Module, x: torch.Tensor, **forms: bool) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        with torch.inference_mode(), override(**forms):
            return module(x)

    return step


def sites(batch: int, dtype: torch.dtype) -> Iterator[tuple[str, str, Any, Any]]:
    """Form, place, a call without the form and one with it, for every layer with a choice."""
    model: Any = timm.create_model('res2net50_26w_4s').eval().to(dtype)
    model = model.to(memory_format=torch.channels_last)
    for stage, size in enumerate(SIZES, 1):
        first, second, *_ = model.get_submodule(f'layer{stage}')
        before = size * (1 if stage == 1 else 2)  # pixels that the first block gets
        fused = FusedBottle2neck(second)
        for name in ('conv1', 'convs.0', 'conv3'):
            conv: Any = fused.get_submodule(name)
            x = _image(conv.in_channels, size, batch, dtype)
            plain, other = (_call(conv, x, packed=packed) for packed in (False, True))
            yield 'packed', f'layer{stage}.1.{name}', plain, other
        with override(merge=False):
            apart = FusedBottle2neck(first)
        x = _image(first.conv1.in_channels, before if stage > 1 else size, batch, dtype)
        together = FusedBottle2neck(first)
        yield 'merge', f'layer{stage}.0', _call(apart, x), _call(together, x)
        inner = _image(second.conv1.in_channels, size, batch, dtype)
        for index, block, data in ((0, together, x), (1, fused, inner)):
            plain, other = (_call(block, data, slices=slices) for slices in (False, True))
            yield 'slices', f'layer{stage}.{index}', plain, other


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--budget', type=float, default=3.0, help='seconds a comparison')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parent / 'results' / 'kernels.json'
    )
    args = parser.parse_args(argv)
    results.check_writable(args.out)
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
    command = 'python -m benchmarks.kernels'
    runs = [{'command': command, 'environment': results.environment()}]
    results.save(args.out, {'kind': 'kernels', 'runs': runs, 'cells': cells})


if __name__ == '__main__':
    main()
