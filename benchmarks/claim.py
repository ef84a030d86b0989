"""Print sentences on the claim "about 20 % slower than ResNet" from the committed result files.

    python -m benchmarks.claim

Tests compare them with the READMEs.
"""

import argparse
import functools
from collections.abc import Sequence
from statistics import median
from typing import Any

from timm_res2net.layers.text import table

from .script import RESULTS
from .suite.answer import Files, Row, cell_of, on_the_claim, select, time_ratio
from .suite.answer import load as load_rows
from .suite.measure import explain

SUITE = ('cpu', 'main-1', 'main-2', 'deploy', 'frozen')
"""Stems of the committed result files of `python -m benchmarks run`."""
_PLACE = {
    'precision': 'fp32', 'layout': 'channels_last', 'batch': 8, 'size': 224, 'threads': 2,
    'device': 'cpu',
}  # fmt: skip


@functools.cache
def load_files() -> Files:
    """Return the committed result files by stem."""
    return {stem: load_rows(RESULTS / f'{stem}.json') for stem in SUITE}


def find(files: Files, pair: str, kind: str = 'time', **axes: Any) -> Row:
    """Return the row of a pair: inference, float32, channels_last, batch 8, 224 px, 2 threads.

    It is that of eager mode, or of the pair's own modes.

    Args:
        files: Result files.
        pair: Name of the pair.
        kind: Kind of the cell.
        **axes: Values of other axes.

    Raises:
        LookupError: The cell was not measured.
    """
    asked = {'kind': kind, 'pair': pair, 'task': 'infer', **_PLACE, **axes}
    for file in files.values():
        for row in file['cells'].values():
            usual = cell_of(row).mode == 'eager' or cell_of(row).of_pair
            if usual and asked.items() <= row['cell'].items():
                return row
    raise LookupError(f'{asked} was not measured. `python -m benchmarks run` measures it.')


def _time(files: Files, pair: str, **axes: Any) -> str:
    """Return the ratio of a pair's times as text, for example '× 1.18'."""
    return f'× {time_ratio(find(files, pair, **axes)).median:.2f}'


def _interval(files: Files, pair: str, **axes: Any) -> str:
    """Return the ratio of a pair's times with its interval, for example '× 1.18 [1.15, 1.22]'."""
    row = find(files, pair, **axes)
    return f'× {time_ratio(row)}{_remark(row)}'


def _remark(row: Row) -> str:
    """Return a remark if the budget of a row ended before its interval was as narrow as asked."""
    return '' if row['settled'] else ' (not settled)'


def main_pair(files: Files) -> str:
    """Return the verdict on the main pair."""
    row = find(files, 'main')
    return (
        'In eager inference in float32, with channels_last and batch 8, '
        f'{on_the_claim(time_ratio(row))}{_remark(row)}.'
    )


def ways(files: Files) -> str:
    """Return the range of the main pair's ratios over the ways to run it."""
    rows = [
        row
        for row in select(files, 'time')
        if row['cell']['pair'] == 'main'
        and (row['cell']['size'], row['cell']['threads']) == (224, 2)
        and row['cell']['batch'] in (1, 8)
    ]
    rows.sort(key=lambda row: time_ratio(row).median)
    low, high = (
        f'× {time_ratio(row).median:.2f} ({cell_of(row).words(["size", "threads"])})'
        for row in (rows[0], rows[-1])
    )
    middle = median(time_ratio(row).median for row in rows)
    return (
        f'Over {len(rows)} ways to run the pair (precision, layout, batch 1 or 8, inference or '
        f'training step, eager or compiled), the ratio is between {low} and {high}; the median is '
        f'× {middle:.2f}.'
    )


def causes(files: Files) -> str:
    """Return the extra time of the main pair by cause."""
    shares = explain(find(files, 'main', 'attribution')['attribution'])
    parts = {cause: f'{100 * share:.1f} %' for cause, share in shares.items()}
    return (
        f'Of the {parts["extra"]} more time, {parts["more MACs"]} come from more MACs, '
        f'{parts["less efficient convolutions"]} from less efficient narrow convolutions and '
        f'{parts["the splitting itself"]} from the splitting itself (copies, adds, smaller layers).'
    )


