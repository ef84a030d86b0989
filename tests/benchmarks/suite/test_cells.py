"""Pairs, cells and suites."""

import dataclasses
import math
import re

import pytest
import torch

from benchmarks.suite.cells import (
    AXES,
    EXPORTED,
    MODES,
    SUITES,
    Cell,
    Pair,
    Spec,
    deploys,
    describe_suite,
    find_pair,
    load_pairs,
    load_suite,
    pairs_without_modes,
    runtime_of,
)

from .common import CELL, cell


def test_pairs():
    models = {name: ' → '.join(map(str, pair)) for name, pair in load_pairs().items()}
    ours, resnet = 'res2net50_26w_4s', 'resnet50'
    assert models['main'] == f'{resnet} → {ours}'
    assert models['article_equal_macs'] == 'resnet50(base_width=41) → res2net50_16w_4s_se'
    assert models['ours'] == f"{ours} → res2net50_se(attn_layer='')"
    assert models['swap'] == f'{resnet} [eager] → {ours} [deploy]'
    assert models['deploy_frozen'] == f'{ours} [frozen] → {ours} [deploy+frozen]'
    for name, pair in load_pairs().items():
        modes = [spec.mode for spec in pair]
        assert set(modes) <= {*MODES} or modes == [None, None]
        assert (modes == [None, None]) == (name in pairs_without_modes())
        assert load_suite('smoke', {'pairs': [name]}, ['time'])
    assert find_pair('dla60:dla60_res2net') == Pair(Spec('dla60'), Spec('dla60_res2net'))
    with pytest.raises(ValueError, match=r"Unknown pair 'man'.*main, .*BASELINE:SUBJECT"):
        find_pair('man')
    with pytest.raises(ValueError, match=r"Unknown model 'res2net50_sx'.*you mean res2net50_se"):
        find_pair('resnet50:res2net50_sx')


def test_modes():
    others = ('compiled', 'frozen', 'cudagraphs', 'onnxruntime', 'openvino')
    assert ('eager', *others, 'deploy', *(f'deploy+{name}' for name in others)) == MODES
    for mode in MODES:
        assert deploys(mode) == mode.startswith('deploy')
        assert mode in (runtime_of(mode), 'deploy', f'deploy+{runtime_of(mode)}')
    assert runtime_of('deploy') == 'eager'
    own, shared = cell(mode='eager->deploy+frozen'), cell(mode='deploy+frozen')
    assert own.modes == ('eager', 'deploy+frozen')
    assert shared.modes == ('deploy+frozen', 'deploy+frozen')
    assert (own.of_pair, shared.of_pair) == (True, False)
    assert own.compiles and shared.compiles and not cell(mode='eager->deploy').compiles
    assert load_pairs()['main'].mode('deploy') == 'deploy'
    assert load_pairs()['deploy'].mode('frozen') == 'eager->deploy'


def test_a_cell():
    here = cell(mode='eager->deploy')
    assert dataclasses.asdict(here) == {**CELL, 'mode': 'eager->deploy'}
    # keys of the committed files
    assert here.key == 'time/main/infer/eager->deploy/fp32/channels_last/2/64/1/cpu'
    words = 'infer, eager->deploy, fp32, channels_last, batch 2, 64 px, 1 thread'
    assert here.describe() == words
    assert str(here) == f'main: {words}'
    assert here.describe(['mode', 'size']) == 'infer, fp32, channels_last, batch 2, 1 thread'


@pytest.mark.parametrize(
    ('precision', 'weights', 'compute'),
    [
        ('fp32', torch.float32, torch.float32),
        ('bf16', torch.float32, torch.bfloat16),
        ('fp16', torch.float32, torch.float16),
        ('bf16-weights', torch.bfloat16, torch.bfloat16),
    ],
)
def test_types(precision, weights, compute):
    here = cell(precision=precision)
    assert (here.weight_dtype, here.compute_dtype) == (weights, compute)


