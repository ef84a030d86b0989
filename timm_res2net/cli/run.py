"""`run`: a script of the user with the models registered."""

import argparse
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from ..layers.text import printable
from .frame import EXIT_ERROR, add_command

# Scripts of timm's repository that create models by name
_TIMMS = ('train.py', 'validate.py', 'inference.py', 'benchmark.py', 'onnx_export.py')
_ADDRESS = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models'


def run(script: str, arguments: list[str]) -> int:
    """Register the models, then run a script unchanged, such as timm's train.py.

    timm-res2net run train.py DATA --model res2net50_se --pretrained --num-classes 5
    timm-res2net run train.py DATA --model res2net50_se --device cpu
    torchrun --nproc-per-node 4 -m timm_res2net run train.py DATA --model res2net50_se
    """
    # the script's exit code passes as SystemExit, and its errors with their tracebacks
    if not Path(script).is_file():
        text = printable(f"There is no script '{script}'. {_remedy(script)}")
        print(f'timm-res2net run: {text}', file=sys.stderr)
        return EXIT_ERROR
    several = int(os.environ.get('WORLD_SIZE', '1')) > 1
    if several and os.environ.get('RANK') == '0' and not torch.accelerator.is_available():
        print(
            "timm-res2net run: without a GPU, timm's train.py fails with several processes: it "
            'passes device_ids=[cpu] to DistributedDataParallel.',
            file=sys.stderr,
        )
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name='__main__')
    return 0


def _remedy(script: str) -> str:
    """Return how to get a script that does not exist."""
    name = Path(script).name
    if name not in _TIMMS:
        return 'Give the path of a Python file.'
    tag = 'main' if 'dev' in timm.__version__ else f'v{timm.__version__}'
    return (
        f"timm's packages do not contain {name}. Get the one of timm {timm.__version__}, the "
        f'installed version: curl -fLo {shlex.quote(script)} {_ADDRESS}/{tag}/{name}'
    )


def add(commands: Any) -> None:
    """Add the command `run`."""
    parser = add_command(commands, run)
    parser.add_argument('script', help='Python file to run')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of the script')
