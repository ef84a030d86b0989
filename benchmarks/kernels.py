"""Measure the forms that `timm_res2net.kernels` chooses between, shape by shape.

    python -m benchmarks.kernels

Every form is timed against the plain one in interleaved rounds, on the layers of
res2net50_26w_4s at 224 px, on channels_last inputs. The rules in `timm_res2net/kernels.py` were
read off benchmarks/results/kernels.json.
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
from timm_res2net.fusion import fold_conv, merge_convs
from timm_res2net.kernels import Pointwise, override

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
    """Form, place, plain call and the form's call, for every layer where there is a choice."""
    model: Any = timm.create_model('res2net50_26w_4s').eval().to(dtype)
    model = model.to(memory_format=torch.channels_last)
    for stage, size in enumerate(SIZES):
        blocks = model.get_submodule(f'layer{stage + 1}')
        before = size * (1 if stage == 0 else 2)
        for name in ('conv1', 'conv3'):
            conv: Any = Pointwise.of(getattr(blocks[1], name))
            x = _image(conv.in_channels, size, batch, dtype)
            yield (
                'linear',
                f'layer{stage + 1}.1.{name}',
                _call(conv, x, linear=False),
                _call(conv, x, linear=True),
            )
        first = blocks[0]
        convs = [fold_conv(c, b) for c, b in zip(first.convs, first.bns, strict=True)]
        whole = _image(first.width * first.scale, before, batch, dtype)
        merged = merge_convs(convs)  # type: ignore[arg-type]

        def apart(whole: torch.Tensor = whole, convs: Any = convs) -> torch.Tensor:
            with torch.inference_mode():
                splits = whole.chunk(4, 1)
                return torch.cat([c(s) for c, s in zip(convs, splits[:3], strict=True)], 1)

        def together(whole: torch.Tensor = whole, merged: Any = merged) -> torch.Tensor:
            with torch.inference_mode():
                return merged(whole[:, : 3 * whole.shape[1] // 4])

        yield 'merge', f'layer{stage + 1}.0', apart, together
        for index in (0, 1):
            block = FusedBottle2neck(blocks[index])
            x = _image(
                blocks[index].conv1.in_channels, before if index == 0 else size, batch, dtype
            )
            yield (
                'slices',
                f'layer{stage + 1}.{index}',
                _call(block, x, slices=False),
                _call(block, x, slices=True),
            )


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
