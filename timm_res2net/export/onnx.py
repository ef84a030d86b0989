"""ONNX, for ONNX Runtime, OpenVINO and TensorRT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .base import INPUT, Format, Request, Run, dynamic_shapes


def _write(request: Request, path: Path) -> Run:
    made: Any = torch.onnx.export(
        request.subject,
        (request.images,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=request.outputs,
        dynamic_shapes=dynamic_shapes(request.step) if request.step else None,
    )
    made.model.metadata_props['timm_res2net'] = request.meta
    made.save(str(path), external_data=False)
    return load(path)


def load(model: Path | bytes, threads: int | None = None) -> Run:
    """Return what runs a file, or its bytes, in ONNX Runtime on the CPU.

    Args:
        model: Path of the file, or its bytes.
        threads: Number of threads; None for ONNX Runtime's default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        # threads that keep spinning would take the cores from the next model
        options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image.numpy()})


def _quantize(path: Path, out: Path, quantize: Callable[[Any], Any]) -> None:
    import onnx

    onnx.save(quantize(onnx.load(path)), out)


FORMAT = Format(
    _write,
    '.onnx',
    True,
    'ONNX Runtime, OpenVINO, ...',
    ('onnx', 'onnxscript', 'onnxruntime'),
    quantize=_quantize,
)
