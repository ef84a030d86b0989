"""Profile the deploy form and torch.compile's: where the time goes, and how fast convolutions are.

    python -m benchmarks.deploy_profile

Steps of a Res2Net and of resnet50 treated alike are profiled in turn, in float32 and channels_last
at 224 px; the figures are medians of the profiler's self times. A convolution's includes its
activation and, if it has one, its residual add. `frozen` is torch.compile with weights as
constants; its `generated code` is all that a call does outside of operators: loops, for adds and
concatenations above all, and memory.
"""

import argparse
import itertools
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from . import results
from .subjects import Cell, Spec, make_input, prepare

__all__ = ['KINDS', 'main', 'profile_step', 'table']

NAMES = ('resnet50', 'res2net50_26w_4s')
MODES = ('deploy', 'frozen')
CONVOLUTIONS = ('convolution 1×1', 'convolution 3×3', 'convolution 7×7')
KINDS = (*CONVOLUTIONS, 'add', 'copy/concat', 'generated code', 'other')
_NAMED = {'aten::add': 'add', 'aten::add_': 'add', 'aten::copy_': 'copy/concat'}
_NAMED['aten::cat'] = 'copy/concat'


def kind_of(event: Any) -> str:
    """One of `KINDS`, for an event of the profiler with its input shapes."""
    if '_convolution_pointwise' in event.name:
        # the weight: the last tensor with four dimensions, after the input and the residual
        height, width = [shape for shape in event.input_shapes if len(shape) == 4][-1][2:]
        return f'convolution {height}×{width}'
    if event.name.startswith('## Call CompiledFxGraph'):
        return 'generated code'
    return _NAMED.get(event.name, 'other')


def macs_of(model: nn.Module, batch: int) -> dict[str, int]:
    """Multiply-accumulates of a model's convolutions by kernel size."""
    found: Counter[str] = Counter()

    def count(module: Any, args: Any, output: torch.Tensor) -> None:
        height, width = module.kernel_size
        found[f'convolution {height}×{width}'] += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(batch, 3, 224, 224, device='meta'))
    return dict(found)


def profile_step(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Seconds of one step by kind."""
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found,
    ):
        model(x)
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in found.events() or ():
        seconds[kind_of(event)] += event.self_cpu_time_total / 1e6
    return seconds


def table(cells: Mapping[str, Any]) -> str:
    """Time by kind and the convolutions' speed, for every form and batch, as Markdown."""
    lines = ['| form | | ' + ' | '.join(NAMES) + ' | ratio |', '| --- | --- | --- | --- | --- |']
    sums = {'all convolutions': CONVOLUTIONS, 'all': KINDS}
    for form, found in cells.items():
        for kind in (*KINDS, *sums):
            row, times = [], []
            for name in NAMES:
                parts = [found[name]['seconds'][part] for part in sums.get(kind, (kind,))]
                seconds = statistics.median(map(sum, zip(*parts, strict=True)))
                macs = found[name]['macs'].get(kind)
                times.append(seconds)
                speed = f', {2 * macs / seconds / 1e9:.0f} GFLOP/s' if macs else ''
                row.append(f'{seconds * 1e3:.1f} ms{speed}')
            ratio = f'{times[1] / times[0]:.2f}' if times[0] > 5e-5 else ''
            if max(times) > 5e-5:
                lines.append(f'| {form} | {kind} | {" | ".join(row)} | {ratio} |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=40, help='profiled steps of each model')
    parser.add_argument('--mode', nargs='+', choices=MODES, default=list(MODES))
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parent / 'results' / 'deploy_profile.json'
    )
    args = parser.parse_args(argv)
    results.check_writable(args.out)
    rng = random.Random(0)
    cells: dict[str, Any] = {}
    for mode, batch in itertools.product(args.mode, args.batch):
        where = ('fp32', 'channels_last', batch, 224, torch.get_num_threads(), 'cpu')
        cell = Cell('time', 'main', 'infer', mode, *where)
        x = make_input(cell)
        torch.compiler.reset()
        models = {name: prepare(Spec(name), cell, x).model for name in NAMES}
        seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in NAMES}
        for step in range(args.steps + 3):
            for name in rng.sample(NAMES, len(NAMES)):
                for kind, value in profile_step(models[name], x).items():
                    if step >= 3:  # the first pack weights
                        seconds[name][kind].append(value)
        cells[f'{mode}, b{batch}'] = {
            name: {
                'macs': macs_of(timm.create_model(name, device='meta'), batch),
                'seconds': seconds[name],
            }
            for name in NAMES
        }
    results.save_script(args.out, 'deploy_profile', argv, cells)
    print(table(cells))


if __name__ == '__main__':
    main()
