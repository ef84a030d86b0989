"""The frame of the command line: how a command is added, runs and ends, and what its errors say."""

import argparse
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..convert.files import ENTRIES
from ..layers.semantics import SEMANTICS
from ..layers.text import first_line, printable, table

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_UNUSABLE = 3  # a measurement without a verdict
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


class Done(NamedTuple):
    """What a command found: the value that --json prints, the text otherwise, and the exit code."""

    value: Any
    text: str
    code: int = 0


def positive_int(word: str) -> int:
    """Return the whole number of at least 1 that an option names."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number of at least 1")
    return int(word)


OPTIONS: dict[str, dict[str, Any]] = {
    'checkpoint': dict(help='checkpoint file, or folder written by timm or `convert`'),
    'target': dict(metavar='model', help='registered name, folder, or OWNER/NAME on the Hub'),
    '--batch-size': dict(type=positive_int, metavar='N', help='images in a batch'),
    '--crop-pct': dict(type=float, help='share of the image that the crop keeps'),
    '--debug': dict(action='store_true', help='print the traceback of an error'),
    '--dry-run': dict(action='store_true', help='check everything; write and send nothing'),
    '--entry': dict(
        help='entry of the file that holds the weights, such as ema.module (default: the first of '
        f'{", ".join(ENTRIES)} that exists, otherwise the whole file)'
    ),
    '--img-size': dict(
        type=positive_int, metavar='PX', help="side of the images (default: the model's)"
    ),
    '--interpolation': dict(help='how images are resized: bilinear, bicubic, ...'),
    '--json': dict(action='store_true', help='print JSON'),
    '--label-names': dict(
        type=Path,
        metavar='PATH',
        help='names of the classes: a text file with one per line, or a folder with one folder of '
        'images per class',
    ),
    '--label-order': dict(
        choices=('natural', 'sorted'),
        help='order of class folders in the training: natural (1, 2, 10) as in timm, sorted (1, '
        '10, 2) as in torchvision',
    ),
    '--license': dict(metavar='ID', help='license of the weights, such as apache-2.0'),
    '--mean': dict(type=float, nargs='+', help='mean of each image channel'),
    '--model': dict(metavar='NAME', help='name of the model, if the shapes do not imply it'),
    '--multi-label': dict(
        action='store_true', help='an image may be of several classes: sigmoid, not softmax'
    ),
    '--out': dict(required=True, type=Path, metavar='PATH', help='file or folder to write'),
    '--prefix': dict(help='prefix of the Res2Net in the keys, if the file holds several'),
    '--random': dict(
        action='store_false', dest='pretrained', help='do not load pretrained weights'
    ),
    '--remote-code': dict(
        action=argparse.BooleanOptionalAction,
        help='add a module of a few lines with which transformers loads the model by '
        'trust_remote_code=True, without an import of timm_res2net (default: only if there is one '
        'already)',
    ),
    '--revision': dict(help='branch, tag or commit of the repository'),
    '--semantics': dict(
        help='block semantics of the checkpoint, if the keys do not imply them: '
        f'{", ".join(SEMANTICS)}'
    ),
    '--std': dict(type=float, nargs='+', help='standard deviation of each image channel'),
}
"""The arguments and options that several commands have."""


def add_command(commands: Any, handler: Callable[..., Any]) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
        handler: Runs the command and returns a `Done`, or an exit code after it has printed its
            result itself. It has the command's name, after an underscore. The first paragraph of
            its docstring is the help text, and the rest are examples. Its keyword arguments are the
            options that the user gave, so that defaults are stated once, at the functions.

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


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add arguments and options of `OPTIONS` to a command.

    Args:
        parser: The command's parser.
        *names: Their names.
        **changes: Arguments of `add_argument` that differ for this command, such as `help`.
    """
    for name in names:
        parser.add_argument(name, **{**OPTIONS[name], **changes})


