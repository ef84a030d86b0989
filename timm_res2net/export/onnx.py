"""ONNX, for ONNX Runtime, OpenVINO and TensorRT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .base import (
    INPUT,
    Format,
    Request,
    Run,
    dynamic_shapes,
)


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

    model = quantize(onnx.load(path))
    enclose(model.graph)
    onnx.save(model, out)


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
        found = [scales.get(name, ()) for name in moved]
        if not all(found) or len({tuple(numbers[x] for x in scale) for scale in found}) != 1:
            continue
        for name in node.output:
            quantized, renamed[name] = f'{name}_quantized', f'{name}_dequantized'
            for kind, source, result in (
                ('QuantizeLinear', name, quantized),
                ('DequantizeLinear', quantized, renamed[name]),
            ):
                graph.node.append(helper.make_node(kind, [source, *found[0]], [result]))
            scales[renamed[name]] = found[0]


FORMAT = Format(
    _write,
    '.onnx',
    True,
    'ONNX Runtime, OpenVINO, ...',
    ('onnx', 'onnxscript', 'onnxruntime'),
    quantize=_quantize,
)
