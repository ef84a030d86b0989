"""What all verbs share: usage errors, output on any terminal, steps, JSON."""

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
from timm_res2net.cli.frame import Verbs, run_verb
from timm_res2net.files import new_folder, temporary_folder


def usage_error(capsys, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ('argv', 'verb', 'bad', 'close'),
    [
        (['push', 'a', 'me/b', '--licence', 'mit'], 'push', '--licence', '--license'),
        (['push', 'a', 'me/b', '--licence=mit'], 'push', '--licence=mit', '--license'),
        (['convert', 'a', '--lable-names', 'x'], 'convert', '--lable-names', '--label-names'),
        (['list', '--jsn'], 'list', '--jsn', '--json'),
        (['convert', 'a', '--dry'], 'convert', '--dry', '--dry-run'),  # no abbreviations
    ],
)
def test_an_unknown_option(argv, verb, bad, close, capsys):
    error = usage_error(capsys, argv)
    assert error.startswith(f'usage: timm-res2net {verb} [-h]')
    assert f"timm-res2net {verb}: error: unknown argument '{bad}'. Did you mean {close}" in error


def test_options_between_arguments():
    verbs = Verbs('prog', 'Does.')
    parser = verbs.add('work', lambda args: 0, 'work')
    parser.add_argument('model')
    parser.add_argument('images', nargs='*')
    parser.add_argument('--top', type=int)
    args = verbs.parse(['work', 'm', '--top', '1', 'a', 'b'])
    assert (args.model, args.top, args.images) == ('m', 1, ['a', 'b'])
    assert (args.verb, args.argv[:2]) == ('work', ['work', 'm'])


def test_one_argument_too_many(capsys):
    error = usage_error(capsys, ['info', 'res2net50_se', 'more'])
    assert error.startswith('usage: timm-res2net info')
    assert error.endswith("unknown argument 'more'.\n")


@pytest.mark.parametrize(
    ('argv', 'text'),
    [
        (
            ['list', '--license=--'],
            "argument --license: '--' is not a value. Write a path as ./--.",
        ),
        (
            ['predict', '--', '-x.png'],
            "unknown argument '-x.png'. Write a path that begins with - as",
        ),
    ],
)
def test_dashes(argv, text, capsys):
    assert text in usage_error(capsys, argv)


def test_no_verb(capsys):
    """The help names the verbs."""
    error = usage_error(capsys, [])
    assert 'convert a checkpoint of another project' in ' '.join(error.split())


def test_an_unknown_verb(capsys):
    error = usage_error(capsys, ['shwo'])
    assert "unknown verb 'shwo'. Did you mean show" in error
    assert 'Use one of list, info' in error


@pytest.mark.slow
@pytest.mark.parametrize('encoding', ['ascii', 'cp437', 'utf-8'])
def test_any_terminal(encoding):
    """`×` and `…` are not in every encoding."""
    program = (
        'import sys; from timm_res2net.cli.frame import Verbs, run_verb; verbs = Verbs("p", "P.");'
        'verbs.add("v", lambda args: print("× …") or 0, "do");'
        'sys.exit(run_verb(verbs, ["v"]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'PYTHONIOENCODING': encoding},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = '× …' if encoding == 'utf-8' else '? ?'
    assert done.stdout.decode(encoding).strip() == expected


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


def test_long_steps_are_said(capsys, monkeypatch):
    """On the standard error, if a step takes a second; nothing stays behind."""
    monkeypatch.setattr('timm_res2net.cli.frame.Timer', FakeTimer)
    log = logging.getLogger('timm_res2net.some.module')
    before = (list(logging.getLogger('timm_res2net').handlers), log.getEffectiveLevel())

    def work(args):
        log.info('Loading x')  # quick
        log.info('Exporting x')
        FakeTimer.made[-1].end()
        log.info('Comparing x')
        log.info('')
        FakeTimer.made[-1].end()
        return 0

    verbs = Verbs('prog', 'Does.')
    verbs.add('work', work, 'work')
    assert run_verb(verbs, ['work']) == 0
    for timer in FakeTimer.made:
        timer.end()  # too late
    captured = capsys.readouterr()
    assert captured.err == 'prog work: Exporting x ...\n'
    assert captured.out == ''
    assert before == (list(logging.getLogger('timm_res2net').handlers), log.getEffectiveLevel())


def verb(handler) -> Verbs:
    verbs = Verbs('prog', 'Does.')
    verbs.add('work', handler, 'work')
    return verbs


@pytest.mark.parametrize(
    ('number', 'code', 'word'),
    [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'terminated')],
)
@pytest.mark.parametrize('turned', [False, True])
def test_signals_end_a_verb(number, code, word, turned, tmp_path, capsys):
    """Nothing is left; code in C++ may turn the interrupt into an error of its own."""

    def work(args):
        with new_folder(tmp_path / 'net'), temporary_folder():
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt as error:
                raise RuntimeError('unexpected pos') if turned else error from None
        raise AssertionError('not ended')

    before = signal.getsignal(number)
    assert run_verb(verb(work), ['work']) == code
    assert capsys.readouterr().err == f'prog work: {word}. Run it again.\n'
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(number) == before


def test_an_error_is_one_line(capsys):
    def fail(args):
        raise ValueError('a\nb\x1b[31m\udcff é')

    assert run_verb(verb(fail), ['work']) == 1
    assert capsys.readouterr().err == 'prog work: a\\nb\\x1b[31m\\udcff é\n'
    error = usage_error(capsys, ['info', 'a', 'b\n\x1b[31m'])
    assert error.endswith("unknown argument 'b\\n\\x1b[31m'.\n")


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
    assert shown['levels'][-1] == {'name': 'layer4', 'channels': 192, 'height': 2, 'width': 2}

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
    assert pushed['license'] == 'mit'
    assert len(pushed['files']['model.safetensors']['sha256']) == 64
    assert pushed['commit'] is None
