"""`export`, `measure`: a model for other runtimes, and the time of each form."""

from pathlib import Path
from typing import Any

from ..export import FORMATS, LEAST, MAX_IMAGES, export_model
from ..export.measure import CONTROL, Comparison, compare_forms
from .frame import EXIT_UNUSABLE, add_command, print_json, print_table
from .options import add_options, positive_int


def _export(target: str, out: Path, json: bool = False, **options: Any) -> int:
    """Write a model for another runtime, and check the file by running it.

    timm-res2net export res2net50_se --out res2net50_se.onnx
    timm-res2net export res2net50_se --out res2net50_se.xml
    timm-res2net export my_res2net --features --out features.onnx
    timm-res2net export me/my_res2net --deploy --out my_res2net.pt2
    timm-res2net export res2net50_se --format aoti --static --out compiled.pt2
    timm-res2net export my_res2net --int8 photos --out my_res2net.xml
    """
    done = export_model(target, out, **options)
    if json:
        print_json(done)
        return 0
    print(
        f'Written to {done.path}: image -> {", ".join(done.outputs)}; takes {done.sizes}.\n'
        f"Run and compared: the outputs differ from the model's by at most {done.error:.1e} of the "
        'largest.'
    )
    if int8 := done.int8:
        errors = ', '.join(f'{100 * error:.1f} % ({name})' for name, error in int8.errors.items())
        kept = f'{100 * int8.agreement:.1f} % of the answers stay, and ' * ('logits' in int8.errors)
        sizes = ', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in int8.bytes.items())
        print(
            f'Quantized to int8 with {int8.calibrated} images. On {int8.compared} others {kept}the '
            f'outputs are off by {errors}.\n'
            f'{sizes}; × {int8.time_ratio:.2f} of the time of float32 in {int8.runtime} here.'
        )
    if FORMATS[done.format].note:
        print(FORMATS[done.format].note)
    return 0


def _measure(target: str, all: bool = False, json: bool = False, **options: Any) -> int:
    """Time a model in every form that this machine can run; its weights do not matter.

    timm-res2net measure res2net50_se
    timm-res2net measure my_res2net --batch-size 8 --img-size 320
    timm-res2net measure res2net50_se --all --json
    """
    compared = compare_forms(target, slow=all, **options)
    if json:
        print_json({**compared._asdict(), 'usable': compared.usable})
    else:
        rows = [
            (
                one.form,
                f'{one.milliseconds:.2f}',
                f'× {one.ratio}',
                '' if one.bytes is None else f'{one.bytes / 1e6:.1f}',
            )
            for one in compared.timings
        ]
        print_table(('form', 'ms', 'time over eager', 'file in MB'), rows)
        for form, reason in compared.left_out.items():
            print(f'Not timed: {form} ({reason}).')
        _print_verdict(compared)
    return 0 if compared.usable else EXIT_UNUSABLE


def _print_verdict(compared: Comparison) -> None:
    if not compared.usable:
        print(
            f'These times cannot be used: a second copy of the model took × {compared.control} of '
            f'the time of the first, and it must be within {CONTROL:.0%} of 1. Close other '
            'programs, and run this again.'
        )
        return
    forms = [one.form for one in compared.timings]
    exact = next(form for form in forms if 'int8' not in form and 'bfloat16' not in form)
    print(f'The fastest form here is {forms[0]}.')
    if exact != forms[0]:
        print(
            'It changes the outputs. `timm-res2net export --int8 FOLDER` measures how much, for '
            f'int8. In float32 the fastest is {exact}.'
        )


def add(commands: Any) -> None:
    """Add the commands `export` and `measure`."""
    parser = add_command(commands, _export)
    add_options(parser, 'target', '--random')
    add_options(parser, '--out', help='file to write')
    formats = ', '.join(f'{name} ({kind.help})' for name, kind in FORMATS.items())
    parser.add_argument(
        '--format', choices=FORMATS, help=f'{formats} (default: by the suffix of the file)'
    )
    parser.add_argument(
        '--features', action='store_true', help='export the levels of strides 4 to 32, not logits'
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='export the deployed model, with BatchNorms folded (in an HRNet, of bottlenecks)',
    )
    parser.add_argument('--static', action='store_true', help='fix batch and image size')
    add_options(parser, '--img-size', '--batch-size')
    parser.add_argument(
        '--int8',
        type=Path,
        metavar='FOLDER',
        help='quantize to int8 (openvino, onnx) with images like those that the model will see: '
        'half of them calibrate, the others compare the file with float32',
    )
    parser.add_argument(
        '--max-images',
        type=positive_int,
        metavar='N',
        help=f'the most images of --int8 that are used (default: {MAX_IMAGES})',
    )
    parser.add_argument(
        '--min-agreement',
        type=float,
        metavar='SHARE',
        help='write nothing if a smaller share of images keeps its top-1 answer in int8 (default: '
        f'{LEAST["logits"]}); with --features, 1 minus the largest error of a level (default: '
        f'{LEAST["features"]})',
    )
    add_options(parser, '--json', '--debug')
    parser = add_command(commands, _measure)
    add_options(parser, 'target', '--batch-size', '--img-size')
    parser.add_argument('--threads', type=positive_int, help="threads (default: torch's)")
    parser.add_argument(
        '--seconds', type=float, help='how long to time, once the forms are made (default: 30)'
    )
    parser.add_argument(
        '--all', action='store_true', help='also time the forms that take minutes to make'
    )
    add_options(parser, '--json', '--debug')
