"""`predict`, `show`: what a model sees in images."""

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..drawing import show
from ..export.run import is_exported, load_exported
from ..files import check_writable
from ..folder.checks import check_values
from ..hub.fetch import load_model
from ..layers.text import brief, printable
from ..prediction import (
    SUFFIXES,
    THRESHOLD,
    Prediction,
    digits,
    labels_of,
    make_ready,
    predict,
    walk_images,
)
from .frame import EXIT_ERROR, Done, add_command, add_options, positive_int

_DIGITS_MODEL = 'test_res2net_se'
_COLUMNS = ('image', 'class', 'probability', 'error')  # of --csv


def _as_objects(top: Sequence[tuple[str, float]]) -> list[dict[str, object]]:
    return [{'class': label, 'probability': share} for label, share in top]


def _predict(
    target: str | None = None,
    images: Sequence[Path] = (),
    pretrained: bool = True,
    json_lines: bool = False,
    csv: Path | None = None,
    jsonl: Path | None = None,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    device: str | None = None,
    deploy: bool | None = None,
    **options: Any,
) -> Done | int:
    """Print the most probable classes of images; without arguments, of the bundled digits.

    timm-res2net predict
    timm-res2net predict res2net50_se photo.jpg
    timm-res2net predict my_flowers photo.jpg photos --top 1
    timm-res2net predict me/my_flowers photos --json
    timm-res2net predict my_flowers photos --csv flowers.csv --device cuda --amp bf16
    timm-res2net predict my_flowers photos --csv flowers.csv --resume
    timm-res2net predict flowers.xml photo.jpg
    """
    if target is None:
        of_images = {'csv': csv, 'jsonl': jsonl, 'resume': resume or None, 'shard': shard}
        for name, value in {**of_images, 'device': device, 'deploy': deploy, **options}.items():
            if value is not None:
                raise ValueError(f'Name a model and images to use --{name.replace("_", "-")}.')
        return _predict_digits(pretrained)
    named = Path(target)
    if named.suffix.lower() in SUFFIXES and named.is_file():
        raise ValueError(
            f'{named} is an image. Name a model before it: `timm-res2net predict MODEL {named}`.'
        )
    out = csv or jsonl
    if resume and out is None:
        raise ValueError('--resume continues a file: name it with --csv or --jsonl.')
    if out is not None:
        check_writable(out, replace=resume)
    done = _read_results(out, csv is not None) if out and out.exists() else _Written()
    paths: Iterable[Path | Prediction | None] = walk_images(images) if images else [None]
    names = ((getattr(path, 'image', str(path)), path) for path in paths)
    part, parts = shard or (1, 1)
    left = (
        path
        for name, path in names  # which part depends on the name alone
        if name not in done.images and zlib.crc32(os.fsencode(name)) % parts == part - 1
    )
    if is_exported(named):
        model: Any = load_exported(named)
        device = device or 'cpu'
    else:
        model = load_model(target, pretrained).eval()
    check_values(model, f'{target} was not run: ')
    model = make_ready(model, device, deploy)
    options = {'workers': torch.get_num_threads() - 1, **options}
    formatted: Callable[[Prediction], str] = _json_line if json_lines or jsonl else _csv_lines
    first = list(itertools.islice(left, 1))
    for row in predict(model, first, **options) if done.last else ():
        _compare(done, row.image, formatted(row), out)
    rows: Iterable[Prediction] = predict(model, itertools.chain(first, left), **options)
    if any(path.is_dir() for path in images) and sys.stderr.isatty():
        rows = rows if out is None and sys.stdout.isatty() else tqdm(rows, unit='image')
    number, errors = len(done.images), done.errors
    with contextlib.ExitStack() as stack:
        file: Any = sys.stdout
        if out is not None:
            mode = 'a' if resume else 'x'  # another process may have written it in the meantime
            opened = out.open(mode, -1, 'utf-8', 'surrogateescape', '')  # a name may be no UTF-8
            file = stack.enter_context(opened)
            file.truncate(done.size)
            if csv and done.size == 0:
                print(','.join(_COLUMNS), file=file)
        elif not json_lines:
            formatted = _table_lines(max(map(len, ('class', *labels_of(model)))))
        for row in rows:
            number, errors = number + 1, errors + bool(row.error)
            print(formatted(row), file=file, flush=True)
    if errors:
        print(f'timm-res2net predict: {errors} of {number} images cannot be read.', file=sys.stderr)
    return EXIT_ERROR if errors else 0


