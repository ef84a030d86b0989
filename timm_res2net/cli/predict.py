"""`predict`: the most probable classes of images."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_model_data_config

from ..folder.checks import check_values
from ..hub.load import load_model
from ..layers.text import printable
from ..prediction import (
    SUFFIXES,
    Prediction,
    digits,
    find_images,
    labels_of,
    predict,
)
from .frame import EXIT_ERROR, Verbs, columns
from .options import add_json, add_random

_DIGITS_MODEL = 'test_res2net_se'
_logger = logging.getLogger(__name__)
_FRAME = len('|  |  | probability |')


def _predict(args: argparse.Namespace) -> int:
    for option, value in (('--top', args.top), ('--batch-size', args.batch_size)):
        if value < 1:
            raise ValueError(f'{option} is {value}. Give a number of at least 1.')
    if args.model is None:
        return _predict_digits(args)
    named = Path(args.model)
    if not args.images and named.suffix.lower() in SUFFIXES and named.is_file():
        raise ValueError(
            f'{named} is an image. Name a model before it: `timm-res2net predict MODEL {named}`.'
        )
    images: Sequence[Path | None] = find_images(args.images) or [None]
    model = load_model(args.model, not args.random).eval()
    check_values(model, f'{args.model} was not run')
    _logger.info('')  # nothing is printed between the rows
    found = predict(model, images, top=args.top, batch_size=args.batch_size)
    found = _with_progress(found, len(images))
    if args.json:
        errors = _print_json(found)
    else:
        paths = [len(str(image)) for image in images]
        errors = _print_table(found, max(paths), max(map(len, labels_of(model))))
    for error in errors:
        print(f'timm-res2net predict: {printable(error)}', file=sys.stderr)
    return EXIT_ERROR if errors else 0


def _predict_digits(args: argparse.Namespace) -> int:
    """Classify the bundled digits, which the model was not trained on."""
    model = load_model(_DIGITS_MODEL, not args.random).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    images = torch.stack([transform(digit.convert('RGB')) for digit in digits()])
    labels = [i % 10 for i in range(len(images))]
    with torch.inference_mode():
        predicted: list[int] = model(images).argmax(1).tolist()
    right = sum(p == label for p, label in zip(predicted, labels, strict=True))
    if args.json:
        print(json.dumps({'label': labels, 'predicted': predicted, 'right': right}, indent=2))
        return 0
    print(f'{_DIGITS_MODEL}, {sum(p.numel() for p in model.parameters()):,} parameters, offline')
    print('label     ' + ' '.join(map(str, labels)))
    print('predicted ' + ' '.join(map(str, predicted)))
    print(f'{right} of {len(labels)} right')
    return 0


def _with_progress(found: Iterator[Prediction], total: int) -> Iterator[Prediction]:
    """Show a progress bar, unless the rows appear on the terminal and are the progress."""
    if total < 10 or sys.stdout.isatty() or not sys.stderr.isatty():
        return found
    from tqdm import tqdm

    return iter(tqdm(found, total=total, unit='image'))


def _print_json(found: Iterator[Prediction]) -> list[str]:
    """Print predictions and return the errors among them."""
    rows = [
        {'image': one.image, 'error': one.error}
        if one.error
        else {
            'image': one.image,
            'top': [{'class': label, 'probability': share} for label, share in one.top],
        }
        for one in found
    ]
    print(json.dumps(rows, indent=2))
    return [str(row['error']) for row in rows if 'error' in row]


def _print_table(found: Iterator[Prediction], path: int, label: int) -> list[str]:
    """Print predictions as they come, and return the errors among them.

    Args:
        found: The predictions.
        path: Length of the longest path.
        label: Length of the longest label.
    """
    label = max(label, len('class'))
    path = max(path, len('bundled digit'))
    width = columns()
    if width is not None:
        free = width - _FRAME
        path = min(path, max(free - label, free // 2))
        label = min(label, free - path)

    def line(image: str, name: str, share: str) -> str:
        image, name = printable(image), printable(name)
        image = image if len(image) <= path else f'...{image[3 - path :]}'
        name = name if len(name) <= label else f'{name[: label - 3]}...'
        return f'| {image:<{path}} | {name:<{label}} | {share:>11} |'

    errors = []
    print(line('image', 'class', 'probability'))
    print(line('-' * path, '-' * label, '-' * 11))
    for one in found:
        if one.error:
            errors.append(one.error)
        for i, (name, share) in enumerate(one.top):
            print(line('' if i else one.image, name, f'{100 * share:.1f} %'), flush=True)
    return errors


def add(verbs: Verbs) -> None:
    """Add the verb `predict`."""
    parser = verbs.add(
        'predict',
        _predict,
        'print the most probable classes of images; without arguments, of the bundled digits',
        'timm-res2net predict',
        'timm-res2net predict res2net50_se photo.jpg',
        'timm-res2net predict my_flowers photo.jpg photos --top 1',
        'timm-res2net predict me/my_flowers photos --json',
    )
    add_random(parser, without=f'{_DIGITS_MODEL} on the bundled digits')
    parser.add_argument(
        'images',
        metavar='IMAGE',
        nargs='*',
        type=Path,
        help='image, or folder whose images are searched for in all its subfolders (default: a '
        'bundled digit)',
    )
    parser.add_argument(
        '--top', type=int, default=3, metavar='N', help='classes per image (default: %(default)s)'
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=16,
        metavar='N',
        help='images that go through the model at once (default: %(default)s)',
    )
    add_json(parser)
