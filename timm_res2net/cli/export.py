"""`export`: a model for another runtime."""

import argparse
import json
from pathlib import Path

from ..export import (
    FORMATS,
    LEAST,
    MAX_IMAGES,
    Int8,
    export_model,
)
from .frame import Verbs
from .options import add_json, add_random


def _check_int8(args: argparse.Namespace) -> None:
    if args.int8 and args.calibrate is None:
        raise ValueError('--int8 needs images to quantize with. Name a folder: --calibrate FOLDER.')
    if not args.int8:
        for option in ('calibrate', 'max_images', 'min_agreement'):
            if getattr(args, option) is not None:
                name = option.replace('_', '-')
                raise ValueError(f'--{name} is for int8. Add --int8, or leave --{name} out.')


_RUNTIMES = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}


def _describe(found: Int8, out: Path) -> str:
    """Return what int8 loses and gains, in words."""
    errors = ', '.join(f'{100 * error:.1f} % ({name})' for name, error in found.errors.items())
    kept = (
        f'{100 * found.agreement:.1f} % of {found.compared} images keep their top-1 answer; '
        if list(found.errors) == ['logits']
        else ''
    )
    forms = ', '.join(
        f'{name} {found.bytes[name] / 1e6:.1f} MB and {1e3 * found.seconds[name]:.2f} ms'
        for name in found.bytes
    )
    return (
        f'Quantized to int8 with {found.calibrated} images, compared with {found.compared} others: '
        f'{kept}the outputs are off by {errors}.\n'
        f'In {_RUNTIMES[found.runtime]} on this machine: {forms}, × {found.time_ratio:.2f} of the '
        f'time. Also in {out.with_suffix(".json")}.'
    )


def _export(args: argparse.Namespace) -> int:
    _check_int8(args)
    done = export_model(
        args.model,
        args.out,
        args.format,
        features=args.features,
        deploy=args.deploy,
        static=args.static,
        img_size=args.img_size,
        batch_size=args.batch_size,
        pretrained=not args.random,
        int8=args.calibrate,
        max_images=MAX_IMAGES if args.max_images is None else args.max_images,
        min_agreement=args.min_agreement,
    )
    if args.json:
        int8 = done.int8 and done.int8._asdict()
        print(json.dumps({**done._asdict(), 'path': str(done.path), 'int8': int8}, indent=2))
        return 0
    print(
        f'Written to {done.path}: image -> {", ".join(done.outputs)}; takes {done.sizes}.\n'
        f"Run and compared: the outputs differ from the model's by at most {done.error:.1e} of the "
        'largest.'
    )
    if done.int8:
        print(_describe(done.int8, done.path))
    if FORMATS[done.format].note:
        print(FORMATS[done.format].note)
    return 0


def add(verbs: Verbs) -> None:
    """Add the verb `export`."""
    parser = verbs.add(
        'export',
        _export,
        'write a model for another runtime, and check the file by running it',
        'timm-res2net export res2net50_se --out res2net50_se.onnx',
        'timm-res2net export res2net50_se --out res2net50_se.xml',
        'timm-res2net export my_res2net --features --out features.onnx',
        'timm-res2net export me/my_res2net --deploy --out my_res2net.pt2',
        'timm-res2net export res2net50_se --format aoti --static --out compiled.pt2',
        'timm-res2net export my_res2net --int8 --calibrate photos --out my_res2net.xml',
    )
    add_random(parser)
    formats = ', '.join(f'{name} ({kind.help})' for name, kind in FORMATS.items())
    parser.add_argument(
        '--format', choices=FORMATS, help=f'{formats} (default: by the suffix of the file)'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='file to write')
    parser.add_argument(
        '--features',
        action='store_true',
        help='export the feature levels of strides 4 to 32 instead of logits',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='export the deployed model, with BatchNorms folded (in an HRNet only those of its '
        'bottlenecks)',
    )
    parser.add_argument('--static', action='store_true', help='fix batch and image size')
    parser.add_argument(
        '--img-size', type=int, metavar='PX', help="side of the image (default: the model's)"
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, metavar='N', help='images (default: %(default)s)'
    )
    parser.add_argument(
        '--int8',
        action='store_true',
        help='quantize to int8 (openvino, onnx), and compare the file with float32',
    )
    parser.add_argument(
        '--calibrate',
        type=Path,
        metavar='FOLDER',
        help='images for --int8, like those that the model will see: half of them calibrate, the '
        'others compare',
    )
    parser.add_argument(
        '--max-images',
        type=int,
        metavar='N',
        help=f'the most images of --calibrate that are used (default: {MAX_IMAGES})',
    )
    parser.add_argument(
        '--min-agreement',
        type=float,
        metavar='SHARE',
        help='write nothing if a smaller share of images keeps its top-1 answer in int8 (default: '
        f'{LEAST["logits"]}); with --features, 1 minus the largest error of a level (default: '
        f'{LEAST["features"]})',
    )
    add_json(parser)
