"""Cells that this machine cannot run, and axes that do not go together."""

import pytest
import torch

from benchmarks.suite import checks
from benchmarks.suite.cells import EXPORTED
from benchmarks.suite.checks import check

from .common import cell


@pytest.fixture
def machine(monkeypatch):
    """Set what the machine has."""

    def has(gpu=True, bf16=True, compiler='g++', cores=4, lacks=()):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: bf16)
        monkeypatch.setattr(checks, 'cpu_has_bf16', lambda: bf16)
        monkeypatch.setattr(checks, 'compiler', lambda: compiler)
        monkeypatch.setattr('os.cpu_count', lambda: cores)
        monkeypatch.setattr('importlib.util.find_spec', lambda name: name not in lacks or None)

    return has


@pytest.mark.parametrize(
    ('changes', 'texts'),
    [
        ({'device': 'cuda'}, ("Device 'cuda'", '--suite cpu')),
        ({'precision': 'bf16'}, ("Precision 'bf16' would be emulated", '--precision fp32')),
        ({'precision': 'bf16-weights'}, ("'bf16-weights' would be emulated",)),
        ({'mode': 'compiled'}, ("Mode 'compiled' needs a C++ compiler", 'Install g++')),
        ({'mode': 'frozen->deploy+frozen'}, ("Mode 'frozen' needs a C++", '--mode eager')),
        ({'threads': 5}, ('threads=5 is more than the 4 cores', '--threads 4')),
    ],
)
def test_what_a_machine_cannot_do(changes, texts, machine):
    machine(gpu=False, bf16=False, compiler=None)
    check(cell())
    with pytest.raises(ValueError, match=r'.') as error:
        check(cell(**changes))
    assert all(text in str(error.value) for text in texts)


@pytest.mark.parametrize(
    ('changes', 'texts'),
    [
        *(
            ({'mode': mode, 'task': 'train'}, (f"Mode '{mode}'", '--task infer'))
            for mode in ('deploy', 'frozen', 'deploy+compiled', 'openvino')
        ),
        ({'mode': 'eager->deploy', 'task': 'train'}, ("Mode 'deploy'", '--task infer')),
        ({'mode': 'deploy', 'kind': 'memory'}, ("Kind 'memory' does not see", '--only time')),
        ({'precision': 'bf16-weights', 'task': 'train'}, ("'bf16-weights'", '--task infer')),
        ({'mode': 'cudagraphs'}, ("Mode 'cudagraphs' needs a GPU", '--mode compiled')),
        ({'mode': 'deploy+openvino', 'device': 'cuda'}, ('runs on a CPU', '--suite deploy')),
        ({'mode': 'onnxruntime', 'precision': 'bf16'}, ('does not run in bfloat16', 'openvino')),
        *(
            ({'mode': mode, 'precision': 'int8'}, ("'int8' is for exported", '--mode openvino'))
            for mode in ('eager', 'deploy', 'frozen', 'eager->openvino')
        ),
    ],
)
def test_what_does_not_go_together(changes, texts, machine):
    machine()
    with pytest.raises(ValueError, match=r'.') as error:
        check(cell(**changes))
    assert all(text in str(error.value) for text in texts)


@pytest.mark.parametrize('runtime', EXPORTED)
def test_a_missing_package(runtime, machine):
    for missing in EXPORTED[runtime]:
        machine(lacks=(missing,))
        with pytest.raises(ValueError, match=rf'{missing} is not installed.*\[export\]'):
            check(cell(mode=f'deploy+{runtime}'))
    machine(lacks=('nncf',))
    check(cell(mode=runtime))
    with pytest.raises(ValueError, match=r'nncf is not installed.*\[int8\]'):
        check(cell(mode=runtime, precision='int8'))
    machine()
    check(cell(mode=runtime, precision='int8'))
