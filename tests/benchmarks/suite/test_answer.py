"""The sentences that a run ends with."""

import pytest

from benchmarks.script import RESULTS
from benchmarks.suite.answer import answer, percent, published
from benchmarks.suite.records import load
from timm_res2net.export.measure import Ratio

from .common import file_of, synthetic


@pytest.mark.parametrize(
    ('ratio', 'text'),
    [
        (Ratio(1.184, 1.151, 1.217), '18 % [15, 22] more time'),
        (Ratio(0.94, 0.91, 1.01), '6 % [-1, 9] less time'),
        (Ratio(1.0, 0.98, 1.02), '0 % [-2, 2] more time'),
    ],
)
def test_percent(ratio, text):
    assert percent(ratio) == text


def test_the_answer_of_a_machine():
    """One configuration, its smallest and largest batch, beside the committed and others' figures.

    The configuration has the most threads.
    """
    rows = [synthetic('main', batch=batch, subject=1 + batch / 100) for batch in (1, 8, 32)]
    file = file_of(synthetic('main', threads=1, subject=2.0), synthetic('se', subject=3.0), *rows)
    measured, committed, others = answer({'one': file})
    assert measured == (
        'On a CPU, res2net takes 1 % [1, 1] more time at batch 1 and 32 % [32, 32] more time at '
        'batch 32, compared with resnet50 (inference, eager, float32, channels_last, 224 px, '
        '2 threads; 95 % intervals).'
    )
    assert committed.startswith('On AMD EPYC')
    assert 'more time at batch 1' in committed
    assert others == published()
    # a batch that is not committed
    assert 'at batch 8, compared' in answer({'one': file_of(synthetic('main', batch=3))})[1]


def test_the_committed_machine_is_not_named_twice():
    said = answer({'cpu': load(RESULTS / 'cpu.json')})
    assert len(said) == 2
    assert said[1] == published()


def test_no_answer():
    """Without a usable row of the pair in eager inference at 224 px."""
    for row in (
        synthetic('main', control=1.1),
        synthetic('se'),
        synthetic('main', size=64),
        synthetic('main', mode='frozen'),
        synthetic('main', task='train'),
    ):
        assert answer({'one': file_of(row)}) == []
