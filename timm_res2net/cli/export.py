"""`export`, `measure`, `run`: other runtimes, the time of each form, and scripts of the user."""

import argparse
import itertools
import os
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import is_img_extension

from ..convert import FILES
from ..export import FORMATS, MAX_IMAGES, export_model
from ..export.int8 import LARGEST_ERROR, LEAST
from ..export.measure import CONTROL, SPREAD, Comparison, compare_forms
from ..folder.target import find_target
from .folders import read_label_names
from .frame import (
    EXIT_ERROR,
    EXIT_UNUSABLE,
    Done,
    add_command,
    add_options,
    fitting_table,
    positive_int,
)


def _export(
    target: str,
    out: Path,
    label_names: Path | None = None,
    label_order: str | None = None,
    **options: Any,
) -> Done:
    """Write a model for another runtime, and check the file by running it.

    timm-res2net export res2net50_se --out res2net50_se.onnx
    timm-res2net export res2net50_se --out res2net50_se.xml
    timm-res2net export my_res2net --features --out features.onnx
    timm-res2net export me/my_res2net --deploy --out my_res2net.pt2
    timm-res2net export res2net50_se --format aoti --static --out compiled.pt2
    timm-res2net export my_res2net --int8 photos --out my_res2net.xml
    """
    names = read_label_names(label_names, label_order, target)
    done = export_model(target, out, label_names=names, **options)
    lines = [
        f'Written to {done.path}: image -> {", ".join(done.outputs)}; takes {done.sizes}.',
        f'Verified by running {"the float32 file" if done.int8 else "it"}: the outputs match the '
        f"model's to within {done.error:.1e} of the largest.",
    ]
    if int8 := done.int8:
        errors = ', '.join(f'{100 * error:.1f} % ({name})' for name, error in int8.errors.items())
        kept = f'{100 * int8.agreement:.1f} % of the answers stay; ' * ('logits' in int8.errors)
        sizes = ', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in int8.bytes.items())
        lines += [
            f'Quantized to int8 with {int8.calibrated} images. On {int8.compared} other images, '
            f'{kept}the outputs of the int8 file differ from float32 by {errors}.',
            f'{sizes}; × {int8.time_ratio:.2f} of the time of float32 in {int8.runtime} here.',
        ]
    if note := FORMATS[done.format].note:
        lines.append(note)
    return Done(done, '\n'.join(lines))


def _measure(target: Sequence[str], slow: bool = False, **options: Any) -> Done:
    """Time models in every form that this machine can run; their weights do not matter.

    timm-res2net measure res2net50_se
    timm-res2net measure res2net50_26w_4s res2net50_14w_8s
    timm-res2net measure my_res2net --batch-size 8 --img-size 320
    timm-res2net measure res2net50_se --all --json
    """
    # first, because an unknown name must not end minutes of timing
    top1 = {name: _top1(name) for name in target}
    compared = {name: compare_forms(name, slow=slow, **options) for name in target}
    objects = [
        {'model': name, 'top1': top1[name], **one._asdict(), 'usable': one.usable}
        for name, one in compared.items()
    ]
    rows = [
        (
            name,
            f'{top1[name] or ""}',
            timing.form,
            f'{timing.milliseconds:.2f}',
            f'× {timing.ratio}',
            '' if timing.bytes is None else f'{timing.bytes / 1e6:.1f}',
        )
        for name, one in compared.items()
        for timing in one.timings
    ]
    header = ('model', 'top-1', 'form', 'ms', 'time over eager', 'file in MB')
    verdicts = [line for name, one in compared.items() for line in _verdict(name, one)]
    code = 0 if all(one.usable for one in compared.values()) else EXIT_UNUSABLE
    value = objects if len(objects) > 1 else objects[0]
    return Done(value, '\n'.join([fitting_table(header, rows), *verdicts]), code)


def _top1(target: str) -> float | None:
    """Return the published accuracy of a registered name in percent, None without one."""
    named = find_target(target)
    if named.kind != 'name':
        return None
    name = f'{named.architecture}.{named.cfg.tag}'
    files = (file for file in FILES if name in file.tags or file.file == f'timm/{name}')
    return next((file.top1 for file in files), None)


def _verdict(target: str, compared: Comparison) -> Iterator[str]:
    for form, reason in compared.left_out.items():
        yield f'Not timed: {form} of {target} ({reason}).'
    if not compared.usable:
        yield (
            f'The times of {target} cannot be used: a second copy took × {compared.control} of the '
            f'time of the first, which must be within {CONTROL:.0%} of 1, or the interval of the '
            f'fastest form is wider than {SPREAD:.0%}. Close other programs, and run this again.'
        )
        return
    yield f'For {target}, {_in_words(compared.fastest())} of the forms timed.'
    if compared.fastest() != compared.fastest(exact=True):
        yield (
            'int8 and bfloat16 change the outputs; `timm-res2net export --int8 FOLDER` measures '
            f'how much, for int8. In float32, {_in_words(compared.fastest(exact=True))}.'
        )