def other_pairs(files: Files) -> str:
    """Return the ratios of other pairs in the same configuration."""
    names = ('48w_2s', '14w_8s', '101', '50d', 'next', 'se', 'dla')
    ratios = (f'{find(files, name)["models"]["subject"]} {_time(files, name)}' for name in names)
    return f'Other Res2Nets over their ResNets: {", ".join(ratios)}.'


def article(files: Files) -> str:
    """Return the ratios of the article's network."""
    whole, equal, aligned = (
        _time(files, name) for name in ('article', 'article_equal_macs', 'article_aligned')
    )
    counts = find(files, 'article', 'attribution')['attribution']['counts']
    macs = counts['subject']['macs'] / counts['baseline']['macs']
    return (
        f"The article's own network takes {whole} of resnet50's time with {macs:.2f} of its MACs; "
        f'against a ResNet-50 of the same MACs {equal}, or {aligned} if the widths of that '
        'ResNet-50 are multiples of 8.'
    )


def swap(files: Files) -> str:
    """Return the ratio of a deployed Res2Net to a plain ResNet."""
    swapped, both = (_interval(files, name) for name in ('swap', 'swap_deploy'))
    return (
        f'Deployed, res2net50_26w_4s takes {swapped} of the time of plain resnet50, and {both} '
        'of a resnet50 with the same treatment.'
    )


def runtimes(files: Files) -> str:
    """Return the gain from deploying under compilers, and the speed of other runtimes."""
    rebuilt = {'frozen': files['frozen'], **files}  # several builds of compiled models
    compiled, onnx, openvino = (
        _interval(rebuilt, pair)
        for pair in ('deploy_frozen', 'export_onnxruntime', 'export_openvino')
    )
    others = [
        [_time(files, pair, batch=batch) for batch in (1, 8)]
        for pair in ('deploy_onnxruntime', 'deploy_openvino')
    ]
    return (
        'Compilers that fold and pack weights gain nothing from a deployed model: its time is '
        f"{compiled} of the plain one's under torch.compile with weights as constants, {onnx} in "
        f'ONNX Runtime and {openvino} in OpenVINO. Compared with the deployed model in eager mode, '
        f'ONNX Runtime takes {others[0][0]} of the time at batch 1 and {others[0][1]} at batch 8, '
        f'OpenVINO {others[1][0]} and {others[1][1]}.'
    )


def int8(files: Files) -> str:
    """Return the ratios of the main pair in int8."""
    one, two = (
        [
            _interval(files, pair, precision='int8', threads=threads)
            for pair in ('main_openvino', 'main_onnxruntime')
        ]
        for threads in (1, 2)
    )
    return (
        f"In int8, res2net50_26w_4s takes {one[0]} of resnet50's time in OpenVINO and {one[1]} in "
        f'ONNX Runtime (batch 8, one thread); with two threads {two[0]} and {two[1]}.'
    )


SENTENCES = (main_pair, ways, causes, other_pairs, article, swap, runtimes, int8)
"""Functions of the committed result files, in the order of the README's list."""

DEPLOYED = {
    'deploy': 'deployed, of the plain model',
    'swap': 'deployed, of plain resnet50',
    'swap_deploy': 'deployed, of resnet50 with the same treatment',
}
"""Rows of `deployed_table` by pair."""


def deployed_table(files: Files) -> str:
    """Return the times of deployed models by input layout, precision and batch."""
    rows = [
        (
            text,
            layout,
            *(
                _time(files, pair, layout=layout, precision=p, batch=b)
                for p in ('fp32', 'bf16-weights')
                for b in (1, 8)
            ),
        )
        for pair, text in DEPLOYED.items()
        for layout in ('channels_last', 'contiguous')
    ]
    header = ('time of res2net50_26w_4s', 'input', 'fp32 b1', 'fp32 b8', 'bf16 b1', 'bf16 b8')
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Print every sentence."""
    argparse.ArgumentParser(
        prog='python -m benchmarks.claim', description=(__doc__ or '').splitlines()[0]
    ).parse_args(argv)
    files = load_files()
    for sentence in SENTENCES:
        print(f'- {sentence(files)}')


if __name__ == '__main__':
    main()