def _shard(word: str) -> tuple[int, int]:
    """Return the number of a shard and of all shards, that an option names."""
    number, _, shards = word.partition('/')
    if number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards):
        return int(number), int(shards)
    raise argparse.ArgumentTypeError(f"'{word}' is not K/N with K from 1 to N, such as 3/16")


class _Written(NamedTuple):
    """What a file of results has: all images but the last, whose lines a break may have cut."""

    images: Collection[str] = ()
    size: int = 0  # bytes of their lines
    errors: int = 0
    last: str = ''  # the last image, and its lines
    lines: Sequence[str] = ()


def _read_results(path: Path, is_csv: bool) -> _Written:
    """Read a file of results. Of all images but the last, only the names stay in memory."""
    beginning = (','.join(_COLUMNS) + '\n' if is_csv else '{"image": ').encode()
    images, lines = set[str](), list[str]()
    size = end = errors = 0
    last, failed = '', False
    with open(path, 'rb') as file:
        if not beginning.startswith(file.read(len(beginning))):
            raise ValueError(
                f'{path} is not a file that `predict` wrote with this option, and was not changed. '
                'Name another one.'
            )
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.endswith(b'\n'):
                break
            end += len(line)
            if is_csv and number == 1:
                size = end
                continue
            text = line[:-1].decode('utf-8', 'surrogateescape')
            try:
                if is_csv:
                    image, _, _, error = next(csv.reader([text]))
                else:
                    image, error = (row := json.loads(text))['image'], row.get('error', '')
            except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as failure:
                raise ValueError(
                    f'Line {number} of {path} is no result of `predict` ({brief(text)}). Nothing '
                    'was changed. Mend it, or name another file.'
                ) from failure
            if image != last:
                if last:
                    images.add(last)
                    errors += failed
                size, last, lines = end - len(line), image, []
            failed = bool(error)
            lines.append(text)
    return _Written(images, size, errors, last, lines)


def _compare(done: _Written, image: str, text: str, path: Path | None) -> None:
    """Refuse to continue the file of another model, by what it has of the last image."""
    number = re.compile(r'\d\.\d+(?:e-\d+)?')
    mine = text.splitlines()[: len(done.lines)]
    shares = [
        [float(x) for line in lines for x in number.findall(line)] for lines in (mine, done.lines)
    ]
    same = [number.sub('', line) for line in mine] == [number.sub('', line) for line in done.lines]
    same = same and all(abs(a - b) < 0.01 for a, b in zip(*shares, strict=True))
    if image == done.last and not same:
        raise ValueError(
            f'{path} has other results of {image} than this model and these options give. Nothing '
            'was changed. Name another file, or use the model and the options that wrote it.'
        )


def _json_line(row: Prediction) -> str:
    result = {'error': row.error} if row.error else {'top': _as_objects(row.top)}
    return json.dumps({'image': row.image, **result})


