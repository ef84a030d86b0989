"""The sentences that a user meets, in all combinations, in one file that a person reads.

After a rewording the test says where the new file is. Read what changed, and copy it: each line has
to be plain English, name the value, and say what to do.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import httpx2 as httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.common import TINY, model_folder
from tests.folder.test_checks import DEFECTS
from timm_res2net import detection_backbone
from timm_res2net.cli import main
from timm_res2net.cli.frame import explain
from timm_res2net.folder.checks import checks
from timm_res2net.folder.folder import ModelFolder

SENTENCES = Path(__file__).with_name('sentences.txt')

# --- commands -------------------------------------------------------------------------------------

TARGETS = {
    'a misspelt name': 'res2net50_es',
    'an unknown tag': 'res2net50_se.in21k',
    'a name without weights': 'res2net152d',
    'a name with weights on the Hub': 'res2net50_se',
    "a name of timm's": 'res2net50_26w_4s',
    'a name with weights at a URL': 'res2net50_vd_26w_4s',
    'another model of timm': 'resnet18',
    'a path with nothing at it': './nothing',
    'a word with nothing at it': 'nothing.pth',
    'no folder': 'local-dir:nothing',
    'a text file': 'notes.txt',
    'an empty folder': 'empty',
    'a repository': 'me/net',
    'a deep path': 'a/b/c',
    'nothing': '',
}
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    'info': lambda target: ['info', target],
    'check': lambda target: ['check', target],
    'predict': lambda target: ['predict', target],
    'show': lambda target: ['show', target, '--out', 'seen.png'],
    'export': lambda target: ['export', target, '--out', 'net.pt2'],
    'convert': lambda target: ['convert', target, '--dry-run'],
    'push': lambda target: ['push', target, 'me/other', '--license', 'mit', '--dry-run'],
    'pull': lambda target: ['pull', target, '--out', 'pulled'],
}


@contextlib.contextmanager
def world() -> Iterator[Path]:
    """An empty folder to work in, offline."""
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        here = Path(made).resolve()
        (here / 'notes.txt').write_text('notes')
        (here / 'empty').mkdir()
        cache = here / 'cache'
        stack.callback(os.chdir, os.getcwd())
        os.chdir(here)
        stack.enter_context(mock.patch.object(constants, 'HF_HUB_OFFLINE', True))
        stack.enter_context(mock.patch.object(constants, 'HF_HUB_CACHE', str(cache)))
        stack.enter_context(mock.patch.dict(os.environ, {'TORCH_HOME': str(cache)}))
        refused = urllib.error.URLError(ConnectionRefusedError(111, 'Connection refused'))
        stack.enter_context(mock.patch('torch.hub.urlopen', side_effect=refused))
        yield here


def run(argv: list[str], here: Path) -> list[str]:
    """What a command line prints, without the folder's name."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
    ):
        main(argv)
    return printed.getvalue().replace(str(here), '/here').splitlines()


def of_commands() -> Iterator[str]:
    with world() as here:
        for what, target in TARGETS.items():
            yield f'## {what}'
            for command in COMMANDS:
                lines = run(COMMANDS[command](target), here)
                # `info` of a known model is a page, not a sentence
                yield from lines[:3] if command == 'info' else lines


# --- the Hub and servers --------------------------------------------------------------------------


def failures() -> dict[str, Exception]:
    def answer(status: int, kind: type = HfHubHTTPError, text: str = 'a reason') -> Exception:
        request = httpx.Request('GET', 'https://hub/api/models/me/net?token=secret')
        return kind(text, response=httpx.Response(status, request=request))

    missing = LocalEntryNotFoundError('not in the cache')
    missing.__cause__ = httpx.ConnectError('Connection refused')
    return {
        'gated': answer(403, GatedRepoError),
        'no repository': answer(404, RepositoryNotFoundError),
        'no revision': answer(404, RevisionNotFoundError),
        'HF_HUB_OFFLINE': OfflineModeIsEnabled('offline'),
        '401': answer(401),
        '403': answer(403),
        '404': answer(404),
        '412': answer(412),
        '429': answer(429),
        '500': answer(500),
        'disk full': OSError(28, 'No space left on device'),
        'read-only cache': OSError(30, 'Read-only file system', '/cache'),
        'cut short': OSError('Consistency check failed: file should be of size 5'),
        'refused': httpx.ConnectError('Connection refused'),
        'too slow': httpx.ReadTimeout('timed out'),
        'refused, and not in the cache': missing,
        'a check of this package': ValueError('a reason'),
        'a missing file': FileNotFoundError(2, 'No such file or directory', 'net.pth'),
        'a missing package': ModuleNotFoundError("No module named 'onnx'"),
        'something else': RuntimeError('a reason\nand more'),
    }


def of_failures() -> Iterator[str]:
    for what, error in failures().items():
        yield f'{what}: {explain(error)}'


# --- folders --------------------------------------------------------------------------------------


def of_folders() -> Iterator[str]:
    with world() as here:
        whole = model_folder(here / 'whole', num_classes=5, layers=(1, 1, 1, 1))
        for what, (damage, _) in DEFECTS.items():
            folder = here / 'net'
            shutil.copytree(whole, folder)
            damage(folder)
            yield f'## {what}'
            for command in ('check', 'push', 'pull'):
                for finding in checks(ModelFolder(folder), command):
                    if what == 'nothing' or finding.state != 'ok':
                        line = f'{command}: {finding}'.replace(str(here), '/here')
                        yield re.sub(r'\S+ (?=\((output|features|pre_logits))', '0.1 ', line)
            shutil.rmtree(folder)


# --- arguments ------------------------------------------------------------------------------------

BACKBONES: list[dict[str, object]] = [
    {'norm': 'group'},
    {'extra_blocks': 'p6'},
    {'trainable_layers': 6},
    {'trainable_layers': 2.5},
    {'out_indices': (1, 7)},
    {'name': 'res2net50_es'},
    {'name': 'mobilenetv3_small_050', 'trainable_layers': 3},
]


def of_backbones() -> Iterator[str]:
    for wrong in BACKBONES:
        with pytest.raises(ValueError) as error:
            detection_backbone(**{'name': TINY, **wrong})
        yield f'{wrong}: {error.value}'


# --- the file -------------------------------------------------------------------------------------


def sentences() -> str:
    parts = {
        'What each command says of each kind of model, offline': of_commands,
        'What failures of the Hub and of servers say': of_failures,
        'What each command finds in a damaged folder': of_folders,
        'What detection_backbone refuses': of_backbones,
    }
    lines = []
    for title, part in parts.items():
        lines += [f'# {title}', '', *(line.rstrip() for line in part()), '']
    return '\n'.join(lines)


def test_sentences(tmp_path):
    found, path = sentences(), tmp_path / 'sentences.txt'
    path.write_text(found)
    assert found == SENTENCES.read_text(), f'Read {path}, and copy it to {SENTENCES} if it is good.'
