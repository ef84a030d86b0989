"""Tables and plots of result files."""

import pytest

from benchmarks.suite import plots, report

from .common import file_of, rows_of, synthetic


def test_report_of_curves_and_repeats(tmp_path):
    one = file_of(
        *(synthetic('main', batch=batch, subject=1.1 + batch / 100) for batch in (1, 8, 16)),
        *(synthetic('main', batch=b, threads=1) for b in (1, 8, 16)),
        *(synthetic('main', size=size) for size in (128, 288)),
        synthetic('se'),
        synthetic('main', batch=4, subject=1.5, control=0.9),
    )
    two = file_of(synthetic('main', subject=1.181))
    text = report.markdown({'one': one, 'two': two})
    rows = rows_of(text)
    assert ['time × at batch', '1', '8', '16'] in rows  # without the unusable point
    assert ['time × at image, px', '128', '224', '288'] in rows
    rising = next(row for row in rows if row[0].endswith('224 px, 2 threads') and len(row) == 4)
    assert rising[1:] == ['1.11 [1.11, 1.11]', '1.18 [1.18, 1.18]', '1.26 [1.26, 1.26]']
    repeated = [row for row in rows if row[1:2] in (['one'], ['two'])]
    assert [row[-1] for row in repeated] == ['no', 'no']
    assert '1.50' not in text
    assert any('Close other programs' in row[2] for row in rows if len(row) == 7)
    assert 'Controls: 10, medians from 0.900 to 1.000; 9 of their intervals contain 1.' in text
    assert text.startswith(
        'Measured on a CPU, 2 cores, AVX512; torch 2, timm 1, Python 3, Linux; '
        'commits 0123456789ab.'
    )
    drawn = plots.plot({'one': one}, tmp_path / 'plots')
    assert [path.name for path in drawn] == ['main.png', 'pairs.png']
    assert sorted((tmp_path / 'plots').iterdir()) == sorted(drawn)
    assert plots.plot({'one': file_of()}, tmp_path) == []
    with pytest.raises(FileExistsError, match=drawn[0].name):
        plots.plot({'one': one}, drawn[0])


def test_report_of_pairs_with_modes_of_their_own():
    own = dict(mode='eager->deploy')
    file = file_of(
        synthetic('deploy', subject=0.5, **own),
        synthetic('deploy', subject=0.6, precision='bf16-weights', **own),
        synthetic('swap', subject=0.8, batch=1, control=1.03, **own),
        synthetic('main'),
    )
    text = report.markdown({'one': file})
    plain, deployed = text.split('## Deployed models and other runtimes')
    assert '### main' in plain
    assert '### deploy' not in text
    rows = rows_of(deployed)
    assert rows[0] == ['pair', 'fp32, batch 8', 'bf16-weights, batch 8', 'fp32, batch 1']
    assert rows[2] == [
        'deploy: resnet50 → res2net', '× 0.50 [0.50, 0.50]', '× 0.60 [0.60, 0.60]', '',
    ]  # fmt: skip
    assert rows[3] == ['swap: resnet50 → res2net', '', '', 'unusable']
    assert 'All rows: infer, channels_last, 224 px, 2 threads.' in deployed
    assert rows[6] == [
        'deploy', 'infer, fp32, channels_last, batch 8, 224 px, 2 threads', '1000.0', '500.0',
        '1.00 [1.00, 1.00]', '8', '1', '',
    ]  # fmt: skip
    assert rows[-1][-1] == 'unusable'
    assert '## Deployed' not in report.markdown({'one': file_of(synthetic('main'))})
