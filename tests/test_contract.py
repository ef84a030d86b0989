"""The whole of timm's contract, over every name that the package registers, in narrow networks."""

import copy
import functools
import pickle

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from tests.common import HRNETS, NAMES, TINY, image, network, relative_error, slow_except
from timm_res2net import reparameterize_model

FEATURE_CLASSES = ('list', 'dict', 'hook', 'getter', 'fx')
# What TorchScript, tracing and the compilers may reorder: float32 sums, over 200 layers at most.
SAME = 1e-4
# the same code in fewer and narrower layers
NARROW = {'layers': (1, 2, 1, 1), 'channels': (16, 24, 32, 40), 'num_classes': 7}
# the others differ in their depth, or in the project that published them
QUICK = (
    'res2net50_se', 'res2net50d_se', 'res2net50_14w_8s_se', 'res2next50_se', 'res2net50_vd_26w_4s',
    'res2net50_v1d_26w_4s', 'res2net50_16w_4s_se', TINY,
)  # fmt: skip
create = functools.partial(network, **NARROW)
every_name = pytest.mark.parametrize('name', slow_except(QUICK, NAMES))


def tensors(features) -> list[torch.Tensor]:
    return list(features.values()) if isinstance(features, dict) else list(features)


def is_same(outputs, expected) -> bool:
    return all(torch.equal(*pair) for pair in zip(tensors(outputs), expected, strict=True))


@every_name
def test_forward_and_backward(name):
    model = create(name, drop_path_rate=0.5)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    assert (len(rates), rates[-1]) == (4, 0.5)  # all but the first block
    assert torch.equal(model(image()), model(image()))
    model = create(name).train()
    out = model(image())
    assert out.shape == (2, 7)
    out.square().mean().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    model.set_grad_checkpointing()
    again = copy.deepcopy(model).eval()
    again.set_grad_checkpointing(False)
    assert torch.equal(model.eval()(image()), again(image()))


@every_name
def test_features_and_head(name):
    model = create(name)
    x = image()
    with torch.no_grad():
        expected, levels = model(x), model.forward_intermediates(x, intermediates_only=True)
        features = model.forward_features(x)
        assert torch.equal(features, levels[-1])
        for asked, kept in ((None, (0, 1, 2, 3, 4)), ((4, 1, -3), (1, 2, 4))):
            body = create(name, features_only=True, out_indices=asked)
            body.load_state_dict(model.state_dict(), strict=False)
            assert is_same(body(x), [levels[i] for i in kept])
            assert body.feature_info.channels() == [levels[i].shape[1] for i in kept]
            assert body.feature_info.reduction() == [64 // levels[i].shape[2] for i in kept]
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(pooled), expected)
        model.reset_classifier(3)
        assert model(x).shape == (2, model.num_classes) == (2, 3)
        model.reset_classifier(0, '')
        assert torch.equal(model(x), features)
        grey = create(name, in_chans=1, num_classes=0, global_pool='max', output_stride=8)
        assert grey(image(channels=1)).shape == (2, model.num_features)
        assert grey.forward_features(image(channels=1)).shape[2] == 64 // 8


@every_name
def test_deployed_copied_and_loaded(name):
    model = create(name)
    x = image(1, 65)
    with torch.no_grad():
        expected = model(x)
        fresh = timm.create_model(name, **NARROW).eval()
        fresh.load_state_dict(model.state_dict(), strict=True)
        for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)
        deployed = reparameterize_model(model)
        assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
        assert relative_error(deployed(x), expected) < 1e-5
        # bfloat16 keeps 8 bits: 0.4 % a rounding, growing with the root of the depth
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert relative_error(model(x).float(), expected) < 0.15
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize('name', slow_except((*QUICK, *HRNETS[:1]), (*NAMES, *HRNETS)))
def test_groups_and_layer_decay(name):
    model = timm.create_model(name, device='meta', dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}
    is_hrnet = name in HRNETS
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        names = [n for group in groups.values() for n in group]
        assert sorted(names) == sorted(n for n, _ in model.named_parameters())
        if not is_hrnet:
            blocks = sum(len(getattr(model, f'layer{i}')) for i in (1, 2, 3, 4))
            assert len(groups) == (6 if coarse else blocks + 2)  # and stem and head
    if is_hrnet:
        return
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=0.05, layer_decay=0.5)
    in_groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    assert len(in_groups) == len(list(model.parameters()))
    scale = {n: in_groups[id(p)]['lr_scale'] for n, p in model.named_parameters()}
    assert scale['fc.weight'] == 1 > scale['layer4.0.conv1.weight'] > scale['layer1.0.conv1.weight']
    decay = {n: in_groups[id(p)]['weight_decay'] for n, p in model.named_parameters()}
    assert (decay['layer1.0.conv1.weight'], decay['layer1.0.bn1.weight']) == (0.05, 0)


# --- one name: the code is that of all ------------------------------------------------------------


@pytest.mark.parametrize('feature_cls', FEATURE_CLASSES)
def test_out_indices(feature_cls):
    """Every class of timm returns them sorted, as its feature_info lists them."""
    body = create(features_only=True, feature_cls=feature_cls, out_indices=[-1, 0, 2]).eval()
    features = tensors(body(image()))
    assert [f.shape[1] for f in features] == body.feature_info.channels()
    assert [64 // f.shape[2] for f in features] == body.feature_info.reduction()
    assert body.feature_info.reduction() == [2, 8, 32]


@pytest.mark.parametrize('asked', [0, 6, (5,), (-6,), (), (1, 1), (4, -1), '1', (0.5,), 1.5])
@pytest.mark.parametrize('name', [TINY, HRNETS[0]])
def test_out_indices_out_of_range(asked, name):
    with pytest.raises(ValueError, match=r'^out_indices .*levels from 0 to 4') as error:
        timm.create_model(name, features_only=True, out_indices=asked, device='meta')
    assert f'got {asked!r}.' in str(error.value)


@pytest.mark.parametrize('deploy', [lambda model: model, reparameterize_model])
def test_script_trace_and_fx(deploy):
    model, x = create(), image()
    made = deploy(model)
    with torch.no_grad():
        assert relative_error(torch.jit.script(made)(x), model(x)) < SAME
        traced = torch.jit.trace(made, x)
        assert relative_error(traced(image(3, 96)), model(image(3, 96))) < SAME
        assert relative_error(torch.fx.symbolic_trace(model)(x), model(x)) < SAME


@pytest.mark.slow
@pytest.mark.parametrize('deploy', [lambda model: model, reparameterize_model])
def test_compile(deploy):
    torch._dynamo.reset()
    model, x = deploy(create()), image()
    with torch.no_grad():
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
        assert relative_error(compiled(x), model(x)) < SAME
    trained = create().train()
    compiled = torch.compile(copy.deepcopy(trained), backend='eager', fullgraph=True)
    assert relative_error(compiled(x), trained(x)) < SAME


def test_drop_rates_and_drop_block():
    model = create(drop_rate=0.5, drop_block_rate=0.5).train()
    kinds = [type(model.layer1[0].drop_block), type(model.layer4[0].drop_block)]
    assert kinds == [nn.Identity, timm.layers.DropBlock2d]
    x = image(size=160)  # no map is smaller than DropBlock's blocks
    assert not torch.equal(model(x), model(x))
