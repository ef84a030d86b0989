"""What runs a model: torch as it is, torch.compile, or another runtime that the model is exported
to.
"""

import importlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

__all__ = ['EXPORTED', 'MODES', 'Mode', 'export', 'freeze', 'load', 'require']

COMPILED = ('compiled', 'frozen')
# by runtime, the packages it needs
EXPORTED = {
    'onnxruntime': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'openvino'),
}
RUNTIMES = ('eager', *COMPILED, *EXPORTED)
MODES = (*RUNTIMES, 'deploy', *(f'deploy+{runtime}' for runtime in RUNTIMES[1:]))

Step = Callable[[], object]


class Mode(NamedTuple):
    """How a model runs: whether in its deploy form, and on what."""

    deploys: bool
    runtime: str

    @classmethod
    def of(cls, text: str) -> 'Mode':
        """The mode of a text `[deploy+]RUNTIME`, where 'deploy' alone is in eager mode.

        Raises:
            ValueError: It is none of `MODES`.
        """
        if text not in MODES:
            raise ValueError(f"Unknown mode '{text}'. Use one of {', '.join(MODES)}.")
        first, _, runtime = text.partition('+')
        deploys = first == 'deploy'
        return cls(deploys, (runtime or 'eager') if deploys else first)


def require(runtime: str) -> None:
    """Raise ValueError if a package that the runtime needs is not installed."""
    for package in EXPORTED.get(runtime, ()):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"Mode '{runtime}' needs {package}. Install it: "
                "pip install 'timm-res2net[runtimes]'."
            )


def freeze(model: nn.Module, run: Callable[[], object]) -> Any:
    """The model compiled with its weights as constants: folded, and packed once.

    Inductor's switch is on for this compile alone. Dynamo looks at it too, so that it does nothing
    as an option of `torch.compile`.

    Args:
        model: A model in eval mode, compiled in place.
        run: Runs the model as it will be run, in inference mode.
    """
    model.compile()
    with torch._inductor.config.patch(freezing=True):
        run()
    return model


def export(model: nn.Module, x: torch.Tensor) -> bytes:
    """The model as an ONNX file for inputs of the shape of x, (B, 3, H, W), in fp32."""
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)  # type: ignore[union-attr, arg-type]
    return file.getvalue()


def load(runtime: str, model: bytes, x: torch.Tensor, threads: int, bf16: bool) -> Step:
    """A call that runs an ONNX file on x, on the CPU, and returns its output as an array.

    Args:
        runtime: One of `EXPORTED`.
        model: From `export`.
        x: Input, (B, 3, H, W), of any type and layout; it is passed as fp32, contiguous.
        threads: Threads to run on.
        bf16: Compute in bfloat16, which OpenVINO converts to by itself.
    """
    array = x.float().contiguous().numpy()
    library: Any = importlib.import_module(runtime)
    return _LOADERS[runtime](library, model, array, threads, bf16)


def _onnxruntime(library: Any, model: bytes, x: np.ndarray, threads: int, bf16: bool) -> Step:
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that go on spinning would take the cores from what runs next
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = library.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    inputs = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, inputs)[0]


def _openvino(library: Any, model: bytes, x: np.ndarray, threads: int, bf16: bool) -> Step:
    core = library.Core()
    compiled = core.compile_model(
        core.read_model(model),
        'CPU',
        {
            'INFERENCE_PRECISION_HINT': 'bf16' if bf16 else 'f32',
            'INFERENCE_NUM_THREADS': threads,
            'PERFORMANCE_HINT': 'LATENCY',
            'ENABLE_CPU_PINNING': False,  # as torch has it
        },
    )
    request = compiled.create_infer_request()
    return lambda: request.infer([x])[0]


_LOADERS = {'onnxruntime': _onnxruntime, 'openvino': _openvino}
