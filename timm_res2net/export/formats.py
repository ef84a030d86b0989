"""Formats of exported files: a function that writes each one, and their table."""

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import FeatureInfo
from torch import nn

from ..folder.config import MODES, MULTI_LABEL
from ..layers.text import first_line
from .run import META, PRECISION_HINT, as_tuple, ignore_deprecation

INPUT = 'image'
"""Name of the input in every file."""

SMALLEST = 33
"""Smallest free side of an image in px. Below it the last level has one pixel, which torch.export
treats as a special case."""

# The fields of a pretrained_cfg that go into the file
_DESCRIBING = (
    'architecture', 'tag', 'num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
    'crop_mode', 'label_names', 'problem_type', 'license',
)  # fmt: skip

# How the resized image covers the crop, by timm's crop modes
_RESIZE_RULES = {'center': 'shorter side', 'squash': 'both sides', 'border': 'longer side'}


class Network(nn.Module):
    """A model whose output is a tuple, whether it returns a tensor, a list or a dict of tensors.

    Attributes:
        model: The model, whose `pretrained_cfg` has the size of its images.
        title: What it is called in messages.
        outputs: Names of its outputs: of the feature levels, the keys of a dict, 'logits',
            'embedding' (the pooled last level) or, with the preparation, 'probabilities'.
        is_classifier: Whether it returns logits, rather than feature levels or the pooled last one.
        with_preparation: Whether it takes pixels as uint8 (B, H, W, C), which it normalizes, and
            returns probabilities in place of logits.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Any, title: str) -> None:
        """Run the model once, in eval mode. A ValueError says that it cannot be exported."""
        super().__init__()
        self.model, self.title, self.with_preparation = model, title, False
        self.eval()
        images = noise(2, *model.pretrained_cfg['input_size'])
        try:
            with torch.no_grad():
                out = model(images)
        except RuntimeError as error:
            raise ValueError(
                f'{title} does not run on images of the shape {tuple(images.shape)} '
                f'({first_line(error)[:300]}). Give another size.'
            ) from error
        results = as_tuple(out)
        if not results or not all(map(torch.is_tensor, results)):
            kinds = ', '.join(sorted({type(result).__name__ for result in results}))
            raise ValueError(
                f'{title} returns {type(out).__name__} of {kinds or "nothing"}. A tensor, or a '
                'list or dict of tensors can be exported.'
            )
        info = getattr(model, 'feature_info', None)
        self.returns = 'tensor' if torch.is_tensor(out) else 'list'
        self.is_classifier = False
        if isinstance(info, FeatureInfo):
            self.outputs = list(info.module_name())
        elif isinstance(out, dict):
            self.outputs = list(map(str, out))
        elif torch.is_tensor(out) and out.ndim == 2:
            self.is_classifier = getattr(model, 'num_classes', None) != 0
            self.outputs = ['logits' if self.is_classifier else 'embedding']
        else:
            self.outputs = [f'output{i}' for i in range(len(results))]
        # the layers count, because a head may have been replaced
        self.num_classes = results[0].shape[-1] if self.is_classifier else 0

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model on (B, C, H, W), or on uint8 (B, H, W, C) with the preparation."""
        if not self.with_preparation:
            return as_tuple(self.model(image))
        results = as_tuple(self.model((image.permute(0, 3, 1, 2) - self.mean) / self.std))
        if not self.is_classifier:
            return results
        logits = results[0]
        return (logits.sigmoid() if self.multi_label else logits.softmax(1),)

    def as_logits(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return outputs in float64, probabilities as logits with a mean of 0 over the classes."""
        results = [result.double() for result in results]
        if not (self.with_preparation and self.is_classifier):
            return results
        probabilities = results[0].clamp(1e-12, 1 - 1e-12)
        if self.multi_label:
            return [probabilities.logit()]
        logits = probabilities.log()
        return [logits - logits.mean(1, keepdim=True)]

    def include_preparation(self) -> None:
        """From now on take pixels as uint8 (B, H, W, C), and return probabilities."""
        cfg, self.with_preparation = self.model.pretrained_cfg, True
        self.multi_label = cfg.get('problem_type') == MULTI_LABEL
        if self.is_classifier:
            self.outputs = ['probabilities']
        for key in ('mean', 'std'):
            self.register_buffer(key, 255 * torch.tensor(cfg[key])[:, None, None])

    @property
    def sides(self) -> tuple[int, int]:
        """The dimensions of height and width in the input."""
        return (1, 2) if self.with_preparation else (2, 3)

    def as_input(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalized images (B, C, H, W) as the network takes them."""
        if not self.with_preparation:
            return images
        pixels = (images * self.std + self.mean).round().clamp(0, 255)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def noise(self, batch: int, height: int, width: int) -> torch.Tensor:
        """Return images of noise as the network takes them, the same ones for a size."""
        channels = self.model.pretrained_cfg['input_size'][0]
        return self.as_input(noise(batch, channels, height, width))

    def metadata(self, images: torch.Tensor, static: bool) -> str:
        """Return the JSON text for a file: how images are prepared, the classes, and the outputs.

        With `static`, the shape of the images is among it.
        """
        cfg: dict[str, Any] = dict(self.model.pretrained_cfg)
        if self.outputs[0] in ('logits', 'probabilities', 'embedding'):
            cfg['num_classes'] = self.num_classes
        if len(cfg.get('label_names') or ()) != self.num_classes:
            cfg['label_names'] = None
        meta = {key: cfg[key] for key in _DESCRIBING if cfg.get(key) is not None}
        meta |= {'outputs': self.outputs, 'returns': self.returns, 'int8': False}
        meta['input'] = 'uint8 (B, H, W, C)' if self.with_preparation else 'float32 (B, C, H, W)'
        info = getattr(self.model, 'feature_info', None)
        if isinstance(info, FeatureInfo):
            meta['features'] = info.get_dicts(['module', 'num_chs', 'reduction'])
        if static:
            meta['shape'] = list(images.shape)
        if 'mean' in meta:  # otherwise nothing says how images are prepared
            channels, *sides = cfg['input_size']
            meta |= {
                'colors': MODES.get(channels),
                'divide_by': 255,
                'resize_to': [math.floor(side / cfg['crop_pct']) for side in sides],
                'resize_by': _RESIZE_RULES[cfg['crop_mode']],
            }
            if self.with_preparation:  # they are in the file
                for key in ('mean', 'std', 'divide_by'):
                    del meta[key]
        return json.dumps(meta)


def noise(*shape: int) -> torch.Tensor:
    """Return images of noise, the same ones for a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- writing --------------------------------------------------------------------------------------
#
# All take a network, images to export it with, whether batch and size are fixed to those of the
# images, and the file to write. They return the number of px that the sizes of images must be
# multiples of: 0 if sizes are fixed, None if the file takes every size that the network takes.


def write_onnx(network: Network, images: torch.Tensor, static: bool, file: Path) -> int | None:
    """Write an ONNX file."""
    program, step = _export(network, images, static)
    exported: Any = torch.onnx.export(
        program,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=network.outputs,
        dynamic_shapes=_free_shapes(network, step) if step else None,
    )
    exported.model.metadata_props[META] = network.metadata(images, static)
    exported.save(str(file), external_data=False)
    return step


def write_openvino(network: Network, images: torch.Tensor, static: bool, file: Path) -> int | None:
    """Write OpenVINO's intermediate representation (IR): an .xml file, and the weights in .bin.

    It starts from the network rather than from the program of torch.export. Then the file takes
    every size that the network takes, conversion takes a third of the time, and layers keep their
    names.
    """
    import openvino

    free = () if static else (0, *network.sides)
    shape = [-1 if i in free else size for i, size in enumerate(images.shape)]
    with ignore_deprecation():
        model = openvino.convert_model(
            network, example_input=images, input=[openvino.PartialShape(shape)]
        )
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, network.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(network.metadata(images, static), META)
    openvino.save_model(model, file, compress_to_fp16=False)
    return 0 if static else None


def write_pt2(network: Network, images: torch.Tensor, static: bool, file: Path) -> int | None:
    """Write the program of torch.export."""
    program, step = _export(network, images, static)
    content = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    text = {f'{META}.json': network.metadata(images, static)}
    torch.export.save(program, content, extra_files=text)
    file.write_bytes(content.getbuffer())
    return step


def write_aoti(network: Network, images: torch.Tensor, static: bool, file: Path) -> int | None:
    """Write the program of torch.export, compiled by AOTInductor for machines like this one."""
    program, step = _export(network, images, static)
    inductor: Any = torch._inductor
    configs = {
        'aot_inductor.metadata': {META: network.metadata(images, static)},
        'freezing': static,  # oneDNN packs for a fixed shape; free sizes gain nothing
    }
    content = io.BytesIO()  # as in `write_pt2`
    inductor.aoti_compile_and_package(program, package_path=content, inductor_configs=configs)
    file.write_bytes(content.getbuffer())
    return step


def write_torchscript(
    network: Network, images: torch.Tensor, static: bool, file: Path
) -> int | None:
    """Write a TorchScript trace."""
    content = io.BytesIO()  # as in `write_pt2`
    with ignore_deprecation():
        traced = torch.jit.trace(network, images, check_trace=False)
        text = {f'{META}.json': network.metadata(images, static)}
        torch.jit.save(traced, content, _extra_files=text)
    file.write_bytes(content.getbuffer())
    return 0 if static else None


def _export(network: Network, images: torch.Tensor, static: bool) -> tuple[Any, int]:
    """Return the program of torch.export, and the step between the image sizes that it takes."""
    if static:
        return torch.export.export(network, (images,)), 0
    try:
        height, width = (images.shape[side] for side in network.sides)
        network(network.noise(1, height + 1, width + 2))
        return torch.export.export(network, (images,), dynamic_shapes=_free_shapes(network, 1)), 1
    except RuntimeError:  # torch.export's errors are RuntimeErrors, too
        # odd sizes break ceil-mode strides and branch merges; fall back to multiples of 32
        shapes = _free_shapes(network, 32)
        return torch.export.export(network, (images,), dynamic_shapes=shapes), 32


def _free_shapes(network: Network, step: int) -> dict[str, dict[int, Any]]:
    """Return torch.export's description of a free batch, and of sizes that are multiples of `step`.

    With a step of 1 they are at least `SMALLEST` px, otherwise at least twice the step.
    """
    dim = torch.export.Dim
    if step == 1:
        sizes = [dim(name, min=SMALLEST) for name in ('height', 'width')]
    else:
        sizes = [step * dim(f'{name}_over_{step}', min=2) for name in ('height', 'width')]
    return {INPUT: {0: dim('batch'), **dict(zip(network.sides, sizes, strict=True))}}


# --- the table ------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A format: the function that writes a file, its suffix, and what it is in a few words.

    It may need packages of the extra `export`, write further files beside the file, which differ in
    their suffixes, and have a note on how to run it.
    """

    write: Callable[[Network, torch.Tensor, bool, Path], int | None]
    suffix: str
    help: str
    packages: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    note: str = ''


FORMATS = {
    'onnx': Format(
        write_onnx, '.onnx', 'ONNX Runtime, OpenVINO, ...', ('onnx', 'onnxscript', 'onnxruntime')
    ),
    'openvino': Format(
        write_openvino,
        '.xml',
        'OpenVINO',
        ('openvino',),
        ('.bin',),
        f'Compile it with {PRECISION_HINT} f32 for float32, or bf16 for bfloat16, the default '
        'of a CPU that has it.',
    ),
    'pt2': Format(write_pt2, '.pt2', 'torch.export'),
    'aoti': Format(write_aoti, '.pt2', 'compiled by AOTInductor for this kind of machine'),
    'torchscript': Format(write_torchscript, '.pt', 'a trace'),
}
"""What `export_model` writes, by name."""
