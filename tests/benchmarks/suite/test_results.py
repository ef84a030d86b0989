"""Result files and errors of the command line."""

import json
import os
import sys

import pytest
import torch

from benchmarks.suite import results
from benchmarks.suite.cli import main

from .common import synthetic

COMMAND = (
    'run', '--suite', 'smoke', '--only', 'time', '--task', 'infer', '--pairs', 'main',
    '--no-progress',
)  # fmt: skip


def fresh(tmp_path, **changes):
    path = tmp_path / 'old.json'
    found = results.start(path, 'smoke', 'python -m benchmarks run')
    path.write_text(json.dumps({**found, **changes}))
    return path


def errors(capsys, *argv):
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    return captured.err


def test_errors_of_result_files(tmp_path, capsys):
    path = fresh(tmp_path, version=7)
    before = path.read_text()
    for verb, options in (('run', (*COMMAND, '--out')), ('report', ('report',))):
        error = errors(capsys, *options, str(path))
        assert error.startswith(f"python -m benchmarks {verb}: '{path}' has version 7")
        assert 'another --out' in error
    assert path.read_text() == before

    path.write_text('{"a": 1}')
    error = errors(capsys, *COMMAND, '--out', str(path))
    assert f"'{path}' is not a result of `python -m benchmarks run`" in error
    assert 'another --out' in error
    path.write_text('{"a": ')
    error = errors(capsys, 'report', str(path))
    assert f"Cannot read '{path}'" in error
    assert 'Give a file that `python -m benchmarks run` wrote.' in error
    assert path.read_text() == '{"a": '
    missing = tmp_path / 'missing.json'
    error = errors(capsys, 'report', str(missing))
    assert f"There is no file '{missing}'" in error
    assert f'python -m benchmarks run --out {missing}' in error


def test_reports_of_several_files(tmp_path, capsys):
    one, two = tmp_path / 'one', tmp_path / 'two'
    for folder in (one, two):
        folder.mkdir()
        path = fresh(folder)
        found = json.loads(path.read_text())
        key, record = synthetic('main')
        path.write_text(json.dumps({**found, 'cells': {key: record}}))
    files = [str(folder / 'old.json') for folder in (one, two)]
    assert main(['report', *files]) == 0
    out = capsys.readouterr().out
    assert all(f'| {file} ' in out for file in files)  # equal stems: named by their paths
    found['runs'][0]['environment']['cpu'] = 'another'
    path.write_text(json.dumps(found))
    error = errors(capsys, 'report', *files)
    assert f"'{files[1]}' with another" in error
    assert 'Report each file by itself' in error


def test_plots_into_a_file(tmp_path, capsys):
    path = fresh(tmp_path)
    error = errors(capsys, 'report', str(path), '--plots', str(path))
    assert f"'{path}' is a file" in error
    assert 'Give a folder to --plots' in error


def test_cells_of_another_machine_do_not_mix(tmp_path, capsys):
    path = fresh(tmp_path)
    found = json.loads(path.read_text())
    found['runs'][0]['environment']['torch'] = '1.0'
    path.write_text(json.dumps(found))
    error = errors(capsys, *COMMAND, '--out', str(path))
    assert f"'{path}' was measured with torch 1.0" in error
    assert 'Give another --out' in error
    assert json.loads(path.read_text()) == found


def test_errors_of_an_output(tmp_path, capsys, monkeypatch):
    error = errors(capsys, *COMMAND, '--out', str(tmp_path))
    assert f'Cannot write {tmp_path}: it is a folder' in error
    nowhere = tmp_path / 'no' / 'a.json'
    assert f"no folder '{nowhere.parent}'" in errors(capsys, *COMMAND, '--out', str(nowhere))

    def refuse(**kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    out = tmp_path / 'a.json'
    error = errors(capsys, *COMMAND, '--out', str(out))
    assert f'Cannot write {out} (Permission denied)' in error
    assert 'a folder you can write to' in error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Unknown pair 'nothing'." in errors(capsys, 'run', '--pairs', 'nothing')
    if not torch.cuda.is_available():
        assert "Device 'cuda' needs a GPU" in errors(capsys, 'run', '--suite', 'gpu')
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as stop:
        main(['run', '--suite', 'nothing'])
    assert stop.value.code == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = fresh(tmp_path)
    before = path.read_text()

    def refuse(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(OSError, match='disk full'):
        results.save(path, json.loads(before))
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ['old.json']


def test_plots_without_matplotlib(tmp_path, capsys, monkeypatch):
    path = fresh(tmp_path)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    error = errors(capsys, 'report', str(path), '--plots', str(tmp_path / 'plots'))
    assert '--plots needs matplotlib' in error
    assert "pip install 'timm-res2net[plots]'" in error


@pytest.mark.parametrize('verb', ['run', 'report'])
def test_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, '--help'])
    assert stop.value.code == 0
    assert f'examples:\n  python -m benchmarks {verb}' in capsys.readouterr().out