def _plain(value: Any) -> Any:
    """Return a result as JSON has it, with its records as objects."""
    if hasattr(value, '_asdict'):
        value = value._asdict()
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def fitting_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table that fits the terminal. For a pipe or a file, no cell is folded."""
    return table(header, rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def run_command(args: argparse.Namespace) -> int:
    """Run a command, and print its error, if any, in one line.

    Warnings of the package go to the standard error, and on a terminal its steps do, too, because
    some take minutes. SIGTERM raises a KeyboardInterrupt, as Ctrl-C does, so that `with` blocks
    clean up.

    Args:
        args: What the parser of a command returned.

    Returns:
        The exit code of what the handler returned; 1 after an error; 130 after Ctrl-C; 143 after
        SIGTERM; 0 if the reader of a pipe went away.
    """
    options = vars(args)
    name, handler = f'timm-res2net {options.pop("command")}', options.pop('handler')
    debug = options.pop('debug', False)
    as_json = options.pop('json', False) or options.get('json_lines', False)
    logging.basicConfig(format=f'{name}: %(message)s')
    if sys.stderr.isatty():
        logging.getLogger('timm_res2net').setLevel(logging.INFO)

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        done = handler(**options)
        if isinstance(done, Done):
            print(json.dumps(_plain(done.value), indent=2) if as_json else done.text)
        sys.stdout.flush()
        return done.code if isinstance(done, Done) else done
    except BrokenPipeError:  # timm-res2net list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__context__  # C++ code turns an interrupt into another error
        if cause is not None:
            print(f'{name}: {"terminated" if cause.args else "interrupted"}.', file=sys.stderr)
            return EXIT_TERMINATED if cause.args else EXIT_INTERRUPTED
        if debug:
            print(_without_secrets(traceback.format_exc()), file=sys.stderr)
        print(f'{name}: {printable(explain(error))}', file=sys.stderr)
        return EXIT_ERROR
    finally:
        signal.signal(signal.SIGTERM, before)


# --- errors ---------------------------------------------------------------------------------------

_LOGIN = 'log in with `hf auth login`, or set HF_TOKEN.'
_CACHE = '(HF_HOME names the cache of the Hub).'
_REMEDIES: tuple[tuple[tuple[type[Exception] | int, ...], str], ...] = (
    ((GatedRepoError,), f'It is gated: accept its conditions on the Hub, then {_LOGIN}'),
    ((RepositoryNotFoundError,), f'It does not exist, or is private: check the name, or {_LOGIN}'),
    ((RevisionNotFoundError,), 'There is no such revision: name a branch, a tag or a commit.'),
    ((401, 403), f'To get access, {_LOGIN}'),
    ((412,), 'Someone else has pushed in the meantime. Nothing was changed; run again.'),
    ((429,), 'Wait a while and run again.'),
    ((500,), 'Run again later.'),
    ((HfHubHTTPError,), 'Change what you ask for.'),
    ((HTTPError,), 'Check the network and run again.'),
    ((ImportError,), "An extra may bring it: pip install 'timm-res2net[plots,export,int8]'."),
    ((errno.ENOENT,), 'Check the path.'),
    ((errno.ENOSPC, errno.EDQUOT), f'Free some space, or use another disk {_CACHE}'),
    ((errno.EACCES, errno.EPERM, errno.EROFS), f'Choose a folder you can write to {_CACHE}'),
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
    for keys, remedy in _REMEDIES:
        if number in keys or isinstance(error, tuple(k for k in keys if isinstance(k, type))):
            text = f'{text}. {remedy}'
            break
    return _without_secrets(text)


def _without_secrets(text: str) -> str:
    """Return a text without the query strings, users and passwords of its URLs."""
    text = re.sub(r'(?i)(https?://)[^\s/]+@', r'\1', text)
    return re.sub(r'(?i)(https?://[^\s?]+)\?[^\s)]*', r'\1', text)
