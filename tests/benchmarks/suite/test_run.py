"""`python -m benchmarks`: a run and its file, how it continues, and the errors."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.suite import cells, records, report, run
from benchmarks.suite.attribution import CAUSES
from benchmarks.suite.cells import Spec, find_pair, load_pairs, load_suite
from benchmarks.suite.models import Work
from benchmarks.suite.run import main

from .common import synthetic

ROOT = Path(__file__).parents[3]
TINY = 'test_res2net_se:test_res2net_se'
KINDS = ['time', 'time', 'attribution', 'memory', 'memory']


def kinds(found):
    return [row['cell']['kind'] for row in found['cells'].values()]


def test_a_whole_run(tmp_path, capsys, monkeypatch):
    """Every kind of cell, on a small model whose control counts whatever it is."""
    monkeypatch.setattr(records, 'CONTROL', float('inf'))
    out = tmp_path / 'a.json'
    command = ['run', '--suite', 'smoke', '--pairs', TINY, '--threads', '1', '--budget', '0.1']
    assert main([*command, '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    found = records.load(out)
    assert kinds(found) == KINDS
    for text in ('time × ', 'throughput × ', 'more MACs', 'peak memory × '):
        assert text in printed
    environment = found['runs'][0]['environment']
    assert environment['torch'] == torch.__version__.split('+')[0]
    assert {'cpu', 'cores', 'threads', 'timm', 'commit', 'compiler', 'gpu'} <= set(environment)
    assert found['runs'][0]['command'].startswith('python -m benchmarks run --suite smoke')
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']

    assert main(['report', str(out), '--plots', str(tmp_path / 'plots')]) == 0
    text = capsys.readouterr().out
    for heading in ('## How much slower', '## Where the time goes', '## Memory'):
        assert heading in text
    drawn = sorted(p.name for p in (tmp_path / 'plots').iterdir())
    assert drawn == [f'{TINY.replace(":", "-")}.png']


@pytest.mark.slow
def test_smoke_as_a_user_runs_it(tmp_path):
    """On a loaded machine the rows may be unusable; the exit code says so."""
    out = tmp_path / 'smoke.json'
    command = [sys.executable, '-m', 'benchmarks', 'run', '--suite', 'smoke', '--budget', '1']
    done = subprocess.run(
        [*command, '--threads', '1', '--out', str(out)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, 'HF_HUB_OFFLINE': '1'}, timeout=300,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert (done.returncode == 3) == ('unusable' in done.stderr)
    assert 'Traceback' not in done.stderr
    assert kinds(records.load(out)) == KINDS


@pytest.fixture
def fake(monkeypatch):
    """Let a function of the test measure cells; return the list of pairs measured."""
    seen = []

    def install(behave=lambda cell: 1.0, rounds=4, settled=True):
        def measure_cell(cell, budget, row, on_round, rebuild):
            seen.append(cell.pair)
            samples = {'control': [], 'baseline': [], 'subject': []}
            row.update(
                cell=dataclasses.asdict(cell),
                models=find_pair(cell.pair).labels(),
                budget=budget,
                load=[0.1, 0.1],
                samples=samples,
            )
            samples['control'] += [behave(cell)] * rounds
            samples['baseline'] += [1.0] * rounds
            samples['subject'] += [1.2] * rounds
            on_round(samples)
            row.update(settled=settled, seconds=1.0)

        seen.clear()
        monkeypatch.setattr(run, 'measure_cell', measure_cell)
        return seen

    return install


PAIRS = ('main', 'se', 'dla')
COMMAND = ('run', '--suite', 'smoke', '--only', 'time', '--task', 'infer', '--pairs', *PAIRS)


@pytest.fixture
def measured(tmp_path):
    """Run the command into a file, and return the exit code."""
    out = tmp_path / 'a.json'

    def measured(*words):
        return main([*COMMAND, '--out', str(out), *words])

    measured.out = out
    measured.rows = lambda: list(records.load(out)['cells'].values())
    return measured


def test_a_run_goes_on_after_ctrl_c(fake, measured, capsys):
    def stop_at_dla(cell):
        if cell.pair == 'dla':
            raise KeyboardInterrupt
        return 1.0

    fake(stop_at_dla)
    assert measured() == 130
    stopped = capsys.readouterr().err
    assert f'Stopped. 2 of 3 cells are in {measured.out}; the same command continues' in stopped
    assert [row.get('interrupted', False) for row in measured.rows()] == [False, False, True]
    assert records.sentence(measured.rows()[2]) == 'nothing measured'
    assert '### dla' not in report.markdown({'a': records.load(measured.out)})

    seen = fake()
    assert measured() == 0
    assert seen == ['dla']
    assert [row['run'] for row in measured.rows()] == [0, 0, 1]
    assert not any(row.get('interrupted') for row in measured.rows())
    seen.clear()
    assert measured() == 0
    assert seen == []


def test_a_complete_row_is_not_replaced_by_one_that_was_cut_short(fake, measured):
    fake(lambda cell: 1.03, rounds=9)
    assert measured() == 3

    def interrupt(cell):
        raise KeyboardInterrupt

    fake(interrupt)  # the cell starts again
    assert measured() == 130
    first = measured.rows()[0]
    assert len(first['samples']['control']) == 9
    assert 'interrupted' not in first


def test_a_control_out_of_its_band_is_unusable_and_measured_again(fake, measured, capsys):
    fake(lambda cell: 1.03 if cell.pair == 'se' else 1.0)
    assert measured() == 3
    captured = capsys.readouterr()
    assert '1 of 3 cells are unusable: their control is not within 1.00 ± 0.02' in captured.err
    assert 'the same command measures them again' in captured.err
    (line,) = (line for line in captured.out.splitlines() if line.startswith('se: infer'))
    assert 'throughput' not in line  # no figure to quote
    seen = fake()
    assert measured() == 0
    assert seen == ['se']


def test_an_unsettled_cell_is_measured_again_with_a_larger_budget_only(fake, measured):
    for budget, number in (('5', 3), ('5', 0), ('4', 0), ('6', 3)):
        seen = fake(settled=False)
        assert measured('--budget', budget) == 0
        assert len(seen) == number


def test_a_pair_of_other_models_is_measured_again(fake, measured, monkeypatch):
    fake()
    assert measured() == 0
    found = dict(load_pairs())
    found['se'] = found['se']._replace(baseline=Spec('seresnet50', {'base_width': 32}))
    monkeypatch.setattr(cells, 'load_pairs', lambda: found)
    seen = fake()
    assert measured() == 0
    assert seen == ['se']


def test_a_cell_that_fails_does_not_stop_the_others(fake, measured, capsys):
    def fail(cell):
        if cell.pair == 'se':
            raise torch.OutOfMemoryError('no room\nsecond line')
        return 1.0

    seen = fake(fail)
    assert measured() == 1
    captured = capsys.readouterr()
    assert seen == list(PAIRS)
    assert 'Failed: se: infer, eager, fp32, channels_last, batch 1, 64 px' in captured.err
    assert 'The same command tries them again.' in captured.err
    assert 'failed: OutOfMemoryError: no room' in captured.out
    text = report.markdown({'a': records.load(measured.out)})
    assert '### main' in text
    assert '### se' not in text
    seen = fake()
    assert measured() == 0
    assert seen == ['se']


def test_a_failure_before_the_first_step_is_recorded(monkeypatch, measured, capsys):
    def no_room(cell):
        raise torch.OutOfMemoryError('no room')

    monkeypatch.setattr(run, 'make_input', no_room)
    assert measured('--threads', str(torch.get_num_threads())) == 1
    assert 'failed: OutOfMemoryError: no room' in capsys.readouterr().out
    text = report.markdown({'a': records.load(measured.out)})
    assert text.startswith('Measured on ')


def test_an_unusable_time_is_not_explained(fake, measured, capsys, monkeypatch):
    """Not in the run, not in the report, and the explanation is measured again with the time."""
    monkeypatch.setattr(records, 'explain', lambda found: dict.fromkeys(CAUSES, 0.1))
    seen = fake(lambda cell: 1.5)
    by_time = run.measure_cell

    def measure_cell(cell, budget, row, on_round, rebuild):
        by_time(cell, budget, row, on_round, rebuild)
        if cell.kind == 'attribution':
            del row['samples']
            row['attribution'] = {}

    monkeypatch.setattr(run, 'measure_cell', measure_cell)
    for _ in range(2):
        seen.clear()
        assert measured('--only', 'time', 'attribution') == 3
        assert seen == [*PAIRS, *PAIRS]
        told = capsys.readouterr().out
        assert 'no explanation, because the time of this cell is unusable' in told
        assert 'more MACs' not in told


def test_ctrl_c_in_the_middle_of_a_cell_keeps_its_rounds(tmp_path):
    cell = next(iter(load_suite('smoke', {'pairs': [TINY], 'threads': [1]}, ['time'])))
    row = {}

    def stop(samples):
        if len(samples['baseline']) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.measure_cell(cell, 100, row, stop)
    assert [len(seconds) for seconds in row['samples'].values()] == [2, 2, 2]
    assert row['blocks'] == [2]
    assert row['budget'] == 100
    assert 'seconds' not in row


@pytest.mark.parametrize('rebuild', [False, True])
def test_compiled_models_are_rebuilt_on_request(rebuild, monkeypatch):
    done, now = [], [0.0]

    def prepare_pair(pair, cell, x):
        done.append('prepare')

        def step():
            now[0] += 1

        return {role: Work(None, step, list) for role in ('baseline', 'subject', 'control')}

    monkeypatch.setattr(run, 'prepare_pair', prepare_pair)
    monkeypatch.setattr(torch.compiler, 'reset', lambda: done.append('reset'))
    given = {'pairs': ['control'], 'mode': ['compiled'], 'size': [32], 'threads': [1]}
    cell = next(iter(load_suite('smoke', given, ['time'])))
    row = {}
    run.measure_cell(cell, 54, row, rebuild=rebuild, clock=lambda: now[0])
    builds = 6 if rebuild else 1
    assert done == ['reset', *['reset', 'prepare'] * builds]
    # a round takes 3 s, and a block 9 s
    assert row['blocks'] == ([3] * 6 if rebuild else [])
    assert len(row['samples']['control']) == 18
    assert row['settled']
    # a row of one build is measured again if several are asked for
    assert run.finished(cell, {cell.key: row}, 54, rebuild=True) == rebuild


def test_list_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['run', '--suite', 'smoke', '--list', '--threads', '1']) == 0
    lines = capsys.readouterr().out.splitlines()
    first = 'time main: infer, eager, fp32, channels_last, batch 1, 64 px, 1 thread'
    assert ' '.join(lines[0].split()) == first
    assert len(lines) == len(set(lines)) == len(load_suite('smoke'))
    assert main(['run', '--suite', 'gpu', '--list']) == 0  # without a GPU
    assert list(tmp_path.iterdir()) == []


def errors(capsys, *argv):
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.count('\n') == 1
    return captured.err


def test_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = errors(capsys, 'run', '--pairs', 'nothing')
    assert error.startswith("python -m benchmarks run: Unknown pair 'nothing'.")
    if not torch.cuda.is_available():
        assert "Device 'cuda' needs a GPU" in errors(capsys, 'run', '--suite', 'gpu')
    assert 'it is a folder' in errors(capsys, *COMMAND, '--out', str(tmp_path))
    error = errors(capsys, 'report', 'missing.json')
    assert error.startswith('python -m benchmarks report: ')
    assert 'missing.json' in error
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    error = errors(capsys, 'report', f'{ROOT}/benchmarks/results/main-1.json', '--plots', 'plots')
    assert "matplotlib is not installed. Install it: pip install 'timm-res2net[plots]'" in error
    assert list(tmp_path.iterdir()) == []
    for words in (['run', '--suite', 'nothing'], ['--help'], []):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == (0 if words == ['--help'] else 2)


def test_reports_of_several_files(tmp_path, capsys):
    files = [tmp_path / 'one' / 'a.json', tmp_path / 'two' / 'a.json']
    for path in files:
        path.parent.mkdir()
        found = records.start(path, 'smoke', 'command')
        found['cells'] = dict([synthetic('main')])
        records.save(path, found)
    assert main(['report', *map(str, files)]) == 0
    out = capsys.readouterr().out
    assert all(f'| {file} ' in out for file in files)  # equal stems: named by their paths
    found['runs'][0]['environment']['cpu'] = 'another'
    path.write_text(json.dumps(found))
    error = errors(capsys, 'report', *map(str, files))
    assert f"'{files[1]}' with another" in error
    assert 'Report each file by itself' in error
