"""`python -m benchmarks`: a run and its file, how it continues, and the errors."""

import dataclasses
import sys

import pytest
import torch

from benchmarks.script import RESULTS, save
from benchmarks.suite import answer, cells, run
from benchmarks.suite.cells import Spec, find_pair, load_pairs, load_suite
from benchmarks.suite.measure import CAUSES
from benchmarks.suite.models import Work
from benchmarks.suite.run import main

from .common import synthetic

TINY = 'test_res2net_se:test_res2net_se'
PAIRS = ('main', 'se', 'dla')
COMMAND = ('run', '--suite', 'smoke', '--only', 'time', '--task', 'infer', '--pairs', *PAIRS)


def test_a_whole_run(tmp_path, capsys, monkeypatch):
    """Every kind of cell, on a small model whose control counts whatever it is."""
    monkeypatch.setattr(answer, 'CONTROL', float('inf'))
    monkeypatch.setattr('gc.collect', int)  # takes a second in a large process
    out = tmp_path / 'a.json'
    command = ['run', '--suite', 'smoke', '--pairs', TINY, '--threads', '1', '--budget', '0.1']
    assert main([*command, '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    content = answer.load(out)
    kinds = [row['cell']['kind'] for row in content['cells'].values()]
    assert kinds == ['time', 'time', 'attribution', 'memory', 'memory']
    for text in ('time × ', 'throughput × ', 'more MACs', 'peak memory × '):
        assert text in printed
    assert content['runs'][0]['command'].startswith('python -m benchmarks run --suite smoke')
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']
    assert main(['report', str(out), '--plots', str(tmp_path / 'plots')]) == 0
    text = capsys.readouterr().out
    for heading in ('## How much slower', '## Where the time goes', '## Memory'):
        assert heading in text
    assert [p.name for p in (tmp_path / 'plots').iterdir()] == [f'{TINY.replace(":", "-")}.png']


@pytest.fixture
def fake(monkeypatch):
    """Measure by a function that returns the control's time; return the list of pairs measured."""
    seen = []

    def install(control=lambda cell: 1.0, settled=True):
        def measure_cell(cell, budget, rebuild, on_round):
            seen.append(cell.pair)
            _, row = synthetic(cell.pair, control=control(cell), settled=settled)
            on_round()
            if cell.kind == 'attribution':
                row = {'attribution': {}}
            models = find_pair(cell.pair).labels()
            return {**row, 'cell': dataclasses.asdict(cell), 'models': models, 'budget': budget}

        seen.clear()
        monkeypatch.setattr(run, 'measure_cell', measure_cell)
        return seen

    return install


@pytest.fixture
def measured(tmp_path):
    """Run the command into a file, and return the exit code."""

    def measured(*words):
        return main([*COMMAND, '--out', str(measured.out), *words])

    measured.out = tmp_path / 'a.json'
    return measured


def fail_at(pair, error):
    def control(cell):
        if cell.pair == pair:
            raise error
        return 1.0

    return control


def test_a_run_goes_on_after_ctrl_c(fake, measured, capsys):
    fake(fail_at('dla', KeyboardInterrupt))
    assert measured() == 130
    stopped = capsys.readouterr().err
    assert f'Stopped. 2 of 3 cells are in {measured.out}; the same command continues' in stopped
    for pairs in (['dla'], []):
        seen = fake()
        assert measured() == 0
        assert seen == pairs
    rows = answer.load(measured.out)['cells'].values()
    assert [row['run'] for row in rows] == [0, 0, 1]


def test_a_control_out_of_its_band_is_unusable_and_measured_again(fake, measured, capsys):
    fake(lambda cell: 1.03 if cell.pair == 'se' else 1.0)
    assert measured() == 3
    captured = capsys.readouterr()
    assert '1 of 3 cells are unusable: their control is not within 1.00 ± 0.02' in captured.err
    (line,) = (line for line in captured.out.splitlines() if line.startswith('se: infer'))
    assert 'throughput' not in line  # no figure to quote
    fake(fail_at('se', KeyboardInterrupt))
    assert measured() == 130
    rows = answer.load(measured.out)['cells'].values()
    assert [row['models']['baseline'] for row in rows] == ['resnet50', 'seresnet50', 'dla60']
    seen = fake()
    assert measured() == 0
    assert seen == ['se']


def test_what_is_measured_again(fake, measured, monkeypatch):
    """Unsettled cells with a larger budget, and a pair whose models are others now."""
    for budget, number in (('5', 3), ('5', 0), ('4', 0), ('6', 3)):
        seen = fake(settled=False)
        assert measured('--budget', budget) == 0
        assert len(seen) == number
    pairs = dict(load_pairs())
    pairs['se'] = pairs['se']._replace(baseline=Spec('seresnet50', (('base_width', 32),)))
    monkeypatch.setattr(cells, 'load_pairs', lambda: pairs)
    seen = fake()
    assert measured('--budget', '6') == 0
    assert seen == ['se']


def test_a_cell_that_fails_does_not_stop_the_others(fake, measured, capsys):
    seen = fake(fail_at('se', torch.OutOfMemoryError('no room\nsecond line')))
    assert measured() == 1
    captured = capsys.readouterr()
    assert seen == list(PAIRS)
    assert 'Failed: se: infer, eager, fp32, channels_last, batch 1, 64 px' in captured.err
    assert 'failed: OutOfMemoryError: no room\n' in captured.out
    seen = fake()
    assert measured() == 0
    assert seen == ['se']


def test_an_unusable_time_is_not_explained(fake, measured, capsys, monkeypatch):
    """The explanation is measured again with the time."""
    monkeypatch.setattr(answer, 'explain', lambda attribution: dict.fromkeys(CAUSES, 0.1))
    for control, code, number in ((1.5, 3, 6), (1.5, 3, 6), (1.0, 0, 6), (1.0, 0, 0)):
        seen = fake(lambda cell, control=control: control)
        assert measured('--only', 'time', 'attribution') == code
        assert len(seen) == number
        printed = capsys.readouterr().out
        assert ('no explanation, because the time' in printed) == (code == 3)
        assert ('more MACs' in printed) == (control == 1.0 and number > 0)


@pytest.mark.parametrize('rebuild', [False, True])
def test_compiled_models_are_rebuilt_on_request(rebuild, monkeypatch):
    done, now = [], [0.0]

    def prepare_pair(pair, cell, x):
        done.append('prepare')

        def step():
            now[0] += 1

        return {role: Work(None, step, list) for role in ('baseline', 'subject', 'control')}

    monkeypatch.setattr(run, 'prepare_pair', prepare_pair)
    monkeypatch.setattr('gc.collect', int)
    monkeypatch.setattr(torch.compiler, 'reset', lambda: done.append('reset'))
    given = {'pairs': ['control'], 'mode': ['compiled'], 'size': [32], 'threads': [1]}
    (cell,) = load_suite('smoke', {**given, 'task': ['infer']}, ['time'])
    row = run.measure_cell(cell, 54, rebuild, clock=lambda: now[0])
    assert done == ['reset', *['reset', 'prepare'] * (6 if rebuild else 1)]
    # a round takes 3 s, and a block 9 s
    assert row['blocks'] == ([3] * 6 if rebuild else [])
    assert {len(seconds) for seconds in row['samples'].values()} == {18}
    assert row['settled'] is True
    # a row of one build is measured again if several are asked for
    assert run.finished(cell, {cell.key: row}, 54, rebuild=True) == rebuild


def test_list_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for suite in ('smoke', 'gpu'):  # without a GPU
        assert main(['run', '--suite', suite, '--list']) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(' ')[2].strip() for line in lines] == [*map(str, load_suite(suite))]
    assert list(tmp_path.iterdir()) == []


def error_of(capsys, *argv):
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.count('\n') == 1
    return captured.err


def test_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, 'run', '--pairs', 'nothing')
    assert error.startswith("python -m benchmarks run: Unknown pair 'nothing'.")
    assert str(tmp_path) in error_of(capsys, *COMMAND, '--out', str(tmp_path))
    assert 'missing.json' in error_of(capsys, 'report', 'missing.json')
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    error = error_of(capsys, 'report', str(RESULTS / 'main-1.json'), '--plots', 'plots')
    assert "matplotlib is not installed. Install it: pip install 'timm-res2net[plots]'" in error
    assert list(tmp_path.iterdir()) == []
    for words in (['run', '--suite', 'nothing'], ['--help'], []):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == (0 if words == ['--help'] else 2)


def test_reports_of_several_files(tmp_path, capsys):
    one, two = tmp_path / 'a.json', tmp_path / 'b.json'
    for path in (one, two):
        content = run.start(path, 'smoke', 'command')
        save(path, content | {'cells': dict([synthetic('main')])})
    assert main(['report', str(one), str(two)]) == 0
    out = capsys.readouterr().out
    assert f'| {one} ' in out and f'| {two} ' in out
    content['runs'][0]['environment']['cpu'] = 'another'
    save(two, content)
    assert f"'{two}' with another" in error_of(capsys, 'report', str(one), str(two))
