"""A model as a file for another runtime, checked by running the file.

A format is a file of this folder with a `FORMAT`, and a row of `FORMATS`.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..files import check_writable, place, scratch_folder
from ..folder.extras import require
from ..folder.golden import relative_difference
from ..layers.text import first_line
from ..models.deploy import reparameterize_model
from . import (
    aoti,
    onnx,
    openvino,
    pt2,
    torchscript,
)
from .base import INPUT as INPUT
from .base import (
    SMALLEST,
    Request,
    Run,
    TupleOutput,
    check_counts,
    dynamic_shapes,
)
from .quantize import LEAST as LEAST
from .quantize import (
    MAX_IMAGES,
    Int8,
    check_request,
    choose_images,
    prepare_images,
    to_int8,
)
from .source import describe, take

FORMATS = {
    'onnx': onnx.FORMAT,
    'openvino': openvino.FORMAT,
    'pt2': pt2.FORMAT,
    'aoti': aoti.FORMAT,
    'torchscript': torchscript.FORMAT,
}
"""What `export_model` writes, by name."""

_logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4  # relative, in float32: each format orders sums in its own way

_SIZES = {
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


def _format(name: str | None, out: Path) -> str:
    """Return the name of a format, found by the suffix of the file if it is not given."""
    if name is None:
        name = next((key for key, kind in FORMATS.items() if kind.suffix == out.suffix), None)
        if name is None:
            known = ', '.join(f'{kind.suffix} ({key})' for key, kind in FORMATS.items())
            raise ValueError(
                f"The suffix of '{out.name}' names no format. Use one of {known}, or name the "
                'format (--format).'
            )
    if name not in FORMATS:
        raise ValueError(f"Unknown format '{name}'. Use one of {', '.join(FORMATS)}.")
    require(f"Format '{name}'", 'export', *FORMATS[name].packages)
    suffix = FORMATS[name].suffix
    if out.suffix != suffix:  # runtimes recognise their files by the suffix
        raise ValueError(
            f"Name the file for format '{name}' {out.stem}{suffix}, not {out.name}, or "
            'name another format (--format).'
        )
    return name


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
    format = _format(format, Path(out))
    kind = FORMATS[format]
    _check_sizes(img_size, batch_size, static)
    path = check_writable(Path(out))
    beside = kind.beside
    photos: list[Path] = []
    runs = batch_size if static else 1  # images of one run
    if int8 is not None:
        _check_int8(format, max_images, min_agreement, runs)
        beside += ('.json',)
        photos = choose_images(int8, max_images, runs)
    for suffix in beside:
        check_writable(path.with_suffix(suffix))
    source = take(target, pretrained, img_size, features, out_indices)
    model = reparameterize_model(source.model) if deploy else source.model
    whole = TupleOutput(model).eval().requires_grad_(False)
    # with a free batch, torch.export would take a batch of 1 for a constant
    x = _images(batch_size if static else max(batch_size, 2), *source.input_size)
    what = f'Exporting {source.name} as {format} for images of {x.shape[2]} x {x.shape[3]} px'
    with (
        torch.no_grad(),
        _explaining(what),
        scratch_folder(path) as made,
    ):
        # read before minutes of work: one of them may not be an image
        images = prepare_images(source, photos, made / 'images.npy') if photos else None
        _logger.info(f'Exporting as {format}, which can take minutes')
        meta = describe(source, whole(x))
        subject, step = _program(whole, x, static) if kind.exports else (whole, 0 if static else 32)
        temporary = _folder(made, 'float32') / path.name
        _logger.info(f'Writing {path.name}')
        run = kind.write(Request(subject, x, step, source.outputs, meta), temporary)
        _logger.info('Running the file and comparing its outputs')
        difference = _compare(whole, run, x, step)
        if not difference <= _TOLERANCE:
            raise ValueError(
                f'{what} gave a file whose outputs differ from the model by {difference:.1e} of '
                f'the largest, more than {_TOLERANCE:.0e}. Nothing was written; use another format.'
            )
        quantized = None
        if images is not None:
            plain, temporary = temporary, _folder(made, 'int8') / path.name
            quantized = to_int8(kind, plain, temporary, images, runs, source, min_agreement)
        _publish(temporary.parent, path)
    sizes = _SIZES[step].format(tuple(x.shape))
    if not kind.exports and not static:
        sizes = 'any batch, any size that the model takes'
    return Exported(path, format, tuple(source.outputs), sizes, difference, quantized)


def _folder(made: Path, name: str) -> Path:
    folder = made / name
    folder.mkdir()
    return folder


def _publish(made: Path, path: Path) -> None:
    """Move the files of a folder to where `path` is, all of them or none, and `path` last."""
    moved: list[Path] = []
    try:
        for file in sorted(made.iterdir(), key=lambda file: file.name == path.name):
            os.chmod(file, 0o644)
            place(file, path.parent / file.name)
            moved.append(path.parent / file.name)
    except BaseException:
        for file in moved:
            file.unlink()
        raise


def _check_int8(format: str, max_images: int, min_agreement: float | None, batch: int) -> None:
    if FORMATS[format].quantize is None:
        known = ' or '.join(name for name, kind in FORMATS.items() if kind.quantize)
        raise ValueError(f"Format '{format}' has no int8 form here. Use {known}.")
    require('int8', 'int8', 'nncf')
    check_request(max_images, min_agreement, batch)


def _check_sizes(img_size: int | None, batch_size: int, static: bool) -> None:
    check_counts(img_size=img_size, batch_size=batch_size)
    if img_size is not None and not static and img_size < SMALLEST:
        raise ValueError(
            f'img_size={img_size} is below {SMALLEST} px, the smallest free size. Use a larger '
            'one, or a fixed size (static=True, --static).'
        )


def _program(model: nn.Module, x: torch.Tensor, static: bool) -> tuple[Any, int]:
    """Return the program of torch.export, and the step between the image sizes that it takes."""
    if static:
        return torch.export.export(model, (x,)), 0
    try:
        model(_larger(x, 1))
        return torch.export.export(model, (x,), dynamic_shapes=dynamic_shapes(1)), 1
    except RuntimeError:  # torch.export's errors are RuntimeErrors, too
        # odd sizes break ceil-mode strides and branch merges; fall back to multiples of 32
        return torch.export.export(model, (x,), dynamic_shapes=dynamic_shapes(32)), 32


def _images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _larger(x: torch.Tensor, step: int) -> torch.Tensor:
    """Return one image that is larger than those of x by one and two steps."""
    return _images(1, x.shape[1], x.shape[2] + step, x.shape[3] + 2 * step)


def _compare(model: nn.Module, run: Run, x: torch.Tensor, step: int) -> float:
    """Return the largest difference between a file's and a model's outputs, over the largest one.

    Args:
        model: The model.
        run: Runs the file.
        x: The images that the file was exported with.
        step: Step between the image sizes that the file takes; 0 if it takes those of x alone.
    """
    errors = []
    images = [x]
    if step:
        smallest = SMALLEST if step == 1 else 2 * step
        images += [_larger(x, step), _images(2, x.shape[1], smallest, smallest)]
    for image in images:
        for expected, got in zip(model(image), run(image), strict=True):
            errors.append(relative_difference(torch.as_tensor(got), expected))
    return float(torch.tensor(errors).max())  # NaN if one of them is
