"""A model as a file for another runtime, checked by running the file."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..files import check_writable, place, require, scratch_folder
from ..folder.golden import relative_difference
from ..layers.text import first_line
from .formats import FORMATS, SMALLEST, larger, noise
from .network import Network, load_network
from .quantize import LEAST as LEAST
from .quantize import MAX_IMAGES, Int8, check_int8, choose_images, prepare_images, to_int8
from .run import Run

_logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4  # relative, in float32: each format orders sums in its own way

_SIZES = {
    None: 'any batch, any size that the model takes',
    0: '{0}',
    1: f'any batch, any size from {SMALLEST} px',
    32: 'any batch, multiples of 32 px from 64 px',
}


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        path: The file.
        format: One of `FORMATS`.
        outputs: Names of the outputs.
        sizes: The image sizes that it takes, in words.
        error: Largest difference between the file's outputs and the model's in the check run,
            relative to the largest output. For int8, those of the float32 file that was quantized.
        int8: What int8 loses and gains; None for a file in float32.
    """

    path: Path
    format: str
    outputs: tuple[str, ...]
    sizes: str
    error: float
    int8: Int8 | None = None


def export_model(
    target: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str | None = None,
    *,
    features: bool = False,
    out_indices: Sequence[int] | int = (1, 2, 3, 4),
    deploy: bool = False,
    static: bool = False,
    img_size: int | None = None,
    batch_size: int = 1,
    pretrained: bool = True,
    int8: str | os.PathLike[str] | None = None,
    max_images: int = MAX_IMAGES,
    min_agreement: float | None = None,
) -> Exported:
    """Write a model as a file for another runtime, in float32 or int8.

    The file is run on images of other sizes and batches than it was exported with, and compared
    with the model, before it takes its name. Its input is called 'image' and holds normalized
    images (B, in_chans, H, W). Its outputs are 'logits' (B, num_classes), or the feature levels by
    name (B, C, H / stride, W / stride). A JSON text in the file says how images are prepared.
    torch's formats return a tuple of outputs.

    A static AOTInductor file checks the shape of its input only if AOTI_RUNTIME_CHECK_INPUTS=1 is
    set. Otherwise it returns wrong outputs for another shape.

    `int8` quantizes a file of OpenVINO or ONNX (extra `int8`). Half of the images calibrate, and
    the others compare the file with float32, in OpenVINO or in ONNX Runtime. A .json beside the
    file holds the result. If the agreement is too small, nothing is written.

    Args:
        target: Registered name of a Res2Net, or of another network of timm with feature levels; a
            folder; a repository (OWNER/NAME or hf-hub:OWNER/NAME); or a model of timm in memory,
            whose mode, device and weights are not changed. It is exported in its eval form.
        out: File to write. It must not exist. Format 'openvino' writes the weights in a second
            file, with the suffix .bin.
        format: One of `FORMATS`; by default the first one with the suffix of `out`.
        features: Export the feature levels instead of the classifier. A model in memory that was
            created with `features_only=True` always gives its levels.
        out_indices: Which feature levels, as for `features_only`. For a model in memory they are
            those that it was created with.
        deploy: Export the deployed model (`reparameterize_model`).
        static: Fix batch and size instead of leaving them free.
        img_size: Side in px of the square image that the model is exported with; by default that of
            the cfg. At least 33 unless `static`.
        batch_size: Number of images that the model is exported with.
        pretrained: Load weights. A model in memory has its own.
        int8: Folder with images like those that the model will see. They are prepared as the
            model's config says, and the file is quantized with them.
        max_images: The most images of the folder that are used.
        min_agreement: Smallest share of images whose most probable class stays in int8; by default
            0.98. For features it is 1 minus the largest error of a level, by default 0.8. With 300
            images that compare, a network that keeps 0.99 of its answers passes 0.98 in 97 of 100
            trials. On the embedded digits model, images of its kind keep all answers and levels
            within 0.13; images half as bright keep 0.90, and levels are off by 0.49.

    Returns:
        What was written, with the error of the check run.

    Raises:
        ValueError: An unknown format or model, a missing package, a size or batch that is not a
            whole number of at least 1, something that the format cannot express, or outputs that
            differ by more than 1e-4. For `int8` also too few images, one that cannot be read, a
            model of other than 1 or 3 channels, or too small an agreement.
        OSError: `out` exists or cannot be written, or there is no folder `int8`.

    Example:
        >>> import tempfile, timm_res2net
        >>> out = f'{tempfile.mkdtemp()}/digits.pt2'
        >>> timm_res2net.export_model('test_res2net_se', out, 'pt2', static=True).outputs
        ('logits',)
    """
    format = _find_format(format, Path(out))
    kind = FORMATS[format]
    check_counts(batch_size=batch_size)
    check_counts(1 if static else SMALLEST, img_size=img_size)
    path = check_writable(Path(out))
    batch = batch_size if static else 1  # images of one run in int8
    photos: list[Path] = []
    if int8 is not None:
        check_int8(format, min_agreement)
        photos = choose_images(int8, max_images, batch)
    for suffix in (*kind.beside, *(['.json'] if photos else [])):
        check_writable(path.with_suffix(suffix))
    network = load_network(
        target,
        pretrained=pretrained,
        features=features,
        out_indices=out_indices,
        img_size=img_size,
        deploy=deploy,
    )
    # with a free batch, torch.export would take a batch of 1 for a constant
    x = noise(batch_size if static else max(batch_size, 2), *network.input_size)
    what = f'Exporting {network.title} as {format} for images of {x.shape[2]} x {x.shape[3]} px'
    with torch.no_grad(), _explaining(what), scratch_folder(path) as scratch:
        # before the export, which takes minutes: one of the files may not be an image
        images = prepare_images(network.model, photos, scratch / 'images.npy') if photos else None
        _logger.info(f'Exporting as {format}, which can take minutes')
        file = scratch / 'float32' / path.name
        file.parent.mkdir()
        step = kind.write(network, x, static, network.description(x), file)
        _logger.info('Running the file and comparing its outputs')
        error = _compare(network, kind.load(file), x, step)
        if not error <= _TOLERANCE:
            raise ValueError(
                f'{what} gave a file whose outputs differ from the model by {error:.1e} of the '
                f'largest, more than {_TOLERANCE:.0e}. Nothing was written; use another format.'
            )
        loss = None
        if images is not None:
            plain, file = file, scratch / 'int8' / path.name
            file.parent.mkdir()
            loss = to_int8(plain, file, images, batch, network, min_agreement)
        _publish(file.parent, path)
    sizes = _SIZES[step].format(tuple(x.shape))
    return Exported(path, format, tuple(network.outputs), sizes, error, loss)


