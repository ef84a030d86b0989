"""What runs a model: torch, torch.compile, or another runtime that the model is exported to."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from timm_res2net import extras
from timm_res2net.export import onnx, openvino
from timm_res2net.export.measure import Job

COMPILED = ('compiled', 'frozen', 'cudagraphs')
"""Runtimes by torch.compile: with its defaults, with weights as constants, and with CUDA graphs
(`mode='reduce-overhead'`).
"""
ON_GPU = ('cudagraphs',)
"""Runtimes that need a GPU."""
EXPORTED = {
    'onnxruntime': onnx.FORMAT.packages,
    'openvino': (*onnx.FORMAT.packages, 'openvino'),
}
"""Runtimes that read an ONNX file, with the packages that each needs."""
RUNTIMES = ('eager', *COMPILED, *EXPORTED)

Step = Callable[[], object]


def require(runtime: str) -> None:
    """Raise ValueError if a package that the runtime needs is not installed."""
    extras.require(f"Mode '{runtime}'", 'export', *EXPORTED.get(runtime, ()))


def export(model: nn.Module, x: torch.Tensor, int8: bool) -> bytes:
    """Return a model as an ONNX file for inputs of the shape of x, (B, 3, S, S).

    Args:
        model: The model.
        x: A batch of images.
        int8: Whether the file is quantized, instead of in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Job(model, x, True, Path(folder), torch.get_num_threads())
        path = job.export_int8('onnx') if int8 else job.export('onnx')
        return path.read_bytes()


def load(runtime: str, model: bytes, x: torch.Tensor, threads: int, bf16: bool) -> Step:
    """Return a function that runs an ONNX file on x on the CPU and returns its output as an array.

    Args:
        runtime: A key of `EXPORTED`.
        model: An ONNX file from `export`.
        x: Input of shape (B, 3, H, W). It is passed as a contiguous float32 array.
        threads: Number of threads.
        bf16: Whether OpenVINO computes in bfloat16.
    """
    images = x.float().contiguous()
    if runtime == 'openvino':
        run = openvino.load(model, 'bf16' if bf16 else 'f32', threads)
    else:
        run = onnx.load(model, threads)
    return lambda: run(images)[0]
