"""The options that several commands have, each stated once."""

import argparse
from pathlib import Path
from typing import Any

from timm.data import ImageDataset

from ..convert.files import ENTRIES
from ..files import read_text
from ..layers.semantics import SEMANTICS


def positive_int(word: str) -> int:
    """Return the whole number of at least 1 that an option names."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number of at least 1")
    return int(word)


OPTIONS: dict[str, dict[str, Any]] = {
    'checkpoint': dict(help='checkpoint file, or folder written by timm or `convert`'),
    'target': dict(metavar='model', help='registered name, folder, or OWNER/NAME on the Hub'),
    '--batch-size': dict(type=positive_int, metavar='N', help='images in a batch'),
    '--debug': dict(action='store_true', help='print the traceback of an error'),
    '--dry-run': dict(action='store_true', help='check everything; write and send nothing'),
    '--entry': dict(
        help='entry of the file that holds the weights, such as ema.module (default: the first of '
        f'{", ".join(ENTRIES)} that exists, otherwise the whole file)'
    ),
    '--img-size': dict(
        type=positive_int, metavar='PX', help="side of the images (default: the model's)"
    ),
    '--json': dict(action='store_true', help='print JSON'),
    '--label-names': dict(
        type=Path,
        metavar='PATH',
        help='names of the classes: a text file with one per line, or a folder with one folder of '
        "images per class, in the order of timm's train.py",
    ),
    '--license': dict(metavar='ID', help='license of the weights, such as apache-2.0'),
    '--model': dict(metavar='NAME', help='name of the model, if the shapes do not imply it'),
    '--out': dict(required=True, type=Path, metavar='PATH', help='file or folder to write'),
    '--prefix': dict(help='prefix of the Res2Net in the keys, if the file holds several'),
    '--random': dict(
        action='store_false', dest='pretrained', help='do not load pretrained weights'
    ),
    '--remote-code': dict(
        action=argparse.BooleanOptionalAction,
        help='add a module of a few lines with which transformers loads the model by '
        'trust_remote_code=True, without an import of timm_res2net (default: only if there is one '
        'already)',
    ),
    '--revision': dict(help='branch, tag or commit of the repository'),
    '--semantics': dict(
        help='block semantics of the checkpoint, if the keys do not imply them: '
        f'{", ".join(SEMANTICS)}'
    ),
}


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add arguments and options of `OPTIONS` to a command.

    Args:
        parser: The command's parser.
        *names: Their names.
        **changes: Arguments of `add_argument` that differ for this command, such as `help`.
    """
    for name in names:
        parser.add_argument(name, **{**OPTIONS[name], **changes})


def read_label_names(path: Path | None) -> list[str] | None:
    """Read the value of --label-names.

    Args:
        path: A text file with one name per line, or a folder of class folders, as train.py takes
            it; None if the option was not given.

    Raises:
        OSError: It cannot be read.
        ValueError: A line is empty, it is not UTF-8, or there are no class folders.
    """
    if path is None:
        return None
    path = path.expanduser()
    if path.is_dir():
        return _class_folders(path)
    try:
        lines = read_text(path, 'utf-8-sig').rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'Cannot read {path} as UTF-8 ({error}). Save it as UTF-8.') from error
    names = [line.strip() for line in lines]
    if '' in names:
        raise ValueError(f'Line {names.index("") + 1} of {path} is empty. Give one class per line.')
    return names


def _class_folders(path: Path) -> list[str]:
    """Return the classes of a folder in the order that timm numbers them."""
    try:
        names = list(ImageDataset(str(path)).reader.class_to_idx)
    except RuntimeError:  # no images
        names = ['']
    if '' in names:  # images in the folder itself
        raise ValueError(
            f'{path} does not hold one folder of images per class. Give the folder that train.py '
            'was trained on, such as DATA/train.'
        )
    return names
