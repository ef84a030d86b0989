"""`python -m benchmarks run`: a run and its file, and how it continues."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.suite import pairs, report, results, run
from benchmarks.suite.causes import CAUSES
from benchmarks.suite.cells import load_suite
from benchmarks.suite.cli import main
from benchmarks.suite.pairs import find_pair, load_pairs
from benchmarks.suite.records import Record, select
from benchmarks.suite.run import time_left
from benchmarks.suite.steps import Work

ROOT = Path(__file__).parents[3]
TINY = 'test_res2net_se:test_res2net_se'


def test_a_whole_run(tmp_path, capsys, monkeypatch):
    """Every kind of cell, on a small model whose control counts whatever it is."""
    monkeypatch.setattr('benchmarks.suite.records.CONTROL', float('inf'))
    out = tmp_path / 'a.json'
    command = ['run', '--suite', 'smoke', '--pairs', TINY, '--threads', '1', '--budget', '0.1']
    assert main([*command, '--out', str(out)]) == 0
    captured = capsys.readouterr()
    found = results.load(out)
    assert [c['cell']['kind'] for c in found['cells'].values()] == [
        'time', 'time', 'attribution', 'memory', 'memory',
    ]  # fmt: skip
    for text in ('time × ', 'throughput × ', 'more MACs', 'peak memory × '):
        assert text in captured.out
    assert 'about' in captured.err  # the time left, next to tqdm's bar
    assert 'left)' in captured.err
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
    assert drawn == ['attribution.png', f'{TINY.replace(":", "-")}.png']


def command_line(*args, **env):
    return subprocess.run(
        [sys.executable, '-m', 'benchmarks', *args],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_smoke_as_a_user_runs_it(tmp_path):
    out = tmp_path / 'smoke.json'
    done = command_line(
        'run', '--suite', 'smoke', '--budget', '1', '--threads', '1', '--out', str(out),
        HF_HUB_OFFLINE='1',
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr  # 3 if the machine was too loaded
    assert (done.returncode == 3) == ('unusable' in done.stderr)
    found = results.load(out)
    assert [c['cell']['kind'] for c in found['cells'].values()] == [
        'time', 'time', 'attribution', 'memory', 'memory',
    ]  # fmt: skip
    # on a loaded machine rows may be unusable, so the records say which texts to expect
    timed = [Record(cell) for cell in found['cells'].values() if cell['cell']['kind'] == 'time']
    explained = len(select({'smoke': found}, 'attribution')) == 1
    for text, told in {
        'peak memory × ': True,
        'throughput × ': any(record.usable for record in timed),
        'unusable, because': not all(record.usable for record in timed),
        'more MACs': explained,
        'no explanation, because': not explained,
    }.items():
        assert (text in done.stdout) == told, (text, done.stdout)
    assert 'about' in done.stderr  # the time left, next to tqdm's bar
    assert 'left)' in done.stderr
    assert 'Traceback' not in done.stderr
    environment = found['runs'][0]['environment']
    assert environment['torch'] == torch.__version__.split('+')[0]
    assert {'cpu', 'cores', 'threads', 'timm', 'commit', 'compiler', 'gpu'} <= set(environment)
    assert found['runs'][0]['command'].startswith('python -m benchmarks run --suite smoke')
    assert [p.name for p in tmp_path.iterdir()] == ['smoke.json']

    done = command_line('report', str(out), '--plots', str(tmp_path / 'plots'))
    assert done.returncode == 0, done.stderr
    for heading in ('## How much slower', '## Memory'):
        assert heading in done.stdout
    assert ('## Where the time goes' in done.stdout) == explained
    drawn = [p.name for p in (tmp_path / 'plots').glob('*')]
    several = sum(record.usable for record in timed) > 1
    assert sorted(drawn) == ['attribution.png'] * explained + ['main.png'] * several


@pytest.fixture
def fake(monkeypatch):
    """Let a function of the test measure cells; return the list of pairs measured."""
    seen = []

    def install(behave=lambda cell: 1.0, rounds=4, settled=True):
        def measure_cell(cell, budget, record, on_round, rebuild):
            seen.append(cell.pair)
            record.update(
                cell=cell.to_json(),
                models=find_pair(cell.pair).labels(),
                budget=budget,
                load=[0.1, 0.1],
                samples={},
            )
            record['samples'].update(
                control=[behave(cell)] * rounds, baseline=[1.0] * rounds, subject=[1.2] * rounds
            )
            on_round(record['samples'])
            record.update(settled=settled, seconds=1.0)

        monkeypatch.setattr(run, 'measure_cell', measure_cell)
        return seen

    return install


PAIRS = ('main', 'se', 'dla')
COMMAND = (
    'run', '--suite', 'smoke', '--only', 'time', '--task', 'infer', '--pairs', *PAIRS,
    '--no-progress',
)  # fmt: skip


def test_a_run_goes_on_after_ctrl_c(fake, tmp_path, capsys):
    out = tmp_path / 'a.json'

    def stop_at_dla(cell):
        if cell.pair == 'dla':
            raise KeyboardInterrupt
        return 1.0

    fake(stop_at_dla)
    assert main([*COMMAND, '--out', str(out)]) == 130
    stopped = capsys.readouterr().err
    assert f'Stopped. 2 of 3 cells are in {out}' in stopped
    assert 'the same command continues' in stopped
    found = results.load(out)
    assert [c.get('interrupted', False) for c in found['cells'].values()] == [False, False, True]
    half = list(found['cells'].values())[2]
    assert Record(half).sentence() == 'nothing measured'
    assert '### dla' not in report.markdown({'a': found})

    seen = fake()
    del seen[:]
    assert main([*COMMAND, '--out', str(out)]) == 0
    assert seen == ['dla']
    found = results.load(out)
    assert [c['run'] for c in found['cells'].values()] == [0, 0, 1]
    assert not any('interrupted' in c for c in found['cells'].values())
    del seen[:]
    assert main([*COMMAND, '--out', str(out)]) == 0
    assert seen == []


def test_an_unusable_time_is_not_explained(fake, tmp_path, capsys, monkeypatch):
    """Not in the run, not in the report, and the explanation is measured again with the time."""
    monkeypatch.setattr(Record, 'explain', lambda self: dict.fromkeys(CAUSES, 0.1))
    measured = fake(lambda cell: 1.5)
    by_time = run.measure_cell

    def measure_cell(cell, budget, record, on_round, rebuild):
        by_time(cell, budget, record, on_round, rebuild)
        if cell.kind == 'attribution':
            del record['samples']
            record['attribution'] = {}

    monkeypatch.setattr(run, 'measure_cell', measure_cell)
    out = tmp_path / 'a.json'
    command = [*COMMAND[:3], '--only', 'time', 'attribution', *COMMAND[5:], '--out', str(out)]
    assert main(command) == 3
    told = capsys.readouterr().out
    assert 'no explanation, because the time of this cell is unusable' in told
    assert 'more MACs' not in told
    assert '## Where the time goes' not in report.markdown({'a': results.load(out)})
    del measured[:]
    assert main(command) == 3
    assert measured == [*PAIRS, *PAIRS]


def test_the_time_left_goes_down_within_a_cell(fake, tmp_path, monkeypatch):
    shown = []
    clock = iter(range(0, 10_000, 5))

    class Bar:
        def __init__(self, cells, **kwargs):
            self.cells = cells

        def __enter__(self):
            return iter(self.cells) and self

        def __exit__(self, *args):
            pass

        def __iter__(self):
            return iter(self.cells)

        def set_description(self, text):
            shown.append(text.partition('(')[2])

        def set_postfix(self, **kwargs):
            pass

        write = print

    fake()
    monkeypatch.setattr(run, 'tqdm', Bar)
    monkeypatch.setattr(run.time, 'perf_counter', lambda: next(clock))
    assert (
        main([*COMMAND[:-5], '--pairs', 'main', '--budget', '60', '--out', str(tmp_path / 'a')])
        == 0
    )
    assert shown == ['about 55 s left)', 'about 45 s left)']


def test_what_was_measured_is_not_replaced_by_less(fake, tmp_path):
    out = tmp_path / 'a.json'
    fake(lambda cell: 1.03, rounds=9)
    assert main([*COMMAND, '--out', str(out)]) == 3

    def interrupt(cell):
        raise KeyboardInterrupt

    fake(interrupt)  # the cell starts again and is cut short
    assert main([*COMMAND, '--out', str(out)]) == 130
    first = next(iter(results.load(out)['cells'].values()))
    assert len(first['samples']['control']) == 9
    assert 'interrupted' not in first


def test_an_unsettled_cell_is_measured_again_with_a_larger_budget_only(fake, tmp_path):
    out = tmp_path / 'a.json'
    seen = fake(settled=False)
    for budget, measured in (('5', 3), ('5', 0), ('4', 0), ('6', 3)):
        del seen[:]
        assert main([*COMMAND, '--budget', budget, '--out', str(out)]) == 0
        assert len(seen) == measured


def test_a_pair_of_other_models_is_measured_again(fake, tmp_path, monkeypatch):
    out = tmp_path / 'a.json'
    seen = fake()
    assert main([*COMMAND, '--out', str(out)]) == 0
    found = dict(load_pairs())
    found['se'] = found['se']._replace(
        baseline=pairs.Spec('seresnet50', {'base_width': 32})
    )  # fmt: skip
    monkeypatch.setattr(pairs, 'load_pairs', lambda: found)
    del seen[:]
    assert main([*COMMAND, '--out', str(out)]) == 0
    assert seen == ['se']


def test_a_failure_before_the_first_step_is_recorded(monkeypatch, tmp_path, capsys):
    def no_room(cell):
        raise torch.OutOfMemoryError('no room')

    monkeypatch.setattr(run, 'make_input', no_room)
    out = tmp_path / 'a.json'
    threads = torch.get_num_threads()
    assert main([*COMMAND, '--threads', str(threads), '--out', str(out)]) == 1
    assert 'failed: OutOfMemoryError: no room' in capsys.readouterr().out
    assert report.markdown({'a': results.load(out)}).startswith('Measured on ')


def test_ctrl_c_in_the_middle_of_a_cell_keeps_its_rounds(tmp_path):
    cell = next(iter(load_suite('smoke', {'pairs': [TINY], 'threads': [1]}, ['time'])))
    record = {}

    def stop(samples):
        if len(samples['baseline']) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.measure_cell(cell, 100, record, stop)
    assert [len(seconds) for seconds in record['samples'].values()] == [2, 2, 2]
    assert record['blocks'] == [2]
    results.save(tmp_path / 'a.json', {'runs': [], 'cells': {cell.key: record}})
    assert json.loads((tmp_path / 'a.json').read_text())['cells'][cell.key]['budget'] == 100


def test_compiled_models_are_rebuilt_on_request(monkeypatch, tmp_path):
    done = []

    def prepare(spec, mode, cell, x):
        done.append('prepare')
        return Work(torch.nn.Identity(), lambda: time.sleep(1e-3), list)

    monkeypatch.setattr(run, 'prepare', prepare)
    monkeypatch.setattr(torch.compiler, 'reset', lambda: done.append('reset'))
    out = tmp_path / 'a.json'
    pair = ('--pairs', 'control', '--mode', 'compiled', '--batch', '1', '--size', '32')
    command = [*COMMAND[:7], *pair, '--no-progress', '--budget', '0.1', '--out', str(out)]
    build = ['reset', 'prepare', 'prepare', 'prepare']  # baseline, subject, control
    for flags in ([], ['--rebuild']):  # the second run replaces a record of one build
        done.clear()
        main([*command, *flags])
        (record,) = results.load(out)['cells'].values()
        builds = len(record['blocks'])
        assert builds >= 2 if flags else builds == 0
        assert done == ['reset', *build * max(builds, 1)]


def test_a_control_out_of_its_band_is_unusable_and_measured_again(fake, tmp_path, capsys):
    out = tmp_path / 'a.json'
    seen = fake(lambda cell: 1.03 if cell.pair == 'se' else 1.0)
    assert main([*COMMAND, '--out', str(out)]) == 3
    captured = capsys.readouterr()
    assert 'cells are unusable: their control is not within 1.00 ± 0.02' in captured.err
    assert 'the same command measures them again' in captured.err
    (line,) = (line for line in captured.out.splitlines() if line.startswith('se infer'))
    assert '× 1.03 of its time. Close other programs and run the same command again.' in line
    assert 'throughput' not in line  # no figure to quote
    fake()
    del seen[:]
    assert main([*COMMAND, '--out', str(out)]) == 0
    assert seen == ['se']


def test_a_cell_that_fails_does_not_stop_the_others(fake, tmp_path, capsys):
    out = tmp_path / 'a.json'

    def fail(cell):
        if cell.pair == 'se':
            raise torch.OutOfMemoryError('no room\nsecond line')
        return 1.0

    seen = fake(fail)
    assert main([*COMMAND, '--out', str(out)]) == 1
    captured = capsys.readouterr()
    assert seen == list(PAIRS)
    assert 'se infer eager fp32 channels_last b1 64px' in captured.err
    assert captured.err.startswith('Failed: se infer')
    assert 'The same command tries them again.' in captured.err
    assert 'failed: OutOfMemoryError: no room' in captured.out
    text = report.markdown({'a': results.load(out)})
    assert '### main' in text
    assert '### se' not in text
    fake()
    del seen[:]
    assert main([*COMMAND, '--out', str(out)]) == 0
    assert seen == ['se']


def test_list_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['run', '--suite', 'smoke', '--list', '--threads', '1']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ' '.join(lines[0].split()) == 'time main infer eager fp32 channels_last b1 64px t1'
    assert len(lines) == len(set(lines)) == len(load_suite('smoke'))
    assert main(['run', '--suite', 'gpu', '--list']) == 0  # without a GPU
    assert list(tmp_path.iterdir()) == []


def test_time_left():
    assert time_left([60, 60], []) == 120
    assert time_left([60, 60], [(60, 30), (30, 15)]) == 60
    assert time_left([60], [(60, 120)]) == 120
    assert time_left([], [(60, 120)]) == 0
