"""Options that several verbs have."""

import argparse
from pathlib import Path

from ..convert.files import ENTRIES
from ..files import read_text
from ..layers.semantics import SEMANTICS


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint to read, and what its keys and shapes may not tell."""
    parser.add_argument(
        'source', metavar='SOURCE', help='checkpoint file, or folder written by timm or `convert`'
    )
    parser.add_argument(
        '--model', metavar='NAME', help='name of the model, if the shapes do not tell it'
    )
    parser.add_argument(
        '--semantics',
        metavar='NAME',
        help=f'block semantics of the checkpoint, if its keys do not tell: {", ".join(SEMANTICS)}',
    )
    parser.add_argument(
        '--entry',
        metavar='KEY',
        help='entry of the file that holds the weights, such as ema.module (default: the first of '
        f'{", ".join(ENTRIES)} that there is, else the whole file)',
    )
    parser.add_argument(
        '--prefix',
        metavar='TEXT',
        help='what the keys of the Res2Net start with, if the file holds several',
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument('--json', action='store_true', help='print JSON')


def add_license_and_labels(parser: argparse.ArgumentParser) -> None:
    """Add --license and --label-names."""
    parser.add_argument(
        '--license', metavar='ID', help='license, such as apache-2.0 or cc-by-nc-sa-4.0'
    )
    parser.add_argument(
        '--label-names',
        type=Path,
        metavar='PATH',
        help='names of the classes: a text file with one per line, or a folder with one folder of '
        "images per class, in the order of timm's train.py",
    )


def add_remote_code(parser: argparse.ArgumentParser) -> None:
    """Add --remote-code and --no-remote-code."""
    parser.add_argument(
        '--remote-code',
        action=argparse.BooleanOptionalAction,
        help='add a module of a few lines with which transformers loads the model by '
        'trust_remote_code=True, without an import of timm_res2net (default: only if there is one '
        'already)',
    )


def read_label_names(path: Path | None) -> list[str] | None:
    """Read the value of --label-names.

    Args:
        path: A text file with one name per line, or a folder of class folders, as train.py takes
            it; None if the option was not given.

    Raises:
        ValueError: It cannot be read, a line is empty, or there are no class folders.
    """
    if path is None:
        return None
    path = path.expanduser()
    if path.is_dir():
        return _class_folders(path)
    try:
        lines = read_text(path, 'utf-8-sig').rstrip().splitlines()
    except OSError as error:
        raise ValueError(
            f'Cannot read {path} ({error.strerror}). Give a text file with one class per line, or '
            'a folder with one folder of images per class.'
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f'Cannot read {path} as UTF-8 ({error}). Save it as UTF-8.') from error
    names = [line.strip() for line in lines]
    if '' in names:
        raise ValueError(f'Line {names.index("") + 1} of {path} is empty. Give one class per line.')
    return names


def _class_folders(path: Path) -> list[str]:
    """Return the classes of a folder in the order that timm numbers them."""
    from timm.data import ImageDataset

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


def add_revision(parser: argparse.ArgumentParser) -> None:
    """Add --revision."""
    parser.add_argument(
        '--revision', metavar='NAME', help='branch, tag or commit of the repository'
    )


def add_random(parser: argparse.ArgumentParser, without: str = '') -> None:
    """Add the model to load, and --random.

    Args:
        parser: The verb's parser.
        without: What the verb does if no model is named; '' if one must be named.
    """
    parser.add_argument(
        'model',
        metavar='MODEL',
        nargs='?' if without else None,
        help='registered name, folder, or OWNER/NAME'
        + (f' (default: {without})' if without else ''),
    )
    parser.add_argument(
        '--random', action='store_true', help='use random weights instead of loading some'
    )
