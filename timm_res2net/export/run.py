"""Run an exported file on the CPU: one function for each runtime.

Each returns a function from images (B, in_chans, H, W) to the outputs of the file.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Run = Callable[[torch.Tensor], Any]
"""Runs a file or a model on images (B, in_chans, H, W). A file returns a sequence of tensors."""

PRECISION_HINT = 'INFERENCE_PRECISION_HINT'
"""OpenVINO's setting for the precision of layers that are not int8."""


def load_onnx(file: Path | bytes, threads: int | None = None) -> Run:
    """Load an ONNX file in ONNX Runtime.

    Args:
        file: Path of the file, or its bytes.
        threads: Number of threads; None for ONNX Runtime's default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        # threads that keep spinning would take the cores from the next model
        options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]

    return run


def load_openvino(file: Path | bytes, threads: int | None = None, precision: str = 'f32') -> Run:
    """Load a file of OpenVINO or an ONNX file in OpenVINO.

    Args:
        file: Path of an .xml or .onnx file, or the bytes of the latter.
        threads: Number of threads; None for OpenVINO's default.
        precision: 'f32' or 'bf16', the precision of layers that are not int8.
    """
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


def load_pt2(file: Path) -> Run:
    """Load a program of torch.export."""
    return torch.export.load(file).module()


def load_aoti(file: Path) -> Run:
    """Load a program that AOTInductor compiled for machines like this one."""
    inductor: Any = torch._inductor
    return inductor.aoti_load_package(str(file))


def load_torchscript(file: Path) -> Run:
    """Load a TorchScript file."""
    with ignore_deprecation():
        return torch.jit.load(str(file))


@contextlib.contextmanager
def ignore_deprecation() -> Iterator[None]:
    """Ignore torch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
        warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
        yield
