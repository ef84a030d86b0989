"""`python -m benchmarks`: a run and its file, going on with it, its report, its errors."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import cli, plots, report, results
from benchmarks.cli import main, time_left
from benchmarks.stats import overlap
from benchmarks.subjects import Cell, Work, find_pair, label, load_pairs, load_suite

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / 'benchmarks' / 'results'


def run(*args, **env):
    return subprocess.run(
        [sys.executable, '-m', 'benchmarks', *args],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_smoke_as_a_user_runs_it(tmp_path):
    out = tmp_path / 'smoke.json'
    done = run(
        'run', '--suite', 'smoke', '--budget', '1', '--threads', '1', '--out', str(out),
        HF_HUB_OFFLINE='1',
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr  # 3 where the machine was too loaded to measure
    assert (done.returncode == 3) == ('unusable' in done.stderr)
    found = results.load(out)
    assert [c['cell']['kind'] for c in found['cells'].values()] == [
        'time', 'time', 'attribution', 'memory', 'memory',
    ]  # fmt: skip
    for text in ('time × ', 'throughput × ', 'more MACs', 'peak memory × '):
        assert text in done.stdout
    assert 'about' in done.stderr  # the time left, beside tqdm's bar
    assert 'left)' in done.stderr
    assert 'Traceback' not in done.stderr
    environment = found['runs'][0]['environment']
    assert environment['torch'] == torch.__version__.split('+')[0]
    assert {'cpu', 'cores', 'threads', 'timm', 'commit', 'compiler', 'gpu'} <= set(environment)
    assert found['runs'][0]['command'].startswith('python -m benchmarks run --suite smoke')
    assert [p.name for p in tmp_path.iterdir()] == ['smoke.json']

    done = run('report', str(out), '--plots', str(tmp_path / 'plots'))
    assert done.returncode == 0, done.stderr
    for heading in ('## How much slower', '## Where the time goes', '## Memory'):
        assert heading in done.stdout
    assert sorted(p.name for p in (tmp_path / 'plots').iterdir()) == ['attribution.png', 'main.png']


@pytest.fixture
def fake(monkeypatch):
    """Cells measured by a function of the test; returns the list of those measured."""
    seen = []

    def install(behave=lambda cell: 1.0, rounds=4, settled=True):
        def measure_cell(cell, budget, record, on_round, rebuild):
            seen.append(cell.pair)
            record.update(
                cell=dataclasses.asdict(cell),
                models={role: label(spec) for role, spec in find_pair(cell.pair).items()},
                budget=budget,
                load=[0.1, 0.1],
                samples={},
            )
            record['samples'].update(
                control=[behave(cell)] * rounds, baseline=[1.0] * rounds, subject=[1.2] * rounds
            )
            on_round(record['samples'])
            record.update(settled=settled, seconds=1.0)

        monkeypatch.setattr(cli, 'measure_cell', measure_cell)
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
    assert capsys.readouterr().err == (
        f'Stopped. 2 of 3 cells are in {out}; the same command goes on from there.\n'
    )
    found = results.load(out)
    assert [c.get('interrupted', False) for c in found['cells'].values()] == [False, False, True]
    half = list(found['cells'].values())[2]
    assert report.sentence(half) == 'nothing measured'
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


def test_what_was_measured_is_not_replaced_by_less(fake, tmp_path):
    out = tmp_path / 'a.json'
    fake(lambda cell: 1.03, rounds=9)
    assert main([*COMMAND, '--out', str(out)]) == 3

    def interrupt(cell):
        raise KeyboardInterrupt

    fake(interrupt)  # the cell is begun anew and cut short
    assert main([*COMMAND, '--out', str(out)]) == 130
    first = next(iter(results.load(out)['cells'].values()))
    assert len(first['samples']['control']) == 9
    assert 'interrupted' not in first


def test_an_unsettled_cell_is_measured_anew_with_a_larger_budget_only(fake, tmp_path):
    out = tmp_path / 'a.json'
    seen = fake(settled=False)
    for budget, measured in (('5', 3), ('5', 0), ('4', 0), ('6', 3)):
        del seen[:]
        assert main([*COMMAND, '--budget', budget, '--out', str(out)]) == 0
        assert len(seen) == measured


def test_a_pair_of_other_models_is_measured_anew(fake, tmp_path, monkeypatch):
    out = tmp_path / 'a.json'
    seen = fake()
    assert main([*COMMAND, '--out', str(out)]) == 0
    pairs = load_pairs()
    pairs['se']['baseline'] = ['seresnet50', {'base_width': 32}]
    monkeypatch.setattr('benchmarks.subjects.load_pairs', lambda: pairs)
    del seen[:]
    assert main([*COMMAND, '--out', str(out)]) == 0
    assert seen == ['se']


def test_a_failure_before_the_first_step_is_recorded(monkeypatch, tmp_path, capsys):
    def no_room(cell):
        raise torch.OutOfMemoryError('no room')

    monkeypatch.setattr(cli, 'make_input', no_room)
    out = tmp_path / 'a.json'
    threads = torch.get_num_threads()
    assert main([*COMMAND, '--threads', str(threads), '--out', str(out)]) == 1
    assert 'failed: OutOfMemoryError: no room' in capsys.readouterr().out
    assert report.markdown({'a': results.load(out)}).startswith('Measured on ')


def test_ctrl_c_in_the_middle_of_a_cell_keeps_its_rounds(tmp_path):
    cell = next(iter(load_suite('smoke', {'size': [32], 'threads': [1]}, ['time'])))
    record = {}

    def stop(samples):
        if len(samples['baseline']) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cli.measure_cell(cell, 100, record, stop)
    assert [len(seconds) for seconds in record['samples'].values()] == [2, 2, 2]
    assert record['blocks'] == [2]
    results.save(tmp_path / 'a.json', {'runs': [], 'cells': {cell.key: record}})
    assert json.loads((tmp_path / 'a.json').read_text())['cells'][cell.key]['budget'] == 100


def test_compiled_models_are_rebuilt_on_request(monkeypatch, tmp_path):
    done = []

    def prepare(spec, cell, x):
        done.append('prepare')
        return Work(torch.nn.Identity(), lambda: time.sleep(1e-3), list)

    monkeypatch.setattr(cli, 'prepare', prepare)
    monkeypatch.setattr(torch.compiler, 'reset', lambda: done.append('reset'))
    out = tmp_path / 'a.json'
    pair = ('--pairs', 'control', '--mode', 'compiled', '--batch', '1', '--size', '32')
    command = [*COMMAND[:7], *pair, '--no-progress', '--budget', '0.1', '--out', str(out)]
    build = ['reset', 'prepare', 'prepare', 'prepare']  # baseline, subject, control
    for flags in ([], ['--rebuild']):  # the second measures anew what stands on one build
        done.clear()
        main([*command, *flags])
        (record,) = results.load(out)['cells'].values()
        builds = len(record['blocks'])
        assert builds >= 2 if flags else builds == 0
        assert done == ['reset', *build * max(builds, 1)]


def test_a_control_out_of_its_band_is_unusable_and_measured_anew(fake, tmp_path, capsys):
    out = tmp_path / 'a.json'
    seen = fake(lambda cell: 1.03 if cell.pair == 'se' else 1.0)
    assert main([*COMMAND, '--out', str(out)]) == 3
    captured = capsys.readouterr()
    assert captured.err == (
        '1 cells are unusable: their control is out of 1.00 ± 0.02. Quiet the machine; the same '
        'command measures them anew.\n'
    )
    assert 'control 1.03 [1.03, 1.03], 4 rounds (unusable)' in captured.out
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
    assert captured.err.startswith('Failed, and tried again by the same command: ')
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
    assert capsys.readouterr().out.splitlines()[0] == (
        'main infer eager fp32 channels_last b1 64px t1'
    )
    assert list(tmp_path.iterdir()) == []


def test_time_left():
    assert time_left([60, 60], []) == 120
    assert time_left([60, 60], [(60, 30), (30, 15)]) == 60
    assert time_left([60], [(60, 120)]) == 120
    assert time_left([], [(60, 120)]) == 0


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
    text = (
        f"'{path}' has version 7 and this code reads version 1. Measure anew into another --out, "
        'or use the commit that the file names.\n'
    )
    before = path.read_text()
    assert errors(capsys, *COMMAND, '--out', str(path)) == f'python -m benchmarks run: {text}'
    assert path.read_text() == before
    assert errors(capsys, 'report', str(path)) == f'python -m benchmarks report: {text}'

    path.write_text('{"a": 1}')
    assert 'is not a result of `python -m benchmarks run`. Give one that is, or another --out.' in (
        errors(capsys, *COMMAND, '--out', str(path))
    )
    path.write_text('{"a": ')
    assert 'Give a file that `python -m benchmarks run` wrote.' in errors(
        capsys, 'report', str(path)
    )
    assert path.read_text() == '{"a": '
    missing = tmp_path / 'missing.json'
    assert errors(capsys, 'report', str(missing)) == (
        f"python -m benchmarks report: There is no file '{missing}'. `python -m benchmarks run "
        f'--out {missing}` makes one.\n'
    )


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
    assert all(f'| {file} ' in out for file in files)  # of one stem: told apart by their paths
    found['runs'][0]['environment']['cpu'] = 'another'
    path.write_text(json.dumps(found))
    assert errors(capsys, 'report', *files).endswith(
        f"and '{files[1]}' with another: they cannot stand in one table. Report each by itself.\n"
    )


def test_plots_into_a_file(tmp_path, capsys):
    path = fresh(tmp_path)
    assert errors(capsys, 'report', str(path), '--plots', str(path)) == (
        f"python -m benchmarks report: '{path}' is a file. Give a folder to --plots.\n"
    )


def test_cells_of_another_machine_do_not_mix(tmp_path, capsys):
    path = fresh(tmp_path)
    found = json.loads(path.read_text())
    found['runs'][0]['environment']['torch'] = '1.0'
    path.write_text(json.dumps(found))
    error = errors(capsys, *COMMAND, '--out', str(path))
    assert f"'{path}' was measured with torch 1.0, and this is " in error
    assert error.endswith('its cells cannot stand beside new ones. Give another --out.\n')
    assert json.loads(path.read_text()) == found


def test_errors_of_an_output(tmp_path, capsys, monkeypatch):
    assert errors(capsys, *COMMAND, '--out', str(tmp_path)) == (
        f"python -m benchmarks run: Cannot write to '{tmp_path}': it is a folder. Give the path of "
        'a file.\n'
    )
    nowhere = tmp_path / 'no' / 'a.json'
    assert f"it has no folder '{nowhere.parent}'" in errors(capsys, *COMMAND, '--out', str(nowhere))

    def refuse(**kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    out = tmp_path / 'a.json'
    assert errors(capsys, *COMMAND, '--out', str(out)) == (
        f"python -m benchmarks run: Cannot write to '{out}' (Permission denied). Give an --out in "
        'a folder of yours.\n'
    )
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
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    error = errors(capsys, 'report', str(path), '--plots', str(tmp_path / 'plots'))
    assert (
        "Plots need matplotlib. Install the extra with pip install '.[plots]', or leave out "
        in error
    )


@pytest.mark.parametrize('verb', ['run', 'report'])
def test_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, '--help'])
    assert stop.value.code == 0
    assert f'examples:\n  python -m benchmarks {verb}' in capsys.readouterr().out


def synthetic(
    pair, batch=8, threads=2, size=224, subject=1.2, load=2.0, settled=True, mode='eager',
    precision='fp32',
):  # fmt: skip
    cell = Cell(
        'time', pair, 'infer', mode, precision, 'channels_last', batch, size, threads, 'cpu'
    )
    return cell.key, {
        'cell': dataclasses.asdict(cell),
        'models': {'baseline': 'resnet50', 'subject': 'res2net'},
        'load': [load, None],
        'samples': {'baseline': [1.0] * 8, 'subject': [subject] * 8, 'control': [1.0] * 8},
        'settled': settled,
    }


def file_of(*cells):
    environment = {
        'cpu': 'a CPU', 'gpu': None, 'cores': 2, 'cpu_capability': 'AVX512', 'torch': '2',
        'timm': '1', 'python': '3', 'system': 'Linux', 'commit': '0123456789abcdef',
    }  # fmt: skip
    return {'runs': [{'environment': environment}], 'cells': dict(cells)}


def test_notes():
    assert report.notes(synthetic('main')[1]) == []
    loud = synthetic('main', load=5.0, settled=False)[1]
    loud['samples']['baseline'] = [1.0, 1.5] * 4
    loud['samples']['control'] = [1.0, 1.5] * 4
    assert report.notes(loud) == ['not settled, ± 20.0 %', 'noisy, IQR 40 %', 'load 5.0']
    loud['samples']['control'] = [2.0] * 8
    assert report.notes(loud)[0] == 'unusable'


def test_report_of_curves_and_repeats(tmp_path):
    one = file_of(
        *(synthetic('main', batch=batch, subject=1.1 + batch / 100) for batch in (1, 8, 16)),
        *(synthetic('main', batch=b, threads=1) for b in (1, 8, 16)),
        *(synthetic('main', size=size) for size in (128, 288)),
        synthetic('se'),
    )
    two = file_of(synthetic('main', subject=1.181))
    text = report.markdown({'one': one, 'two': two})
    rows = [
        [part.strip() for part in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|')
    ]
    assert ['time × at batch', '1', '8', '16'] in rows
    assert ['time × at image, px', '128', '224', '288'] in rows
    rising = next(row for row in rows if row[0].endswith('224 px, 2 threads') and len(row) == 4)
    assert rising[1:] == ['1.11 [1.11, 1.11]', '1.18 [1.18, 1.18]', '1.26 [1.26, 1.26]']
    repeated = [row for row in rows if row[1:2] in (['one'], ['two'])]
    assert [row[-1] for row in repeated] == ['no', 'no']
    assert 'Controls: 9, medians from 1.000 to 1.000; 9 of their intervals hold 1.' in text
    assert text.startswith(
        'Measured on a CPU, 2 cores, AVX512; torch 2, timm 1, Python 3, Linux, commit 0123456789ab.'
    )
    drawn = plots.plot({'one': one}, tmp_path)
    assert [path.name for path in drawn] == ['main.png', 'pairs.png', 'scale.png']
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in drawn)


def test_report_of_pairs_with_modes_of_their_own():
    own = dict(mode='eager->deploy')
    unusable = synthetic('swap', subject=0.8, batch=1, **own)
    unusable[1]['samples']['control'] = [1.03] * 8
    file = file_of(
        synthetic('deploy', subject=0.5, **own),
        synthetic('deploy', subject=0.6, precision='bf16-weights', **own),
        unusable,
        synthetic('main'),
    )
    text = report.markdown({'one': file})
    plain, deployed = text.split('## Deploy form')
    assert '### main' in plain
    assert '### deploy' not in text
    assert '### swap' not in text
    rows = [
        [part.strip() for part in line.strip('|').split('|')]
        for line in deployed.splitlines()
        if line.startswith('|')
    ]
    assert rows[0] == ['pair', 'fp32, batch 8', 'bf16-weights, batch 8', 'fp32, batch 1']
    assert rows[2] == [
        'deploy: resnet50 → res2net', '× 0.50 [0.50, 0.50]', '× 0.60 [0.60, 0.60]', '',
    ]  # fmt: skip
    assert rows[3] == ['swap: resnet50 → res2net', '', '', '× 0.80 [0.80, 0.80] (unusable)']
    assert 'All: infer, channels_last, 224 px, 2 threads.' in deployed
    assert rows[6] == [
        'deploy', 'infer, fp32, channels_last, batch 8, 224 px, 2 threads', '1000.0', '500.0',
        '1.00 [1.00, 1.00]', '8', '1', '',
    ]  # fmt: skip
    assert rows[-1][-1] == 'unusable'
    assert 'eager' not in deployed
    assert '## Deploy form' not in report.markdown({'one': file_of(synthetic('main'))})
    assert report.sentence(synthetic('deploy', subject=0.5, **own)[1]) == (
        'time × 0.50 [0.50, 0.50]; control 1.00 [1.00, 1.00], 8 rounds'
    )


# What is committed


@pytest.fixture(scope='module')
def committed():
    names = ('cpu', 'main-1', 'main-2', 'deploy', 'frozen')
    return {name: results.load(RESULTS / f'{name}.json') for name in names}


def test_the_committed_run_is_complete_and_usable(committed):
    found = committed['cpu']
    threads = found['runs'][0]['environment']['threads']
    asked = load_suite('cpu', {'threads': [threads]})
    assert not [c for c in asked if not cli.finished(found['cells'].get(c.key), c, budget=0)]
    for record in found['cells'].values():
        assert cli.finished(record, Cell(**record['cell']), budget=0)
    curves = [r['cell'] for r in found['cells'].values() if r['cell']['threads'] == 1]
    assert {c['batch'] for c in curves if c['size'] == 224} == {1, 4, 8, 16, 64}
    assert {c['size'] for c in curves if c['batch'] == 8} == {128, 192, 224, 288, 384}


def test_controls_are_within_two_percent(committed):
    for file in committed.values():
        for record in report.select({'a': file}, 'time'):
            assert abs(report.ratio_of(record, 'control').median - 1) <= 0.02


def test_two_runs_of_the_main_pair_agree_and_settle_within_five_minutes(committed):
    runs = [next(iter(committed[name]['cells'].values())) for name in ('main-1', 'main-2')]
    for record in runs:
        cell = record['cell']
        assert [cell[k] for k in ('pair', 'task', 'mode', 'precision', 'layout', 'batch')] == [
            'main', 'infer', 'eager', 'fp32', 'channels_last', 8,
        ]  # fmt: skip
        assert record['seconds'] < 300
    # the second had 180 s and ended at 2.3 %
    assert runs[0]['settled']
    assert report.ratio_of(runs[0]).half_width <= 0.02
    assert overlap(*map(report.ratio_of, runs))


def test_readmes_have_what_the_report_says(committed):
    text = report.markdown(committed)
    assert text in (ROOT / 'benchmarks' / 'README.md').read_text()
    main_cell = next(iter(committed['main-1']['cells'].values()))
    readme = (ROOT / 'README.md').read_text()
    record = committed['cpu']['cells'][Cell(**main_cell['cell']).key]
    assert report.verdict(report.ratio_of(record)) in ' '.join(readme.split())
    assert set(load_pairs()) == {r['cell']['pair'] for r in report.select(committed, 'time')}


DEPLOY_ROWS = {
    'deploy': 'deploy form, of the plain form',
    'swap': 'deploy form, of plain resnet50',
    'swap_deploy': 'deploy form, of resnet50 treated alike',
}


def deploy_table(found):
    """The README's table of the deploy form."""
    lines = [
        '| time of res2net50_26w_4s                | input         | fp32 b1 | fp32 b8 | bf16 b1 '
        '| bf16 b8 |',
        '| --------------------------------------- | ------------- | ------- | ------- | ------- '
        '| ------- |',
    ]
    for pair, text in DEPLOY_ROWS.items():
        modes = '->'.join(spec.mode for spec in find_pair(pair).values())
        for layout in ('channels_last', 'contiguous'):
            ratios = [
                report.ratio_of(
                    found['cells'][
                        f'time/{pair}/infer/{modes}/{precision}/{layout}/{batch}/224/2/cpu'
                    ]
                )
                for precision in ('fp32', 'bf16-weights')
                for batch in (1, 8)
            ]
            cells = ' | '.join(f'× {r.median:.2f} ' for r in ratios)
            lines.append(f'| {text:<39} | {layout:<13} | {cells} |')
    return '\n'.join(lines)


def test_the_deploy_suite_is_complete(committed):
    found = committed['deploy']
    asked = load_suite('deploy', {})
    assert not [c for c in asked if not cli.finished(found['cells'].get(c.key), c, budget=0)]
    assert deploy_table(found) in (ROOT / 'README.md').read_text()


def test_what_the_readme_tells_of_outputs_kept_once():
    """A form of the block in training that was tried, measured against timm's block."""
    cells = results.load(RESULTS / 'kept_once.json')['cells']
    readme = ' '.join((ROOT / 'benchmarks' / 'README.md').read_text().split())
    peak = cells['memory/ours/train/eager/fp32/channels_last/8/224/2/cpu']
    assert f'{report.sentence(peak)} of that of timm' in readme
    for precision, batch in (('fp32', 1), ('bf16', 8), ('bf16', 1)):
        record = cells[f'time/ours/train/eager/{precision}/channels_last/{batch}/224/2/cpu']
        assert report.usable(record)
        assert f'× {report.ratio_of(record)} ({precision}, batch {batch})' in readme
    # no figure: its control came out of its band
    assert not report.usable(cells['time/ours/train/eager/fp32/channels_last/8/224/2/cpu'])