def _find_format(name: str | None, out: Path) -> str:
    """Return the name of a format, found by the suffix of the file if it is not given."""
    if name is None:
        name = next((key for key, kind in FORMATS.items() if kind.suffix == out.suffix), '')
    if name not in FORMATS or FORMATS[name].suffix != out.suffix:
        # runtimes recognise their files by the suffix
        formats = ', '.join(f'{key} (*{kind.suffix})' for key, kind in FORMATS.items())
        raise ValueError(
            f"Cannot write '{out.name}'{f' as {name}' if name else ''}. Choose a format "
            f'(--format), and its suffix for the file: {formats}.'
        )
    require('export', *FORMATS[name].packages)
    return name


def check_counts(least: int = 1, /, **counts: int | None) -> None:
    """Raise a ValueError if an argument is neither None nor a whole number of at least `least`."""
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f'{name} must be a whole number of at least {least}, got {value!r}.')


@contextlib.contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Turn an exporter's error into one sentence with a remedy."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # torch, onnxscript and a C++ compiler each fail in their own way
        raise ValueError(
            f'{what} failed ({type(error).__name__}: {first_line(error)[:300]}). Try another size '
            '(a multiple of 32 px), a fixed size (static=True, --static), or another format.'
        ) from error


def _compare(network: Network, run: Run, x: torch.Tensor, step: int | None) -> float:
    """Return the largest difference between a file's and a network's outputs, over the largest one.

    Args:
        network: The network.
        run: Runs the file.
        x: The images that the file was exported with.
        step: As the format's `write` returned it.
    """
    images = [x]
    if step != 0:
        step = step or 32
        smallest = SMALLEST if step == 1 else 2 * step
        images += [larger(x, step), noise(2, x.shape[1], smallest, smallest)]
    errors = [
        relative_difference(got, expected)
        for image in images
        for got, expected in zip(run(image), network(image), strict=True)
    ]
    return float(torch.tensor(errors).max())  # NaN if one of them is


def _publish(folder: Path, path: Path) -> None:
    """Move the files of a folder to where `path` is, all of them or none, and `path` last."""
    moved: list[Path] = []
    try:
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            os.chmod(file, 0o644)
            place(file, path.parent / file.name)
            moved.append(path.parent / file.name)
    except BaseException:
        for file in moved:
            file.unlink()
        raise
