"""Profile deployed and compiled models: where the time goes, and how fast convolutions are.

    python -m benchmarks.deploy_profile

Steps of a Res2Net and of a resnet50 with the same treatment are profiled in turn, in float32 and
channels_last at 224 px. Figures are medians of the profiler's self times. The time of a convolution
includes its activation and its residual add. `frozen` is torch.compile with weights as constants;
its `generated code` is what a call does outside of operators: loops, mostly for adds and
concatenations, and memory management.
"""

import itertools
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from timm_res2net.text import table

from .script import Script
from .suite.cells import Cell
from .suite.modes import Mode, Modes
from .suite.pairs import Spec
from .suite.steps import make_input, prepare

NAMES = ('resnet50', 'res2net50_26w_4s')
MODES = ('deploy', 'frozen')
CONVOLUTIONS = ('convolution 1×1', 'convolution 3×3', 'convolution 7×7')
KINDS = (*CONVOLUTIONS, 'add', 'copy/concat', 'generated code', 'other')
_NAMED = {'aten::add': 'add', 'aten::add_': 'add', 'aten::copy_': 'copy/concat'}
_NAMED['aten::cat'] = 'copy/concat'


def kind_of(event: Any) -> str:
    """Return one of `KINDS` for an event of the profiler with its input shapes."""
    if '_convolution_pointwise' in event.name:
        # the weight is the last tensor with four dimensions, after the input and the residual
        height, width = [shape for shape in event.input_shapes if len(shape) == 4][-1][2:]
        return f'convolution {height}×{width}'
    if event.name.startswith('## Call CompiledFxGraph'):
        return 'generated code'
    return _NAMED.get(event.name, 'other')


def macs_of(model: nn.Module, batch: int) -> dict[str, int]:
    """Return the multiply-accumulates of a model's convolutions by kernel size.

    Args:
        model: A model on the meta device.
        batch: Number of images of 224 px.
    """
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


def profile_step(step: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of one step by kind."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in found.events() or ():
        seconds[kind_of(event)] += event.self_cpu_time_total / 1e6
    return seconds


def _seconds(found: Mapping[str, Any], kinds: Sequence[str]) -> float:
    """Return the median seconds of kinds together."""
    parts = [found['seconds'][kind] for kind in kinds]
    return statistics.median(map(sum, zip(*parts, strict=True)))


def sentence(cells: Mapping[str, Any]) -> str:
    """Return the ratios at batch 8 in one sentence."""
    ratios = {}
    for form in ('deploy, b8', 'frozen, b8'):
        for kinds in (CONVOLUTIONS, KINDS):
            base, ours = (_seconds(cells[form][name], kinds) for name in NAMES)
            ratios[form, kinds] = f'× {ours / base:.2f}'
    return (
        f'At batch 8 the convolutions alone take {ratios["deploy, b8", CONVOLUTIONS]} of '
        f"resnet50's time in deployed models and {ratios['frozen, b8', CONVOLUTIONS]} under "
        'torch.compile with weights as constants; all operators together take '
        f'{ratios["deploy, b8", KINDS]} and {ratios["frozen, b8", KINDS]}.'
    )


def report_table(cells: Mapping[str, Any]) -> str:
    """Return the time by kind and the speed of convolutions, for every form and batch."""
    rows = []
    sums = {'all convolutions': CONVOLUTIONS, 'all': KINDS}
    for form, found in cells.items():
        for kind in (*KINDS, *sums):
            row, times = [], []
            for name in NAMES:
                seconds = _seconds(found[name], sums.get(kind, (kind,)))
                macs = found[name]['macs'].get(kind)
                times.append(seconds)
                speed = f', {2 * macs / seconds / 1e9:.0f} GFLOP/s' if macs else ''
                row.append(f'{seconds * 1e3:.1f} ms{speed}')
            ratio = f'{times[1] / times[0]:.2f}' if times[0] > 5e-5 else ''
            if max(times) > 5e-5:
                rows.append((form, kind, *row, ratio))
    return table(('form', 'kind', *NAMES, 'ratio'), rows)


def main(argv: list[str] | None = None) -> None:
    """Profile the models, print the table and write the results."""
    script = Script('deploy_profile', __doc__)
    script.parser.add_argument(
        '--steps', type=int, default=40, help='profiled steps of each model (default: %(default)s)'
    )
    script.parser.add_argument(
        '--mode', nargs='+', choices=MODES, default=list(MODES), help='forms (default: all)'
    )
    script.parser.add_argument(
        '--batch', type=int, nargs='+', default=[1, 8], help='batch sizes (default: 1 8)'
    )
    args = script.parse(argv)
    rng = random.Random(0)
    cells: dict[str, Any] = {}
    for text, batch in itertools.product(args.mode, args.batch):
        mode = Mode.parse(text)
        cell = Cell(
            'time', 'main', 'infer', Modes(mode, mode, False), 'fp32', 'channels_last', batch, 224,
            torch.get_num_threads(), 'cpu',
        )  # fmt: skip
        x = make_input(cell)
        torch.compiler.reset()
        steps = {name: prepare(Spec(name), mode, cell, x).step for name in NAMES}
        seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in NAMES}
        for i in range(args.steps + 3):
            for name in rng.sample(NAMES, len(NAMES)):
                for kind, value in profile_step(steps[name]).items():
                    if i >= 3:  # weights are packed in the first steps
                        seconds[name][kind].append(value)
        cells[f'{mode}, b{batch}'] = {
            name: {
                'macs': macs_of(timm.create_model(name, device='meta'), batch),
                'seconds': seconds[name],
            }
            for name in NAMES
        }
    script.save(cells)
    print(report_table(cells))


if __name__ == '__main__':
    main()
