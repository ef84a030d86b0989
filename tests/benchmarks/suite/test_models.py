"""The models of a pair, and one step of work in every task, precision, layout and runtime."""

import pytest
import timm
import torch
from torch import nn

from benchmarks.suite import models
from benchmarks.suite.cells import EXPORTED, Spec, find_pair
from benchmarks.suite.models import build, deploy, make_input, prepare, prepare_pair
from tests.common import image, randomise, relative_error

from .common import cell

TINY = Spec('test_res2net_se')


def work(here, x):
    return prepare(TINY, here.modes[1], here, x)


@pytest.mark.parametrize('name', ['resnet50', 'resnext50_32x4d', 'res2net50_26w_4s'])
def test_a_deployed_model_computes_the_same(name):
    model = randomise(timm.create_model(name, layers=[1, 2, 1, 1])).double().eval()
    x = image(2, 64).double()
    with torch.inference_mode():
        expected = model(x)
        deployed = deploy(model, name)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
        assert relative_error(deployed(x), expected) < 1e-12  # float64, about 50 layers


def test_a_deployed_resnet_runs_packed_and_over_its_shortcuts():
    model = randomise(timm.create_model('resnet50', layers=[1, 2, 1, 1])).eval()
    model = model.to(memory_format=torch.channels_last)
    x = image(2, 64).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.inference_mode():
        expected = model(x)
    deployed = deploy(model, 'resnet50')
    with torch.inference_mode():
        for _ in range(3):  # unpacked, packing, packed
            assert relative_error(deployed(x), expected) < 1e-5
    assert torch.equal(x, kept)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50d', 'seresnet50', 'dla60_res2net'])
def test_models_that_cannot_be_deployed(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be deployed. Use a Res2Net"):
        deploy(build(Spec(name), 'meta'), name)


def test_models_do_work():
    """No BatchNorm weight is 0, because a GPU draws less power on zeros."""
    for name in ('resnet50', 'res2net50_26w_4s'):
        norms = [m for m in build(Spec(name)).modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(bool(norm.weight.any()) for norm in norms)


def test_a_round(monkeypatch):
    monkeypatch.setattr(models, 'prepare', lambda spec, mode, cell, x: (spec.name, mode))
    assert prepare_pair(find_pair('swap'), cell(mode='eager->deploy'), None) == {
        'baseline': ('resnet50', 'eager'),
        'subject': ('res2net50_26w_4s', 'deploy'),
        'control': ('resnet50', 'eager'),
    }


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
    before = model.state_dict()['fc.weight'].clone()
    out = step()
    changed = not torch.equal(model.state_dict()['fc.weight'], before)
    assert changed == model.training == (task == 'train')
    if task == 'infer':
        assert out.dtype == (torch.bfloat16 if precision == 'bf16' else torch.float32)
        assert out.is_inference()
    parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in model.buffers())
    momentum = parameters if task == 'train' else 0
    assert sum(t.numel() for t in held()) == x.numel() + parameters + buffers + momentum
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow  # exports
@pytest.mark.parametrize('mode', ['', 'deploy+'])
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
def test_exported_models_compute_the_same(runtime, precision, least, most, mode, monkeypatch):
    for package in EXPORTED[runtime]:
        pytest.importorskip(package)
    plain = models.build
    monkeypatch.setattr(models, 'build', lambda *args: randomise(plain(*args)))
    models._exported.cache_clear()
    here = cell(mode=f'{mode}{runtime}', precision=precision)
    x = make_input(here)
    expected = work(cell(), x).step().clone()
    ready = work(here, x)
    for _ in range(2):
        out = ready.step().clone()
        assert least <= relative_error(out, expected) < most
    models._exported.cache_clear()
