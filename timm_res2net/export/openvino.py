"""OpenVINO's intermediate representation (IR): a file .xml, and the weights in a .bin beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import (
    INPUT,
    Format,
    Request,
    Run,
    tracing,
)

_HINT = 'INFERENCE_PRECISION_HINT'


def _write(request: Request, path: Path) -> Run:
    import openvino

    batch, channels, *size = request.images.shape
    shape = [-1, channels, -1, -1] if request.step else [batch, channels, *size]
    with tracing():
        model = openvino.convert_model(
            request.subject,
            example_input=request.images,
            input=[openvino.PartialShape(shape)],
        )
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, request.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(request.meta, 'timm_res2net')
    openvino.save_model(model, path, compress_to_fp16=False)
    return load(path)


def load(model: Path | bytes, precision: str = 'f32', threads: int | None = None) -> Run:
    """Return what runs a file, or its bytes, on the CPU.

    Args:
        model: Path of an .xml or .onnx file, or the bytes of the latter.
        precision: 'f32' or 'bf16', in which layers that are not int8 compute.
        threads: Number of threads; None for OpenVINO's default.
    """
    import openvino

    settings: dict[str, Any] = {_HINT: precision}
    if threads is not None:
        settings |= {
            'INFERENCE_NUM_THREADS': threads,
            'PERFORMANCE_HINT': 'LATENCY',
            'ENABLE_CPU_PINNING': False,  # torch does not pin either
        }
    core = openvino.Core()
    compiled: Any = core.compile_model(core.read_model(model), 'CPU', settings)
    request = compiled.create_infer_request()

    def run(image: Any) -> list[Any]:
        found = request.infer([image.numpy()])
        return [found[output] for output in compiled.outputs]

    return run


def _quantize(path: Path, out: Path, quantize: Callable[[Any], Any]) -> None:
    import openvino

    model = quantize(openvino.Core().read_model(path))
    openvino.save_model(model, out, compress_to_fp16=False)


# From a module rather than from the program of torch.export: then the file takes every size that
# the model takes, conversion takes a third of the time, and layers keep their names.
FORMAT = Format(
    _write,
    '.xml',
    False,
    'OpenVINO',
    packages=('openvino',),
    beside=('.bin',),
    quantize=_quantize,
    note=f'Compile it with {_HINT} f32 for float32, or bf16 for bfloat16, the default of a CPU '
    'that has it.',
)
