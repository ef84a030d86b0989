"""Pairs, cells, suites, and the cells that a machine cannot run."""

import math

import pytest
import torch

from benchmarks.suite import cells
from benchmarks.suite.cells import (
    MODES,
    Pair,
    Spec,
    find_pair,
    load_pairs,
    load_suite,
    refuse_impossible,
)

from .common import cell

PLAIN = {name for name, pair in load_pairs().items() if pair.baseline.mode is None}


def test_pairs():
    for name, pair in load_pairs().items():
        assert {spec.mode for spec in pair} <= ({None} if name in PLAIN else {*MODES})
        assert find_pair(name) == pair
    assert find_pair('dla60:dla60_res2net') == Pair(Spec('dla60'), Spec('dla60_res2net'))
    with pytest.raises(ValueError, match=r"Unknown pair 'man'.*main, .*BASELINE:SUBJECT"):
        find_pair('man')
    with pytest.raises(ValueError, match=r"Unknown model 'res2net50_sx'.*res2net50_se"):
        find_pair('resnet50:res2net50_sx')


def test_a_cell():
    own, shared = cell(mode='eager->deploy+frozen'), cell(mode='deploy+frozen')
    assert (own.modes, own.of_pair) == (('eager', 'deploy+frozen'), True)
    assert (shared.modes, shared.of_pair) == (('deploy+frozen', 'deploy+frozen'), False)
    assert own.compiles and shared.compiles and not cell(mode='eager->deploy').compiles


def test_given_values_stand_in_for_the_suites():
    given = {'pairs': ['dla60:dla60_res2net', 'deploy'], 'batch': [2], 'size': [96], 'threads': [1]}
    suite = load_suite('cpu', {**given, 'task': ['infer']}, ['time'], budget=7)
    pairs = {(c.pair, c.batch, c.size, c.kind, c.mode) for c in suite}
    assert ('dla60:dla60_res2net', 2, 96, 'time', 'eager') in pairs
    assert [p for p in pairs if p[0] == 'deploy'] == [('deploy', 2, 96, 'time', 'eager->deploy')]
    assert {*suite.values()} == {7}
    both = load_suite('smoke', {'pairs': ['deploy', 'main']}, ['attribution'])
    assert [c.pair for c in both] == ['main']
    assert len(load_suite('smoke', {'pairs': ['*']}, ['memory'])) == 2 * len(PLAIN)


def test_suites():
    # README: less than three minutes with building, which takes about 10 % more
    assert sum(load_suite('answer').values()) <= 160
    # in order of importance, because a lent GPU may be gone before the suite ends
    main = [(c.task, c.mode, c.precision, c.batch) for c in load_suite('gpu') if c.pair == 'main']
    assert main[:4] == [('infer', 'eager', 'bf16', batch) for batch in (256, 64, 8, 1)]


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (({'batch': [0]},), 'batch=0'),
        *((({}, ['time'], budget), f'budget={budget}') for budget in (0, math.inf, math.nan)),
        (({'task': ['train']}, ['attribution']), '--only'),
    ],
)
def test_errors_of_a_suite(arguments, text):
    with pytest.raises(ValueError, match=text):
        load_suite('cpu', *arguments)


def set_machine(monkeypatch, gpu=True, bf16=True, compiler='g++', cores=4, lacks=''):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: bf16)
    monkeypatch.setattr(cells, 'cpu_has_bf16', lambda: bf16)
    monkeypatch.setattr(cells, 'compiler', lambda: compiler)
    monkeypatch.setattr('os.cpu_count', lambda: cores)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name != lacks or None)


@pytest.mark.parametrize(
    ('lack', 'changes', 'value', 'remedy'),
    [
        ({'gpu': False}, {'device': 'cuda'}, "'cuda'", '--suite cpu'),
        ({'bf16': False}, {'precision': 'bf16'}, "'bf16' would be emulated", '--precision fp32'),
        ({'compiler': None}, {'mode': 'eager->compiled'}, "'compiled'", '--mode eager'),
        ({'cores': 1}, {'threads': 2}, 'threads=2', '--threads 1'),
        ({'lacks': 'onnxscript'}, {'mode': 'onnxruntime'}, 'onnxscript', 'export'),
        ({'lacks': 'nncf'}, {'mode': 'openvino', 'precision': 'int8'}, 'nncf', 'int8'),
        # what does not go together on any machine
        ({}, {'mode': 'frozen', 'task': 'train'}, "'frozen'", '--task infer'),
        ({}, {'mode': 'deploy', 'kind': 'memory'}, "'memory'", '--only time'),
        ({}, {'precision': 'bf16-weights', 'task': 'train'}, "'bf16-weights'", '--task infer'),
        ({}, {'mode': 'cudagraphs'}, "'cudagraphs'", '--mode compiled'),
        ({}, {'mode': 'openvino', 'device': 'cuda'}, "'openvino'", '--suite deploy'),
        ({}, {'mode': 'onnxruntime', 'precision': 'bf16'}, "'onnxruntime'", '--precision fp32'),
        ({}, {'mode': 'eager->openvino', 'precision': 'int8'}, "'int8'", '--mode openvino'),
    ],
)
def test_cells_that_cannot_be_measured(lack, changes, value, remedy, monkeypatch):
    set_machine(monkeypatch)
    if lack:
        refuse_impossible(cell(**changes))
    set_machine(monkeypatch, **lack)
    refuse_impossible(cell())
    with pytest.raises(ValueError, match=f'{value}.*{remedy}'):
        refuse_impossible(cell(**changes))
