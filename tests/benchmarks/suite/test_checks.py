"""Cells that this machine cannot run, and axes that do not go together."""

import os
import re
import shutil

import pytest
import torch

from benchmarks.suite import checks, runtimes
from benchmarks.suite.checks import check

from .common import cell


@pytest.mark.parametrize(
    ('changes', 'value', 'remedy'),
    [
        ({'device': 'cuda'}, "Device 'cuda'", '--suite cpu'),
        ({'precision': 'bf16'}, "Precision 'bf16' would be emulated on this CPU", 'fp32'),
        ({'precision': 'bf16-weights'}, "Precision 'bf16-weights' would be emulated", 'fp32'),
        ({'precision': 'fp16'}, "Precision 'fp16' is for GPUs", '--precision bf16 or fp32'),
        ({'mode': 'compiled'}, "Mode 'compiled' needs a C++ compiler", 'Install g++, set CXX'),
        ({'mode': 'frozen->deploy+frozen'}, "Mode 'frozen' needs a C++", '--mode eager'),
        ({'threads': 5}, 'threads=5 is more than the 4 cores', '--threads 4'),
    ],
)
def test_what_a_machine_cannot_do(changes, value, remedy, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(checks, 'cpu_has_bf16', lambda: False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    check(cell())
    with pytest.raises(ValueError, match=re.escape(value)) as error:
        check(cell(**changes))
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'value', 'remedy'),
    [
        ({'precision': 'bf16'}, 'would be emulated on this GPU', '--precision fp32'),
        ({'mode': 'compiled'}, "'compiled' needs triton", 'Install it'),
    ],
)
def test_what_a_gpu_cannot_do(changes, value, remedy, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: False)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=value) as error:
        check(cell(device='cuda', **changes))
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'value', 'remedy'),
    [
        *(
            ({'mode': mode, 'task': 'train'}, f"Mode '{mode}' is for inference", '--task infer')
            for mode in ('deploy', 'frozen', 'deploy+compiled', 'openvino')
        ),
        (
            {'pair': 'deploy', 'mode': 'eager->deploy', 'task': 'train'},
            "Mode 'deploy' is for inference",
            '--task infer',
        ),
        (
            {'mode': 'deploy', 'kind': 'memory'},
            "Kind 'memory' does not see the weights that mode 'deploy' packs",
            '--only time, or mode eager or compiled',
        ),
        (
            {'precision': 'bf16-weights', 'task': 'train'},
            "Precision 'bf16-weights' is for inference",
            '--task infer, or --precision bf16',
        ),
        ({'mode': 'cudagraphs'}, "Mode 'cudagraphs' needs a GPU", '--mode compiled'),
        (
            {'mode': 'deploy+openvino', 'device': 'cuda'},
            "Mode 'deploy+openvino' runs on a CPU",
            '--device cpu',
        ),
        *(
            (
                {'mode': 'onnxruntime', 'precision': precision},
                "Mode 'onnxruntime' does not run in bfloat16",
                '--precision fp32, or openvino',
            )
            for precision in ('bf16', 'bf16-weights')
        ),
        *(
            (
                {'mode': mode, 'precision': 'int8'},
                "Precision 'int8' is for exported models",
                '--mode openvino or onnxruntime',
            )
            for mode in ('eager', 'deploy', 'frozen', 'eager->openvino')
        ),
    ],
)
def test_what_does_not_go_together(changes, value, remedy, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(checks, 'cpu_has_bf16', lambda: True)
    monkeypatch.setattr(checks, 'compiler', lambda: 'g++')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    with pytest.raises(ValueError, match=re.escape(value)) as error:
        check(cell(**changes))
    assert remedy in str(error.value)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_a_missing_runtime(runtime, monkeypatch):
    for missing in runtimes.EXPORTED[runtime]:
        monkeypatch.setattr('importlib.util.find_spec', lambda name, m=missing: name != m or None)
        for mode in (runtime, f'deploy+{runtime}'):
            with pytest.raises(ValueError, match=f"Mode '{runtime}' needs {missing}") as error:
                check(cell(mode=mode))
            assert "pip install 'timm-res2net[export]'" in str(error.value)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None if name == 'nncf' else name)
    check(cell(mode=runtime))
    with pytest.raises(ValueError, match="Precision 'int8' needs nncf") as error:
        check(cell(mode=runtime, precision='int8'))
    assert "pip install 'timm-res2net[int8]'" in str(error.value)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    for precision in ('fp32', 'int8'):
        check(cell(mode=runtime, precision=precision))
