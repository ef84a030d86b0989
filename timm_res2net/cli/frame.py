"""The frame of the command line: how a command is added, runs and ends, and what its errors say."""

import argparse
import contextlib
import dataclasses
import errno
import inspect
import json
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..layers.text import first_line, printable, table

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_UNUSABLE = 3  # a measurement without a verdict
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def add_command(commands: Any, handler: Callable[..., int]) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
        handler: Runs the command and returns the exit code. It has the command's name, after an
            underscore. The first paragraph of its docstring is the help text, and the rest are
            examples. Its keyword arguments are the options that the user gave, so that defaults
            are stated once, at the functions.

    Returns:
        The command's parser, which has no options yet.
    """
    text, _, examples = inspect.cleandoc(handler.__doc__ or '').partition('\n\n')
    name = handler.__name__.removeprefix('_')
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=f'{text[:1].lower()}{text[1:]}'.replace('\n', ' ').rstrip('.'),
        description=text,
        epilog='examples:\n' + textwrap.indent(examples, '  '),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(command=name, handler=handler)
    return parser


def print_json(value: object) -> None:
    """Print a result, with its records as objects."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if hasattr(value, '_asdict'):
        value = value._asdict()
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that fits the terminal. In a pipe or a file, no cell is folded."""
    print(table(header, rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


# --- running --------------------------------------------------------------------------------------


def run_command(args: argparse.Namespace) -> int:
    """Run a command, and print its error, if any, in one line.

    While it runs, the steps that the package logs are printed to the standard error if they take
    longer than a second.

    Args:
        args: What the parser of a command returned.

    Returns:
        What the handler returned; 1 after an error; 130 after Ctrl-C; 143 after SIGTERM; 0 if the
        reader of a pipe went away.
    """
    options = vars(args)
    name, handler = f'timm-res2net {options.pop("command")}', options.pop('handler')
    debug = options.pop('debug', False)
    with _printed_steps(name), _ended_by_sigterm():
        try:
            code: int = handler(**options)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # timm-res2net list | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (Exception, KeyboardInterrupt) as error:
            interrupt = _interrupt_in(error)
            if interrupt is not None:
                word = 'terminated' if interrupt.args else 'interrupted'
                print(f'{name}: {word}. Run it again.', file=sys.stderr)
                return EXIT_TERMINATED if interrupt.args else EXIT_INTERRUPTED
            if debug:
                print(_without_secrets(traceback.format_exc()), file=sys.stderr)
            print(f'{name}: {printable(explain(error))}', file=sys.stderr)
            return EXIT_ERROR


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise a KeyboardInterrupt, as Ctrl-C does, so that `with` blocks clean up."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that ended a command; C++ code may turn it into another error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


class _Steps(logging.Handler):
    """Prints warnings at once, and a step if it is not over in a second. '' ends a step."""

    timer = Timer(0, print)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, or wait whether another one follows within a second."""
        self.timer.cancel()
        line = printable(self.format(record))
        if record.levelno >= logging.WARNING:
            print(line, file=sys.stderr, flush=True)
        elif record.getMessage():
            self.timer = Timer(1, print, (f'{line} ...',), {'file': sys.stderr, 'flush': True})
            self.timer.daemon = True
            self.timer.start()


@contextlib.contextmanager
def _printed_steps(name: str) -> Iterator[None]:
    """Print what the package logs while a command runs."""
    log, steps = logging.getLogger('timm_res2net'), _Steps()
    steps.setFormatter(logging.Formatter(f'{name}: %(message)s'))
    level = log.level
    log.addHandler(steps)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        steps.timer.cancel()
        log.removeHandler(steps)
        log.setLevel(level)


# --- errors ---------------------------------------------------------------------------------------

_LOGIN = 'log in with `hf auth login`, or set HF_TOKEN.'
_SPACE = 'Free some space, or use another disk (HF_HOME names the cache of the Hub).'
_ACCESS = 'Choose a folder you can write to (HF_HOME names the cache of the Hub).'
_REMEDIES: tuple[tuple[type[Exception] | int, str], ...] = (
    (GatedRepoError, f'It is gated: accept its conditions on the Hub, then {_LOGIN}'),
    (RepositoryNotFoundError, f'It does not exist, or is private: check the name, or {_LOGIN}'),
    (RevisionNotFoundError, 'There is no such revision: name a branch, a tag or a commit.'),
    (401, f'To get access, {_LOGIN}'),
    (403, f'To get access, {_LOGIN}'),
    (412, 'Someone else has pushed in the meantime. Nothing was changed; run again.'),
    (429, 'Wait a while and run again.'),
    (500, 'Run again later.'),
    (HfHubHTTPError, 'Change what you ask for.'),
    (HTTPError, 'Check the network and run again.'),
    (ModuleNotFoundError, "An extra may bring it: pip install 'timm-res2net[plots,export,int8]'."),
    (errno.ENOENT, 'Check the path.'),
    (errno.ENOSPC, _SPACE),
    (errno.EDQUOT, _SPACE),
    (errno.EACCES, _ACCESS),
    (errno.EPERM, _ACCESS),
    (errno.EROFS, _ACCESS),
)
"""What to do after an error, by its type, the status of the Hub's answer (500 for all faults of a
server) or the number of the system's error. The first row that fits counts."""


def explain(error: BaseException) -> str:
    """Return what went wrong and what to do.

    The errors of this package's own checks are ValueErrors, and OSErrors without a number; their
    texts name the remedy. What URLs may hold of secrets is cut.
    """
    cause = error.__cause__
    if isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(cause, HTTPError):
        return explain(cause)  # an upload, or a download of what is not cached
    number = getattr(error, 'errno', None)
    text = f'{type(error).__name__}: {first_line(error)}'
    if isinstance(error, HfHubHTTPError):
        number = min(error.response.status_code, 500)
        reason = ' '.join((error.server_message or first_line(error)).split()).rstrip('.')
        text = f'The Hub answers {error.response.status_code} for {error.response.url} ({reason})'
    elif isinstance(error, HTTPError):
        text = f'The Hub cannot be reached ({text})'
    elif type(error) is ValueError or (
        isinstance(error, OSError) and type(error).__module__ == 'builtins' and number is None
    ):
        text = str(error)
    for key, remedy in _REMEDIES:
        if key == number or (isinstance(key, type) and isinstance(error, key)):
            text = f'{text}. {remedy}'
            break
    return _without_secrets(text)


def _without_secrets(text: str) -> str:
    """Return a text without the query strings, users and passwords of its URLs."""
    text = re.sub(r'(https?://)[^\s/@]+@', r'\1', text)
    return re.sub(r'(https?://[^\s?]+)\?[^\s)]*', r'\1', text)
