"""Tables and plots of result files."""

from benchmarks.suite import plots, report

from .common import file_of, rows_of, synthetic


def test_report_of_curves_and_repeats(tmp_path):
    one = file_of(
        *(synthetic('main', batch=batch, subject=1.1 + batch / 100) for batch in (1, 8, 16)),
        *(synthetic('main', batch=b, threads=1) for b in (1, 8, 16)),
        *(synthetic('main', size=size) for size in (128, 288)),
        synthetic('se'),
    )
    two = file_of(synthetic('main', subject=1.181))
    text = report.markdown({'one': one, 'two': two})
    rows = rows_of(text)
    assert ['time × at batch', '1', '8', '16'] in rows
    assert ['time × at image, px', '128', '224', '288'] in rows
    rising = next(row for row in rows if row[0].endswith('224 px, 2 threads') and len(row) == 4)
    assert rising[1:] == ['1.11 [1.11, 1.11]', '1.18 [1.18, 1.18]', '1.26 [1.26, 1.26]']
    repeated = [row for row in rows if row[1:2] in (['one'], ['two'])]
    assert [row[-1] for row in repeated] == ['no', 'no']
    assert 'Controls: 9, medians from 1.000 to 1.000; 9 of their intervals contain 1.' in text
    assert text.startswith(
        'Measured on a CPU, 2 cores, AVX512; torch 2, timm 1, Python 3, Linux; '
        'commits 0123456789ab.'
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
    plain, deployed = text.split('## Deployed models and other runtimes')
    assert '### main' in plain
    assert '### deploy' not in text
    assert '### swap' not in text
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
    assert 'eager' not in deployed
    loud = synthetic('main', batch=4, subject=1.5)
    loud[1]['samples']['control'] = [0.9] * 8
    three = file_of(loud, *(synthetic('main', batch=batch) for batch in (1, 8, 16)))
    text = report.markdown({'one': three})
    assert '1.50' not in text
    assert any('Close other programs' in row[2] for row in rows_of(text) if len(row) == 7)
    assert ['time × at batch', '1', '8', '16'] in rows_of(text)  # without the unusable point
    assert '## Deployed models and other runtimes' not in report.markdown(
        {'one': file_of(synthetic('main'))}
    )
