"""Measure what the deploy form gains for inputs whose size changes from call to call.

    python -m benchmarks.changing_sizes

Each call of the deployed res2net50_26w_4s is compared with a call of the plain model on an image of
the same size: float32, contiguous, one thread, CPU time. The calls follow each other in random
order. A second copy of the plain model is the control. If no size comes again, oneDNN makes kernels
for every input, and the first model on a size would make them for the next one. So each model
starts a quarter of the list after the one before. When it reaches a size, oneDNN's cache of 1024
kernels has dropped those of the others, if there are about as many calls as by default. The memory
of the packed weights is compared with that of the weights of the convolutions.
"""

import copy
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

from timm_res2net import reparameterize_model
from timm_res2net.export.measure import interval
from timm_res2net.layers.fused_conv import FusedConv2d
from timm_res2net.layers.text import table

from .script import Script
from .suite.answer import CONTROL

MODEL = 'res2net50_26w_4s'
SIX = ((160, 224), (224, 224), (256, 256), (224, 320), (288, 288), (256, 320))
SIDES = range(192, 352)
NEW = 'sizes that do not come again'
Shape = tuple[int, int, int, int]
Step = Callable[[torch.Tensor], object]


def cases(calls: int) -> dict[str, list[Shape]]:
    """Return the shapes of the inputs of each case, in order."""
    draw = random.Random(0)
    return {
        'one size': [(1, 3, 224, 224)] * calls,
        'six sizes in turn': [(1, 3, *SIX[i % 6]) for i in range(calls)],
        'batches of 1 and 4 in turn': [((1, 4)[i % 2], 3, 224, 224) for i in range(calls)],
        NEW: [
            (1, 3, *size)
            for size in zip(draw.sample(SIDES, calls), draw.sample(SIDES, calls), strict=True)
        ],
    }


def seconds(model: Step, x: torch.Tensor) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    model(x)
    return time.process_time() - start


def compare(
    models: dict[str, Step], shapes: list[Shape], warm: int, apart: bool = False
) -> dict[str, Any]:
    """Time models on inputs of these shapes and return the ratios to the first one's time.

    Args:
        models: The models by role; the first one is the baseline.
        shapes: Shape of each input.
        warm: Number of inputs at the beginning that do not count.
        apart: Whether each model starts at another place of the list and wraps around. Then every
            input has to count.
    """
    draw = random.Random(1)
    step = len(shapes) // len(models) if apart else 0
    starts = {role: i * step for i, role in enumerate(models)}
    samples: dict[str, dict[int, float]] = {role: {} for role in models}
    with torch.inference_mode():
        for i in range(len(shapes)):
            for role in draw.sample(list(models), len(models)):
                place = (i + starts[role]) % len(shapes)
                samples[role][place] = seconds(models[role], torch.randn(shapes[place]))
    base, *others = models
    counted = range(warm, len(shapes))
    found = {}
    for role in others:
        ratios = [samples[role][i] / samples[base][i] for i in counted]
        low, high = interval(ratios)
        found[role] = [round(value, 3) for value in (median(ratios), low, high)]
    taken = median(samples[base][i] for i in counted)
    return {'milliseconds': round(1000 * taken, 2), 'ratios': found}


def memory(model: nn.Module) -> float:
    """Return the size of the packed weights over that of the weights."""
    fused = [module for module in model.modules() if isinstance(module, FusedConv2d)]
    weights = sum(module.weight.numel() for module in fused)
    packed = sum(len(m._packs.of_layout) * m.weight.numel() for m in fused if m._packs is not None)
    return round(packed / weights, 3)


def usable(cell: dict[str, Any]) -> bool:
    """Return whether the control is within `CONTROL` of 1."""
    return abs(cell['ratios']['control'][0] - 1) <= CONTROL


def report_table(report: dict[str, Any]) -> str:
    """Return the results as a table, without figures whose control is out of its band."""
    rows = []
    for case, cell in report['cases'].items():
        ratio = '× {:.2f} [{:.2f}, {:.2f}]'.format(*cell['ratios']['deployed'])
        control = '{:.2f}'.format(cell['ratios']['control'][0])
        shown = ratio if usable(cell) else 'unusable'
        rows.append((case, shown, f'× {cell["memory"]:.2f}', control))
    header = ('inputs', 'time', 'memory of the packs', 'control')
    return table(header, rows)


def sentence(report: dict[str, Any]) -> str:
    """Return the main figures in one sentence."""
    times = [
        f'× {cell["ratios"]["deployed"][0]:.2f} for {case}'
        if usable(cell)
        else f'no figure for {case}, because the control was out of its band'
        for case, cell in report['cases'].items()
    ]
    return (
        f'Time of the deployed {report["model"]} over that of the plain model, float32, one '
        f'thread: {"; ".join(times)}.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('changing_sizes', __doc__)
    add = script.parser.add_argument
    add('--calls', type=int, default=48, help='calls of each case, 4 to 160 (default: %(default)s)')
    add('--model', default=MODEL, help='model (default: %(default)s)')
    args = script.parse(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain: Any = timm.create_model(args.model).eval()
    cells = {}
    for case, shapes in cases(args.calls).items():
        deployed = reparameterize_model(plain)
        models = {'plain': plain, 'control': copy.deepcopy(plain), 'deployed': deployed}
        new = case == NEW  # every call is the first of its size, so that none warms up
        cells[case] = compare(models, shapes, 0 if new else args.calls // 4, apart=new)
        cells[case]['memory'] = memory(deployed)
    report = {'model': args.model, 'cases': cells}
    print(report_table(report))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
