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
    assert main(['report', str(out), '--plots', str(tmp_path / 'plots')]) == 0
    text = capsys.readouterr().out
    for heading in ('## How much slower', '## Where the time goes', '## Memory'):
        assert heading in text
    assert [p.name for p in (tmp_path / 'plots').iterdir()] == [f'{TINY.replace(":", "-")}.png']


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    """Run the command into one file, with a function that measures nothing.

    Returns the exit code, the pairs that were measured, and what was printed.
    """
    out = tmp_path / 'a.json'

    def measured(*words, fails=(), controls=(), settled=True):
        seen = []

        def measure_cell(cell, budget, rebuild, on_round):
            seen.append(cell.pair)
            if cell.pair in fails:
                raise fails[cell.pair]
            control = dict(controls).get(cell.pair, 1.0)
            _, row = synthetic(cell.pair, control=control, settled=settled)
            if cell.kind == 'attribution':
                row = {'attribution': {}}
            models = find_pair(cell.pair).labels()
            return {**row, 'cell': dataclasses.asdict(cell), 'models': models, 'budget': budget}

        monkeypatch.setattr(run, 'measure_cell', measure_cell)
        code = main([*COMMAND, '--out', str(out), *words])
        return code, seen, ''.join(capsys.readouterr())

    measured.rows = lambda: answer.load(out)['cells'].values()
    return measured


def test_a_run_goes_on_after_ctrl_c(measured):
    code, _, said = measured(fails={'dla': KeyboardInterrupt})
    assert code == 130
    assert 'Stopped. 2 of 3 cells are in ' in said
    assert measured()[:2] == (0, ['dla'])
    assert measured()[:2] == (0, [])
    assert [row['run'] for row in measured.rows()] == [0, 0, 1]


def test_a_control_out_of_its_band_is_unusable_and_measured_again(measured):
    code, _, said = measured(controls={'se': 1.03})
    assert code == 3
    assert '1 of 3 cells are unusable: their control is not within 1.00 ± 0.02' in said
    (line,) = (line for line in said.splitlines() if line.startswith('se: infer'))
    assert 'throughput' not in line  # no figure to quote
    assert measured(fails={'se': KeyboardInterrupt})[0] == 130
    assert len(measured.rows()) == 3  # the older row stays
    assert measured()[:2] == (0, ['se'])


def test_what_is_measured_again(measured, monkeypatch):
    """Unsettled cells with a larger budget, and a pair whose models are others now."""
    for budget, pairs in (('5', PAIRS), ('5', ()), ('4', ()), ('6', PAIRS)):
        assert measured('--budget', budget, settled=False)[:2] == (0, [*pairs])
    pairs = dict(load_pairs())
    pairs['se'] = pairs['se']._replace(baseline=Spec('seresnet50', (('base_width', 32),)))
    monkeypatch.setattr(cells, 'load_pairs', lambda: pairs)
    assert measured('--budget', '6')[:2] == (0, ['se'])


def test_a_cell_that_fails_does_not_stop_the_others(measured):
    code, seen, said = measured(fails={'se': torch.OutOfMemoryError('no room\nsecond line')})
    assert (code, seen) == (1, [*PAIRS])
    assert 'failed: OutOfMemoryError: no room\n' in said
    assert 'Failed: se: infer' in said
    assert measured()[:2] == (0, ['se'])


def test_an_unusable_time_is_not_explained(measured, monkeypatch):
    """The explanation is measured again with the time."""
    monkeypatch.setattr(answer, 'explain', lambda attribution: dict.fromkeys(CAUSES, 0.1))
    for control, expected, number in ((1.5, 3, 6), (1.5, 3, 6), (1.0, 0, 6), (1.0, 0, 0)):
        words = ('--only', 'time', 'attribution')
        code, seen, said = measured(*words, controls=dict.fromkeys(PAIRS, control))
        assert (code, len(seen)) == (expected, number)
        assert ('no explanation, because the time' in said) == (code == 3)
        assert ('more MACs' in said) == (control == 1.0 and number > 0)


@pytest.mark.parametrize('rebuild', [False, True])
def test_compiled_models_are_rebuilt_on_request(rebuild, monkeypatch):
    built, now = [], [0.0]

    def step():
        now[0] += 1

    def prepare_pair(pair, cell, x):
        built.append(pair)
        return dict.fromkeys(('baseline', 'subject', 'control'), Work(None, step, list))

    monkeypatch.setattr(run, 'prepare_pair', prepare_pair)
    given = {'pairs': ['control'], 'mode': ['compiled'], 'size': [32], 'threads': [1]}
    (cell,) = load_suite('smoke', {**given, 'task': ['infer']}, ['time'])
    row = run.measure_cell(cell, 54, rebuild, clock=lambda: now[0])
    assert len(built) == (6 if rebuild else 1)
    # a round takes 3 s, and a block 9 s
    assert row['blocks'] == ([3] * 6 if rebuild else [])
    assert {len(seconds) for seconds in row['samples'].values()} == {18}
    assert row['settled'] is True
    # a row of one build is measured again if several are asked for
    assert run.finished(cell, {cell.key: row}, 54, rebuild=True) == rebuild


def test_list_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['run', '--suite', 'gpu', '--list']) == 0  # without a GPU
    assert len(capsys.readouterr().out.splitlines()) == len(load_suite('gpu'))
    assert list(tmp_path.iterdir()) == []


def error_of(capsys, *argv):
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.count('\n') == 1
    return captured.err


def test_errors_are_one_line(tmp_path, capsys, monkeypatch):
    error = error_of(capsys, 'run', '--pairs', 'nothing')
    assert error.startswith("python -m benchmarks run: Unknown pair 'nothing'.")
    assert str(tmp_path) in error_of(capsys, *COMMAND, '--out', str(tmp_path))
    assert 'missing.json' in error_of(capsys, 'report', 'missing.json')
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    plots = tmp_path / 'plots'
    error = error_of(capsys, 'report', str(RESULTS / 'main-1.json'), '--plots', str(plots))
    assert "matplotlib is not installed. Install it: pip install 'timm-res2net[plots]'" in error
    assert not plots.exists()


def test_no_report_of_two_machines(tmp_path, capsys):
    one, two = RESULTS / 'main-1.json', tmp_path / 'b.json'
    content = answer.load(one)
    content['runs'][0]['environment']['cpu'] = 'another'
    save(two, content)
    assert f"'{two}' with another" in error_of(capsys, 'report', str(one), str(two))
