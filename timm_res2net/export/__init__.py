"""A model as a file for another runtime, checked by running the file."""

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import FeatureInfo
from torch import nn

from ..files import check_writable, place, require, scratch_folder
from ..folder.config import check_labels, data_of
from ..folder.golden import relative_difference
from ..hub.fetch import load_model
from ..layers.text import first_line
from ..models.deploy import reparameterize_model, unwrap
from .formats import FORMATS, SMALLEST, Network
from .int8 import MAX_IMAGES, Int8, prepare_images, to_int8
from .run import Runner, as_tuple
from .run import load_exported as load_exported

_logger = logging.getLogger(__name__)

# Each format orders sums in its own way, which changes outputs by up to 20 times as much as float32
# does. A difference below the first figure is accepted without measuring that.
_ROUNDING, _TIMES_ROUNDING = 1e-5, 20

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
    input_size: Sequence[int] | None = None,
    batch_size: int = 1,
    pretrained: bool = True,
    int8: str | os.PathLike[str] | None = None,
    max_images: int = MAX_IMAGES,
    min_agreement: float | None = None,
    accept_loss: bool = False,
    label_names: Sequence[str] | None = None,
    with_preparation: bool = False,
    **data: Any,
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
            folder; a repository (OWNER/NAME or hf-hub:OWNER/NAME); or a module in memory that
            returns a tensor, or a list or dict of tensors. Its mode, device and weights are not
            changed. It is exported in its eval form.
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
        input_size: Channels, height and width instead of `img_size`. A module without a
            `pretrained_cfg` needs them.
        batch_size: Number of images that the model is exported with.
        pretrained: Load weights. A model in memory has its own.
        int8: Folder with images like those that the model will see. They are prepared as the
            model's config says, and the file is quantized with them.
        max_images: The most images of the folder that are used.
        min_agreement: Smallest share of images whose most probable class stays in int8; by default
            0.98. For features it is 1 minus the largest error of a level, by default 0.8.
        accept_loss: Write an int8 file even if its logits are off by more than 10 % (root mean
            square), or if the model has the same answer for all images.
        label_names: Names of the classes in order, for the text in the file.
        with_preparation: The file takes pixels as uint8 (B, H, W, C), normalizes them itself, and
            returns probabilities in place of logits. Images are resized and cropped before.
        **data: How images are prepared, instead of what the model's cfg says: `mean`, `std`,
            `crop_pct` and `interpolation`, as timm's train.py takes them.

    Returns:
        What was written, with the error of the check run.

    Raises:
        ValueError: An unknown format or model, a missing package, too small an `img_size`,
            something that the format cannot express, or outputs that differ by more than 1e-5 and
            by 20 times as much as float32 itself changes them. For `int8` also too few images, a
            model of other than 1 or 3 channels, or too large a loss.
        OSError: `out` exists or cannot be written, or there is no folder `int8`.

    Example:
        >>> import tempfile, timm_res2net
        >>> out = f'{tempfile.mkdtemp()}/digits.pt2'
        >>> timm_res2net.export_model('test_res2net_se', out, 'pt2', static=True).outputs
        ('logits',)
    """
    format = _choose_format(format, Path(out))
    if not static and img_size is not None and img_size < SMALLEST:
        raise ValueError(
            f'img_size must be at least {SMALLEST} unless static=True (--static), got {img_size}.'
        )
    path = check_writable(Path(out))
    for suffix in (*FORMATS[format].beside, *(['.json'] if int8 else [])):
        check_writable(path.with_suffix(suffix))
    if int8 is not None:
        require('int8', 'nncf')
        if format not in ('onnx', 'openvino'):
            raise ValueError(f"Format '{format}' has no int8 form here. Use onnx or openvino.")
        if min_agreement is not None and not 0 <= min_agreement <= 1:
            raise ValueError(f'min_agreement must be a share from 0 to 1, got {min_agreement!r}.')
    levels: dict[str, Any] = {'features_only': True, 'out_indices': out_indices} if features else {}
    data |= {'img_size': img_size, 'input_size': input_size, 'label_names': label_names}
    network = load_network(target, pretrained, deploy, levels, **data)
    if with_preparation or int8 is not None:
        if not network.model.pretrained_cfg.get('mean'):
            text = 'Nothing says how images are prepared. Give mean and std (--mean, --std).'
            raise ValueError(text)
        if with_preparation:
            network.include_preparation()
    # with a free batch, torch.export would take a batch of 1 for a constant
    batch = batch_size if static else max(batch_size, 2)
    x = network.noise(batch, *network.model.pretrained_cfg['input_size'][1:])
    with torch.no_grad(), scratch_folder(path) as scratch:
        file, loss = scratch / 'float32' / path.name, None
        file.parent.mkdir()
        batch = len(x) if static else 1  # images of one run in int8
        if int8 is not None:  # before the export, which takes minutes: there may be too few images
            images = prepare_images(network, int8, max_images, batch, scratch / 'images.npy')
        step, error = _write(network, x, format, static, file)
        if int8 is not None:
            plain, file = file, scratch / 'int8' / path.name
            file.parent.mkdir()
            loss = to_int8(plain, file, images, batch, network, min_agreement, accept_loss)
        # the file comes last: those beside it are complete when it is there
        for made in sorted(file.parent.iterdir(), key=lambda made: made.name == path.name):
            made.chmod(0o644)
            place(made, path.parent / made.name)
    sizes = _SIZES[step].format(tuple(x.shape))
    return Exported(path, format, tuple(network.outputs), sizes, error, loss)


def _choose_format(name: str | None, out: Path) -> str:
    """Return the name of a format, found by the suffix of the file if it is not given."""
    name = name or next((key for key, kind in FORMATS.items() if kind.suffix == out.suffix), '')
    if name not in FORMATS or FORMATS[name].suffix != out.suffix:
        # runtimes recognise their files by the suffix
        formats = ', '.join(f'{key} (*{kind.suffix})' for key, kind in FORMATS.items())
        raise ValueError(
            f"Cannot write '{out.name}'{f' as {name}' if name else ''}. Choose a format "
            f'(--format), and its suffix for the file: {formats}.'
        )
    require('export', *FORMATS[name].packages)
    return name


def load_network(
    target: nn.Module | str | os.PathLike[str],
    pretrained: bool,
    deploy: bool,
    levels: Mapping[str, Any],
    *,
    img_size: int | None = None,
    input_size: Sequence[int] | None = None,
    label_names: Sequence[str] | None = None,
    **data: Any,
) -> Network:
    """Load a network, or copy a model from memory: in eval mode and float32, on the CPU.

    Its `pretrained_cfg` says what the caller says of images and classes. Arguments and errors are
    those of `export_model`, but `levels`, which are timm's for feature levels.
    """
    if isinstance(target, nn.Module):
        plain: Any = unwrap(target, 'export')
        title = type(plain).__name__
        if levels and not isinstance(getattr(plain, 'feature_info', None), FeatureInfo):
            raise ValueError(
                f'{title} returns no feature levels. Create it with features_only=True, and leave '
                'features out.'
            )
        with torch.inference_mode(False):
            model: Any = copy.deepcopy(plain).to('cpu', torch.float32)
    else:
        title = str(target)
        try:
            model = load_model(target, pretrained, **levels)
        except (IndexError, AssertionError) as error:  # timm's errors for levels that do not exist
            raise ValueError(
                f'{target} has no feature levels {levels["out_indices"]}. Use a network with five '
                'levels, such as a Res2Net.'
            ) from error
    if deploy:
        model = reparameterize_model(model)
    cfg = dict(getattr(model, 'pretrained_cfg', None) or {})
    if 'input_size' not in cfg and input_size is None:
        raise ValueError(
            f'{title} has no pretrained_cfg that says which images it takes. Give their channels, '
            'height and width, such as input_size=(3, 224, 224).'
        )
    channels, height, width = input_size or cfg['input_size']
    if input_size is None:  # timm keeps the channels of the registered weights
        weights = (weight for weight in model.parameters() if weight.ndim == 4)
        channels = next((weight.shape[1] for weight in weights), channels)
    size = (channels, img_size or height, img_size or width)
    if unknown := data.keys() - {'mean', 'std', 'crop_pct', 'interpolation'}:
        raise TypeError(f'export_model has no argument {", ".join(sorted(unknown))}')
    model.in_chans, model.pretrained_cfg = channels, {**cfg, 'input_size': size}
    if data.get('mean') is not None or cfg.get(
        'mean'
    ):  # otherwise nothing says how images are prepared
        model.pretrained_cfg |= data_of(cfg, model, {**data, 'input_size': size})
    network = Network(model, title).requires_grad_(False)
    if label_names is not None:
        check_labels(label_names, network.num_classes)
        model.pretrained_cfg['label_names'] = list(label_names)
    return network


def _write(
    network: Network, x: torch.Tensor, format: str, static: bool, file: Path
) -> tuple[int | None, float]:
    """Write a file, run it on images of all sizes that it should take, and compare the outputs.

    Returns what the format's function returned, and the largest difference over the largest output.
    """
    height, width = (x.shape[side] for side in network.sides)
    what = f'Exporting {network.title} as {format} for images of {height} x {width} px'
    try:
        _logger.info(f'Exporting as {format}, which can take minutes')
        step = FORMATS[format].write(network, x, static, file)
        _logger.info('Running the file and comparing its outputs')
        run, images = Runner(file), [x]
        if not static:
            multiple = step or 32
            smallest = SMALLEST if multiple == 1 else 2 * multiple
            images.append(network.noise(1, height + multiple, width + 2 * multiple))
            images.append(network.noise(2, smallest, smallest))
        largest = 0.0
        for image in images:
            errors = [
                relative_difference(*pair)
                for pair in zip(as_tuple(run(image)), network(image), strict=True)
            ]
            largest = max(largest, *errors)  # none of them is NaN
            if not max(errors) <= _ROUNDING:
                _check_errors(network, image, errors, what)
    except (ValueError, OSError):
        raise
    except Exception as error:  # torch, onnxscript and a C++ compiler each fail in their own way
        raise ValueError(
            f'{what} failed ({type(error).__name__}: {first_line(error)[:300]}). Try another size '
            '(a multiple of 32 px), a fixed size (static=True, --static), or another format.'
        ) from error
    return step, largest


def _check_errors(
    network: Network, image: torch.Tensor, errors: Sequence[float], what: str
) -> None:
    """Raise a ValueError if outputs differ more than the rounding of the network explains."""
    plain, exact = network(image), copy.deepcopy(network).double()(image.double())
    for name, error, output, true in zip(network.outputs, errors, plain, exact, strict=True):
        own = relative_difference(output.double(), true.double())
        limit = max(_ROUNDING, _TIMES_ROUNDING * own) if math.isfinite(own) else _ROUNDING
        if not error <= limit:
            raise ValueError(
                f"{what} gave a file whose output '{name}' differs from the model's by "
                f'{error:.1e} of the largest value, more than {limit:.0e}; float32 itself changes '
                f'it by {own:.0e}. Nothing was written; use another format.'
            )
