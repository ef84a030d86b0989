"""What runs a model: torch, torch.compile, or another runtime that the model is exported to."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from timm_res2net import extras
from timm_res2net.export.measure import run_onnx, run_openvino

COMPILED = ('compiled', 'frozen', 'cudagraphs')
"""Runtimes by torch.compile: with its defaults, with weights as constants, and with CUDA graphs
(`mode='reduce-overhead'`).
"""
ON_GPU = ('cudagraphs',)
"""Runtimes that need a GPU."""
EXPORTED = {
    'onnxruntime': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'openvino'),
}
"""Runtimes that read an ONNX file, with the packages that each needs."""
RUNTIMES = ('eager', *COMPILED, *EXPORTED)

Step = Callable[[], object]


def require(runtime: str) -> None:
    """Raise ValueError if a package that the runtime needs is not installed."""
    extras.require(f"Mode '{runtime}'", 'export', *EXPORTED.get(runtime, ()))


def freeze(model: nn.Module, run: Callable[[], object]) -> Any:
    """Compile a model with its weights as constants, so that they are folded and packed once.

    Inductor's switch is on for this compilation only. Dynamo reads it too, so it has no effect as
    an option of `torch.compile`.

    Args:
        model: A model in eval mode. It is compiled in place.
        run: Runs the model as it will be run, in inference mode.

    Returns:
        The model.
    """
    model.compile()
    with torch._inductor.config.patch(freezing=True):
        run()
    return model


def export(model: nn.Module, x: torch.Tensor) -> bytes:
    """Return a model as an ONNX file in float32 for inputs of the shape of x, (B, 3, H, W)."""
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)  # type: ignore[union-attr, arg-type]
    return file.getvalue()


def load(runtime: str, model: bytes, x: torch.Tensor, threads: int, bf16: bool) -> Step:
    """Return a function that runs an ONNX file on x on the CPU and returns its output as an array.

    Args:
        runtime: A key of `EXPORTED`.
        model: An ONNX file from `export`.
        x: Input of shape (B, 3, H, W). It is passed as a contiguous float32 array.
        threads: Number of threads.
        bf16: Whether OpenVINO computes in bfloat16.
    """
    array = x.float().contiguous().numpy()
    if runtime == 'openvino':
        run = run_openvino(model, threads, 'bf16' if bf16 else 'f32')
    else:
        run = run_onnx(model, threads)
    return lambda: run(array)[0]
