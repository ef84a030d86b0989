"""The command line `timm-res2net COMMAND`: a file for each group of commands."""

import argparse
import os
import sys
from collections.abc import Sequence

from ..files import VERSION
from . import export, folders, images, models
from .frame import EXIT_USAGE, run_command

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; those of the process if None.

    Returns:
        The exit code, as `run_command` describes it. Usage errors exit with 2, and a script that
        `run` started with its own code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
        elif hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='replace')  # a terminal may not know × or …
    parser = argparse.ArgumentParser('timm-res2net', description='Every public Res2Net for timm.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {VERSION}')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for add in (models.add, folders.add, export.add, images.add, export.add_run):
        add(commands)
    if not argv:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    name, *rest = argv
    if name == 'run':  # the script has its own options, errors and signals
        args = commands.choices[name].parse_args(rest)
        return export.run(args.script, args.arguments)
    if name in commands.choices:  # options may stand anywhere: predict MODEL --top 1 IMAGE
        return run_command(commands.choices[name].parse_intermixed_args(rest))
    return run_command(parser.parse_args(argv))  # --help, --version, or a usage error
