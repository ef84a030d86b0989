"""Measure the models of the README's table, and draw its picture.

    python -m benchmarks.readme

The table has the time of the deployed model for one image of 224 px: CPU time of one thread, random
weights (which change no time). The picture shows, left, a detail of `timm_res2net.show`: a digit
that the embedded model was not trained on, and the splits of a block, each of which sees more of
the image than the one before it. Right, the times of forms.json at batch 1.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import timm
import torch

from timm_res2net import reparameterize_model
from timm_res2net.convert import COUNTS, file_of
from timm_res2net.drawing import activations, enlarged
from timm_res2net.files import write_file
from timm_res2net.layers.text import table
from timm_res2net.prediction import Images

from .script import Script, load

NAME = 'test_res2net_se'
MODELS = ('resnet50', 'res2net50_26w_4s')
TAGS = (
    'res2net50_vd_26w_4s.ssld_in1k', 'res2net101_vd_26w_4s.ssld_in1k',
    'res2net200_vd_26w_4s.ssld_in1k', 'res2net50_pd_14w_8s.in1k',
    'res2net50_se.se_identity_mindcv_in1k', 'res2net101d_ms_26w_4s.in1k',
    'res2net50_26w_8s_se.se_identity_in1k', 'res2next50_se.se_identity_in1k',
)  # fmt: skip
"""Models of the README's table."""
FORMS = {
    'eager': 'eager',
    'deployed': 'deployed',
    'OpenVINO, float32': 'OpenVINO',
    'OpenVINO, int8': 'OpenVINO, int8',
}
"""Forms of forms.json and their names in the picture."""


def measure(tag: str, seconds: float) -> float:
    """Return the median milliseconds of CPU time that a deployed model takes for one image."""
    model = reparameterize_model(timm.create_model(tag.partition('.')[0]).eval())
    image = torch.randn(1, 3, 224, 224)
    taken: list[float] = []
    with torch.inference_mode():
        while len(taken) < 13 or sum(taken) < seconds:
            start = time.process_time()
            model(image)
            taken.append(time.process_time() - start)
    return 1000 * median(taken[3:])  # the first calls pack weights


def models_table(milliseconds: dict[str, float]) -> str:
    """Return the README's table: published accuracies and licenses, counts, and measured times."""
    rows = []
    for tag in TAGS:
        file, counted = file_of(tag), COUNTS[tag.partition('.')[0]]
        assert file is not None and file.top1 is not None
        rows.append((
            f'`{tag}`', f'{file.top1:.2f}', f'{counted.params / 1e6:.1f}', f'{counted.gmacs:.1f}',
            f'{milliseconds[tag]:.0f}', file.license,
        ))  # fmt: skip
    return table(('model', 'top-1', 'M', 'GMACs', 'ms', 'license'), rows)


def draw_splits(figure: Any) -> None:
    """Draw a digit and the splits of a block in two rows of a figure of matplotlib."""
    model = timm.create_model(NAME, pretrained=True).eval()
    image = Images(model).load(None)
    name, splits = activations(model, image[None]).splits
    pixels = image.mean(0)
    figure.suptitle(f'{len(splits)} splits of a block ({name}) see more and more', fontsize=13)
    cells = figure.subplots(1, 1 + len(splits))
    cells[0].imshow(pixels, cmap='gray')
    cells[0].set_title('image', fontsize=12)
    for i, (cell, split) in enumerate(zip(cells[1:], splits, strict=True)):
        cell.imshow(enlarged(split.mean(0), pixels))
        side = 2 * i + 3
        cell.set_title('passes' if i == len(splits) - 1 else f'{side} x {side}', fontsize=12)
    for cell in cells:
        cell.axis('off')


def draw_times(figure: Any) -> None:
    """Draw the times of the committed forms as bars."""
    times = {name: load('forms')[name]['batch 1']['milliseconds'] for name in MODELS}
    axes = figure.subplots()
    for i, (name, color) in enumerate(zip(MODELS, ('0.65', 'tab:red'), strict=True)):
        places = [place + 0.4 * i for place in range(len(FORMS))]
        values = [times[name][form] for form in FORMS]
        axes.barh(places, values, 0.38, color=color, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f' {value:.0f}', va='center', fontsize=12)
    axes.set_yticks([place + 0.2 for place in range(len(FORMS))], FORMS.values(), fontsize=13)
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title('ms an image of 224 px, one core (AMD Zen 4)', fontsize=13)
    axes.legend(loc='lower right', fontsize=12, frameon=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the figures and the picture beside them."""
    script = Script('readme', __doc__, 'matplotlib')
    script.parser.add_argument(
        '--seconds', type=float, default=10.0, help='of each model (default: %(default)s)'
    )
    args = script.parse(argv)
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(11, 3.4), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    draw_splits(left)
    draw_times(right)
    picture = script.out.with_suffix('.png')
    write_file(picture, lambda file: figure.savefig(file, format='png', dpi=110))
    torch.set_num_threads(1)
    script.save({tag: measure(tag, args.seconds) for tag in TAGS})


if __name__ == '__main__':
    main()
