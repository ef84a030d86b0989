"""The frame of a command line with verbs: parser, exit codes and how errors are printed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

Handler = Callable[[argparse.Namespace], int]
"""Runs a verb with its parsed options and returns the exit code."""


class Verbs:
    """A parser whose verbs each have their own options, handler, help text and example."""

    def __init__(self, prog: str, description: str, version: str | None = None):
        """
        Args:
            prog: Name of the program in help and error texts.
            description: What the program does, in one sentence.
            version: What `--version` prints after the name; without it there is no such option.
        """
        self.parser = argparse.ArgumentParser(prog=prog, description=description)
        if version is not None:
            self.parser.add_argument('--version', action='version', version=f'%(prog)s {version}')
        self._verbs = self.parser.add_subparsers(dest='verb', metavar='VERB', required=True)

    def add(
        self, name: str, handler: Handler, text: str, *examples: str
    ) -> argparse.ArgumentParser:
        """Add a verb.

        Args:
            name: The verb.
            handler: Runs it.
            text: What it does, as a phrase in lower case.
            *examples: Command lines that the help text shows.

        Returns:
            The verb's parser, to add its options to.
        """
        sub = self._verbs.add_parser(
            name,
            help=text,
            description=f'{text[0].upper()}{text[1:]}.',
            epilog='examples:\n  ' + '\n  '.join(examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        return sub


def run_verb(verbs: Verbs, argv: Sequence[str]) -> int:
    """Run one verb and print its error, if any, as one line.

    Args:
        verbs: The command line.
        argv: Arguments after the program's name.

    Returns:
        What the handler returned; 1 after an error that was printed; 130 after Ctrl-C; 0 if the
        reader of a pipe went away. Usage errors exit with 2, as argparse does.
    """
    args = verbs.parser.parse_args(argv)
    name = f'{verbs.parser.prog} {args.verb}'
    try:
        code: int = args.handler(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # timm-res2net list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f'{name}: interrupted. Run it again.', file=sys.stderr)
        return EXIT_INTERRUPTED
    except (OSError, RuntimeError, ValueError) as error:
        print(f'{name}: {error}', file=sys.stderr)
        return EXIT_ERROR
