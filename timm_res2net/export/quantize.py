"""int8: quantize an exported file with images, and measure with others what it loses."""

import contextlib
import functools
import io
import json
import logging
import math
import os
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..prediction import find_images, preparation
from . import onnx, openvino
from .base import INPUT, Format
from .source import Source

_logger = logging.getLogger(__name__)

MAX_IMAGES = 600
"""The most images that are used: half of them calibrate, which is NNCF's default."""

_SMALLEST = 32  # half of them calibrate

# Images of the model's kind keep more than this, images of half their brightness less: see
# tests/export/test_quantize.py. A network that keeps 0.99 of its answers in the long run keeps 0.98
# of 300, by the binomial distribution, in 97 of 100 trials.
LEAST = {'logits': 0.98, 'features': 0.8}
"""Smallest agreement that is accepted, unless another one is asked for."""


class Int8(NamedTuple):
    """What int8 loses and gains against float32, on images that did not calibrate.

    An ONNX file is run in ONNX Runtime, another one in OpenVINO.

    Attributes:
        agreement: Share of the images whose most probable class stays. Without a classifier, 1
            minus the largest error of an output.
        errors: Error of each output: root mean square of the difference, divided by that of the
            float32 output.
        calibrated: Images that calibrated.
        compared: Other images, with which the files were compared.
        bytes: Size of the files.
        seconds: Median time of a run on this machine, of one image or of a static file's batch.
        time_ratio: Median of the ratios of the two times, int8 over float32, run by run.
        runtime: Package that ran both files, 'onnxruntime' or 'openvino'.
    """

    agreement: float
    errors: dict[str, float]
    calibrated: int
    compared: int
    bytes: dict[str, int]
    seconds: dict[str, float]
    time_ratio: float
    runtime: str


def _least(batch: int) -> int:
    """Return the smallest number of images: two halves, each a multiple of a batch."""
    return math.ceil(_SMALLEST / (2 * batch)) * 2 * batch


def check_request(max_images: int, min_agreement: float | None, batch: int) -> None:
    """Raise a ValueError if a number is out of its range.

    Args:
        max_images: The most images.
        min_agreement: Smallest agreement; None for `LEAST`.
        batch: Number of images of one run.
    """
    if not isinstance(max_images, int) or max_images < _least(batch):
        raise ValueError(
            f'max_images must be a whole number of at least {_least(batch)}, got {max_images!r}: '
            'half of the images calibrate, and the others compare.'
        )
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise ValueError(f'min_agreement must be a share from 0 to 1, got {min_agreement!r}.')


def choose_images(folder: str | os.PathLike[str], limit: int, batch: int) -> list[Path]:
    """Return images of a folder in random order, which is the same for the same files.

    Args:
        folder: Folder whose images are searched for in all its subfolders.
        limit: The most images.
        batch: Both halves of the images are multiples of this number.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no images, or too few.
    """
    found = find_images([folder])
    least = _least(batch)
    number = min(len(found), limit) // (2 * batch) * 2 * batch
    if number < least:
        raise ValueError(
            f'{folder} has {len(found)} images, and at least {least} are needed: half of them '
            'calibrate, and the others compare. Add images like those that the model will see.'
        )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order[:number].tolist()]


def prepare_images(source: Source, paths: list[Path], file: Path) -> Any:
    """Return prepared images as an array (N, in_chans, H, W) that is kept in a file.

    Raises:
        ValueError: One of them cannot be read, or the model takes other than 1 or 3 channels.
    """
    prepare = preparation(source.model, source.input_size)
    shape = (len(paths), *source.input_size)
    images = np.lib.format.open_memmap(file, 'w+', np.dtype(np.float32), shape)
    for i, path in enumerate(paths):
        if i % 50 == 0:
            _logger.info(f'Preparing image {i + 1} of {len(paths)}')
        images[i] = prepare(path).numpy()
    return images


