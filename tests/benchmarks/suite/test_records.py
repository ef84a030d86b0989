"""Sentences and notes about records."""

from benchmarks.suite.records import Record, select

from .common import file_of, synthetic


def test_notes():
    assert Record(synthetic('main')[1]).notes() == []
    loud = synthetic('main', load=5.0, settled=False)[1]
    loud['samples']['baseline'] = [1.0, 1.5] * 4
    loud['samples']['control'] = [1.0, 1.5] * 4
    assert Record(loud).notes() == ['not settled, ± 20.0 %', 'noisy, IQR 40 %', 'load 5.0']
    loud['samples']['control'] = [2.0] * 8
    assert Record(loud).notes()[0] == 'unusable'


def test_sentence():
    own = synthetic('deploy', subject=0.5, mode='eager->deploy')[1]
    assert Record(own).sentence() == (
        'time × 0.50 [0.50, 0.50]; control 1.00 [1.00, 1.00], 8 rounds'
    )
    plain = Record(synthetic('main')[1]).sentence()  # both models in one mode, as in the claim
    assert 'time × 1.20 [1.20, 1.20], throughput × 0.83: consistent with' in plain
    assert Record({**own, 'error': 'no room'}).sentence() == 'failed: no room'
    assert Record({**own, 'samples': {}}).sentence() == 'nothing measured'


def test_the_first_file_counts():
    one, two = (file_of(synthetic('main', subject=value)) for value in (1.1, 1.2))
    broken = synthetic('se')
    broken[1]['error'] = 'no room'
    (found,) = select({'one': one, 'two': two, 'three': file_of(broken)}, 'time')
    assert found.ratio().median == 1.1
