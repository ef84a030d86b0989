"""What all commands share: usage, help, output on any terminal, signals, errors."""

import argparse
import io
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.common import PADDLE, ROOT
from timm_res2net import __version__
from timm_res2net.cli import images, main
from timm_res2net.cli.frame import run_command
from timm_res2net.files import new_folder, temporary_folder

COMMANDS = (
    'list', 'info', 'convert', 'predict', 'show', 'push', 'pull', 'check', 'export', 'measure',
    'run',
)  # fmt: skip


def run(handler, **options) -> int:
    return run_command(argparse.Namespace(command='work', handler=handler, **options))


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('argv', 'bad'),
    [
        (['nothing'], "'nothing'"),
        (['run'], 'script'),
        (['push', 'a', 'me/b', '--licence', 'mit'], '--licence'),
        (['push', 'a', 'me/b', '--eval', 'top1=good'], "'top1=good'"),
        (['convert', 'a', '--dry'], '--dry'),  # no abbreviations
        (['convert', 'a', '--from', 'keras'], "'keras'"),
        (['info', 'res2net50_se', 'more'], 'more'),
        (['predict', '--top', '0'], "'0'"),
    ],
)
def test_usage_errors(argv, bad, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('usage: timm-res2net')
    assert bad in error.splitlines()[-1]


def test_a_closed_output(monkeypatch):
    """`timm-res2net list >&-`"""
    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', None)
    assert main(['list']) == 0
    assert main(['info', 'nothing']) == 1
    sys.stdout.close()
    sys.stderr.close()


def test_no_command(capsys):
    assert main([]) == 2
    assert 'convert a checkpoint of another project' in ' '.join(capsys.readouterr().err.split())


def test_options_between_arguments(monkeypatch):
    """Users write `predict MODEL --top 1 IMAGE`."""
    monkeypatch.setattr('timm_res2net.cli.run_command', vars)
    options = main(['predict', 'm', '--top', '1', 'a', '--json', 'b'])
    assert [str(path) for path in options['images']] == ['a', 'b']
    assert (options['target'], options['top'], options['json_lines']) == ('m', 1, True)


@pytest.mark.parametrize('command', COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, '--help'])
    assert stop.value.code == 0
    assert f'examples:\n  timm-res2net {command}' in capsys.readouterr().out


def test_the_commands_and_the_version(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    out = capsys.readouterr().out
    assert set(re.findall(r'^    (\w+) ', out, re.MULTILINE)) == set(COMMANDS)
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out == f'timm-res2net {__version__}\n'


# --- terminals and pipes --------------------------------------------------------------------------


@pytest.mark.parametrize(('encoding', 'expected'), [('ascii', '? ?'), ('utf-8', '× …')])
def test_any_terminal(encoding, expected, monkeypatch):
    """`×` and `…` are not in every encoding."""
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(images._show, '__doc__', 'Show × ….')
    with pytest.raises(SystemExit):
        main(['show', '--help'])
    out.flush()
    assert f'Show {expected}.' in out.buffer.getvalue().decode(encoding)


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads: the first write fails
    command = [sys.executable, '-m', 'timm_res2net', 'list']
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 0
    assert 'Error' not in done.stderr


# --- signals and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize('turned', [False, True])
def test_signals_end_a_command(number, code, turned, tmp_path, capsys):
    """Nothing is left; code in C++ may turn the interrupt into an error of its own."""

    def work():
        with new_folder(tmp_path / 'net'), temporary_folder():
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt as error:
                raise RuntimeError('unexpected pos') if turned else error from None
        raise AssertionError('not ended')

    before = signal.getsignal(number)
    assert run(work) == code
    assert capsys.readouterr().err.count('\n') == 1
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored():
    """As in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(lambda: signal.raise_signal(signal.SIGINT) or 0) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_is_one_line(capsys):
    """And --debug prints the traceback before it."""

    def fail():
        raise ValueError('a\nb\x1b[31m\udcff é')

    assert run(fail) == 1
    assert capsys.readouterr().err == 'timm-res2net work: a\\nb\\x1b[31m\\udcff é\n'
    assert run(lambda: 1 // 0, debug=True) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith('Traceback')
    assert last.startswith('timm-res2net work: ZeroDivisionError: ')


def test_urls_are_printed_without_secrets(capsys):
    """In the line and in the traceback: signatures of the Hub's storage, passwords of a proxy."""

    url = 'HTTPS://me:p@ss@example.org/file?X-Amz-Signature=SECRET'

    def fail():
        raise RuntimeError(f'cut short: {url}')

    assert run(fail, debug=True) == 1
    error = capsys.readouterr().err
    assert 'Traceback' in error and error.count('HTTPS://example.org/file') == 2
    assert 'SECRET' not in error and 'ss@' not in error


def test_tables_fit_the_terminal(capsys, monkeypatch):
    """`list` and `convert` print their widest tables."""
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    for argv in (['list'], ['convert', str(PADDLE), '--dry-run']):
        assert main(argv) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
        assert len(rows) > 3
        assert max(map(len, rows)) <= 80
