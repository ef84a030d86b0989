"""The models of a pair, and one step of work in every task, precision, layout and runtime."""

import pytest
import timm
import torch
from torch import nn

from benchmarks.suite import models
from benchmarks.suite.cells import EXPORTED, LAYOUTS, Spec, find_pair
from benchmarks.suite.models import build, deploy, make_input, prepare, prepare_pair
from tests.common import image, randomise, relative_error

from .common import cell

TINY = Spec('test_res2net_se')


@pytest.mark.parametrize('name', ['resnet50', 'resnext50_32x4d', 'res2net50_26w_4s'])
@pytest.mark.parametrize(('dtype', 'most'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_deployed_model_computes_the_same(name, dtype, most):
    # 32 groups; stages 1 and 2 are large enough to be packed
    channels = (64, 128, 64, 64) if 'x' in name else (32, 64, 64, 64)
    model = timm.create_model(name, layers=[1, 2, 1, 1], channels=channels)
    form = {'dtype': dtype, 'memory_format': torch.channels_last}
    model, x = randomise(model).to(**form).eval(), image(2, 64).to(**form)
    kept = x.clone()
    with torch.inference_mode():
        expected = model(x)
        deployed = deploy(model, name)
        for _ in range(3):  # float32: unpacked, packing, packed
            assert relative_error(deployed(x), expected) < most
    assert torch.equal(x, kept)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50d', 'seresnet50', 'dla60_res2net'])
def test_models_that_cannot_be_deployed(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be deployed. Use a Res2Net"):
        deploy(build(Spec(name), 'meta'), name)


def test_a_round(monkeypatch):
    monkeypatch.setattr(models, 'prepare', lambda spec, mode, cell, x: (spec.name, mode))
    assert prepare_pair(find_pair('swap'), cell(mode='eager->deploy'), None) == {
        'baseline': ('resnet50', 'eager'),
        'subject': ('res2net50_26w_4s', 'deploy'),
        'control': ('resnet50', 'eager'),
    }


@pytest.mark.parametrize('layout', ['channels_last', 'contiguous'])
@pytest.mark.parametrize(
    ('task', 'mode', 'precision', 'most'),  # eps of bfloat16 is 0.008
    [
        *(('train', 'eager', precision, None) for precision in ('fp32', 'bf16')),
        *(('infer', 'eager', *row) for row in (('fp32', 0), ('bf16', 0.05))),
        *(('infer', mode, 'bf16-weights', 0.05) for mode in ('eager', 'deploy')),
    ],
)
def test_a_step_of_every_kind(task, mode, precision, most, layout):
    here = cell(task=task, precision=precision, layout=layout)
    form, x = LAYOUTS[layout], make_input(here)
    model, step, held = prepare(TINY, mode, here, x)
    for tensor in (x, model.layer1[0].conv1.weight, model.layer1[0].convs[0].weight):
        assert tensor.is_contiguous(memory_format=form)
        assert tensor.dtype == (torch.bfloat16 if precision == 'bf16-weights' else torch.float32)
    # a GPU draws less power on zeros
    assert all(m.weight.any() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    before = model.fc.weight.clone()
    out = step()
    assert torch.equal(model.fc.weight, before) == (task == 'infer') == out.is_inference()
    if task == 'infer':
        assert out.dtype == (torch.float32 if precision == 'fp32' else torch.bfloat16)
        plain = cell(layout=layout)
        expected = prepare(TINY, 'eager', plain, make_input(plain)).step()
        assert relative_error(out.float(), expected) <= most
    momentum = list(model.parameters()) if task == 'train' else []
    kept = [x, *model.parameters(), *model.buffers(), *momentum]
    assert sum(t.numel() for t in held()) == sum(t.numel() for t in kept)
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
    for package in (*EXPORTED[runtime], 'nncf'):
        pytest.importorskip(package)
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name: randomise(create(name)))
    models._exported.cache_clear()
    here = cell(precision=precision)
    x = make_input(here)
    expected = prepare(TINY, 'eager', cell(), x).step().clone()
    out = prepare(TINY, f'{mode}{runtime}', here, x).step()
    assert least <= relative_error(out, expected) < most
    models._exported.cache_clear()
