"""The most probable classes of images."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from .drawing import labels_of, open_image

SUFFIXES = (
    '.avif', '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff',
    '.webp',
)  # fmt: skip
"""Files in a folder that count as images."""

_DIGIT = 'bundled digit'


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
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob('*')) if _is_image(p)]
            if not inside:
                raise ValueError(
                    f'There are no images in {path}. Name a folder with files that end in '
                    f'{", ".join(SUFFIXES)}.'
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f'There is no image or folder {path}. Check the path.')
    return found


def _is_image(path: Path) -> bool:
    # macOS writes files such as ._photo.jpg
    return path.suffix.lower() in SUFFIXES and path.name[0] != '.' and path.is_file()


def preparation(
    model: nn.Module, input_size: Sequence[int] | None = None
) -> Callable[[Path | None], torch.Tensor]:
    """Return what opens an image and prepares it as the model's config says.

    Args:
        model: Model of timm.
        input_size: Channels, height and width of the result; by default those of the config.

    Returns:
        A function from an image file, or None for a digit of the package, to (in_chans, H, W). It
        raises an OSError or a ValueError for a file that is not an image.

    Raises:
        ValueError: The model takes other than 1 or 3 channels.
    """
    data = resolve_model_data_config(model)
    if input_size is not None:
        data['input_size'] = tuple(input_size)
    in_chans = data['input_size'][0]
    transform: Any = create_transform(**data)
    open_image(None, in_chans)  # its error for other channels is not about one image
    return lambda path: transform(open_image(path, in_chans))


def predict(
    model: nn.Module, images: Iterable[Path | None], *, top: int = 3, batch_size: int = 16
) -> Iterator[Prediction]:
    """Classify images, prepared as the model's config says.

    Only one batch of images is in memory at a time.

    Args:
        model: Model of timm in eval mode.
        images: Image files; None is a digit of the package.
        top: Classes to return for each image, at most as many as the model has.
        batch_size: Images that go through the model at once.

    Returns:
        A prediction for each image in order. It names no class if the image cannot be read.

    Raises:
        ValueError: The model has no classes, or takes other than 1 or 3 channels.

    Example:
        >>> import timm, timm_res2net
        >>> from timm_res2net.prediction import predict
        >>> model = timm.create_model('test_res2net_se', pretrained=True).eval()
        >>> next(predict(model, [None])).top[0][0]
        '3'
    """
    labels = labels_of(model)
    if not labels:
        raise ValueError('The model has no classes. Use a model with a classifier.')
    return _predict(model, labels, preparation(model), iter(images), top, batch_size)


def _predict(
    model: nn.Module,
    labels: Sequence[str],
    prepare: Callable[[Path | None], torch.Tensor],
    rest: Iterator[Path | None],
    top: int,
    batch_size: int,
) -> Iterator[Prediction]:
    while batch := list(itertools.islice(rest, batch_size)):
        prepared, errors = [], {}
        for i, path in enumerate(batch):
            try:
                prepared.append(prepare(path))
            except (OSError, ValueError) as error:
                errors[i] = str(error)
        shares = _probabilities(model, prepared, min(top, len(labels)))
        for i, path in enumerate(batch):
            name = _DIGIT if path is None else str(path)
            if i in errors:
                yield Prediction(name, (), errors[i])
            else:
                yield Prediction(name, tuple((labels[c], share) for c, share in next(shares)))


def _probabilities(
    model: nn.Module, prepared: Sequence[torch.Tensor], top: int
) -> Iterator[list[tuple[int, float]]]:
    """Return the most probable classes of prepared images (C, H, W)."""
    if not prepared:
        return iter(())
    with torch.inference_mode():
        values, classes = model(torch.stack(list(prepared))).softmax(1).topk(top)
    rows = zip(classes.tolist(), values.tolist(), strict=True)
    return (list(zip(*row, strict=True)) for row in rows)