def to_int8(
    kind: Format,
    plain: Path,
    out: Path,
    images: Any,
    batch: int,
    source: Source,
    min_agreement: float | None,
) -> Int8:
    """Write a file's int8 form, with a .json beside it that holds what it loses and gains.

    Args:
        kind: The format of the file.
        plain: The file in float32.
        out: The file to write, in a folder of its own.
        images: Images (N, in_chans, H, W). The first half calibrates, the second compares.
        batch: Number of images of one run.
        source: The model of the files.
        min_agreement: Smallest agreement; None for `LEAST`.

    Raises:
        ValueError: The agreement is smaller.
    """
    half = len(images) // 2
    _logger.info('Quantizing to int8')
    quantize_file(kind, plain, out, images[:half], batch)
    found = _measure(plain, out, images[half:], batch, source)
    least = LEAST['logits' if source.is_classifier else 'features']
    least = least if min_agreement is None else min_agreement
    if not found.agreement >= least:
        share, worst = found.agreement, np.max(list(found.errors.values()))
        lost = (
            f'Only {100 * share:.1f} % of {found.compared} images keep their top-1 answer in int8,'
            if source.is_classifier
            else f'A level is off by {worst:.2f} in int8, an agreement of {share:.2f},'
        )
        raise ValueError(
            f'{lost} less than min_agreement={least:g} (--min-agreement). Nothing was written. '
            'Calibrate with images like those that the model will see, or export float32.'
        )
    told = {
        'model': source.name,
        'file': out.name,
        'input_size': source.input_size,
        **found._asdict(),
        'min_agreement': least,
        'preset': 'mixed',
        # not from the metadata: ONNX Runtime is also installed as onnxruntime-gpu
        'versions': {name: import_module(name).__version__ for name in ('nncf', found.runtime)},
    }
    out.with_suffix('.json').write_text(json.dumps(told, indent=2) + '\n', encoding='utf-8')
    return found


def quantize_file(
    kind: Format, plain: Path, out: Path, images: Any, batch: int, preset: str = 'mixed'
) -> None:
    """Quantize with NNCF after training.

    Weights are quantized per channel and symmetrically, activations per tensor: those after a ReLU
    symmetrically, the others not (preset 'mixed'). NNCF leaves the convolutions of SE in float32
    and quantizes the product with the gate. That product in float32 gains nothing: neither accuracy
    on the digits model (6.1 % with both) nor time (res2net50_se, × 0.31 with both).

    Args:
        kind: The format of the file.
        plain: The file in float32.
        out: The file to write.
        images: Images (N, in_chans, H, W) that calibrate.
        batch: Number of images of one run.
        preset: NNCF's preset, 'mixed' or 'performance'. The latter quantizes all activations
            symmetrically.
    """
    import nncf

    def read(i: int) -> dict[str, Any]:
        if i % (25 * batch) == 0:
            _logger.info(f'Calibrating with image {i + 1} of {len(images)}')
        return {INPUT: np.array(images[i : i + batch])}

    steps = range(0, len(images), batch)
    assert kind.quantize is not None
    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's progress bars
        kind.quantize(
            plain,
            out,
            functools.partial(
                nncf.quantize,
                calibration_dataset=nncf.Dataset(steps, read),
                preset=nncf.QuantizationPreset(preset),
                subset_size=len(steps),
            ),
        )


def _measure(plain: Path, small: Path, images: Any, batch: int, source: Source) -> Int8:
    """Compare two files on images.

    Args:
        plain: The file in float32.
        small: The file in int8.
        images: Images (N, in_chans, H, W).
        batch: Number of images of one run.
        source: The model of the files.
    """
    names = source.outputs
    in_onnx = small.suffix == '.onnx'
    runs = [(onnx if in_onnx else openvino).load(path) for path in (plain, small)]
    for run in runs:  # the first run of a file takes longer
        run(torch.from_numpy(np.array(images[:batch])))
    seconds: list[list[float]] = [[], []]
    squares = np.zeros((2, len(names)))
    same = 0
    for i in range(0, len(images), batch):
        if i % (100 * batch) == 0:
            _logger.info(f'Comparing with image {i + 1} of {len(images)}')
        x = torch.from_numpy(np.array(images[i : i + batch]))
        found = []
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            outputs = run(x)
            times.append(time.perf_counter() - start)
            found.append([np.array(output, np.float64) for output in outputs])
        for k, (expected, got) in enumerate(zip(*found, strict=True)):
            squares[:, k] += ((got - expected) ** 2).sum(), (expected**2).sum()
        same += int((found[0][0].argmax(1) == found[1][0].argmax(1)).sum())
    errors = [math.sqrt(a / b) if b else math.sqrt(a) for a, b in squares.T]
    # NaN if one of the errors is
    agreement = same / len(images) if source.is_classifier else 1 - float(np.max(errors))
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    forms = ('float32', 'int8')
    return Int8(
        agreement,
        dict(zip(names, errors, strict=True)),
        len(images),
        len(images),
        dict(zip(forms, map(size_of, (plain, small)), strict=True)),
        dict(zip(forms, map(statistics.median, seconds), strict=True)),
        statistics.median(ratios),
        'onnxruntime' if in_onnx else 'openvino',
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file and of those beside it that differ only in the suffix."""
    beside = (file for file in path.parent.iterdir() if file.stem == path.stem)
    return sum(file.stat().st_size for file in beside)
