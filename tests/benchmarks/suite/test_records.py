"""Result files, and what follows from their rows."""

import json
import os

import pytest

from benchmarks.suite import records
from benchmarks.suite.records import load, notes, save, select, sentence, start, time_ratio

from .common import file_of, synthetic


def test_notes():
    assert notes(synthetic('main')[1]) == []
    _, loud = synthetic('main', load=5.0, settled=False)
    loud['samples']['baseline'] = [1.0, 1.5] * 4
    loud['samples']['control'] = [1.0, 1.5] * 4
    assert notes(loud) == ['not settled, ± 20.0 %', 'noisy, IQR 40 %', 'load 5.0']
    assert notes(loud, threads=5) == notes(loud)[:2]
    loud |= {'interrupted': True, 'samples': {**loud['samples'], 'control': [2.0] * 8}}
    assert notes(loud)[:2] == ['unusable', 'interrupted']


def test_sentence():
    _, own = synthetic('deploy', subject=0.5, mode='eager->deploy')
    assert sentence(own) == 'time × 0.50 [0.50, 0.50]; control 1.00 [1.00, 1.00], 8 rounds'
    plain = sentence(synthetic('main')[1])  # both models in one mode, as in the claim
    assert 'time × 1.20 [1.20, 1.20], throughput × 0.83: consistent with' in plain
    assert sentence({**own, 'error': 'no room'}) == 'failed: no room'
    assert sentence({**own, 'samples': {}}) == 'nothing measured'
    refused = sentence(synthetic('main', control=1.03)[1])
    assert '× 1.03 of its time. Close other programs and run the same command again.' in refused
    assert 'throughput' not in refused  # no figure to quote


@pytest.mark.parametrize(('control', 'usable'), [(0.979, False), (0.981, True), (1.021, False)])
def test_the_band_of_the_control(control, usable):
    assert records.is_usable(synthetic('main', control=control)[1]) == usable


def test_a_ratio_is_over_builds():
    _, row = synthetic('main')
    subject = [1.1] * 10 + [1.2] * 20 + [1.3] * 10
    row |= {'samples': {'baseline': [1.0] * 40, 'subject': subject}, 'blocks': [10] * 4}
    assert records.builds(row) == 4
    assert time_ratio({**row, 'blocks': []}).half_width == 0
    assert time_ratio(row).half_width > 0.05


def test_the_first_file_counts():
    one, two = (file_of(synthetic('main', subject=value)) for value in (1.1, 1.2))
    key, broken = synthetic('se')
    broken['error'] = 'no room'
    (found,) = select({'one': one, 'two': two, 'three': file_of((key, broken))}, 'time')
    assert time_ratio(found).median == 1.1


def test_an_unusable_time_is_not_explained():
    key, explained = synthetic('main', kind='attribution')
    explained['attribution'] = {}
    for control, rows in ((1.0, [explained]), (1.5, [])):
        timed = synthetic('main', control=control)
        assert select({'one': file_of(timed, (key, explained))}, 'attribution') == rows


def test_a_file(tmp_path):
    path = tmp_path / 'a.json'
    found = start(path, 'smoke', 'command')
    key, row = synthetic('main', subject=1.23456789)
    found['cells'][key] = row
    save(path, found)
    again = start(path, 'smoke', 'another')
    assert again['cells'][key]['samples']['subject'] == [1.2346] * 8  # five digits
    assert [run['command'] for run in again['runs']] == ['command', 'another']
    assert {'cpu', 'cores', 'torch', 'timm', 'commit'} <= again['runs'][1]['environment'].keys()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    found = start(path, 'smoke', 'command')
    save(path, found)
    before = path.read_text()

    def refuse(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(OSError, match='disk full'):
        save(path, {**found, 'kind': 'another'})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize('text', ['{"a": 1}', '{"a": ', '[]', '{"kind": "x", "version": 1}'])
def test_what_is_no_result_file(text, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json' is not a result of .* Give a result file"):
        load(path)


def test_another_version_or_machine(tmp_path):
    path = tmp_path / 'a.json'
    found = start(path, 'smoke', 'command')
    path.write_text(json.dumps({**found, 'version': 7}))
    with pytest.raises(ValueError, match='version 1'):
        start(path, 'smoke', 'command')
    found['runs'][0]['environment']['torch'] = '1.0'
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"a\.json' was measured with torch 1\.0.*another --out"):
        start(path, 'smoke', 'command')
    assert json.loads(path.read_text()) == found