def _csv_lines(row: Prediction) -> str:
    """Return a line for each class of an image, at least one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    for label, share in row.top or [('', '')]:
        writer.writerow((row.image, label, share, row.error))
    return text.getvalue().rstrip('\n')


def _table_lines(label: int) -> Callable[[Prediction], str]:
    """Print the head of a table, and return what formats the lines of an image.

    Args:
        label: Length of the longest label. On a terminal that is too narrow, the beginning of a
            path and the end of a label are left out. An error is never cut.
    """
    path = 40
    if sys.stdout.isatty():
        room = get_terminal_size().columns - len('|  |  | probability |')
        label = min(label, room // 2)
        path = room - label

    def line(image: str, name: str, share: str) -> str:
        image, name = printable(image), printable(name)
        if sys.stdout.isatty() and share:
            image = image if len(image) <= path else f'...{image[3 - path :]}'
            name = name if len(name) <= label else f'{name[: label - 3]}...'
        return f'| {image:<{path}} | {name:<{label}} | {share:>11} |'

    def lines(row: Prediction) -> str:
        top = [(name, f'{100 * share:.1f} %') for name, share in row.top]
        cells = top or [(row.error or f'no class above {100 * THRESHOLD:.0f} %', '')]
        images = (row.image, *('' for _ in cells[1:]))
        return '\n'.join(line(image, *cell) for image, cell in zip(images, cells, strict=True))

    print(line('image', 'class', 'probability'))
    print(line('-' * path, '-' * label, '-' * 11))
    return lines


def _predict_digits(pretrained: bool) -> Done:
    """Classify the bundled digits, which the model was not trained on."""
    model = load_model(_DIGITS_MODEL, pretrained).eval()
    predicted = [int(row.top[0][0]) for row in predict(model, digits())]
    labels = [i % 10 for i in range(len(predicted))]
    right = sum(p == label for p, label in zip(predicted, labels, strict=True))
    value = {'label': labels, 'predicted': predicted, 'right': right}
    text = (
        f'{_DIGITS_MODEL}, {sum(p.numel() for p in model.parameters()):,} parameters, offline\n'
        f'label     {" ".join(map(str, labels))}\n'
        f'predicted {" ".join(map(str, predicted))}\n'
        f'{right} of {len(labels)} right'
    )
    return Done(value, text)


def _show(target: str, out: Path, image: Path | None = None, pretrained: bool = True) -> Done:
    """Draw what a model sees in an image: its levels, a block, the most probable classes.

    timm-res2net show test_res2net_se --out digit.png
    timm-res2net show res2net50_se photo.jpg --out seen.png
    """
    shown = show(target, image, out, pretrained=pretrained)
    lines = [
        *(['With random weights:'] if not pretrained else []),
        *(f'{100 * share:5.1f} %  {printable(label)}' for label, share in shown.top),
        *(f'{name:<7} {" x ".join(map(str, sizes))}' for name, *sizes in shown.levels),
        f'Picture written to {shown.path}',
    ]
    return Done({**shown._asdict(), 'top': _as_objects(shown.top)}, '\n'.join(lines))


def add(commands: Any) -> None:
    """Add the commands `predict` and `show`."""
    parser = add_command(commands, _predict)
    text = 'registered name, folder, OWNER/NAME on the Hub, or a file that `export` wrote'
    add_options(parser, 'target', nargs='?', default=None, help=text)
    text = 'image, or folder that is searched with its subfolders (default: a bundled digit)'
    parser.add_argument('images', metavar='image', nargs='*', type=Path, default=(), help=text)
    text = 'classes per image (default: 3; with --multi-label all above 50 %%)'
    parser.add_argument('--top', type=positive_int, metavar='N', help=text)
    add_options(parser, '--batch-size', '--multi-label', '--random')
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, or cpu)'
    )
    parser.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='processes that read images; 0 for none (default: the number of cores but one)',
    )
    parser.add_argument('--amp', choices=('bf16',), help='compute in bfloat16')
    parser.add_argument(
        '--deploy',
        action=argparse.BooleanOptionalAction,
        help='run the deployed model (default: on a CPU)',
    )
    parser.add_argument(
        '--shard',
        type=_shard,
        metavar='K/N',
        help='only the images of part K of N, chosen by their paths, for a scheduler of N jobs',
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--json', dest='json_lines', action='store_true', help='print JSON Lines')
    group.add_argument(
        '--csv', type=Path, metavar='FILE', help='write a CSV file with a line per class'
    )
    group.add_argument('--jsonl', type=Path, metavar='FILE', help='write a file of JSON Lines')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue the file of --csv or --jsonl: leave out the images in it but the last one',
    )
    add_options(parser, '--debug')
    parser = add_command(commands, _show)
    add_options(parser, 'target')
    text = 'image (default: a bundled digit)'
    parser.add_argument('image', nargs='?', type=Path, default=None, help=text)
    add_options(parser, '--out', help='PNG file to write')
    add_options(parser, '--random', '--json', '--debug')
