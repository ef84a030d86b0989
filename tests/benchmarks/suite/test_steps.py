"""One step of work, in every task, precision, layout and runtime."""

import pytest
import torch

from benchmarks.suite import models, runtimes, steps
from benchmarks.suite.modes import EAGER
from benchmarks.suite.pairs import ARTICLE, Spec, find_pair
from benchmarks.suite.steps import make_input, prepare, roles
from tests.common import randomise, relative_error

from .common import cell

TINY = Spec('test_res2net_se')


def work(here, x):
    return prepare(TINY, here.modes.subject, here, x)


def test_roles():
    own = [
        (role, spec.name, str(mode))
        for role, spec, mode in roles(find_pair('swap'), cell(mode='eager->deploy'))
    ]
    assert own == [
        ('baseline', 'resnet50', 'eager'),
        ('subject', 'res2net50_26w_4s', 'deploy'),
        ('control', 'resnet50', 'eager'),
    ]
    assert {mode for _, _, mode in roles(find_pair('main'), cell())} == {EAGER}


@pytest.mark.parametrize('mode', ['eager', 'deploy'])
def test_weights_and_input_in_bf16(mode):
    here = cell(precision='bf16-weights', mode=mode)
    x = make_input(here)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    ready = work(here, x)
    assert {t.dtype for t in ready.model.parameters()} == {torch.bfloat16}
    expected = work(cell(), make_input(cell())).step()
    for _ in range(3):
        out = ready.step()
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.05  # eps of bfloat16 is 0.008


@pytest.mark.slow  # exports
@pytest.mark.parametrize('deploys', [False, True])
@pytest.mark.parametrize(
    ('runtime', 'precision', 'least', 'most'),
    [
        ('onnxruntime', 'fp32', 0, 1e-4),
        ('openvino', 'fp32', 0, 1e-4),
        ('openvino', 'bf16', 1e-3, 0.05),
        ('onnxruntime', 'int8', 1e-3, 0.05),
        ('openvino', 'int8', 1e-3, 0.05),
    ],
)
def test_exported_models_compute_the_same(runtime, precision, least, most, deploys, monkeypatch):
    for package in runtimes.EXPORTED[runtime]:
        pytest.importorskip(package)
    plain = models.build
    monkeypatch.setattr(models, 'build', lambda *args: randomise(plain(*args)))
    steps._exported.cache_clear()
    here = cell(mode=f'deploy+{runtime}' if deploys else runtime, precision=precision)
    x = make_input(here)
    expected = work(cell(), x).step().clone()
    ready = work(here, x)
    for _ in range(2):
        out = torch.from_numpy(ready.step().copy())
        assert least <= relative_error(out, expected) < most
    steps._exported.cache_clear()


@pytest.mark.slow  # exports
def test_the_network_of_the_article_is_exported():
    pytest.importorskip('onnxruntime')
    found = []
    for here in (cell(), cell(mode='onnxruntime')):
        ready = prepare(Spec(ARTICLE), here.modes.subject, here, make_input(here))
        found.append(torch.as_tensor(ready.step()).clone())
    assert relative_error(found[1], found[0]) < 1e-4


@pytest.mark.parametrize('layout', ['channels_last', 'contiguous'])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('task', ['infer', 'train'])
def test_a_step_of_every_kind(task, precision, layout):
    here = cell(task=task, precision=precision, layout=layout)
    form = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
    x = make_input(here)
    assert x.is_contiguous(memory_format=form)
    model, step, held = work(here, x)
    assert model.layer1[0].convs[0].weight.is_contiguous(memory_format=form)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = step()
    low = torch.bfloat16 if precision == 'bf16' else torch.float32
    changed = not torch.equal(model.state_dict()['fc.weight'], before['fc.weight'])
    assert changed == model.training == (task == 'train')
    if task == 'infer':
        assert out.dtype == low
        assert out.is_inference()
    parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in model.buffers())
    momentum = parameters if task == 'train' else 0
    assert sum(t.numel() for t in held()) == x.numel() + parameters + buffers + momentum
    assert all(p.grad is None for p in model.parameters())
