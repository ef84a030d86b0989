"""What all commands share: usage errors, output on any terminal, steps, signals, errors."""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from typing import ClassVar

import pytest

from tests.cli.test_cli import PADDLE
from timm_res2net.cli import main
from timm_res2net.cli.frame import explain, run_command
from timm_res2net.files import new_folder, temporary_folder


def usage_error(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ('argv', 'bad'),
    [
        (['push', 'a', 'me/b', '--licence', 'mit'], '--licence'),
        (['convert', 'a', '--dry'], '--dry'),  # no abbreviations
        (['info', 'res2net50_se', 'more'], 'more'),
        (['predict', '--top', '0'], "'0'"),
    ],
)
def test_usage_errors(argv, bad, capsys):
    error = usage_error(capsys, argv)
    assert error.startswith(f'usage: timm-res2net {argv[0]} [-h]')
    assert bad in error.splitlines()[-1]


def test_an_unknown_command(capsys):
    error = usage_error(capsys, ['shwo'])
    assert "'shwo'" in error
    assert 'list' in error


def test_options_between_arguments(monkeypatch):
    """Users write `predict MODEL --top 1 IMAGE`."""
    monkeypatch.setattr('timm_res2net.cli.run_command', vars)
    options = main(['predict', 'm', '--top', '1', 'a', '--json', 'b'])
    assert [str(path) for path in options['images']] == ['a', 'b']
    assert (options['target'], options['top'], options['json']) == ('m', 1, True)


def test_no_command(capsys):
    """The help names the commands."""
    assert main([]) == 2
    assert 'convert a checkpoint of another project' in ' '.join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize('encoding', ['ascii', 'cp437', 'utf-8'])
def test_any_terminal(encoding):
    """`×` and `…` are not in every encoding."""
    program = (
        'import sys; from timm_res2net.cli import images, main;'
        'images._show.__doc__ = "Show × ….";'
        'sys.exit(main(["show", "--help"]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'PYTHONIOENCODING': encoding},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = 'Show × ….' if encoding == 'utf-8' else 'Show ? ?.'
    assert expected in done.stdout.decode(encoding)


@pytest.mark.slow
def test_help_imports_nothing_heavier_than_timm():
    program = (
        'import contextlib, io, sys, timm; before = set(sys.modules);'
        'from timm_res2net.cli import main\n'
        'with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n'
        '    main(["export", "--help"])\n'
        'print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=300
    )
    heavy = {'matplotlib', 'onnx', 'onnxruntime', 'onnxscript', 'openvino', 'scipy', 'sklearn'}
    heavy |= {'transformers', 'pandas'}
    found = set(eval(done.stdout))
    assert 'timm_res2net' in found
    assert not found & heavy


class FakeTimer:
    """Waits for nothing: `end` says that its second is over."""

    made: ClassVar[list['FakeTimer']] = []

    def __init__(self, seconds, function, args=(), kwargs=None):
        self.call, self.args, self.kwargs, self.on = function, args, kwargs or {}, False
        self.made.append(self)

    def start(self):
        self.on = True

    def cancel(self):
        self.on = False

    def end(self):
        if self.on:
            self.call(*self.args, **self.kwargs)


def run(handler, **options) -> int:
    return run_command(argparse.Namespace(command='work', handler=handler, **options))


def test_long_steps_are_said(capsys, monkeypatch):
    """On the standard error, if a step takes a second; nothing stays behind."""
    monkeypatch.setattr('timm_res2net.cli.frame.Timer', FakeTimer)
    log = logging.getLogger('timm_res2net.some.module')
    before = (list(logging.getLogger('timm_res2net').handlers), log.getEffectiveLevel())

    def work():
        log.info('Loading x')  # quick
        log.info('Exporting x')
        FakeTimer.made[-1].end()
        log.info('Comparing x')
        log.info('')
        FakeTimer.made[-1].end()
        log.warning('The cache is used.')
        log.info('Writing x')
        return 0

    assert run(work) == 0
    for timer in FakeTimer.made:
        timer.end()  # too late
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        'timm-res2net work: Exporting x ...', 'timm-res2net work: The cache is used.'
    ]  # fmt: skip
    assert captured.out == ''
    assert before == (list(logging.getLogger('timm_res2net').handlers), log.getEffectiveLevel())


@pytest.mark.parametrize(
    ('number', 'code', 'word'),
    [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'terminated')],
)
@pytest.mark.parametrize('turned', [False, True])
def test_signals_end_a_command(number, code, word, turned, tmp_path, capsys):
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
    assert capsys.readouterr().err == f'timm-res2net work: {word}. Run it again.\n'
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


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (KeyError('x'), "KeyError: 'x'"),
        (RuntimeError('size mismatch for fc.weight\n\tand more'), 'RuntimeError: size mismatch'),
        (UnicodeDecodeError('utf-8', b'x', 0, 1, 'why'), 'UnicodeDecodeError: '),
        (FileNotFoundError('There is no file x. Check the path.'), 'There is no file x. Check'),
        (ModuleNotFoundError("No module named 'onnx'"), "No module named 'onnx'. An extra may"),
        (ValueError('see https://hub/a?token=secret (b)'), 'see https://hub/a (b)'),
    ],
)
def test_every_error_has_a_sentence(error, text):
    said = explain(error)
    assert text in said
    assert '\n' not in said
    assert 'secret' not in said


def test_tables_fit_the_terminal(capsys, monkeypatch):
    """`list` and `convert` print their widest tables."""
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    for argv in (['list'], ['convert', str(PADDLE), '--dry-run']):
        assert main(argv) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
        assert len(rows) > 3
        assert max(map(len, rows)) <= 80


def test_results_as_json(capsys, tmp_path):
    out = tmp_path / 'seen.png'
    assert main(['show', 'test_res2net_se', '--out', str(out), '--json']) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown['path'] == str(out)
    assert shown['top'][0]['class'] == '3'
    assert shown['levels'][-1] == ['layer4', 192, 2, 2]

    out = tmp_path / 'net.pt2'
    command = ['export', 'test_res2net_se', '--static', '--out', str(out), '--json']
    assert main(command) == 0
    captured = capsys.readouterr()
    exported = json.loads(captured.out)
    assert (exported['path'], exported['format']) == (str(out), 'pt2')  # found by the suffix
    assert exported['error'] < 1e-4

    command = ['push', str(tmp_path / 'net'), 'me/net', '--license', 'mit', '--dry-run', '--json']
    assert main(['convert', str(PADDLE), '--out', str(tmp_path / 'net')]) == 0
    capsys.readouterr()
    assert main(command) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed['config']['pretrained_cfg']['license'] == 'mit'
    assert len(pushed['files']['model.safetensors']['sha256']) == 64
    assert pushed['commit'] is None


def test_urls_are_printed_without_secrets(capsys):
    """In the line and in the traceback: signatures of the Hub's storage, passwords of a proxy."""
    url = 'https://me:pass@example.org/file?X-Amz-Signature=SECRET'

    def handler() -> int:
        raise RuntimeError(f'cut short: {url}')

    assert run_command(argparse.Namespace(command='check', handler=handler, debug=True)) == 1
    error = capsys.readouterr().err
    assert 'Traceback' in error and error.count('https://example.org/file') == 2
    assert 'SECRET' not in error and 'pass@' not in error
