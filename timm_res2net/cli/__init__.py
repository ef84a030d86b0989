"""The command line `timm-res2net VERB`: a file for each group of verbs."""

import sys
from collections.abc import Sequence

from ..files import VERSION
from . import (
    checkpoints,
    export,
    hub,
    measure,
    models,
    predict,
    run,
    show,
)
from .frame import Verbs, run_verb

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments after the program's name; those of the process if None.

    Returns:
        The exit code, as `timm_res2net.cli.frame.run_verb` and, for a script under `run`,
        `timm_res2net.cli.run.run_script` describe it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verbs = Verbs('timm-res2net', 'Every public Res2Net for timm.', VERSION)
    for group in (models, checkpoints, hub, export, measure, show, predict, run):
        group.add(verbs)
    # not through argparse, which would take options of the script for its own
    return run.run_script(argv) if run.is_script(argv) else run_verb(verbs, argv)
