"""A model as a file for another runtime, checked by running the file.

A format is a file of this folder with a `FORMAT`, and a row of `FORMATS`.
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..compare import relative_difference
from ..deploy import reparameterize_model
from ..extras import require
from ..files import check_writable
from ..models.protocol import as_timm
from ..resolve import load_model
from ..text import first_line
from . import aoti, onnx, pt2, torchscript
from .base import INPUT as INPUT
from .base import SMALLEST, Request, Run, TupleOutput, dynamic_shapes

__all__ = ['FORMATS', 'INPUT', 'Exported', 'export_model']

FORMATS = {
    'onnx': onnx.FORMAT,
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
# The fields of a pretrained_cfg that go into the file
_DESCRIBING = (
    'architecture', 'tag', 'num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
    'label_names', 'license',
)  # fmt: skip


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        path: The file.
        format: One of `FORMATS`.
        outputs: Names of the outputs.
        sizes: The image sizes that it takes, in words.
        error: Largest difference between the file's outputs and the model's in the check run,
            relative to the largest output.
    """

    path: Path
    format: str
    outputs: tuple[str, ...]
    sizes: str
    error: float


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
    except ValueError:
        raise
    except Exception as error:  # torch, onnxscript and a C++ compiler each fail in their own way
        raise ValueError(
            f'{what} failed ({type(error).__name__}: {first_line(error)[:300]}). Try another size '
            '(a multiple of 32 px), a fixed size (static=True, --static), or another format.'
        ) from error


def export_model(
    target: str | os.PathLike[str],
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
) -> Exported:
    """Write a model as a file for another runtime, in float32.

    The file is run on images of other sizes and batches than it was exported with, and compared
    with the model, before it takes its name. Its input is called 'image' and holds normalized
    images (B, in_chans, H, W). Its outputs are 'logits' (B, num_classes), or the feature levels by
    name (B, C, H / stride, W / stride). A JSON text in the file says how images are prepared.
    torch's formats return a tuple of outputs.

    A static AOTInductor file checks the shape of its input only if AOTI_RUNTIME_CHECK_INPUTS=1 is
    set. Otherwise it returns wrong outputs for another shape.

    Args:
        target: Registered name of a Res2Net, or of another network of timm with feature levels; a
            folder; or a repository (OWNER/NAME or hf-hub:OWNER/NAME).
        out: File to write. It must not exist.
        format: One of `FORMATS`; by default the first one with the suffix of `out`.
        features: Export the feature levels instead of the classifier.
        out_indices: Which feature levels, as for `features_only`.
        deploy: Export the deployed model (`reparameterize_model`).
        static: Fix batch and size instead of leaving them free.
        img_size: Side in px of the square image that the model is exported with; by default that of
            the cfg. At least 33 unless `static`.
        batch_size: Number of images that the model is exported with.
        pretrained: Load weights.

    Returns:
        What was written, with the error of the check run.

    Raises:
        ValueError: An unknown format or model, a missing package, a size or batch that is not a
            whole number of at least 1, something that the format cannot express, or outputs that
            differ by more than 1e-4.
        OSError: `out` exists or cannot be written.

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
    model, outputs, meta, shape = _load(target, pretrained, img_size, features, out_indices)
    if deploy:
        model = reparameterize_model(model)
    whole = TupleOutput(model).eval().requires_grad_(False)
    # with a free batch, torch.export would take a batch of 1 for a constant
    x = _images(batch_size if static else max(batch_size, 2), *shape)
    what = f'Exporting {target} as {format} for images of {shape[1]} x {shape[2]} px'
    with (
        torch.no_grad(),
        _explaining(what),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}-') as made,
    ):
        _logger.info(f'Exporting as {format}, which can take minutes')
        subject, step = _program(whole, x, static) if kind.exports else (whole, 0 if static else 32)
        temporary = Path(made) / path.name
        _logger.info(f'Writing {path.name}')
        run = kind.write(Request(subject, x, step, outputs, meta), temporary)
        _logger.info('Running the file and comparing its outputs')
        difference = _compare(whole, run, x, step)
        if not difference <= _TOLERANCE:
            raise ValueError(
                f'{what} gave a file whose outputs differ from the model by {difference:.1e} of '
                f'the largest, more than {_TOLERANCE:.0e}. Nothing was written; use another format.'
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    sizes = _SIZES[step].format(tuple(x.shape))
    if not kind.exports and not static:
        sizes = 'any batch, any size that the model takes'
    return Exported(path, format, tuple(outputs), sizes, difference)


def _check_sizes(img_size: int | None, batch_size: int, static: bool) -> None:
    for name, value in (('img_size', img_size), ('batch_size', batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}.')
    if img_size is not None and not static and img_size < SMALLEST:
        raise ValueError(
            f'img_size={img_size} is below {SMALLEST} px, the smallest free size. Use a larger '
            'one, or a fixed size (static=True, --static).'
        )


def _load(
    target: str | os.PathLike[str],
    pretrained: bool,
    img_size: int | None,
    features: bool,
    out_indices: Sequence[int] | int,
) -> tuple[nn.Module, list[str], str, list[int]]:
    """Return the model, the names of its outputs, the JSON for the file, and the image's shape."""
    levels: dict[str, Any] = dict(features_only=True, out_indices=out_indices) if features else {}
    try:
        model = load_model(target, pretrained, **levels).eval()
    except (IndexError, AssertionError) as error:  # timm's errors for levels that are not there
        raise ValueError(
            f'{target} has no feature levels {out_indices}. Use a network with five levels, such '
            'as a Res2Net.'
        ) from error
    cfg = as_timm(model).pretrained_cfg
    shape = list(cfg['input_size'])
    if img_size is not None:
        shape[1:] = [img_size, img_size]
    info: Any = as_timm(model).feature_info
    outputs = list(info.module_name()) if features else ['logits']
    meta = {key: cfg[key] for key in _DESCRIBING if cfg.get(key) is not None}
    return model, outputs, json.dumps({**meta, 'input_size': shape}), shape


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
