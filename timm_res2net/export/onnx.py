"""ONNX, for ONNX Runtime, OpenVINO and TensorRT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .base import INPUT, Format, Request, Run, dynamic_shapes


def _write(request: Request, path: Path) -> Run:
    import onnxruntime

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
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda image: session.run(None, {INPUT: image.numpy()})


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
