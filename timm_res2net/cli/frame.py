"""The frame of a command line with verbs: parser, output, exit codes and how errors are printed."""

import argparse
import errno
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread
from typing import Any, NoReturn

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from ..layers.text import close_names, first_line, printable

EXIT_ERROR = 1
EXIT_UNUSABLE = 3  # a control is out of its band
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

Handler = Callable[[argparse.Namespace], int]
"""Runs a verb with its parsed options and returns the exit code."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, whatever stands in the arguments."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Signals:
    """The signals that end a verb: Ctrl-C, and SIGTERM, as `kill` and job schedulers send it.

    Both raise a KeyboardInterrupt, so that every block on the way cleans up.

    Attributes:
        seen: The signal that came; None if there was none. Code in C++ may turn the
            KeyboardInterrupt into an error of its own.
    """

    def __init__(self) -> None:
        self.seen: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals in the block, where Python lets one: in the main thread."""
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _ENDING}
        caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        try:
            for number in caught:
                signal.signal(number, self._raise)
            yield
        finally:
            for number in caught:
                signal.signal(number, before[number])

    def _raise(self, number: int, frame: Any) -> None:
        self.seen = number
        raise KeyboardInterrupt

    def end(self, name: str) -> int:
        """Say that a verb was ended, and return the exit code."""
        if self.seen == signal.SIGTERM:
            print(f'{name}: terminated. Run it again.', file=sys.stderr)
            return EXIT_TERMINATED
        print(f'{name}: interrupted. Run it again.', file=sys.stderr)
        return EXIT_INTERRUPTED


_ENDING = (signal.SIGINT, signal.SIGTERM)


class _Steps(logging.Handler):
    """Prints what the package logs to the standard error: each step that is not over in a second.

    Args:
        name: Program and verb, which a line starts with.
    """

    def __init__(self, name: str):
        super().__init__()
        self.setFormatter(logging.Formatter(f'{name}: %(message)s'))
        self.timer: Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a step in a second, unless the next one begins before. '' ends a step.

        A warning is printed at once.
        """
        self._cancel()
        if not record.getMessage():
            return
        said = printable(self.format(record))
        if record.levelno >= logging.WARNING:
            print(said, file=sys.stderr, flush=True)
            return
        self.timer = Timer(1, print, (f'{said} ...',), {'file': sys.stderr, 'flush': True})
        self.timer.daemon = True
        self.timer.start()

    def close(self) -> None:
        """Print nothing more."""
        self._cancel()
        super().close()

    def _cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Verbs:
    """A parser whose verbs each have their own options, handler, help text and example."""

    def __init__(self, prog: str, description: str, version: str | None = None):
        """
        Args:
            prog: Name of the program in help and error texts.
            description: What the program does, in one sentence.
            version: What `--version` prints after the name; without it there is no such option.
        """
        self.parser = _Parser(prog=prog, description=description, allow_abbrev=False)
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
            allow_abbrev=False,
        )
        sub.set_defaults(handler=handler)
        return sub

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; a usage error exits with 2, after the usage of the verb.

        Args:
            argv: Arguments after the program's name.
        """
        verbs = self._verbs.choices
        if not argv:
            self.parser.print_help(sys.stderr)
            self.parser.exit(2)
        if not argv[0].startswith('-') and argv[0] not in verbs:
            self.parser.error(
                f"unknown verb '{argv[0]}'.{close_names(argv[0], verbs)} Use one of "
                f'{", ".join(verbs)}.'
            )
        if argv[0] not in verbs:
            return self.parser.parse_args(argv)
        verb = verbs[argv[0]]
        for word in argv:
            if re.fullmatch(r'--[\w-]+=--', word):  # argparse would take -- for no value at all
                verb.error(f"argument {word[:-3]}: '--' is not a value. Write a path as ./--.")
        # options may stand between the arguments: predict MODEL --top 1 IMAGE
        args, unknown = verb.parse_known_intermixed_args(argv[1:])
        args.verb, args.argv = argv[0], list(argv)
        if unknown:
            option = next((word for word in unknown if word.startswith('-')), unknown[0])
            known = re.findall(r'--[\w-]+', verb.format_usage())
            close = close_names(option.partition('=')[0], known) if option[:1] == '-' else ''
            if '--' in argv:
                close = f' Write a path that begins with - as ./{option}.'
            verb.error(f"unknown argument '{option}'.{close}")
        return args


