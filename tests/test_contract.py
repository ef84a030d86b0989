"""The whole of timm's contract, over every name that the package registers."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from tests.common import NAMES, TINY, image, randomise, relative_error, slow_except

# The tiny one goes through all of the code that the others do, in seconds.
every_name = pytest.mark.parametrize('name', slow_except([TINY], NAMES))
FEATURE_CLASSES = ('list', 'dict', 'hook', 'getter', 'fx')
# What TorchScript, tracing and the compilers may reorder: float32 sums, over 200 layers at most.
SAME = 1e-4


def create(name: str, **kwargs) -> nn.Module:
    return randomise(timm.create_model(name, **kwargs)).eval()


def tensors(features) -> list[torch.Tensor]:
    return list(features.values()) if isinstance(features, dict) else list(features)


@every_name
def test_forward_and_backward(name):
    model = create(name).train()
    out = model(image())
    assert out.shape == (2, model.num_classes)
    out.square().mean().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_name
def test_features_agree_with_feature_info(name):
    whole = create(name)
    x = image()
    with torch.no_grad():
        expected = whole.forward_intermediates(x, intermediates_only=True)
        assert torch.equal(whole.forward_features(x), expected[-1])
        for feature_cls in FEATURE_CLASSES:
            for asked, levels in ((None, (0, 1, 2, 3, 4)), ((4, 1, -3), (1, 2, 4))):
                body = timm.create_model(
                    name, features_only=True, feature_cls=feature_cls, out_indices=asked
                )
                body = randomise(body) if feature_cls != 'fx' else body
                inner = body.model if feature_cls == 'getter' else body
                inner = inner.body if feature_cls == 'hook' else inner
                inner = inner.graph_module if feature_cls == 'fx' else inner
                found = inner.load_state_dict(whole.state_dict(), strict=False)
                assert found.missing_keys == []
                features = tensors(body.eval()(x))
                assert list(body.feature_info.out_indices) == list(levels)
                for level, feature, channels, stride in zip(
                    levels,
                    features,
                    body.feature_info.channels(),
                    body.feature_info.reduction(),
                    strict=True,
                ):
                    assert feature.shape == (2, channels, 64 // stride, 64 // stride)
                    assert torch.equal(feature, expected[level])


@pytest.mark.parametrize('feature_cls', FEATURE_CLASSES)
@pytest.mark.parametrize(
    ('asked', 'levels'),
    [(2, (3, 4)), (5, (0, 1, 2, 3, 4)), ((-1,), (4,)), ((3,), (3,)), ([-1, 0, 2], (0, 2, 4))],
)
def test_out_indices(feature_cls, asked, levels):
    body = timm.create_model(
        'test_res2net_se', features_only=True, feature_cls=feature_cls, out_indices=asked
    )
    features = tensors(body(image()))
    assert [f.shape[1] for f in features] == body.feature_info.channels()
    assert [64 // f.shape[2] for f in features] == body.feature_info.reduction()
    assert [2 << level for level in levels] == body.feature_info.reduction()


@pytest.mark.parametrize('asked', [0, 6, (5,), (-6,), (), (1, 1), (4, -1), '1', (0.5,), 1.5])
def test_out_indices_out_of_range(asked):
    with pytest.raises(ValueError, match='levels from 0 to 4') as error:
        timm.create_model('test_res2net_se', features_only=True, out_indices=asked)
    assert str(error.value).startswith('out_indices ')
    assert f'got {asked!r}.' in str(error.value)


@every_name
@pytest.mark.parametrize('output_stride', [8, 16])
def test_output_stride(name, output_stride):
    body = create(name, features_only=True, output_stride=output_stride)
    strides = [min(2 << level, output_stride) for level in range(5)]
    assert body.feature_info.reduction() == strides
    with torch.no_grad():
        assert [64 // f.shape[2] for f in body(image(1))] == strides


@every_name
def test_head(name):
    model = create(name)
    x = image()
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(x))
        assert torch.equal(model.get_classifier()(pooled), model(x))
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        assert model.num_classes == 7
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, '')
        assert torch.equal(model(x), features)


@every_name
def test_other_channels_and_no_classes(name):
    model = create(name, in_chans=1, num_classes=0, global_pool='max')
    with torch.no_grad():
        assert model(image(channels=1)).shape == (2, model.num_features)
    assert model.num_classes == 0


@every_name
def test_grad_checkpointing_changes_nothing(name):
    outs, grads = [], []
    for enable in (False, True):
        model = create(name).eval()  # eval: in training, a recomputed BatchNorm updates twice
        model.set_grad_checkpointing(enable)
        out = model(image(1))
        out.square().mean().backward()
        outs.append(out)
        grads.append({key: p.grad for key, p in model.named_parameters()})
    assert torch.equal(*outs)
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])


@every_name
def test_groups_and_layer_decay(name):
    model = timm.create_model(name, device='meta')
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        names = [n for group in groups.values() for n in group]
        assert sorted(names) == sorted(n for n, _ in model.named_parameters())
        blocks = sum(len(getattr(model, f'layer{i}')) for i in (1, 2, 3, 4))
        assert len(groups) == (6 if coarse else blocks + 2)  # and stem and head
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=0.05, layer_decay=0.5)
    in_groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    assert len(in_groups) == len(list(model.parameters()))
    scale = {n: in_groups[id(p)]['lr_scale'] for n, p in model.named_parameters()}
    assert scale['fc.weight'] == 1 > scale['layer4.0.conv1.weight'] > scale['layer1.0.conv1.weight']
    decay = {n: in_groups[id(p)]['weight_decay'] for n, p in model.named_parameters()}
    assert decay['layer1.0.conv1.weight'] == 0.05
    assert decay['layer1.0.bn1.weight'] == decay['fc.bias'] == 0


@every_name
def test_torchscript(name):
    model = create(name)
    x = image(1)
    with torch.no_grad():
        scripted = torch.jit.script(model)
        traced = torch.jit.trace(model, x)
        assert relative_error(scripted(x), model(x)) < SAME
        assert relative_error(traced(image(2, 96)), model(image(2, 96))) < SAME


@every_name
def test_fx_and_export(name):
    model = create(name)
    x = image()
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
        batch = torch.export.Dim('batch', min=1, max=64)
        exported = torch.export.export(model, (x,), dynamic_shapes={'x': {0: batch}})
        assert relative_error(exported.module()(image(3)), model(image(3))) < SAME


@every_name
@pytest.mark.parametrize('training', slow_except([True], [False, True]))
def test_compiles_without_a_graph_break(name, training):
    torch._dynamo.reset()
    model = create(name).train(training)
    x = image()
    compiled = torch.compile(copy.deepcopy(model), backend='eager', fullgraph=True)
    assert relative_error(compiled(x), model(x)) < SAME


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_res2net_se', 'res2net50_se'])
def test_inductor(name):
    torch._dynamo.reset()
    model = create(name)
    x = image()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        assert relative_error(compiled(x), model(x)) < SAME


@every_name
def test_bfloat16(name):
    model = create(name)
    x = image()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            amp = model(x)
        low = model.bfloat16()(x.bfloat16())
    # bfloat16 keeps 8 bits: 0.4 % a rounding, growing with the root of the depth
    for got in (amp, low):
        assert got.dtype == torch.bfloat16
        assert relative_error(got.float(), expected) < 0.15


@every_name
def test_ema_follows(name):
    model = timm.create_model(name)
    ema = ModelEmaV3(model, decay=0.75)
    before = copy.deepcopy(model.state_dict())
    randomise(model)
    ema.update(model)
    now = model.state_dict()
    for key, averaged in ema.module.state_dict().items():
        if averaged.is_floating_point():
            expected = 0.75 * before[key] + 0.25 * now[key]
            torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


@every_name
def test_drop_path_drops(name):
    model = create(name, drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    blocks = sum(len(getattr(model, f'layer{i}')) for i in (1, 2, 3, 4))
    assert len(rates) == blocks - 1  # all but the first
    assert rates == sorted(rates)
    assert rates[-1] == 0.5
    x = image()
    with torch.no_grad():
        evaluated = model(x)
        # without updates of the statistics, so that nothing but the dropping differs
        for module in model.modules():
            if isinstance(module, DropPath):
                module.train()
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), evaluated)


def test_drop_rates_and_drop_block():
    model = create('test_res2net_se', drop_rate=0.5, drop_block_rate=0.5).train()
    assert [type(model.layer1[0].drop_block), type(model.layer4[0].drop_block)] == [
        nn.Identity,
        timm.layers.DropBlock2d,
    ]
    x = image(size=160)  # no map is smaller than DropBlock's blocks
    assert not torch.equal(model(x), model(x))


@every_name
def test_copies(name, tmp_path):
    model = create(name)
    x = image(1)
    with torch.no_grad():
        expected = model(x)
        fresh = timm.create_model(name).eval()
        fresh.load_state_dict(model.state_dict(), strict=True)
        for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)


@every_name
def test_meta_device_and_dtype(name):
    model = timm.create_model(name, device='meta', dtype=torch.bfloat16)
    assert {p.device.type for p in model.parameters()} == {'meta'}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(image(device='meta', dtype=torch.bfloat16)).shape == (2, model.num_classes)
