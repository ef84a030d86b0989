"""`run`: a script of the user with the models registered."""

import argparse
import os
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..layers.text import printable
from .frame import EXIT_ERROR, Verbs

# Scripts of timm's repository that create models by name
_TIMMS = ('train.py', 'validate.py', 'inference.py', 'benchmark.py', 'onnx_export.py')
_ADDRESS = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models'


def is_script(argv: Sequence[str]) -> bool:
    """Return whether a command line is `run SCRIPT ...` or `run -- SCRIPT ...`."""
    rest = _script(argv)
    return bool(argv) and argv[0] == 'run' and bool(rest) and not rest[0].startswith('-')


def _script(argv: Sequence[str]) -> list[str]:
    return list(argv[2:] if tuple(argv[:2]) == ('run', '--') else argv[1:])


def run_script(argv: Sequence[str]) -> int:
    """Run the script of a command line `run SCRIPT ...` as `python SCRIPT ...` does.

    Returns:
        0, or 1 if the script cannot be read. The script's own exit code is passed on as SystemExit,
        and its errors pass through.
    """
    script, *arguments = _script(argv)
    try:
        if not Path(script).is_file():
            raise FileNotFoundError(f"There is no script '{script}'. {_remedy(script)}")
        open(script, 'rb').close()
    except OSError as error:
        text = f"Cannot read '{script}' ({error.strerror})." if error.errno else str(error)
        print(f'timm-res2net run: {printable(text)}', file=sys.stderr)
        return EXIT_ERROR
    if _is_first_of_several() and not torch.accelerator.is_available():
        print(
            "timm-res2net run: without a GPU, timm's train.py fails with several processes: it "
            'gives DistributedDataParallel device_ids=[cpu], which torch refuses. Start one.',
            file=sys.stderr,
        )
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name='__main__')
    return 0


def _is_first_of_several() -> bool:
    """Return whether this is the first of several processes that torchrun has started."""
    return os.environ.get('WORLD_SIZE', '1') != '1' and os.environ.get('RANK') == '0'


def _remedy(script: str) -> str:
    """Return how to get a script that does not exist."""
    name = Path(script).name
    if name not in _TIMMS:
        return 'Give the path of a Python file.'
    import timm

    version = timm.__version__
    tag = 'main' if 'dev' in version else f'v{version}'
    return (
        f"timm's packages do not contain {name}. Get the one of timm {version}, the installed "
        f'version: curl -fLo {shlex.quote(script)} {_ADDRESS}/{tag}/{name}'
    )


def _run(args: argparse.Namespace) -> int:
    return run_script(['run', args.script, *args.arguments])


def add(verbs: Verbs) -> None:
    """Add the verb `run`."""
    parser = verbs.add(
        'run',
        _run,
        "register the models, then run a script unchanged, such as timm's train.py",
        'timm-res2net run train.py DATA --model res2net50_se --pretrained --num-classes 5',
        'timm-res2net run train.py DATA --model res2net50_se --device cpu',
        'torchrun --nproc-per-node 4 -m timm_res2net run train.py DATA --model res2net50_se',
    )
    parser.add_argument('script', metavar='SCRIPT', help='Python file to run')
    parser.add_argument('arguments', metavar='...', nargs='*', help='arguments of the script')
