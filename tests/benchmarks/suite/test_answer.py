"""Result files, what follows from their rows, and the sentences that a run ends with."""

import json

import pytest

from benchmarks.script import RESULTS, save
from benchmarks.suite import plots, report
from benchmarks.suite.answer import (
    answer,
    is_usable,
    load,
    on_the_claim,
    percent,
    published,
    select,
    sentence,
    time_ratio,
)
from benchmarks.suite.run import start
from timm_res2net.export.measure import Ratio

from .common import file_of, synthetic


def test_sentence():
    """The ratio, its control, and what is to be said against it."""
    _, own = synthetic('deploy', subject=0.5, mode='eager->deploy')
    assert sentence(own) == 'time × 0.50 [0.50, 0.50]; control 1.00 [1.00, 1.00], 8 rounds'
    _, loud = synthetic('main', settled=False)
    loud['samples'] |= {'baseline': [1.0, 1.5] * 4, 'control': [1.0, 1.5] * 4}
    assert sentence(loud).endswith('8 rounds (not settled, ± 20.0 %; noisy, IQR 40 %)')
    refused = sentence(synthetic('main', control=1.03)[1])
    assert '× 1.03 of its time. Close other programs and run the same command again.' in refused
    assert 'throughput' not in refused  # no figure to quote


@pytest.mark.parametrize(
    ('control', 'usable'), [(0.979, False), (0.981, True), (1.021, False), (float('nan'), False)]
)
def test_the_band_of_the_control(control, usable):
    assert is_usable(synthetic('main', control=control)[1]) == usable


@pytest.mark.parametrize(
    ('time', 'throughput', 'text'),
    [
        (Ratio(1.21, 1.18, 1.24), 0.83, 'consistent with CLAIM'),
        (Ratio(1.16, 1.155, 1.17), 0.86, 'consistent with CLAIM as more time, less than it'),
        (Ratio(1.30, 1.28, 1.32), 0.77, 'more than CLAIM as more time, consistent with it'),
        (Ratio(1.17, 1.16, 1.19), 0.85, 'consistent with CLAIM as more time, at the edge of it'),
        (Ratio(1.1, 1.05, 1.12), 0.91, 'slower, by less than CLAIM'),
        (Ratio(1.5, 1.4, 1.6), 0.67, 'slower, by more than CLAIM'),
        (Ratio(1.2, 1.1, 1.4), 0.83, 'at the edge of CLAIM'),
        (Ratio(0.8, 0.75, 0.85), 1.25, 'faster, not CLAIM'),
        (Ratio(1.0, 0.98, 1.02), 1.00, 'no difference shown, not CLAIM'),
        (Ratio(1.1, 0.9, 1.3), 0.91, 'undecided on CLAIM, the interval is too wide'),
    ],
)
def test_the_verdict_on_the_claim(time, throughput, text):
    text += ' as less throughput' if text.endswith(' it') else ''
    text = text.replace('CLAIM', "'about 20 % slower'")
    assert on_the_claim(time) == f'time × {time}, throughput × {throughput:.2f}: {text}'


def test_the_first_file_counts_and_an_unusable_time_is_not_explained():
    one, two = (file_of(synthetic('main', subject=value)) for value in (1.1, 1.2))
    (row,) = select({'one': one, 'two': two}, 'time')
    assert time_ratio(row).median == 1.1
    key, explained = synthetic('main', kind='attribution')
    for control, rows in ((1.0, [explained]), (1.5, [])):
        timed = synthetic('main', control=control)
        assert select({'one': file_of(timed, (key, explained))}, 'attribution') == rows


def test_a_file_is_continued(tmp_path):
    path = tmp_path / 'a.json'
    content = start(path, 'smoke', 'command')
    key, row = synthetic('main', subject=1.23456789)
    content['cells'][key] = row
    save(path, content)
    again = start(path, 'smoke', 'another')
    row['samples']['subject'] = [1.2346] * 8  # five digits
    assert again['cells'] == {key: row}
    assert [run['command'] for run in again['runs']] == ['command', 'another']


def test_another_file_version_or_machine(tmp_path):
    path = tmp_path / 'a.json'
    content = start(path, 'smoke', 'command')
    other = json.dumps({**content, 'version': 7})
    for text in ('{"a": 1}', '{"a": ', '[]', other):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.json' is not a result .* version 1.* --out"):
            start(path, 'smoke', 'command')
    content['runs'][0]['environment']['torch'] = '1.0'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.json' was measured with torch 1\.0.*another --out"):
        start(path, 'smoke', 'command')
    assert json.loads(path.read_text()) == content


def test_the_answer_of_a_machine():
    """One configuration, its smallest and largest batch, beside the committed and others' figures.

    The configuration has the most threads.
    """
    rows = [synthetic('main', batch=batch, subject=1 + batch / 100) for batch in (1, 8, 32)]
    file = file_of(synthetic('main', threads=1, subject=2.0), synthetic('se', subject=3.0), *rows)
    measured, committed, others = answer({'one': file})
    assert percent(Ratio(0.94, 0.91, 1.01)) == '6 % [-1, 9] less time'
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
    # the committed machine is not named twice
    assert answer({'cpu': load(RESULTS / 'cpu.json')})[1:] == [published()]


@pytest.mark.parametrize(
    'change',
    [{'control': 1.1}, {'pair': 'se'}, {'size': 64}, {'mode': 'frozen'}, {'task': 'train'}],
)
def test_no_answer(change):
    """Without a usable row of the pair in eager inference at 224 px."""
    assert answer({'one': file_of(synthetic(**{'pair': 'main', **change}))}) == []


def test_report_and_plots(tmp_path):
    one = file_of(
        *(synthetic('main', batch=batch, subject=1.1 + batch / 100) for batch in (1, 8)),
        synthetic('se'),
        synthetic('main', batch=4, subject=1.5, control=0.9),
        synthetic('deploy', subject=0.5, mode='eager->deploy'),
    )
    two = file_of(synthetic('main', subject=1.181, settled=False))
    text = ' '.join(report.markdown({'one': one, 'two': two}).split())
    plain, deployed = text.split('## Deployed models and other runtimes')
    words = '| infer, eager, fp32, channels_last, batch {}, 224 px, 2 threads | {} '
    line = words.format(8, 'one') + '| 1000.0 | 1180.0 | time × 1.18 [1.18, 1.18], throughput'
    assert line in plain
    assert 'not settled, ± 0.0 % |' in plain.split(words.format(8, 'two'))[1][:200]
    assert 'Close other programs' in plain.split(words.format(4, 'one'))[1][:300]
    assert '× 1.50' not in text
    assert 'Medians of the controls: 0.900 to 1.000.' in plain
    assert '| time × 0.50 [0.50, 0.50] |' in deployed
    assert text.startswith('Measured on a CPU, 2 cores, AVX512; torch 2, timm 1, Python 3, Linux;')
    drawn = plots.plot({'one': one}, tmp_path / 'plots')
    assert [path.name for path in drawn] == ['main.png', 'pairs.png']
    assert plots.plot({'one': file_of()}, tmp_path) == []
    with pytest.raises(FileExistsError, match=drawn[0].name):
        plots.plot({'one': one}, drawn[0])
