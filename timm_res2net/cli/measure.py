"""`measure`: which form of a model is fastest on this machine."""

import argparse
import json

from ..export.measure import (
    CONTROL,
    Comparison,
    Timing,
    compare_forms,
)
from ..layers.text import table
from .frame import EXIT_UNUSABLE, Verbs, columns
from .options import add_json

_INT8 = {'OpenVINO, int8': '.xml', 'ONNX Runtime, int8': '.onnx'}  # what `export` can write


def _measure(args: argparse.Namespace) -> int:
    found = compare_forms(
        args.model,
        batch_size=args.batch_size,
        img_size=args.img_size,
        slow=args.all,
        seconds=args.seconds,
        threads=args.threads,
    )
    if args.json:
        print(json.dumps(_as_json(found), indent=2))
    else:
        rows = [
            (one.form, f'{one.milliseconds:.2f}', f'× {one.ratio}', _megabytes(one.bytes))
            for one in found.timings
        ]
        print(table(('form', 'ms', 'time over eager', 'file in MB'), rows, columns()))
        for form, reason in found.left_out.items():
            print(f'Not timed: {form} ({reason}).')
        print(_answer(found, args.model))
    return 0 if found.usable else EXIT_UNUSABLE


def _as_json(found: Comparison) -> dict[str, object]:
    timings = [{**one._asdict(), 'ratio': one.ratio._asdict()} for one in found.timings]
    return {
        'timings': timings,
        'control': found.control._asdict(),
        'usable': found.usable,
        'left_out': dict(found.left_out),
    }


def _megabytes(size: int | None) -> str:
    return '' if size is None else f'{size / 1e6:.1f}'


def _answer(found: Comparison, model: str) -> str:
    """Return what the figures say, in a sentence or two."""
    if not found.usable:
        return (
            f'These times cannot be used: a second copy of the model took × {found.control} of the '
            f'time of the first, and it must be within {CONTROL:.0%} of 1. Close other programs, '
            'and run this again.'
        )
    fastest, *others = found.timings
    said = f'The fastest here is {_name(fastest)}.'
    if _is_float32(fastest):
        return said
    exact = next(filter(_is_float32, others))
    said = f'{said} It changes the outputs.'
    suffix = _INT8.get(fastest.form)
    if suffix:
        said = (
            f'{said} `timm-res2net export {model} --int8 --calibrate FOLDER --out FILE{suffix}` '
            'measures by how much on your images.'
        )
    return f'{said} In float32 the fastest is {_name(exact)}.'


def _is_float32(one: Timing) -> bool:
    return 'int8' not in one.form and 'bfloat16' not in one.form


def _name(one: Timing) -> str:
    return f'{one.form}, with × {one.ratio} of the time of the model in eager mode'


def add(verbs: Verbs) -> None:
    """Add the verb `measure`."""
    parser = verbs.add(
        'measure',
        _measure,
        'time a model in every form that this machine can run',
        'timm-res2net measure res2net50_se',
        'timm-res2net measure my_res2net --batch-size 8 --img-size 320',
        'timm-res2net measure res2net50_se --all --json',
    )
    parser.add_argument(
        'model',
        metavar='MODEL',
        help='registered name, folder, or OWNER/NAME; weights do not matter',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        metavar='N',
        help='images in a call (default: %(default)s)',
    )
    parser.add_argument(
        '--img-size', type=int, metavar='PX', help="side of the images (default: the model's)"
    )
    parser.add_argument('--threads', type=int, metavar='N', help="threads (default: torch's)")
    parser.add_argument(
        '--seconds',
        type=float,
        default=30.0,
        metavar='N',
        help='how long to time; making the forms comes before (default: %(default)g)',
    )
    parser.add_argument(
        '--all', action='store_true', help='also time the forms that take minutes to make'
    )
    add_json(parser)
