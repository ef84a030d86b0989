"""Whether this machine can run a cell, and whether the cell makes sense."""

import importlib.util
import os
import shutil

import torch

from timm_res2net import extras

from . import runtimes
from .cells import Cell
from .environment import cpu_has_bf16
from .modes import EAGER, Mode
from .runtimes import COMPILED, EXPORTED, ON_GPU


def compiler() -> str | None:
    """Return the name of a C++ compiler on the path, or None."""
    names = (os.environ.get('CXX'), 'g++', 'c++', 'clang++', 'cl')
    return next((name for name in names if name and shutil.which(name)), None)


def check(cell: Cell) -> None:
    """Check that this machine can run a cell and that the cell's axes go together.

    Raises:
        ValueError: There is no GPU, no native bfloat16, no compiler, no package of a runtime, or
            too few cores; or a mode or precision does not go with another axis.
    """
    if cell.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            "Device 'cuda' needs a GPU and a CUDA build of torch; torch sees no GPU. Use "
            '--suite cpu, or install a CUDA build of torch.'
        )
    _check_precision(cell)
    for mode in cell.modes.different:
        _check_mode(mode, cell)
    cores = os.cpu_count() or 1
    if cell.threads > cores:
        raise ValueError(
            f'threads={cell.threads} is more than the {cores} cores of this machine. Use '
            f'--threads {cores} or fewer.'
        )


def _check_precision(cell: Cell) -> None:
    if cell.precision.startswith('bf16'):
        on_gpu = cell.device == 'cuda'
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
        )
        if not native:
            raise ValueError(
                f"Precision '{cell.precision}' would be emulated on this "
                f'{"GPU" if on_gpu else "CPU"}, so its time means nothing. Use --precision fp32.'
            )
    if cell.precision == 'bf16-weights' and cell.task == 'train':
        raise ValueError(
            "Precision 'bf16-weights' is for inference. Use --task infer, or --precision bf16."
        )
    if cell.precision == 'fp16' and cell.device == 'cpu':
        raise ValueError("Precision 'fp16' is for GPUs. Use --precision bf16 or fp32 on a CPU.")
    if cell.precision == 'int8':
        if any(mode.runtime not in EXPORTED for mode in cell.modes.different):
            raise ValueError(
                "Precision 'int8' is for exported models. Use --mode openvino or onnxruntime."
            )
        extras.require("Precision 'int8'", 'int8', 'nncf')


def _check_mode(mode: Mode, cell: Cell) -> None:
    if mode.runtime in ON_GPU and cell.device == 'cpu':
        raise ValueError(f"Mode '{mode}' needs a GPU. Use --mode compiled on a CPU.")
    if mode.deploys or mode.runtime not in (EAGER.runtime, 'compiled', 'cudagraphs'):
        if cell.task == 'train':
            raise ValueError(f"Mode '{mode}' is for inference. Use --task infer.")
        if cell.kind != 'time':
            raise ValueError(
                f"Kind '{cell.kind}' does not see the weights that mode '{mode}' packs. Use "
                '--only time, or mode eager or compiled.'
            )
    if mode.runtime in COMPILED:
        if cell.device == 'cpu' and compiler() is None:
            raise ValueError(
                f"Mode '{mode}' needs a C++ compiler, and there is none on the path. Install g++, "
                'set CXX, or use --mode eager.'
            )
        if cell.device == 'cuda' and importlib.util.find_spec('triton') is None:
            raise ValueError(f"Mode '{mode}' needs triton. Install it, or use --mode eager.")
    if mode.runtime in EXPORTED:
        if cell.device != 'cpu':
            raise ValueError(f"Mode '{mode}' runs on a CPU only. Use --device cpu.")
        if mode.runtime == 'onnxruntime' and cell.precision.startswith('bf16'):
            raise ValueError(
                f"Mode '{mode}' does not run in bfloat16 on a CPU. Use --precision fp32, or "
                'openvino.'
            )
        runtimes.require(mode.runtime)