def test_the_cpu_suite_has_the_grid_the_pairs_and_the_curves():
    found = load_suite('cpu')
    times = [c for c in found if c.kind == 'time']
    threads = torch.get_num_threads()
    axes = {axis: choices for axis, (choices, _) in AXES.items()}
    for task in axes['task']:
        for mode in ('eager', 'compiled'):
            for precision in ('fp32', 'bf16'):
                for layout in axes['layout']:
                    for batch in (1, 8):
                        place = (task, mode, precision, layout, batch, 224, threads, 'cpu')
                        assert Cell('time', 'main', *place) in times
    plain = set(pairs_without_modes())
    assert {c.pair for c in times if (c.batch, c.size, c.threads) == (8, 224, threads)} == plain
    assert {c.pair for c in found if c.kind == 'attribution'} == plain
    assert {c.pair for c in found if c.kind == 'memory' and c.task == 'train'} == plain
    curves = [c for c in times if c.pair == 'main' and c.threads == 1]
    assert {c.batch for c in curves if c.size == 224} == {1, 4, 8, 16, 64}
    assert {c.size for c in curves if c.batch == 8} == {128, 192, 224, 288, 384}


def test_the_deploy_suite_can_run():
    for c in load_suite('deploy'):
        assert c.task == 'infer' or c.pair == 'ours'
        runtimes = {runtime_of(mode) for mode in c.modes}
        assert 'onnxruntime' not in runtimes or c.precision in ('fp32', 'int8')
        assert c.precision != 'int8' or runtimes <= {*EXPORTED}


def test_the_gpu_suite():
    """Cells in order of importance, since a lent GPU may be gone before the suite ends."""
    found = load_suite('gpu')
    assert {c.device for c in found} == {'cuda'}
    assert {c.layout for c in found if c.pair == 'main'} == {'channels_last'}
    main = [(c.task, c.mode, c.precision, c.batch) for c in found if c.pair == 'main']
    assert main[:4] == [('infer', 'eager', 'bf16', batch) for batch in (256, 64, 8, 1)]
    assert {*main} >= {
        ('train', 'eager', 'bf16', 256),
        ('infer', 'compiled', 'bf16-weights', 256),
        ('infer', 'cudagraphs', 'bf16-weights', 1),
        ('train', 'compiled', 'bf16', 256),
    }


def test_suites_say_how_long_they_take():
    for name in SUITES:
        assert ' Up to ' in describe_suite(name)
    # less than three minutes with building, which takes about 10 % more
    assert sum(load_suite('answer').values()) <= 160


def test_given_values_stand_in_for_the_suites():
    given = {'pairs': ['dla60:dla60_res2net', 'deploy'], 'batch': [2], 'size': [96], 'threads': [1]}
    found = load_suite('cpu', {**given, 'task': ['infer']}, ['time'], budget=7)
    assert {(c.pair, c.batch, c.size, c.kind) for c in found} == {
        ('dla60:dla60_res2net', 2, 96, 'time'),
        ('deploy', 2, 96, 'time'),
    }
    assert {c.mode for c in found if c.pair == 'deploy'} == {'eager->deploy'}
    assert {*found.values()} == {7}
    both = load_suite('smoke', {'pairs': ['deploy', 'main']}, ['attribution'])
    assert [c.pair for c in both] == ['main']
    assert len(load_suite('smoke', {'pairs': ['*']}, ['memory'])) == 2 * len(pairs_without_modes())


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (({'pairs': ['man']},), "Unknown pair 'man'"),
        (({'batch': [0]},), 'batch=0 must be at least 1'),
        (({}, ['time'], 0), 'budget=0 must be a number of seconds above 0'),
        (({}, ['time'], math.inf), 'budget=inf must be'),
        (({'task': ['train']}, ['attribution']), 'other values or another --only'),
    ],
)
def test_errors_of_a_suite(arguments, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        load_suite('cpu', *arguments)
