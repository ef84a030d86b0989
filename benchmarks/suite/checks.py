"""Whether this machine can run a cell, and whether the cell makes sense."""

import os
import shutil
from collections.abc import Iterator

import torch

from timm_res2net.files import require

from .cells import COMPILED, EXPORTED, Cell, deploys, runtime_of
from .environment import cpu_has_bf16


def compiler() -> str | None:
    """Return the name of a C++ compiler on the path, or None."""
    names = (os.environ.get('CXX'), 'g++', 'c++', 'clang++', 'cl')
    return next((name for name in names if name and shutil.which(name)), None)


def _problems(cell: Cell, mode: str) -> Iterator[str]:
    """Yield why a cell cannot run here or makes no sense, with the remedy."""
    on_gpu, runtime = cell.device == 'cuda', runtime_of(mode)
    packs = deploys(mode) or runtime not in ('eager', 'compiled', 'cudagraphs')
    cores = os.cpu_count() or 1
    if on_gpu and not torch.cuda.is_available():
        yield "Device 'cuda' needs a GPU, and torch sees none. Use --suite cpu."
    if cell.precision.startswith('bf16') and not (
        torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
    ):
        yield (
            f"Precision '{cell.precision}' would be emulated here, so its time means nothing. Use "
            '--precision fp32.'
        )
    if cell.precision == 'int8' and runtime not in EXPORTED:
        yield "Precision 'int8' is for exported models. Use --mode openvino or onnxruntime."
    if (packs or cell.precision == 'bf16-weights') and cell.task == 'train':
        yield f"Mode '{mode}' with '{cell.precision}' is for inference. Use --task infer."
    if packs and cell.kind != 'time':
        yield (
            f"Kind '{cell.kind}' does not see the weights that mode '{mode}' packs. Use "
            '--only time, or mode eager or compiled.'
        )
    if runtime == 'cudagraphs' and not on_gpu:
        yield f"Mode '{mode}' needs a GPU. Use --mode compiled on a CPU."
    if runtime in COMPILED and not on_gpu and compiler() is None:
        yield f"Mode '{mode}' needs a C++ compiler. Install g++, set CXX, or use --mode eager."
    if runtime in EXPORTED and on_gpu:
        yield f"Mode '{mode}' runs on a CPU only. Use another mode, or --suite deploy."
    if runtime == 'onnxruntime' and cell.precision.startswith('bf16'):
        yield f"Mode '{mode}' does not run in bfloat16 on a CPU. Use --precision fp32, or openvino."
    if cell.threads > cores:
        yield f'threads={cell.threads} is more than the {cores} cores here. Use --threads {cores}.'


def check(cell: Cell) -> None:
    """Raise ValueError if this machine cannot run a cell, or if its axes do not go together."""
    for mode in cell.modes:
        for problem in _problems(cell, mode):
            raise ValueError(problem)
    require_packages(cell)


def require_packages(cell: Cell) -> None:
    """Raise ValueError if a package that the cell's runtimes need is not installed."""
    for mode in cell.modes:
        runtime = runtime_of(mode)
        require('export', *EXPORTED.get(runtime, ()))
    if cell.precision == 'int8':
        require('int8', 'nncf')
