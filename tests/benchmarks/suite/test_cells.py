"""Cells and suites."""

import math

import pytest
import torch

from benchmarks.suite.cells import AXES, SUITES, Cell, load_suite
from benchmarks.suite.modes import MODES, Modes
from benchmarks.suite.pairs import load_pairs, pairs_without_modes
from benchmarks.suite.runtimes import EXPORTED

from .common import CELL, cell


def test_a_cell_in_a_file():
    here = cell(mode='eager->deploy')
    assert here.modes == Modes.parse('eager->deploy')
    assert here.to_json() == {**CELL, 'mode': 'eager->deploy'}
    assert list(here.to_json()) == list(CELL)  # the order of the key
    assert here.key == 'time/main/infer/eager->deploy/fp32/channels_last/2/64/1/cpu'
    assert str(here) == 'main infer eager->deploy fp32 channels_last b2 64px t1'
    words = 'infer, eager->deploy, fp32, channels_last, batch 2, 64 px, 1 thread'
    assert here.describe() == words
    assert here.describe(['mode', 'size']) == 'infer, fp32, channels_last, batch 2, 1 thread'
    assert AXES['size'] == ((), 224)


@pytest.mark.parametrize(
    ('precision', 'weights', 'compute', 'autocasts'),
    [
        ('fp32', torch.float32, torch.float32, False),
        ('bf16', torch.float32, torch.bfloat16, True),
        ('fp16', torch.float32, torch.float16, True),
        ('bf16-weights', torch.bfloat16, torch.bfloat16, False),
    ],
)
def test_types(precision, weights, compute, autocasts):
    here = cell(precision=precision)
    assert (here.weight_dtype, here.compute_dtype) == (weights, compute)
    assert here.autocasts == autocasts


def test_a_pair_with_modes_of_its_own_ignores_the_cells():
    modes = {'pairs': ['deploy', 'main'], 'mode': ['eager', 'compiled'], 'batch': [1]}
    cells = load_suite('cpu', {**modes, 'size': [224], 'threads': [1], 'task': ['infer']}, ['time'])
    assert {(c.pair, str(c.modes)) for c in cells} == {
        ('deploy', 'eager->deploy'), ('main', 'eager'), ('main', 'compiled'),
    }  # fmt: skip
    text = {str(c) for c in cells if c.pair == 'deploy' and c.precision == 'fp32'}
    assert 'deploy infer eager->deploy fp32 channels_last b1 224px t1' in text
    both = load_suite('smoke', {'pairs': ['deploy', 'main']}, ['attribution'])
    assert [c.pair for c in both] == ['main']


def test_the_deploy_suite_can_run():
    cells = load_suite('deploy')
    plain = {c.pair for c in cells} & set(pairs_without_modes())
    assert plain == {'ours'}
    for c in cells:
        assert c.task == 'infer' or c.pair == 'ours'
        runtimes = {mode.runtime for mode in c.modes.different}
        assert 'onnxruntime' not in runtimes or c.precision in ('fp32', 'int8')
        assert c.precision != 'int8' or runtimes <= set(EXPORTED)
    assert len(cells) == len({c.key for c in cells}) >= 86


def test_the_cpu_suite_has_the_grid_the_pairs_and_the_curves():
    cells = load_suite('cpu')
    times = [c for c in cells if c.kind == 'time']
    threads = torch.get_num_threads()
    for task in ('infer', 'train'):
        for mode in ('eager', 'compiled'):
            for precision in ('fp32', 'bf16'):
                for layout in ('channels_last', 'contiguous'):
                    for batch in (1, 8):
                        modes = Modes.parse(mode)
                        expected = Cell(
                            'time', 'main', task, modes, precision, layout, batch, 224, threads,
                            'cpu',
                        )  # fmt: skip
                        assert expected in times
    usual = {c.pair for c in times if (c.batch, c.size, c.threads) == (8, 224, threads)}
    plain = set(pairs_without_modes())
    assert usual == plain
    assert {c.pair for c in cells if c.kind == 'attribution'} == plain
    assert {c.pair for c in cells if c.kind == 'memory' and c.task == 'train'} == plain
    curves = [c for c in times if c.pair == 'main' and c.threads == 1]
    assert {c.batch for c in curves if c.size == 224} == {1, 4, 8, 16, 64}
    assert {c.size for c in curves if c.batch == 8} == {128, 192, 224, 288, 384}
    assert len(cells) == len({c.key for c in cells})


def test_the_gpu_suite():
    """Cells in order of importance, since a lent GPU may be gone before the suite ends."""
    cells = load_suite('gpu')
    assert {c.device for c in cells} == {'cuda'}
    assert {c.layout for c in cells if c.pair == 'main'} == {'channels_last'}
    main = [(c.task, str(c.modes), c.precision, c.batch) for c in cells if c.pair == 'main']
    assert main[:4] == [('infer', 'eager', 'bf16', batch) for batch in (256, 64, 8, 1)]
    assert set(main) >= {
        ('train', 'eager', 'bf16', 256),
        ('infer', 'compiled', 'bf16-weights', 256),
        ('infer', 'cudagraphs', 'bf16-weights', 1),
        ('train', 'compiled', 'bf16', 256),
    }


def test_given_values_stand_in_for_the_suites():
    cells = load_suite(
        'cpu', {'pairs': ['dla60:dla60_res2net'], 'batch': [2], 'size': [96]}, ['time'], budget=7
    )
    assert {(c.pair, c.batch, c.size, c.kind) for c in cells} == {
        ('dla60:dla60_res2net', 2, 96, 'time')
    }
    assert set(cells.values()) == {7}
    assert {c.device for c in load_suite('smoke', device='cuda')} == {'cuda'}
    assert len(load_suite('smoke', {'pairs': ['*']}, ['memory'])) == 2 * len(pairs_without_modes())


@pytest.mark.parametrize(
    ('arguments', 'texts'),
    [
        (('huge',), ("'huge'", ', '.join(SUITES))),
        (('cpu', {'pairs': ['man']}), ("Unknown pair 'man'", 'BASELINE:SUBJECT')),
        (
            ('cpu', {'pairs': ['resnet50:res2net50_sx']}),
            ("'resnet50:res2net50_sx'", 'Did you mean res2net50_se, '),
        ),
        (('cpu', {'mode': ['fast']}), ("mode='fast'", ', '.join(MODES))),
        (('cpu', {'batch': [0]}), ('batch=0', 'at least 1')),
        (('cpu', {}, ['time'], 0), ('budget=0', 'seconds above 0')),
        (('cpu', {}, ['time'], math.inf), ('budget=inf', 'seconds above 0')),
        (
            ('cpu', {'task': ['train']}, ['attribution']),
            ("Nothing of suite 'cpu' is left", 'other values or another --only'),
        ),
    ],
)
def test_errors_of_a_suite(arguments, texts):
    with pytest.raises(ValueError, match=r'.') as error:
        load_suite(*arguments)
    for text in texts:
        assert text in str(error.value)


def test_every_pair_is_found():
    """Every line of pairs.json makes cells."""
    for name in load_pairs():
        assert load_suite('smoke', {'pairs': [name]}, ['time'])
