"""The most probable classes of images."""

import io
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError as BombError
from timm.data import (
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_model_data_config,
)
from torch import nn

from .files import read_file

DIGITS = Path(__file__).parent / 'weights' / 'digits.png'
"""Twenty held-out digits in a row, 8x8 pixels each."""

SUFFIXES = (
    '.avif', '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff',
    '.webp',
)  # fmt: skip
"""Files in a folder that count as images."""

_LARGEST = 256 << 20  # bytes of an image file


class Prediction(NamedTuple):
    """The most probable classes of an image.

    Attributes:
        image: Path of the image.
        top: Labels with their probabilities, the most probable one first.
        error: Why the image cannot be read; '' if it was.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    error: str = ''


def find_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return image files: those named, and those in folders and their subfolders, sorted.

    Raises:
        FileNotFoundError: There is nothing at a path.
        ValueError: A folder has no images.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            # macOS writes files such as ._photo.jpg
            inside = [
                p
                for p in sorted(path.rglob('*'))
                if p.suffix.lower() in SUFFIXES and p.name[0] != '.' and p.is_file()
            ]
            if not inside:
                raise ValueError(
                    f'There are no images in {path}. Name a folder with files that end in '
                    f'{", ".join(SUFFIXES)}.'
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f'There is no image or folder {path}. Check the path.')
    return files


def image_loader(model: nn.Module) -> Callable[[Path | None], torch.Tensor]:
    """Return what opens an image and prepares it as the config of a model says.

    Returns:
        A function from an image file, or None for a digit of the package, to (in_chans, H, W). It
        raises an OSError or a ValueError for a file that is not an image.

    Raises:
        ValueError: The model takes other than 1 or 3 channels.
    """
    from .folder.config import MODES

    data = resolve_model_data_config(model)
    in_chans = data['input_size'][0]
    if in_chans not in MODES:
        raise ValueError(
            f'The model takes {in_chans} channels, and an image file has 1 or 3. Use a '
            'model of 1 or 3 channels.'
        )
    transform: Any = create_transform(**data)
    return lambda path: transform(open_image(path, MODES[in_chans]))


def open_image(path: Path | None, mode: str) -> Image.Image:
    """Open an image file, or a digit of the package if `path` is None, in Pillow's mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image.
    """
    if path is None:
        return digits()[3].convert(mode)
    content = read_file(path, _LARGEST)
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        if image.mode.startswith('I'):  # Pillow would clip the 16 bits at 255
            image = image.convert('I').point(lambda value: value / 256)
        return image.convert(mode)
    # Pillow's readers also raise SyntaxError, EOFError and struct.error for damaged files
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, BombError) as error:
        # Pillow would name the object that holds the content
        unknown = isinstance(error, UnidentifiedImageError)
        reason = 'its format is unknown' if unknown else error
        raise ValueError(
            f'Cannot read {path} as an image ({reason}). Give a PNG or JPEG file.'
        ) from error


def digits() -> list[Image.Image]:
    """Return the digits of the package: 0 to 9, twice."""
    strip = Image.open(DIGITS)
    size = strip.height
    return [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width, size)]


def labels_of(model: Any) -> list[str]:
    """Return the names of a model's classes.

    They come from its cfg, or from ImageNet if the number of classes fits. Otherwise they are
    numbers.
    """
    number = model.num_classes
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == number:
        return list(names.values() if isinstance(names, dict) else names)
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return [info.index_to_description(i) for i in range(number)]
    return [str(i) for i in range(number)]


def predict(
    target: nn.Module | str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str] | None],
    *,
    top: int = 3,
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """Classify images, prepared as the model's config says.

    Only one batch of images is in memory at a time.

    Args:
        target: Model of timm in eval mode; or a registered name of this package or of timm, a
            folder, or a repository of the Hub (OWNER/NAME), whose weights are loaded.
        images: Image files; None is a digit of the package.
        top: Classes to return for each image, at most as many as the model has.
        batch_size: Images that go through the model at once.

    Returns:
        A prediction for each image in order. It names no class if the image cannot be read.

    Raises:
        OSError: `target` is a path and there is nothing at it, or the Hub refuses or cannot be
            reached.
        ValueError: An unknown model, or one that has no classes, or takes other than 1 or 3
            channels.

    Example:
        >>> from timm_res2net import predict
        >>> next(predict('test_res2net_se', [None])).top[0][0]
        '3'
    """
    from .hub.fetch import load_model

    model = target if isinstance(target, nn.Module) else load_model(target).eval()
    labels = labels_of(model)
    if not labels:
        raise ValueError('The model has no classes. Use a model with a classifier.')
    load = image_loader(model)
    paths = (None if image is None else Path(image) for image in images)

    def predictions() -> Iterator[Prediction]:
        while batch := list(itertools.islice(paths, batch_size)):
            loaded, errors = {}, {}
            for i, path in enumerate(batch):
                try:
                    loaded[i] = load(path)
                except (OSError, ValueError) as error:
                    errors[i] = str(error)
            rows: dict[int, tuple[tuple[str, float], ...]] = {}
            if loaded:
                with torch.inference_mode():
                    logits = model(torch.stack(list(loaded.values())))
                best = logits.softmax(1).topk(min(top, len(labels)))
                for i, shares, classes in zip(loaded, best.values, best.indices, strict=True):
                    named = (labels[k] for k in classes.tolist())
                    rows[i] = tuple(zip(named, shares.tolist(), strict=True))
            for i, path in enumerate(batch):
                name = 'bundled digit' if path is None else str(path)
                yield Prediction(name, rows.get(i, ()), errors.get(i, ''))

    return predictions()