def _in_words(forms: Sequence[str]) -> str:
    if len(forms) == 1:
        return f'{forms[0]} is the fastest'
    return f'{" and ".join(forms)} (whose intervals overlap) are the fastest'


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
    parser.add_argument(
        '--with-preparation',
        action='store_true',
        help='the file takes pixels as uint8 (B, H, W, C), normalizes them itself, and returns '
        'probabilities; images are resized and cropped before',
    )
    add_options(
        parser, '--img-size', '--batch-size', '--mean', '--std', '--crop-pct', '--interpolation',
        '--label-names', '--label-order',
    )  # fmt: skip
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
    parser.add_argument(
        '--accept-loss',
        action='store_true',
        help=f'write an int8 file whose logits are off by more than {100 * LARGEST_ERROR:.0f} %%, '
        'or that was compared with images of a single answer',
    )
    add_options(parser, '--json', '--debug')
    parser = add_command(commands, _measure)
    add_options(parser, 'target', nargs='+')
    add_options(parser, '--batch-size', '--img-size')
    parser.add_argument('--threads', type=positive_int, help="threads (default: torch's)")
    parser.add_argument(
        '--seconds', type=float, help='how long to time, once the forms are made (default: 30)'
    )
    parser.add_argument(
        '--all',
        dest='slow',
        action='store_true',
        help='also time the forms that take minutes to make',
    )
    add_options(parser, '--json', '--debug')


# --- scripts --------------------------------------------------------------------------------------

# Scripts of timm's repository that create models by name
_TIMMS = ('train.py', 'validate.py', 'inference.py', 'benchmark.py', 'onnx_export.py')
_ADDRESS = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models'


def run(script: str, arguments: list[str]) -> int:
    """Register the models, then run a script unchanged, such as timm's train.py.

    timm-res2net run train.py DATA --model res2net50_se --pretrained --num-classes 5
    timm-res2net run train.py DATA --model res2net50_se --device cpu
    torchrun --nproc-per-node 4 -m timm_res2net run train.py DATA --model res2net50_se
    """
    # the script's exit code passes as SystemExit, and its errors with their tracebacks
    if not Path(script).is_file():
        remedy = 'Give the path of a Python file.'
        if Path(script).name in _TIMMS:
            tag = 'main' if 'dev' in timm.__version__ else f'v{timm.__version__}'
            remedy = (
                f"timm's packages do not contain {Path(script).name}. Get the one of timm "
                f'{timm.__version__}, the installed version: curl -fLo {shlex.quote(script)} '
                f'{_ADDRESS}/{tag}/{Path(script).name}'
            )
        print(f"timm-res2net run: There is no script '{script}'. {remedy}", file=sys.stderr)
        return EXIT_ERROR
    if Path(script).name == 'train.py' and (reason := _trains_nothing(arguments)):
        print(f'timm-res2net run: {reason}', file=sys.stderr)
        return EXIT_ERROR
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name='__main__')
    return 0


def _trains_nothing(arguments: list[str]) -> str:
    """Return why timm's train.py would train nothing with these arguments, or ''.

    It leaves out a batch that is not full. Data sets other than folders are not counted.
    """
    parser = argparse.ArgumentParser('train.py', add_help=False, allow_abbrev=False)
    parser.add_argument('data', nargs='?', default='')
    parser.add_argument('--data-dir', default='')
    parser.add_argument('--dataset', default='')
    parser.add_argument('--config', '-c', default='')
    parser.add_argument('--train-split', default='train')
    parser.add_argument('--batch-size', '-b', type=int, default=128)
    known, _ = parser.parse_known_args(arguments)
    folder = Path(known.data_dir or known.data, known.train_split)
    if known.dataset or known.config or not folder.is_dir():
        return ''
    needed = known.batch_size * int(os.environ.get('WORLD_SIZE', 1))
    names = (name for *_, names in os.walk(folder, followlinks=True) for name in names)
    images = (name for name in names if is_img_extension(Path(name).suffix.lower()))
    count = sum(1 for _ in itertools.islice(images, needed))
    if count == needed:
        return ''
    return (
        f'{folder} has {count} images, fewer than the {needed} of a batch, and train.py trains '
        'only on full batches. Give it a smaller --batch-size, such as --batch-size '
        f'{max(1, min(32, count // 4))}.'
    )


def add_run(commands: Any) -> None:
    """Add the command `run`."""
    parser = add_command(commands, run)
    parser.add_argument('script', help='Python file to run')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of the script')
