"""The frame of the scripts."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import changing_sizes, forms, kernels, quantize, receptive_field, script
from benchmarks.script import RESULTS, ROOT, Script


def test_a_script(tmp_path, capsys):
    script = Script('trainings.train_x', 'Train x.\n\nMore.')
    out = tmp_path / 'x.json'
    script.parse(['--out', str(out)])
    script.save({'figure': 1.2345678})
    found = json.loads(out.read_text())
    assert found['kind'] == 'train_x'
    assert found['cells'] == {'figure': 1.2346}
    (run,) = found['runs']
    assert run['command'] == f'python -m benchmarks.trainings.train_x --out {out}'
    assert {'torch', 'timm', 'cpu', 'commit'} <= run['environment'].keys()
    with pytest.raises(SystemExit):
        script.parse(['--help'])
    assert 'benchmarks/results/train_x.json' in capsys.readouterr().out


def test_nothing_tracked_is_written_unless_asked(tmp_path, monkeypatch, capsys):
    """The default is a path that git ignores; the committed file is renewed on request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, 'RESULTS', ROOT / 'benchmarks' / 'none')
    one = Script('x', 'X.')
    one.parse([])
    assert one.out == Path('benchmark-x.json')
    one.save({'figure': 1})
    assert [path.name for path in tmp_path.iterdir()] == ['benchmark-x.json']
    assert 'Written to benchmark-x.json' in capsys.readouterr().out
    if (ROOT / '.git').exists():
        for path in ('benchmark-x.json', 'benchmark-tables/', 'recorded/consumers.json'):
            done = subprocess.run(['git', 'check-ignore', '-q', path], cwd=ROOT)
            assert done.returncode == 0, path
    for argv in (['--commit-results', '--out', 'x.json'], ['--commit']):
        with pytest.raises(SystemExit) as stop:
            one.parse(argv)
        assert stop.value.code == 2


def test_the_committed_file_is_renewed_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'ROOT', tmp_path)
    monkeypatch.setattr(script, 'RESULTS', tmp_path)
    one = Script('x', 'X.')
    one.parser.add_argument('--steps')
    one.parse(['--commit-results', '--steps', '3'])
    assert one.out == one.committed == tmp_path / 'x.json'
    one.save({})
    (run,) = json.loads(one.out.read_text())['runs']
    assert run['command'] == 'python -m benchmarks.x --steps 3'


def test_a_missing_package(capsys):
    with pytest.raises(SystemExit) as stop:
        Script('x', 'X.', 'torch', 'no_such_package').parse([])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'no_such_package' in error
    assert "pip install 'timm-res2net[scripts]'" in error


def test_the_file_is_checked_before_the_work(tmp_path, capsys):
    path = tmp_path / 'no' / 'x.json'
    with pytest.raises(SystemExit) as stop:
        Script('x', 'X.').parse(['--out', str(path)])
    assert stop.value.code == 2
    assert f'Cannot write {path}' in capsys.readouterr().err


@pytest.mark.parametrize('module', [changing_sizes, forms, kernels, quantize, receptive_field])
def test_results_say_what_made_them(module):
    name = module.__name__.rpartition('.')[2]
    for run in json.loads((RESULTS / f'{name}.json').read_text())['runs']:
        assert run['command'].split(' --')[0] == f'python -m benchmarks.{name}'
