"""Measure the effective receptive field of a Res2Net and of its ResNet.

    python -m benchmarks.receptive_field

The paper claims larger receptive fields (arXiv:1904.01169, section 3.1). The field is the gradient
of the center unit of stage 3 (stride 16), summed over its channels, with respect to the image: its
absolute value, summed over colors and averaged over images (arXiv:1701.04128). The half-width is
half the side of the centered square that contains a share of the field, in pixels.

Weights are random, because no trained weights are in the package: He initialization, the last
BatchNorm of a block at 1 (at 0, as training starts, a block is its shortcut), and BatchNorm
statistics from images of noise. Each seed gives other weights and images, the same for all
networks. Figures are medians over seeds, with bootstrapped 95 % intervals; ratios are taken seed by
seed.
"""

from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.export.measure import interval, ratio
from timm_res2net.layers.text import table

from .script import Script

BASE = 'resnet50'
NAMES = (BASE, 'res2net50_26w_4s', 'res2net50_14w_8s', 'res2net50_48w_2s')
SHARES = (0.5, 0.9)
STAGE = 3
SIZE = 512  # px: more than twice the widest square found
IMAGES = 2  # a seed


def _network(name: str, seed: int, size: int) -> Any:
    torch.manual_seed(seed)
    body: Any = timm.create_model(
        name, features_only=True, out_indices=(STAGE,), zero_init_last=False
    )
    norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain averages
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        body.train()(torch.randn(2, 3, size, size, generator=generator))
    return body.eval()


def field(name: str, seed: int, images: int = IMAGES, size: int = SIZE) -> np.ndarray:
    """Return the absolute value of the gradient at every pixel, (size, size), with a sum of 1."""
    body = _network(name, seed, size)
    generator = torch.Generator().manual_seed(1000 + seed)
    total = torch.zeros(size, size)
    for _ in range(images):
        x = torch.randn(1, 3, size, size, generator=generator).requires_grad_()
        (out,) = body(x)
        center = out.shape[2] // 2
        (gradient,) = torch.autograd.grad(out[0, :, center, center].sum(), x)
        total += gradient[0].abs().sum(0)
    return (total / total.sum()).numpy()


def half_width(weight: np.ndarray, share: float) -> float:
    """Return half the side of the square that contains a share of a field, in pixels.

    The square is centered on the field's center of mass.

    Args:
        weight: (H, W), not negative, with a sum of 1.
        share: From 0 to 1.
    """
    rows, columns = np.indices(weight.shape)
    row, column = (weight * rows).sum(), (weight * columns).sum()
    # a pixel is inside every square whose half side is at least its longer distance
    distance = np.maximum(abs(rows - row), abs(columns - column)).ravel()
    order = distance.argsort(kind='stable')
    inside = weight.ravel()[order].cumsum()
    return float(distance[order][min(np.searchsorted(inside, share), len(inside) - 1)])


def report_table(report: dict[str, Any]) -> str:
    """Return the results as a table."""
    rows = []
    for name, cell in report['networks'].items():
        row = [name]
        for share in SHARES:
            middle, low, high = cell[f'half_width_{share:.0%}']
            row += [f'{middle:.1f} px [{low:.1f}, {high:.1f}]']
            row += ['× {:.2f} [{:.2f}, {:.2f}]'.format(*cell[f'ratio_{share:.0%}'])]
        rows.append(row)
    header = ['network']
    for share in SHARES:
        header += [f'half-width, {share:.0%} of the gradient', f'of {BASE}']
    return table(header, rows)


def sentence(report: dict[str, Any]) -> str:
    """Return the main figures in one sentence."""
    share = f'{SHARES[1]:.0%}'
    ours, theirs = (
        report['networks'][name][f'half_width_{share}'] for name in ('res2net50_26w_4s', BASE)
    )
    middle, low, high = report['networks']['res2net50_26w_4s'][f'ratio_{share}']
    return (
        f'Half the side of the square that contains {share} of the gradient is {ours[0]:.0f} px in '
        f'res2net50_26w_4s and {theirs[0]:.0f} px in {BASE} '
        f'(× {middle:.2f} [{low:.2f}, {high:.2f}]).'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('receptive_field', __doc__)
    add = script.parser.add_argument
    add('--seeds', type=int, default=6, help='draws of weights (default: %(default)s)')
    args = script.parse(argv)
    fields = {name: [field(name, seed) for seed in range(args.seeds)] for name in NAMES}
    cells: dict[str, dict[str, list[float]]] = {name: {} for name in NAMES}
    for share in SHARES:
        widths = {
            name: [half_width(weight, share) for weight in weights]
            for name, weights in fields.items()
        }
        for name, values in widths.items():
            width = (median(values), *interval(values))
            cells[name] |= {
                f'half_width_{share:.0%}': [round(value, 3) for value in width],
                f'ratio_{share:.0%}': [round(value, 3) for value in ratio(values, widths[BASE])],
                f'samples_{share:.0%}': [round(value, 2) for value in values],
            }
    sizes = {'stage': STAGE, 'size': SIZE, 'seeds': args.seeds, 'images': IMAGES}
    report = {**sizes, 'networks': cells}
    print(report_table(report))
    script.save(report)


if __name__ == '__main__':
    main()
