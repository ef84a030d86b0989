"""`show`: what a model sees in an image."""

import argparse
import json
from pathlib import Path

from ..drawing import show
from ..layers.text import printable
from .frame import Verbs
from .options import add_json, add_random


def _show(args: argparse.Namespace) -> int:
    done = show(args.model, args.image, args.out, pretrained=not args.random)
    if args.json:
        known = {
            'path': str(done.path),
            'top': [{'class': label, 'probability': share} for label, share in done.top],
            'levels': [
                {'name': name, 'channels': channels, 'height': height, 'width': width}
                for name, channels, height, width in done.levels
            ],
        }
        print(json.dumps(known, indent=2))
        return 0
    if args.random:
        print('With random weights:')
    for label, share in done.top:
        print(f'{100 * share:5.1f} %  {printable(label)}')
    for name, channels, height, width in done.levels:
        print(f'{name:<7} {channels} x {height} x {width}')
    print(f'Picture written to {done.path}')
    return 0


def add(verbs: Verbs) -> None:
    """Add the verb `show`."""
    parser = verbs.add(
        'show',
        _show,
        'draw what a model sees in an image: its levels, a block, the most likely classes',
        'timm-res2net show test_res2net_se --out digit.png',
        'timm-res2net show res2net50_se photo.jpg --out seen.png',
    )
    add_random(parser)
    parser.add_argument(
        'image', metavar='IMAGE', nargs='?', type=Path, help='image (default: a bundled digit)'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='PNG', help='picture to write')
    add_json(parser)
