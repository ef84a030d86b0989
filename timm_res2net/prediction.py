"""The most probable classes of images."""

import copy
import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import (
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_model_data_config,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .files import read_file
from .folder.config import MODES, MULTI_LABEL
from .hub.fetch import load_model
from .models.deploy import is_block, reparameterize_model

_logger = logging.getLogger(__name__)

DIGITS = Path(__file__).parent / 'weights' / 'digits.png'
"""Twenty held-out digits in a row, 8x8 pixels each."""

SUFFIXES = (
    '.avif', '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff',
    '.webp',
)  # fmt: skip
"""Files in a folder that count as images."""

THRESHOLD = 0.5
"""Probability above which an image is of a class, if it may be of several."""

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


ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor | None
"""Image file; image of Pillow; array (H, W) or (H, W, C) or tensor (C, H, W) of uint8; or None for
a digit of the package."""


# --- images ---------------------------------------------------------------------------------------


def walk_images(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Path | Prediction]:
    """Return image files one after the other: those named, and those in folders and subfolders.

    Folders behind symbolic links belong to it, each folder once. Within a folder, files come before
    subfolders, both sorted. Only the names in one folder are in memory.

    Args:
        paths: Files and folders.

    Returns:
        Paths. A folder that cannot be read, or has no images, is a `Prediction` with the error.

    Raises:
        FileNotFoundError: There is nothing at a path.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f'There is no image or folder {path}. Check the path.')
    return itertools.chain.from_iterable(
        _walk(path) if path.is_dir() else (path,) for path in map(Path, paths)
    )


def _walk(path: Path) -> Iterator[Path | Prediction]:
    """Yield what `walk_images` returns for a folder."""
    unreadable: list[OSError] = []
    visited: set[tuple[int, int]] = set()
    is_empty = True
    for folder, subfolders, names in os.walk(path, onerror=unreadable.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # behind a symbolic link
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in sorted(names):
            # macOS writes files such as ._photo.jpg
            if name.lower().endswith(SUFFIXES) and name[0] != '.':
                is_empty = False
                yield Path(folder, name)
    for error in unreadable:
        yield Prediction(str(error.filename), (), f'Cannot read {error.filename} ({error}).')
    if is_empty and not unreadable:
        suffixes = ', '.join(SUFFIXES)
        text = f'There are no images in {path}. Name a folder with files that end in {suffixes}.'
        yield Prediction(str(path), (), text)


def open_image(source: ImageLike, mode: str) -> Image.Image:
    """Return an image in Pillow's mode, as timm's training reads it, but turned as its EXIF says.

    An animation is its first frame, and transparency is dropped. A pipe is read as a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, or its values are not of 8 bits: how the training scaled
            them is not known.
    """
    if source is None:
        return digits()[3].convert(mode)
    content: Any = source
    what = f'the {type(source).__name__}'
    if isinstance(source, str | os.PathLike):
        content, what = read_file(Path(source), _LARGEST, pipe=True), str(source)
    try:
        return ImageOps.exif_transpose(_as_pillow(content)).convert(mode)
    except Exception as error:  # Pillow's readers raise anything for damaged files
        # Pillow would name the object that holds the content
        unknown = isinstance(error, UnidentifiedImageError)
        reason = 'its format is unknown' if unknown else error
        raise ValueError(
            f'Cannot read {what} as an image ({reason}). Give an image of 8 bits per channel, such '
            'as a PNG or JPEG file.'
        ) from error


def _as_pillow(content: Any) -> Image.Image:
    """Return the content of a file, an array or a tensor as an image of Pillow."""
    if isinstance(content, torch.Tensor):
        content = content.cpu().permute(1, 2, 0).numpy()
    if isinstance(content, np.ndarray):
        kind = None if content.dtype == np.uint8 else str(content.dtype)
        image = Image.fromarray(content.squeeze(2) if content.shape[2:] == (1,) else content)
    else:
        image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
        kind = {'F': 'floats', 'I': 'integers of 16 or 32 bits'}.get(image.mode[0])
    if kind:
        raise ValueError(f'its values are {kind}, to be scaled as the training scaled them')
    return image


def digits() -> list[Image.Image]:
    """Return the digits of the package: 0 to 9, twice."""
    strip = Image.open(DIGITS)
    size = strip.height
    return [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width, size)]


# --- classes --------------------------------------------------------------------------------------


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


def most_probable(
    logits: torch.Tensor, labels: Sequence[str], top: int | None, multi_label: bool
) -> Iterator[tuple[tuple[str, float], ...]]:
    """Yield the most probable labels with probabilities for each row of logits (B, classes)."""
    shares = logits.float().sigmoid() if multi_label else logits.float().softmax(1)
    limit = top or (len(labels) if multi_label else 3)
    best = shares.topk(min(limit, len(labels)))
    for values, classes in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        yield tuple(zip((labels[k] for k in classes), values, strict=True))


# --- predict --------------------------------------------------------------------------------------


class Images(Dataset[tuple[Prediction, torch.Tensor | None]]):
    """Images, prepared as the config of a model says, where a loader wants them.

    An index is a number and the image itself. An image that cannot be read is a row with its error,
    and None.
    """

    def __init__(self, model: nn.Module):
        """Raise a ValueError if the model takes other than 1 or 3 channels."""
        data = resolve_model_data_config(model)
        in_chans = data['input_size'][0]
        if in_chans not in MODES:
            raise ValueError(
                f'The model takes {in_chans} channels, and an image file has 1 or 3. Use a '
                'model of 1 or 3 channels.'
            )
        self.transform: Any = create_transform(**data)
        self.mode = MODES[in_chans]

    def load(self, image: ImageLike) -> torch.Tensor:
        """Return an image as a tensor (in_chans, H, W), or raise an OSError or a ValueError."""
        tensor: torch.Tensor = self.transform(open_image(image, self.mode))
        return tensor

    def __getitem__(self, index: tuple[int, Any]) -> tuple[Prediction, torch.Tensor | None]:
        number, image = index
        if isinstance(image, Prediction):
            return image, None
        name = getattr(image, 'filename', '') or f'image {number}'
        if isinstance(image, str | os.PathLike | None):
            name = 'bundled digit' if image is None else str(image)
        try:
            return Prediction(name, ()), self.load(image)
        except Exception as error:  # one image never ends the run
            return Prediction(name, (), str(error) or type(error).__name__), None


def _collate(
    pairs: list[tuple[Prediction, torch.Tensor | None]],
) -> tuple[list[Prediction], torch.Tensor | None]:
    tensors = [tensor for _, tensor in pairs if tensor is not None]
    return [row for row, _ in pairs], torch.stack(tensors) if tensors else None


def make_ready(
    model: nn.Module, device: str | torch.device | None = None, deploy: bool | None = None
) -> nn.Module:
    """Return a model on a device, deployed if asked for, with the defaults of `predict`."""
    where = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    _logger.info(f'Running on {where}')
    if deploy is None:
        deploy = where.type == 'cpu' and any(map(is_block, model.modules()))
    return (reparameterize_model(model) if deploy else model).to(where)


def predict(
    target: nn.Module | str | os.PathLike[str],
    images: Iterable[ImageLike | Prediction],
    *,
    top: int | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    workers: int = 0,
    amp: str | None = None,
    deploy: bool | None = None,
    multi_label: bool | None = None,
) -> Iterator[Prediction]:
    """Classify images, prepared as the model's config says.

    `images` may be endless: only the batches at work are in memory. An image that cannot be read is
    a row with its error, and the others follow.

    Args:
        target: Model of timm in eval mode, or a module with `pretrained_cfg` and `num_classes`; or
            a registered name of this package or of timm, a folder, or a repository of the Hub
            (OWNER/NAME), whose weights are loaded.
        images: Image files, images of Pillow, arrays (H, W) or (H, W, C) or tensors (C, H, W) of
            uint8; None is a digit of the package. A `Prediction` with an error is passed on.
        top: Classes to return for each image, at most as many as the model has. By default 3, or
            with `multi_label` all of the image.
        batch_size: Images that go through the model at once.
        device: Device to run on. By default a module stays where it is, and what is loaded goes to
            CUDA if there is a GPU, otherwise to the CPU.
        workers: Processes that read and prepare images; 0 for none beside the caller's. On macOS
            and Windows, a script that starts processes needs `if __name__ == '__main__':`.
        amp: 'bf16' computes in bfloat16 by torch.autocast; None in the dtype of the weights.
        deploy: Run a deployed copy (`reparameterize_model`). By default a module runs as it is, and
            what is loaded is deployed on a CPU, if it has Res2Net blocks.
        multi_label: Whether an image may be of several classes: all with a sigmoid above 0.5, in
            place of a softmax over the classes. None for what the model's config says.

    Returns:
        A prediction for each image in order. It names no class if the image cannot be read.

    Raises:
        OSError: `target` is a path and there is nothing at it, or the Hub refuses or cannot be
            reached.
        ValueError: An unknown model, or one that has no classes, takes other than 1 or 3 channels,
            or cannot be deployed; or an unknown `amp`.

    Example:
        >>> from timm_res2net import predict
        >>> next(predict('test_res2net_se', [None])).top[0][0]
        '3'
    """
    if isinstance(images, str | os.PathLike):
        raise ValueError(f'images must be a list of images or the like: write [{images!r}].')
    if amp not in (None, 'bf16'):
        raise ValueError(f"Unknown amp '{amp}'. Use 'bf16' or None.")
    model: Any = target if isinstance(target, nn.Module) else load_model(target).eval()
    labels = labels_of(model)
    if not labels:
        raise ValueError('The model has no classes. Use a model with a classifier.')
    dataset = Images(model)
    if multi_label is None:
        multi_label = model.pretrained_cfg.get('problem_type') == MULTI_LABEL
    nothing = torch.empty(0)  # an exported file has no parameters
    here = next(iter(model.parameters()), nothing).device
    if not isinstance(target, nn.Module):
        model = make_ready(model, device, deploy)
    elif deploy or torch.device(device or here) != here:
        model = make_ready(copy.deepcopy(model), device or here, bool(deploy))
    weight = next(iter(model.parameters()), nothing)
    items = enumerate(images)
    shape = model.pretrained_cfg.get('shape')  # of a static file, which takes no other batch
    batch_size = shape[0] if shape else batch_size

    def predictions() -> Iterator[Prediction]:
        batches = iter(lambda: list(itertools.islice(items, batch_size)), [])
        first = list(itertools.islice(batches, 2 if workers else 0))
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=itertools.chain(first, batches),
            num_workers=workers if len(first) > 1 else 0,  # one batch is not worth a process
            collate_fn=_collate,
            pin_memory=weight.device.type == 'cuda',
            generator=torch.Generator(),  # torch's own stays as it is
        )
        for rows, batch in loader:
            best: Iterator[tuple[tuple[str, float], ...]] = iter(())
            if batch is not None:
                with (
                    torch.inference_mode(),
                    torch.autocast(weight.device.type, torch.bfloat16, enabled=amp is not None),
                ):
                    number = len(batch)
                    missing = batch_size - number if shape else 0
                    batch = torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])])
                    batch = batch.to(weight.device, weight.dtype, non_blocking=True)
                    logits = model(batch)[:number]
                best = most_probable(logits, labels, top, multi_label)
            for row in rows:
                known = () if row.error else next(best)
                if multi_label:
                    known = tuple(one for one in known if not one[1] <= THRESHOLD)  # also NaN
                yield row._replace(top=known)

    return predictions()
