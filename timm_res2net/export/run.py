"""Run an exported file on the CPU, as a module."""

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import nn

from ..files import require
from ..layers.text import first_line

Run = Callable[[torch.Tensor], Any]
"""Runs a file or a model on images (B, in_chans, H, W). A file returns a sequence of tensors."""

META = 'timm_res2net'
"""Name of the text in every file that describes the network."""

PRECISION_HINT = 'INFERENCE_PRECISION_HINT'
"""OpenVINO's setting for the precision of layers that are not int8."""

_EXTRA = f'{META}.json'  # the text's name in files of torch


def as_tuple(out: Any) -> tuple[Any, ...]:
    """Return what a model returned as a tuple: one tensor, or those of a list or dict."""
    out = list(out.values()) if isinstance(out, dict) else out
    # torch 2.6 cannot trace a union of types here
    return tuple(out) if isinstance(out, (list, tuple)) else (out,)


class Runner(nn.Module):
    """A file that `export_model` wrote, as a module in eval mode without parameters.

    `outputs` are the names of its outputs, and `pretrained_cfg` is the text in the file.

    Shape:
        - Input: (B, in_chans, H, W)
        - Output: a tensor such as the logits (B, num_classes), or a list of tensors such as the
          feature levels.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        precision: str = 'f32',
        device: str | torch.device = 'cpu',
    ) -> None:
        """
        Args:
            path: The file. Its runtime follows from its suffix.
            threads: Number of threads of ONNX Runtime and OpenVINO; None for their default.
            precision: 'f32' or 'bf16', the precision of layers in OpenVINO that are not int8.
            device: As in `load_exported`.
        """
        super().__init__()
        self.path, self.device, self.training = path, torch.device(device), False
        try:
            self.run, text = _load(path, threads, precision, self.device)
            cfg: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in json.loads(text).items()
            }
        except (ValueError, OSError):
            raise
        except Exception as error:  # every runtime fails in its own way
            raise ValueError(
                f'Cannot load {path} as a file that `timm-res2net export` wrote '
                f'({type(error).__name__}: {first_line(error)[:300]}). Export the model again.'
            ) from error
        self.pretrained_cfg = cfg
        self.outputs: tuple[str, ...] = cfg['outputs']
        self.takes_pixels = str(cfg.get('input')).startswith('uint8')
        self.num_classes: int = cfg.get('num_classes', 0)
        if levels := list(cfg.get('features', ())):
            self.feature_info = FeatureInfo(levels, tuple(range(len(levels))))

    def forward(self, images: torch.Tensor) -> Any:
        """Run the file."""
        if images.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f'{self.path.name} has no gradients. Call it under torch.no_grad(), or use the '
                'model that was exported.'
            )
        if self.takes_pixels != (images.dtype == torch.uint8):
            remedy = 'Normalize them, or export the model with its preparation'
            if self.takes_pixels:
                remedy = (
                    '`predict` and others that normalize images need a file without preparation'
                )
            raise ValueError(
                f'{self.path.name} takes images as {self.pretrained_cfg["input"]}, got '
                f'{images.dtype} {tuple(images.shape)}. {remedy} (--with-preparation).'
            )
        shape = self.pretrained_cfg.get('shape', images.shape)
        if images.shape != shape:  # a static AOTInductor file would return wrong outputs
            raise ValueError(
                f'{self.path.name} takes images of the shape {shape}, got '
                f'{tuple(images.shape)}. Export it without static=True (--static) for any.'
            )
        with torch.no_grad():
            results = list(self.run(images))
        return results[0] if self.pretrained_cfg['returns'] == 'tensor' else results

    def train(self, mode: bool = True) -> 'Runner':
        """Refuse training mode; a file has only its eval form."""
        if mode:
            raise ValueError(
                f'{self.path.name} cannot be trained. Train the model, and export it again.'
            )
        return super().train(False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> 'Runner':
        """Refuse another device or dtype: every method that moves a module calls this one."""
        here = torch.empty(0, device=self.device)
        moved = fn(here)
        if (moved.device, moved.dtype) != (here.device, here.dtype):
            raise ValueError(
                f'{self.path.name} runs on {here.device} in float32 and cannot be moved to '
                f'{moved.device} in {moved.dtype}. Load it with load_exported(path, device=...).'
            )
        return self


def load_exported(
    path: str | os.PathLike[str], device: str | torch.device = 'cpu', threads: int | None = None
) -> nn.Module:
    """Load a file that `export_model` wrote, as a module.

    `forward` takes normalized images (B, in_chans, H, W) in float32. It returns the logits
    (B, num_classes), a list of feature levels (B, C, H / stride, W / stride), or the tensor or list
    of tensors of another module. A file that was exported with its preparation takes pixels as
    uint8 (B, H, W, in_chans) and returns probabilities in place of logits. Several threads may call
    it at once and get the results of one. OpenVINO computes in float32, and neither images nor
    outputs are copied for it.

    The module has `pretrained_cfg` and `num_classes`, with features also `feature_info`, from the
    file itself. So `timm.data.resolve_model_data_config`, `predict` and `detection_backbone` take
    it. Training mode, gradients, and another device or dtype are refused.

    A TorchScript or torch.export file is a program, and an AOTInductor file is native code: load
    only files that you trust.

    Args:
        path: The file: .onnx runs in ONNX Runtime, .xml in OpenVINO, .pt2 in torch.export or
            AOTInductor, .pt in TorchScript.
        device: 'cpu', or another device of torch for a file of TorchScript or torch.export.
        threads: Number of threads of ONNX Runtime and OpenVINO; None for their default. Files of
            torch use `torch.set_num_threads`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `export_model` did not write the file, it is damaged, or its runtime is not
            installed or does not run on `device`.

    Example:
        >>> import tempfile, timm_res2net, torch
        >>> out = f'{tempfile.mkdtemp()}/digits.pt'
        >>> _ = timm_res2net.export_model('test_res2net_se', out)
        >>> timm_res2net.load_exported(out)(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    path = Path(path)
    path.stat()  # or there is no such file
    if not is_exported(path):
        raise ValueError(
            f'{path} is not a file that `timm-res2net export` wrote. Export a model with it.'
        )
    return Runner(path, threads, device=device)


def is_exported(path: Path) -> bool:
    """Return whether a path is a file of a format that `export_model` writes."""
    if path.suffix != '.pt':
        return path.suffix in ('.onnx', '.xml', '.pt2') and path.is_file()
    # checkpoints of torch.save have the suffix, too
    return zipfile.is_zipfile(path) and any(
        name.endswith(f'/{_EXTRA}') for name in zipfile.ZipFile(path).namelist()
    )


def _load(path: Path, threads: int | None, precision: str, device: torch.device) -> tuple[Run, str]:
    """Return what runs a file, and its text."""
    files = {_EXTRA: ''}
    if path.suffix == '.pt':
        with ignore_deprecation():
            traced = torch.jit.load(str(path), device, files)
        return lambda images: as_tuple(traced(images)), files[_EXTRA]
    is_aoti = path.suffix == '.pt2' and any(
        '/aotinductor/' in name for name in zipfile.ZipFile(path).namelist()
    )
    if path.suffix == '.pt2' and not is_aoti:
        # not as a child, because torch.export's modules refuse eval()
        program = torch.export.load(path, extra_files=files).module().to(device)
        return program.__call__, files[_EXTRA]
    if device.type != 'cpu':
        raise ValueError(
            f'{path.name} runs on the CPU here, not on {device}. Export to pt2 or torchscript for '
            'another device.'
        )
    if is_aoti:
        inductor: Any = torch._inductor
        package = inductor.aoti_load_package(str(path))
        return package.__call__, package.get_metadata()[META]
    if path.suffix == '.onnx':
        return load_onnx(path, threads)
    return load_openvino(path, threads, precision)


def load_onnx(file: Path | bytes, threads: int | None = None) -> tuple[Run, str]:
    """Load an ONNX file, given by its path or as bytes. Return what runs it, and its text."""
    require('export', 'onnxruntime')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        # threads that keep spinning would take the cores from the next model
        options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        outputs = session.run(None, {name: images.detach().contiguous().numpy()})
        return list(map(torch.from_numpy, outputs))

    return run, session.get_modelmeta().custom_metadata_map.get(META, '')


def load_openvino(
    file: Path | bytes, threads: int | None = None, precision: str = 'f32'
) -> tuple[Run, str]:
    """Load an .xml file, or an ONNX file as bytes. Return what runs it, and its text."""
    require('export', 'openvino')
    import openvino

    settings: dict[str, Any] = {PRECISION_HINT: precision}
    if threads is not None:
        settings |= {
            'INFERENCE_NUM_THREADS': threads,
            'PERFORMANCE_HINT': 'LATENCY',
            'ENABLE_CPU_PINNING': False,  # torch does not pin either
        }
    core = openvino.Core()
    model = core.read_model(file)
    network: Any = core.compile_model(model, 'CPU', settings)

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        # a request of its own, which takes 10 us: outputs share its memory, and other threads run
        request = network.create_infer_request()
        images = images.detach().contiguous()
        outputs = request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(outputs[output]) for output in network.outputs]

    return run, model.get_rt_info(META).astype(str) if model.has_rt_info(META) else ''


@contextlib.contextmanager
def ignore_deprecation() -> Iterator[None]:
    """Ignore torch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
        warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
        yield
