"""`export`: a model for another runtime."""

import argparse
import json
from pathlib import Path

from ..export import FORMATS, export_model
from .frame import Verbs
from .options import add_json, add_random


def _export(args: argparse.Namespace) -> int:
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
    )
    if args.json:
        print(json.dumps({**done._asdict(), 'path': str(done.path)}, indent=2))
        return 0
    print(
        f'Written to {done.path}: image -> {", ".join(done.outputs)}; takes {done.sizes}.\n'
        f"Run and compared: the outputs differ from the model's by at most {done.error:.1e} of the "
        'largest.'
    )
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
    add_json(parser)
