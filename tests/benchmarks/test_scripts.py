"""The scripts of benchmarks/ and the results they left."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

from benchmarks import (
    convert_memory,
    import_time,
    load_time,
    quantize,
    receptive_field,
    train_digits,
)

RESULTS = Path(train_digits.__file__).parent / 'results'
README = (Path(__file__).parents[2] / 'README.md').read_text()


def test_a_few_steps_of_the_training(tmp_path):
    for run in ('a', 'b'):
        folder = tmp_path / run
        train_digits.main(
            ['--steps', '20', '--weights', str(folder), '--json', str(folder / 'report.json')]
        )
    report = json.loads((tmp_path / 'a' / 'report.json').read_text())
    assert report['train'] + report['held_out'] == 1797
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == [
        'README.md',
        'digits.png',
        'report.json',
        'test_res2net_se.digits.safetensors',
    ]
    one, two = (
        timm.create_model(
            'test_res2net_se',
            pretrained=True,
            pretrained_cfg_overlay={'file': str(tmp_path / run / train_digits.FILE)},
        ).state_dict()
        for run in ('a', 'b')
    )
    assert all(torch.equal(one[key], two[key]) for key in one)  # the seed decides
    fresh = timm.create_model('test_res2net_se').state_dict()
    assert not torch.equal(one['layer4.0.bn3.weight'], fresh['layer4.0.bn3.weight'])  # it learns


def test_the_embedded_model_on_the_held_out_images():
    report = json.loads((RESULTS / 'train_digits.json').read_text())
    model = timm.create_model('test_res2net_se', pretrained=True)
    _, images, _, labels = train_digits.digits()
    assert len(images) == report['held_out'] == 360
    percent = train_digits.accuracy(model, train_digits.to_batch(model, images), labels)
    assert percent >= 97  # what was asked of it
    assert abs(percent - report['accuracy']) <= 100 / 360  # one image may tip on other hardware
    readme = (train_digits.WEIGHTS / 'README.md').read_text()
    assert readme == train_digits.README.format(**report)
    with safe_open(train_digits.WEIGHTS / train_digits.FILE, 'pt') as file:
        note = file.metadata()
    assert note['command'] == report['command'] == 'python -m benchmarks.train_digits'
    assert float(note['accuracy']) == report['accuracy']


def test_train_and_held_out_images_share_none():
    train, held_out, _, _ = train_digits.digits()
    seen = {image.tobytes() for image in train}
    assert not [image for image in held_out if image.tobytes() in seen]


def test_bootstrap_interval_of_the_median():
    low, high = import_time.interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert 1.0 <= low <= 1.2 <= high <= 1.4
    assert import_time.interval([2.0] * 5) == (2.0, 2.0)


def test_importing_adds_less_than_five_percent():
    report = json.loads((RESULTS / 'import_time.json').read_text())
    assert report['interval_95_in_one_process'][1] < 1.05


def test_memory_of_a_conversion_is_measured(tmp_path):
    small = tmp_path / 'small.pth'
    torch.save(timm.create_model('test_res2net_se').state_dict(), small)
    large = tmp_path / 'large.pth'
    torch.save(timm.create_model('res2net50_18w_4s').state_dict(), large)
    (tmp_path / 'made').mkdir()
    peak = convert_memory.measure(large, small, tmp_path / 'made')
    # at least some of what was read must have been in memory
    assert peak > 0.2 * large.stat().st_size
    assert sorted(p.name for p in (tmp_path / 'made').iterdir()) == ['o', 's']


def test_converting_needs_little_memory():
    report = json.loads((RESULTS / 'convert_memory.json').read_text())
    assert report['cells'].keys() == convert_memory.FILES.keys()
    for cell in report['cells'].values():
        assert 280e6 < cell['file_bytes'] < 460e6
        assert cell['peak_bytes'] < 2.5 * cell['file_bytes']  # what was asked


def test_loading_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load_time, 'MODEL', 'test_res2net_se')
    ways = {way: code for way, code in load_time.WAYS.items() if 'gates made' not in way}
    monkeypatch.setattr(load_time, 'WAYS', ways)
    monkeypatch.setattr(load_time, 'SOURCE', 'timm/none')
    load_time.main(['--rounds', '1', '--out', str(tmp_path / 'load.json')])
    cells = json.loads((tmp_path / 'load.json').read_text())['cells']
    assert cells['ways'].keys() == ways.keys()
    assert cells['ways'][load_time.BASE]['time_ratio'] == [1, 1, 1]
    assert capsys.readouterr().out.count('\n') == len(ways) + 2


def test_loading_from_the_cache_costs_no_more_than_torch_load():
    report = json.loads((RESULTS / 'load_time.json').read_text())['cells']
    assert report['model'] == 'res2net50_se'
    assert report['ways'].keys() == load_time.WAYS.keys()
    readme = (RESULTS.parent / 'README.md').read_text()
    assert load_time.report_table(report) in readme
    assert load_time.sentence(report) in README
    base = report['ways'][load_time.BASE]
    for way in ('hf-hub: of a pushed model', load_time.NAMED):
        assert report['ways'][way]['time_ratio'][2] < 1
        assert report['ways'][way]['peak_over_file'] < 1.05 * base['peak_over_file']


def test_half_width():
    """Of a field in a square of 5 x 5 px around its centre, evenly: 9 of 25 within one px."""
    weight = np.zeros((11, 11))
    weight[3:8, 3:8] = 1 / 25
    assert receptive_field.half_width(weight, 0.3) == 1
    assert receptive_field.half_width(weight, 9 / 25 + 1e-9) == 2
    assert receptive_field.half_width(weight, 0.9) == 2
    assert receptive_field.half_width(np.roll(weight, 2, 0), 0.9) == 2  # around its own centre


def test_receptive_field_is_measured(tmp_path, monkeypatch):
    """The gradient of one unit, no farther than the network can see: 211 px in resnet18's stage
    3."""
    field = receptive_field.field('resnet18', 0, 1, 256)
    assert abs(field.sum() - 1) < 1e-4
    assert 5 < receptive_field.half_width(field, 0.5) < receptive_field.half_width(field, 0.9)
    rows, columns = np.nonzero(field)
    assert 190 < max(np.ptp(rows), np.ptp(columns)) < 211
    assert np.array_equal(field, receptive_field.field('resnet18', 0, 1, 256))
    monkeypatch.setattr(receptive_field, 'NAMES', ('resnet50', 'res2net50_26w_4s'))
    out = tmp_path / 'field.json'
    receptive_field.main(['--seeds', '1', '--images', '1', '--size', '96', '--out', str(out)])
    report = json.loads(out.read_text())['cells']
    assert report['networks']['resnet50']['ratio_90%'] == [1, 1, 1]
    assert (tmp_path / 'field.png').stat().st_size > 10_000


def test_the_receptive_field_that_the_readme_tells():
    report = json.loads((RESULTS / 'receptive_field.json').read_text())
    assert report['runs'][0]['command'] == 'python -m benchmarks.receptive_field'
    cells = report['cells']
    assert receptive_field.report_table(cells) in (RESULTS.parent / 'README.md').read_text()
    assert receptive_field.sentence(cells) in README
    assert 'benchmarks/results/receptive_field.png' in README
    assert (RESULTS / 'receptive_field.png').is_file()
    networks = cells['networks']
    assert networks['res2net50_26w_4s']['ratio_90%'][1] > 1  # the paper's claim
    assert networks['res2net50_48w_2s']['ratio_90%'][2] < 1  # and where it does not hold


def test_quantisation(tmp_path, capsys):
    """The whole of it, since it is small."""
    pytest.importorskip('onnxruntime', reason='needs the extra export')
    pytest.importorskip('onnxscript', reason='needs the extra export')
    quantize.main(['--out', str(tmp_path / 'int8.json')])
    again = json.loads((tmp_path / 'int8.json').read_text())['cells']
    report = json.loads((RESULTS / 'quantize.json').read_text())['cells']
    # one image of 360 more may tip on other hardware
    assert abs(again['accuracy'][1] - report['accuracy'][1]) <= 0.3
    assert report['accuracy'][1] > 99
    assert quantize.sentence(report) in README
