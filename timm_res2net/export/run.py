"""Run an exported file on the CPU, as a module."""

import contextlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

Run = Callable[[torch.Tensor], Any]
"""Runs a file or a model on images (B, in_chans, H, W). A file returns a sequence of tensors."""

PRECISION_HINT = 'INFERENCE_PRECISION_HINT'
"""OpenVINO's setting for the precision of layers that are not int8."""


class Runner(nn.Module):
    """A file that `export_model` wrote, as a module.

    Shape:
        - Input: (B, in_chans, H, W)
        - Output: a list of tensors, the logits (B, num_classes) or the feature levels.
    """

    def __init__(self, path: Path, threads: int | None = None, precision: str = 'f32') -> None:
        """
        Args:
            path: The file. Its runtime follows from its suffix.
            threads: Number of threads of ONNX Runtime and OpenVINO; None for their default.
            precision: 'f32' or 'bf16', the precision of layers in OpenVINO that are not int8.
        """
        super().__init__()
        if path.suffix == '.onnx':
            self.run = load_onnx(path, threads)
        elif path.suffix == '.xml':
            self.run = load_openvino(path, threads, precision)
        elif path.suffix == '.pt':
            with ignore_deprecation():
                self.run = torch.jit.load(str(path)).__call__
        elif any('/aotinductor/' in name for name in zipfile.ZipFile(path).namelist()):
            inductor: Any = torch._inductor
            self.run = inductor.aoti_load_package(str(path))
        else:  # not as a child, because torch.export's modules refuse eval()
            self.run = torch.export.load(path).module().__call__

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Run the file."""
        return list(self.run(images))


def load_onnx(file: Path | bytes, threads: int | None = None) -> Run:
    """Load an ONNX file, given by its path or as bytes, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        # threads that keep spinning would take the cores from the next model
        options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: list(map(torch.from_numpy, session.run(None, {name: images.numpy()})))


def load_openvino(file: Path | bytes, threads: int | None = None, precision: str = 'f32') -> Run:
    """Load an .xml file, or an ONNX file as its path or as bytes, in OpenVINO."""
    import openvino

    settings: dict[str, Any] = {PRECISION_HINT: precision}
    if threads is not None:
        settings |= {
            'INFERENCE_NUM_THREADS': threads,
            'PERFORMANCE_HINT': 'LATENCY',
            'ENABLE_CPU_PINNING': False,  # torch does not pin either
        }
    core = openvino.Core()
    network: Any = core.compile_model(core.read_model(file), 'CPU', settings)
    request = network.create_infer_request()

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        outputs = request.infer([images.numpy()])
        return [torch.from_numpy(outputs[output]) for output in network.outputs]

    return run


@contextlib.contextmanager
def ignore_deprecation() -> Iterator[None]:
    """Ignore torch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
        warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
        yield
