"""int8: quantize an exported file with images, and measure with others what it loses."""

import contextlib
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

from ..prediction import Images, walk_images
from .formats import INPUT, Network
from .run import META, Runner, as_tuple

_logger = logging.getLogger(__name__)

MAX_IMAGES = 600
"""The most images that are used: half of them calibrate, which is NNCF's default."""

LARGEST_ERROR = 0.1
"""Largest error of the logits that is accepted: root mean square, relative to float32."""

_SMALLEST = 32  # half of them calibrate

# Images of the model's kind keep more than this, images of half their brightness less: see
# tests/export/test_int8.py. A network that keeps 0.99 of its answers in the long run keeps 0.98 of
# 300, by the binomial distribution, in 97 of 100 trials.
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
        answers: Different most probable classes of the float32 file among them.
        bytes: Size of the files.
        seconds: Median time of a run on this machine, of one image or of a static file's batch.
        time_ratio: Median of the ratios of the two times, int8 over float32, run by run.
        runtime: Package that ran both files, 'onnxruntime' or 'openvino'.
    """

    agreement: float
    errors: dict[str, float]
    calibrated: int
    compared: int
    answers: int
    bytes: dict[str, int]
    seconds: dict[str, float]
    time_ratio: float
    runtime: str


def prepare_images(
    network: Network, folder: str | os.PathLike[str], limit: int, batch: int, file: Path
) -> Any:
    """Return images of a folder, prepared as the model's config says, as an array in a file.

    Args:
        network: The network.
        folder: Folder whose images are searched for in all its subfolders.
        limit: The most images. They are chosen at random, the same ones for the same files. Those
            that cannot be read are left out, with a warning.
        batch: Number of images of one run. Both halves of the images are multiples of it.
        file: File for the array (N, ...), as the network takes them.
    """
    found, read = list(walk_images([folder])), Images(network.model)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    example = network.noise(1, *network.model.pretrained_cfg['input_size'][1:]).numpy()
    shape = (min(len(found), limit), *example.shape[1:])
    images = np.lib.format.open_memmap(file, 'w+', example.dtype, shape)
    readable, errors = 0, []
    _logger.info(f'Preparing {len(images)} images')
    for k in order:
        if readable == len(images):
            break
        row, image = read[k, found[k]]
        if image is None:
            errors.append(row.error)
        else:
            images[readable] = network.as_input(image[None])[0].numpy()
            readable += 1
    if errors:
        _logger.warning(f'{len(errors)} images were left out. The first: {errors[0]}')
    number = readable // (2 * batch) * 2 * batch
    least = math.ceil(_SMALLEST / (2 * batch)) * 2 * batch
    if number < least:
        raise ValueError(
            f'{folder} has {len(found) - len(errors)} images that can be read, max_images={limit} '
            f'is the limit, and at least {least} are needed: half of them calibrate, and the '
            'others compare. Add images like those that the model will see.'
        )
    return images[:number]


def to_int8(
    plain: Path,
    out: Path,
    images: Any,
    batch: int,
    network: Network,
    least: float | None,
    accept_loss: bool,
) -> Int8:
    """Write a file's int8 form, with a .json beside it that holds what it loses and gains.

    The first half of the images (N, ...) calibrates, and the second compares, `batch` of
    them in a run. A ValueError says that the agreement is below `least`, which is None for `LEAST`;
    or, unless `accept_loss`, that the logits are off by more than `LARGEST_ERROR`, or that the
    images have a single answer, so that the agreement means nothing.
    """
    half = len(images) // 2
    _logger.info(f'Quantizing to int8 with {half} images')
    quantize_file(plain, out, images[:half], batch)
    int8 = compare_files(plain, out, images[half:], batch, network)
    if least is None:
        least = LEAST['logits' if network.is_classifier else 'features']
    if not int8.agreement >= least:
        what = 'top-1 answers' if network.is_classifier else 'feature levels'
        raise ValueError(
            f'In int8 the agreement of the {what} of {int8.compared} images is '
            f'{int8.agreement:.3f}, less than min_agreement={least:g} (--min-agreement). Nothing '
            'was written. Calibrate with images like those that the model will see, or export '
            'float32.'
        )
    if network.is_classifier and not accept_loss:
        error = int8.errors['logits']
        loss = '' if error <= LARGEST_ERROR else f'In int8 the logits are off by {error:.1%}'
        if int8.answers == 1:
            loss = f'All {int8.compared} images have the same answer in float32'
        if loss:
            raise ValueError(
                f'{loss}. Nothing was written. Calibrate with images of all classes, or accept the '
                'loss (accept_loss=True, --accept-loss).'
            )
    report = {
        'model': network.title,
        'file': out.name,
        'input_size': images.shape[1:],
        **int8._asdict(),
        'min_agreement': least,
        'preset': 'mixed',
        # not from the metadata: ONNX Runtime is also installed as onnxruntime-gpu
        'versions': {name: import_module(name).__version__ for name in ('nncf', int8.runtime)},
    }
    out.with_suffix('.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    return int8


def quantize_file(plain: Path, out: Path, images: Any, batch: int, preset: str = 'mixed') -> None:
    """Quantize a file of OpenVINO or ONNX with NNCF after training.

    Weights are quantized per channel and symmetrically, activations per tensor: those after a ReLU
    symmetrically, the others not (preset 'mixed'; 'performance' quantizes all symmetrically). NNCF
    leaves the convolutions of SE in float32 and quantizes the product with the gate. In float32
    that product gains neither accuracy (digits model) nor time (res2net50_se). The images
    (N, ...) calibrate, `batch` of them in a run.
    """
    import nncf

    is_onnx = plain.suffix == '.onnx'
    starts = range(0, len(images), batch)
    package: Any = import_module('onnx' if is_onnx else 'openvino')
    model = package.load(plain) if is_onnx else package.Core().read_model(plain)
    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's progress bars
        model = nncf.quantize(
            model,
            nncf.Dataset(starts, lambda i: {INPUT: np.array(images[i : i + batch])}),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(starts),
        )
    if is_onnx:
        enclose(model.graph)
        for entry in model.metadata_props:
            if entry.key == META:
                entry.value = json.dumps({**json.loads(entry.value), 'int8': True})
        package.save(model, out)
    else:
        text = json.loads(model.get_rt_info(META).astype(str))
        model.set_rt_info(json.dumps({**text, 'int8': True}), META)
        package.save_model(model, out, compress_to_fp16=False)


def enclose(graph: Any) -> None:
    """Rewrite a graph of NNCF, in place, so that ONNX Runtime runs in int8 what NNCF quantized.

    ONNX Runtime does so if the inputs of a layer come from a DequantizeLinear and its output goes
    to a QuantizeLinear of the same type. NNCF adds none after a Split or a Concat, which only move
    values, and mixes uint8 with int8. Then half of a Res2Net's convolutions run in float32. Here
    all activations become uint8, and a QuantizeLinear and a DequantizeLinear with the scale of the
    inputs follow each Split and Concat. Neither changes a value. What has inputs of two scales, or
    a scale for each channel, stays as it is.
    """
    from onnx import helper, numpy_helper

    activations = {x.input[2] for x in graph.node if x.op_type == 'QuantizeLinear'}
    numbers = {}  # scales and zero points, but not those by channel
    for initializer in graph.initializer:
        array = numpy_helper.to_array(initializer)
        if initializer.name in activations and array.dtype == np.int8:
            array = (array.astype(np.int16) + 128).astype(np.uint8)
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
        if array.ndim == 0:
            numbers[initializer.name] = array.item()
    scales: dict[str, tuple[str, ...]] = {}  # scale and zero point of a dequantized tensor
    renamed: dict[str, str] = {}
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:]  # value_info has the old types
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        graph.node.append(node)
        if node.op_type == 'DequantizeLinear' and all(x in numbers for x in node.input[1:]):
            scales[node.output[0]] = tuple(node.input[1:])
        moved = {'Split': node.input[:1], 'Concat': node.input}.get(node.op_type, ())
        inputs = [scales.get(name, ()) for name in moved]
        if not all(inputs) or len({tuple(numbers[x] for x in scale) for scale in inputs}) != 1:
            continue
        for name in node.output:
            quantized, renamed[name] = f'{name}_quantized', f'{name}_dequantized'
            graph.node.append(helper.make_node('QuantizeLinear', [name, *inputs[0]], [quantized]))
            graph.node.append(
                helper.make_node('DequantizeLinear', [quantized, *inputs[0]], [renamed[name]])
            )
            scales[renamed[name]] = inputs[0]


def compare_files(plain: Path, small: Path, images: Any, batch: int, network: Network) -> Int8:
    """Compare a file in float32 with its int8 form on images (N, ...)."""
    files = {'float32': plain, 'int8': small}
    runs = {form: Runner(file) for form, file in files.items()}
    seconds: dict[str, list[float]] = {form: [] for form in files}
    squares = np.zeros((2, len(network.outputs)))  # of the differences, and of float32
    same, answers = 0, set[int]()
    _logger.info(f'Comparing with {len(images)} images')
    for run in runs.values():  # the first run of a file takes longer
        run(torch.from_numpy(np.array(images[:batch])))
    for i in range(0, len(images), batch):
        x = torch.from_numpy(np.array(images[i : i + batch]))
        results = []
        for form, run in runs.items():
            start = time.perf_counter()
            outputs = as_tuple(run(x))
            seconds[form].append(time.perf_counter() - start)
            results.append(network.as_logits(outputs))
        for k, (expected, got) in enumerate(zip(*results, strict=True)):
            squares[:, k] += float((got - expected).square().sum()), float(expected.square().sum())
        expected, got = (outputs[0] for outputs in results)
        # argmax takes NaN for the largest
        same += int(((got.argmax(1) == expected.argmax(1)) & ~got.isnan().any(1)).sum())
        answers |= set(expected.argmax(1).flatten().tolist())
    errors = np.sqrt(squares[0] / np.maximum(squares[1], 1e-30))
    names = ['logits'] if network.is_classifier else network.outputs
    # NaN if one of the errors is
    agreement = same / len(images) if network.is_classifier else 1 - float(errors.max())
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return Int8(
        agreement,
        dict(zip(names, errors.tolist(), strict=True)),
        len(images),
        len(images),
        len(answers),
        {form: size_of(file) for form, file in files.items()},
        {form: statistics.median(times) for form, times in seconds.items()},
        statistics.median(ratios),
        'onnxruntime' if small.suffix == '.onnx' else 'openvino',
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file and of those beside it that differ only in the suffix."""
    return sum(file.stat().st_size for file in path.parent.iterdir() if file.stem == path.stem)
