"""`predict`, `show`: what a model sees in images."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import torch
from timm.data import create_transform, resolve_model_data_config
from tqdm import tqdm

from ..drawing import show
from ..export.run import is_exported, load_exported
from ..folder.checks import check_values
from ..hub.fetch import load_model
from ..layers.text import printable
from ..prediction import SUFFIXES, Prediction, digits, find_images, labels_of, predict
from .frame import EXIT_ERROR, add_command, add_options, positive_int, print_json

_DIGITS_MODEL = 'test_res2net_se'


def _as_objects(top: Sequence[tuple[str, float]]) -> list[dict[str, object]]:
    return [{'class': label, 'probability': share} for label, share in top]


def _predict(
    target: str | None = None,
    images: Sequence[Path] = (),
    pretrained: bool = True,
    json: bool = False,
    **options: int,
) -> int:
    """Print the most probable classes of images; without arguments, of the bundled digits.

    timm-res2net predict
    timm-res2net predict res2net50_se photo.jpg
    timm-res2net predict my_flowers photo.jpg photos --top 1
    timm-res2net predict me/my_flowers photos --json
    timm-res2net predict flowers.xml photo.jpg
    """
    if target is None:
        if options:
            raise ValueError(f'Name a model and images to use --{next(iter(options))}.')
        return _predict_digits(pretrained, json)
    named = Path(target)
    if not images and named.suffix.lower() in SUFFIXES and named.is_file():
        raise ValueError(
            f'{named} is an image. Name a model before it: `timm-res2net predict MODEL {named}`.'
        )
    paths: Sequence[Path | None] = find_images(images) or [None]
    if is_exported(named):
        model: Any = load_exported(named)
        if shape := model.pretrained_cfg.get('shape'):  # of a static file
            options.setdefault('batch_size', shape[0])
    else:
        model = load_model(target, pretrained).eval()
    check_values(model, f'{target} was not run')
    predictions: Iterable[Prediction] = predict(model, paths, **options)
    if len(paths) >= 10 and sys.stderr.isatty() and not sys.stdout.isatty():
        predictions = tqdm(predictions, total=len(paths), unit='image')
    if json:
        known = list(predictions)
        errors = [one.error for one in known if one.error]
        results = [
            {'error': one.error} if one.error else {'top': _as_objects(one.top)} for one in known
        ]
        print_json([{'image': one.image, **row} for one, row in zip(known, results, strict=True)])
    else:
        path = max(len('bundled digit'), *(len(str(path)) for path in paths))
        errors = _print_rows(predictions, path, max(map(len, ('class', *labels_of(model)))))
    for error in errors:
        print(f'timm-res2net predict: {printable(error)}', file=sys.stderr)
    return EXIT_ERROR if errors else 0


def _print_rows(predictions: Iterable[Prediction], path: int, label: int) -> list[str]:
    """Print predictions as they come, and return the errors among them.

    Args:
        predictions: The predictions.
        path: Length of the longest path. On a terminal that is too narrow, the beginning of a path
            and the end of a label are left out.
        label: Length of the longest label.
    """
    if sys.stdout.isatty():
        room = get_terminal_size().columns - len('|  |  | probability |')
        path = min(path, max(room - label, room // 2))
        label = min(label, room - path)

    def print_row(image: str, name: str, share: str) -> None:
        image, name = printable(image), printable(name)
        image = image if len(image) <= path else f'...{image[3 - path :]}'
        name = name if len(name) <= label else f'{name[: label - 3]}...'
        print(f'| {image:<{path}} | {name:<{label}} | {share:>11} |', flush=True)

    errors = []
    print_row('image', 'class', 'probability')
    print_row('-' * path, '-' * label, '-' * 11)
    for one in predictions:
        if one.error:
            errors.append(one.error)
        for i, (name, share) in enumerate(one.top):
            print_row('' if i else one.image, name, f'{100 * share:.1f} %')
    return errors


def _predict_digits(pretrained: bool, json: bool) -> int:
    """Classify the bundled digits, which the model was not trained on."""
    model = load_model(_DIGITS_MODEL, pretrained).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    images = torch.stack([transform(digit.convert('RGB')) for digit in digits()])
    labels = [i % 10 for i in range(len(images))]
    with torch.inference_mode():
        predicted: list[int] = model(images).argmax(1).tolist()
    right = sum(p == label for p, label in zip(predicted, labels, strict=True))
    if json:
        print_json({'label': labels, 'predicted': predicted, 'right': right})
        return 0
    print(f'{_DIGITS_MODEL}, {sum(p.numel() for p in model.parameters()):,} parameters, offline')
    print('label    ', *labels)
    print('predicted', *predicted)
    print(f'{right} of {len(labels)} right')
    return 0


def _show(
    target: str, out: Path, image: Path | None = None, pretrained: bool = True, json: bool = False
) -> int:
    """Draw what a model sees in an image: its levels, a block, the most probable classes.

    timm-res2net show test_res2net_se --out digit.png
    timm-res2net show res2net50_se photo.jpg --out seen.png
    """
    shown = show(target, image, out, pretrained=pretrained)
    if json:
        print_json({**shown._asdict(), 'top': _as_objects(shown.top)})
        return 0
    if not pretrained:
        print('With random weights:')
    for label, share in shown.top:
        print(f'{100 * share:5.1f} %  {printable(label)}')
    for name, channels, height, width in shown.levels:
        print(f'{name:<7} {channels} x {height} x {width}')
    print(f'Picture written to {shown.path}')
    return 0


def add(commands: Any) -> None:
    """Add the commands `predict` and `show`."""
    parser = add_command(commands, _predict)
    text = 'registered name, folder, OWNER/NAME on the Hub, or a file that `export` wrote'
    add_options(parser, 'target', nargs='?', default=None, help=text)
    text = 'image, or folder that is searched with its subfolders (default: a bundled digit)'
    parser.add_argument('images', metavar='image', nargs='*', type=Path, default=(), help=text)
    text = 'classes per image (default: 3)'
    parser.add_argument('--top', type=positive_int, metavar='N', help=text)
    add_options(parser, '--batch-size', '--random', '--json', '--debug')
    parser = add_command(commands, _show)
    add_options(parser, 'target')
    text = 'image (default: a bundled digit)'
    parser.add_argument('image', nargs='?', type=Path, default=None, help=text)
    add_options(parser, '--out', help='PNG file to write')
    add_options(parser, '--random', '--json', '--debug')
