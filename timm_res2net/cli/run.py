"""`run`: a script of the user with the models registered."""

import argparse
import functools
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..startup import end_as_usual
from ..text import printable
from .frame import EXIT_ERROR, EXIT_INTERRUPTED, Verbs

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
        0; 1 after an error of the script, which is printed as Python prints it, or if the script
        cannot be read; 130 after Ctrl-C. The script's own exit code is passed on as SystemExit.
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
    _allow_ddp_on_cpu()
    end_as_usual()
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name='__main__')
    except Exception as error:
        _print_as_python(error)
        return EXIT_ERROR
    except KeyboardInterrupt as error:
        _print_as_python(error)
        return EXIT_INTERRUPTED
    return 0


def _print_as_python(error: BaseException) -> None:
    """Print an error of the script without the frames of this package and of `runpy` above it."""
    frames = error.__traceback__
    while frames is not None and not _is_script(frames):
        frames = frames.tb_next
    # none for a script that cannot be compiled: its text has the line
    sys.excepthook(type(error), error.with_traceback(frames), frames)


def _is_script(frames: TracebackType) -> bool:
    return frames.tb_frame.f_code.co_filename == sys.argv[0]


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


def _allow_ddp_on_cpu() -> None:
    """Let DistributedDataParallel take `device_ids=[cpu]`, which timm's train.py passes.

    torch refuses all `device_ids` for a model on the CPU, so this changes no call that works.
    """
    import torch
    from torch.nn.parallel import DistributedDataParallel

    plain = DistributedDataParallel.__init__

    @functools.wraps(plain)
    def init(self: Any, module: Any, device_ids: Any = None, *args: Any, **kwargs: Any) -> None:
        if device_ids == [torch.device('cpu')]:
            device_ids = None
        plain(self, module, device_ids, *args, **kwargs)

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]


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