def columns() -> int | None:
    """Return the width of the terminal in characters; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def run_verb(verbs: Verbs, argv: Sequence[str]) -> int:
    """Run one verb and print its error, if any, as one line.

    While it runs, what the package logs is printed to the standard error, so that a step of more
    than a second says what it is doing.

    Args:
        verbs: The command line.
        argv: Arguments after the program's name.

    Returns:
        What the handler returned; 1 after an error that was printed; 130 after Ctrl-C, 143 after
        SIGTERM; 0 if the reader of a pipe went away. Usage errors exit with 2, as argparse does.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='replace')  # a terminal may not know × or …
    args = verbs.parse(argv)
    name = f'{verbs.parser.prog} {args.verb}'
    log = logging.getLogger('timm_res2net')
    steps = _Steps(name)
    level = log.level
    log.addHandler(steps)
    log.setLevel(logging.INFO)
    signals = _Signals()
    try:
        with signals.caught():
            code: int = args.handler(args)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # timm-res2net list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return signals.end(name)
    except Exception as error:
        if signals.seen is not None:
            return signals.end(name)
        if not isinstance(error, _PRINTED):
            raise
        print(f'{name}: {printable(explain(error))}', file=sys.stderr)
        return EXIT_ERROR
    finally:
        steps.close()
        log.removeHandler(steps)
        log.setLevel(level)


# --- errors ---------------------------------------------------------------------------------------

_PRINTED = (OSError, RuntimeError, ValueError, HTTPError, SafetensorError)
"""Types whose errors are printed as one line. Others are faults of this package."""

_LOGIN = 'log in with `hf auth login`, or set HF_TOKEN.'
_OF_TYPE: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, f'It is gated: accept its conditions on the Hub, then {_LOGIN}'),
    (RepositoryNotFoundError, f'It does not exist, or is private: check the name, or {_LOGIN}'),
    (RevisionNotFoundError, 'There is no such revision: name a branch, a tag or a commit.'),
)
_OF_STATUS = {
    401: f'To get access, {_LOGIN}',
    403: f'To get access, {_LOGIN}',
    412: 'Someone else has pushed in the meantime. Nothing was changed; run again.',
    429: 'Wait a while and run again.',
}
_SPACE = 'Free some space, or use another disk (HF_HOME names the cache of the Hub).'
_ACCESS = 'Choose a folder you can write to (HF_HOME names the cache of the Hub).'
_OF_NUMBER = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ACCESS),
}


def explain(error: BaseException) -> str:
    """Return what went wrong and what to do. The query strings of URLs, with secrets, are cut."""
    told = str(error)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        reason = ' '.join((error.server_message or first_line(error)).split()).rstrip('.')
        remedy = next(
            (text for kind, text in _OF_TYPE if isinstance(error, kind)),
            _OF_STATUS.get(
                status, 'Run again later.' if status >= 500 else 'Change what you ask for.'
            ),
        )
        told = f'The Hub answers {status} for {error.response.url} ({reason}). {remedy}'
    elif isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(
        error.__cause__, HTTPError
    ):
        return explain(error.__cause__)  # an upload, or a download of what is not cached
    elif isinstance(error, HTTPError):
        told = f'The Hub cannot be reached ({type(error).__name__}: {first_line(error)}).'
        told += ' Check the network and run again.'
    elif isinstance(error, OSError) and error.errno in _OF_NUMBER:
        told = f'{first_line(error)}. {_OF_NUMBER[error.errno]}'
    return re.sub(r'(https?://[^\s?]+)\?[^\s)]*', r'\1', told)
