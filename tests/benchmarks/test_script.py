"""The frame of the scripts."""

import json

import pytest

from benchmarks import convert_memory, import_time, kernels, load_time
from benchmarks.script import RESULTS, Script


def test_a_script(tmp_path, capsys):
    script = Script('trainings.train_x', 'Train x.\n\nMore.')
    script.parser.add_argument('--weights')
    out = tmp_path / 'x.json'
    script.parse(['--out', str(out)], 'weights')
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


def test_files_are_checked_before_the_work(tmp_path, capsys):
    for option, path in (('--out', tmp_path / 'no' / 'x.json'), ('--weights', tmp_path)):
        script = Script('x', 'X.')
        script.parser.add_argument('--weights', type=type(tmp_path))
        with pytest.raises(SystemExit) as stop:
            script.parse(['--out', str(tmp_path / 'x.json'), option, str(path)], 'weights')
        assert stop.value.code == 2
        assert f'Cannot write {path}' in capsys.readouterr().err


@pytest.mark.parametrize('module', [convert_memory, import_time, kernels, load_time])
def test_results_are_of_whole_runs(module):
    """The command has no option besides `--out` or the default of one."""
    name = module.__name__.rpartition('.')[2]
    (run,) = json.loads((RESULTS / f'{name}.json').read_text())['runs']
    assert run['command'].split(' --')[0] == f'python -m benchmarks.{name}'
