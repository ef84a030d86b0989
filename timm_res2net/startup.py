"""Ctrl-C while the command line starts: importing torch and timm takes seconds.

Importing this module first lets Ctrl-C end the command line without a traceback until a
verb begins. A process that only imports this package is left alone.
"""

import signal
import sys
from pathlib import PurePath


def is_program() -> bool:
    """Return whether this process is `timm-res2net` or `python -m timm_res2net`."""
    words = sys.orig_argv
    module = words[words.index('-m') + 1 :][:1] if '-m' in words else []
    return module == ['timm_res2net'] or PurePath(sys.argv[0]).stem == 'timm-res2net'


def end_as_usual() -> None:
    """Let Ctrl-C raise a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
