"""The deploy form against the model it was made from."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils import reparameterize_model as timms
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from tests.common import DEVICES, NAMES, TIMMS, TINY, image, randomise, relative_error, slow_except
from timm_res2net import Res2Net, reparameterize_model
from timm_res2net.layers import fused_conv
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.layers.fused_block import FusedStage
from timm_res2net.layers.semantics import SEMANTICS

BNS = (nn.BatchNorm2d, nn.SyncBatchNorm)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """All layers of the digits model run packed."""
    monkeypatch.setattr(fused_conv, 'SMALL', 1)


def create(name=TINY, **kwargs):
    return randomise(timm.create_model(name, **kwargs)).eval()


def folded(model):
    return not [name for name, m in model.named_modules() if isinstance(m, BNS)]


@pytest.mark.parametrize('name', slow_except(['res2net50d'], TIMMS))
def test_timms_own_models(name):
    model = create(name).double()
    x = image(1, 65).double()
    deployed, blocks = reparameterize_model(model), timms(model)
    with torch.inference_mode():
        expected = model(x)
        assert relative_error(deployed(x), expected) < 1e-12
        assert folded(deployed)
        assert relative_error(blocks(x), expected) < 1e-12
    deployed.float()
    with torch.inference_mode():
        for _ in range(3):  # unpacked, packed, from the pack
            assert relative_error(deployed(x.float()), expected) < 1e-5
        assert torch.equal(model(x), expected)  # as it was
    assert type(deployed) is type(model)


@pytest.mark.parametrize('name', slow_except([TINY], NAMES))
def test_every_name(name):
    model = create(name)
    x = image(1, 65)
    deployed, blocks = reparameterize_model(model), timms(model)
    with torch.inference_mode():
        expected = model(x)
        for _ in range(3):
            assert relative_error(deployed(x), expected) < 1e-5
            assert relative_error(blocks(x), expected) < 1e-5
    assert folded(deployed)
    assert type(deployed) is Res2Net
    assert all(a.shape == b.shape for a, b in zip(
        deployed.fc.parameters(), model.fc.parameters(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize('semantics', SEMANTICS)
@pytest.mark.parametrize('scale', slow_except([1, 4], [1, 2, 4, 8]))
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        {'output_stride': 8},
        {'cardinality': 2},
        {'attn_layer': ''},
        {'attn_layer': 'eca', 'act_layer': 'silu'},
        {'stem_type': 'deep', 'stem_width': 8, 'avg_down': True, 'replace_stem_pool': True},
        {'norm_layer': 'groupnorm1'},
    ],
    ids=lambda kwargs: '-'.join(map(str, kwargs.values())) or 'plain',
)
def test_every_argument(semantics, scale, kwargs):
    model = create(semantics=semantics, scale=scale, base_width=9, **kwargs).double()
    x = image(1, 63).double()
    with torch.inference_mode():
        assert relative_error(reparameterize_model(model)(x), model(x)) < 1e-12


def maps(body, x):
    outs = body(x)
    return list(outs.values()) if isinstance(outs, dict) else list(outs)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter'])
@pytest.mark.parametrize('name', slow_except([TINY], [TINY, 'res2net50_26w_4s', 'res2net50d_se']))
def test_wrappers(name, feature_cls, dtype):
    body = create(name, features_only=True, feature_cls=feature_cls, out_indices=(0, 1, 2, 3, 4))
    body, x = body.to(dtype), image(1, 65).to(dtype)
    deployed, bound = reparameterize_model(body), 1e-5 if dtype == torch.float32 else 1e-12
    with torch.inference_mode():
        expected, before = maps(body, x), []
        for _ in range(4):  # what the caller holds of one call is as it was after the next
            got = maps(deployed, x)
            assert len(got) == 5
            for result in (got, before):
                assert all(relative_error(a, b) < bound for a, b in zip(result, expected))  # noqa: B905
            before = got
        again = copy.deepcopy(deployed)
        assert all(
            relative_error(a, b) < bound for a, b in zip(maps(again, x), expected, strict=True)
        )
    assert folded(deployed)
    assert sum(isinstance(module, FusedStage) for module in deployed.modules()) == 4
    assert deployed.feature_info.channels() == body.feature_info.channels()


@pytest.mark.parametrize('batch', [1, 8])
def test_plain_and_packed_layers_in_one_network(batch, monkeypatch):
    """As it is used: convolutions below a million multiply-adds run in the plain form."""
    monkeypatch.undo()
    model, x = create(attn_layer=''), image(batch)
    deployed = reparameterize_model(model)
    with torch.inference_mode():
        for _ in range(2):
            assert relative_error(deployed(x), model(x)) < 1e-5
    fused = [m for m in deployed.modules() if isinstance(m, fused_conv.FusedConv2d)]
    packed = [m for m in fused if m._packs is not None]
    assert not fused_conv._PACKS or 0 < len(packed) < len(fused)


def test_deployed_in_inference_mode():
    """Its weights are not born there, so that they can be packed."""
    with torch.inference_mode():
        for deployed in (reparameterize_model(create()), timms(create())):
            assert not deployed.layer1[0].conv1.weight.is_inference()
            deployed(image())
            assert deployed.layer1[0].conv1._packs is not None or not fused_conv._PACKS


@pytest.mark.parametrize('kwargs', [{'in_chans': 1}, {'in_chans': 4}], ids=str)
def test_small_images(kwargs):
    """Maps of one pixel, where the memory formats coincide."""
    model = create(**kwargs)
    deployed = reparameterize_model(model)
    with torch.inference_mode():
        for layout in (torch.channels_last, torch.contiguous_format):
            x = image(2, 17, kwargs['in_chans']).contiguous(memory_format=layout)
            for _ in range(3):
                assert relative_error(deployed(x), model(x)) < 1e-5


def test_an_fx_graph_is_refused():
    body = create(features_only=True, feature_cls='fx')
    with pytest.raises(ValueError, match='Cannot reparameterize FeatureGraphNet') as error:
        reparameterize_model(body)
    assert "feature_cls='list', 'dict', 'hook' or 'getter'" in str(error.value)


def test_a_deployed_model_is_refused_and_fuse_leaves_it_alone():
    deployed = reparameterize_model(create())
    for model in (deployed, timms(create())):
        with pytest.raises(
            ValueError, match=r'Cannot reparameterize Res2Net.*already deployed'
        ) as error:
            reparameterize_model(model)
        assert 'Pass the original model' in str(error.value)
    block = deployed.layer1[0]
    assert block.fuse() is block
    x = image()
    with torch.inference_mode():
        assert relative_error(timms(deployed)(x), deployed(x)) < 1e-6


def test_other_models_are_refused():
    with pytest.raises(
        ValueError, match=r'Cannot reparameterize ResNet.*no Res2Net block.*Pass a Res2Net'
    ):
        reparameterize_model(timm.create_model('resnet18'))
    inner = nn.Sequential(torch.compile(create(), backend='eager'), nn.ReLU())
    for compiled in (
        torch.compile(create(), backend='eager'),
        inner,
        torch.jit.script(create()),
        torch.jit.trace(create(), image()),
    ):
        with pytest.raises(ValueError, match=r'it is compiled\. Compile it afterwards'):
            reparameterize_model(compiled)
    with pytest.raises(ValueError, match=r"timm's DLAs.*Pass a Res2Net"):
        reparameterize_model(timm.create_model('dla60_res2net', device='meta'))


def test_either_mode():
    """timm's scripts fuse before any eval()."""
    model, x = create(), image()
    with torch.inference_mode():
        expected = model(x)
        deployed = reparameterize_model(model.train())
        assert not deployed.training
        assert not [m for m in deployed.modules() if m.training]
        assert relative_error(deployed(x), expected) < 1e-5
        assert relative_error(timms(model).eval()(x), expected) < 1e-5
        assert model.training
        assert timms(model).layer1[0].training


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_type_and_device_stay(dtype):
    model = create().to(dtype)
    deployed = reparameterize_model(model)
    assert {p.dtype for p in deployed.parameters()} == {dtype}
    with torch.inference_mode():
        x = image(dtype=dtype)
        bound = 20 * torch.finfo(dtype).eps
        assert relative_error(deployed(x).double(), model(x).double()) < bound
    meta = reparameterize_model(timm.create_model(TINY, device='meta'))
    assert {p.device.type for p in meta.parameters()} == {'meta'}


@pytest.mark.parametrize('device', DEVICES)
def test_on_a_device(device):
    model = create().to(device)
    deployed = reparameterize_model(model)
    assert {t.device.type for t in (*deployed.parameters(), *deployed.buffers())} == {device}
    x = image(2, 65, device=device)
    with torch.inference_mode():
        with torch.autocast(device, torch.bfloat16):
            low = deployed(x)
        for _ in range(3):
            wide = deployed(x).double()
        expected = model.double()(x.double())
    # a GPU may convolve float32 in TF32, with bfloat16's range and 10 bits
    assert relative_error(wide, expected) < (1e-5 if device == 'cpu' else 1e-2)
    assert relative_error(low.double(), expected) < 0.1
    with torch.inference_mode():
        assert relative_error(reparameterize_model(model)(x.double()), expected) < 1e-12


def test_it_survives():
    """A copy, a state dict, a script and a trace."""
    deployed, x = reparameterize_model(create()), image(2, 65)
    with torch.no_grad():
        expected = [deployed(x) for _ in range(3)][-1]  # weights are packed by now
        assert relative_error(copy.deepcopy(deployed)(x), expected) < 1e-6
        other = reparameterize_model(timm.create_model(TINY))
        other.load_state_dict(deployed.state_dict())
        assert relative_error(other(x), expected) < 1e-6
        assert relative_error(torch.jit.script(deployed)(x), expected) < 1e-5
        assert relative_error(torch.jit.trace(deployed, x)(x), expected) < 1e-5


@pytest.mark.slow
def test_it_exports_and_compiles():
    deployed, x = reparameterize_model(create()), image(2, 65)
    with torch.no_grad():
        expected = [deployed(x) for _ in range(3)][-1]  # weights are packed by now
        exported = torch.export.export(
            deployed, (x,), dynamic_shapes={'x': {0: torch.export.Dim('batch')}}
        ).module()
        assert relative_error(exported(x), expected) < 1e-5
        assert relative_error(exported(image(3, 65)), deployed(image(3, 65))) < 1e-5
        compiled = torch.compile(deployed, backend='eager', fullgraph=True)
        assert relative_error(compiled(x), expected) < 1e-5


def test_gradients_flow():
    """A deployed network can be trained a little: its form is a network like any other."""
    model, x = create().double(), image().double()
    deployed = reparameterize_model(model)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(one).square().sum().backward()
    deployed(two).square().sum().backward()
    assert relative_error(two.grad, one.grad) < 1e-11
    assert all(p.grad is not None for p in deployed.parameters())


def arguments():
    """Arguments of a block, its input's size and the layout."""
    return st.fixed_dictionaries(
        {
            'planes': st.integers(4, 12),
            'stride': st.sampled_from([1, 2]),
            'first': st.booleans(),
            'cardinality': st.integers(1, 3),
            'base_width': st.integers(16, 60),
            'scale': st.sampled_from([1, 2, 3, 4, 8]),
            'dilation': st.sampled_from([1, 2]),
            'semantics': st.sampled_from(sorted(SEMANTICS)),
            'attn_layer': st.sampled_from(['', 'se', 'eca']),
            'act_layer': st.sampled_from([nn.ReLU, nn.SiLU, nn.LeakyReLU]),
            'size': st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
            'channels_last': st.booleans(),
            'seed': st.integers(0, 100),
        }
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(arguments())
def test_any_block(case):
    check_block(case)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(arguments())
def test_many_blocks(case):
    check_block(case)


def check_block(case):
    """A block, in float64 and float32."""
    layout = torch.channels_last if case.pop('channels_last') else torch.contiguous_format
    batch, height, width = case.pop('size')
    seed = case.pop('seed')
    inplanes, downsample = case['planes'] * 4, None
    if case.pop('first') or case['stride'] > 1:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, inplanes, 1, case['stride'], bias=False), nn.BatchNorm2d(inplanes)
        )
    block = randomise(Bottle2neck(inplanes, downsample=downsample, **case), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inplanes, height, width, generator=generator).contiguous(
        memory_format=layout
    )
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        block, x = block.to(dtype), x.to(dtype)
        fused, kept = block.fuse(), x.clone()
        with torch.inference_mode():
            expected = block(x)
            for _ in range(2):  # packed, from the pack
                assert relative_error(fused(x), expected) < bound
        assert torch.equal(x, kept)


# --- what is not finite ---------------------------------------------------------------------------

BAD = {'nan': float('nan'), 'inf': float('inf'), '-inf': float('-inf')}


@pytest.fixture(scope='module')
def both():
    """A model and its deploy form, both with every kind of guarded layer: a deep stem, stages."""
    model = randomise(timm.create_model(TINY, stem_type='deep', stem_width=8)).eval()
    return model, reparameterize_model(model)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('bad', BAD)
def test_an_image_that_is_not_finite(both, bad, dtype):
    """The deployed model gives NaN where the plain model does, before and after packing."""
    model, deployed = (copy.deepcopy(one).to(dtype) for one in both)
    good = image(1, dtype=dtype)
    damaged = good.clone()
    damaged[0, 0, 5, 5] = BAD[bad]
    with torch.inference_mode():
        expected, finite = model(damaged), model(good)
        assert not expected.isfinite().all()
        for _ in range(3):
            assert torch.equal(deployed(damaged).isfinite(), expected.isfinite())
            torch.testing.assert_close(deployed(good), finite, rtol=0.1, atol=0.1)


def test_a_map_that_is_not_finite(both):
    """Stages and blocks check what they get, because other code calls them on their own."""
    model, deployed = both
    x = image(1, 16, channels=model.layer1[0].conv1.in_channels)
    x[0, 3, 2, 2] = float('nan')
    with torch.inference_mode():
        for part in ('layer1', 'layer1.0'):
            expected = model.get_submodule(part)(x)
            for _ in range(3):
                got = deployed.get_submodule(part)(x)
                assert torch.equal(got.isnan(), expected.isnan())


def test_the_plain_form_ends_with_the_bad_image(both):
    """After a bad image, and after an error in it, good ones run packed again."""
    _, deployed = both
    layer = deployed.layer1[0].conv1
    bad, good = image(1), image(1)
    bad[0, 0, 0, 0] = float('nan')
    with torch.inference_mode():
        deployed(bad)
        with pytest.raises(RuntimeError):
            deployed.layer1(torch.full((1, 3, 8, 8), float('nan')))  # channels do not fit
        layer._packs = None
        deployed(good)
        assert layer._packs is not None


def test_weights_that_are_not_finite_are_not_deployed():
    model = randomise(timm.create_model(TINY))
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0] = float('nan')
        model.layer1[0].bn3.running_var[1] = -1
        model.fc.bias[2] = float('inf')
    with pytest.raises(ValueError, match='hold NaN or infinity') as error:
        reparameterize_model(model)
    for name in ('3: fc.bias, layer1.0.bn3.running_var, layer2.0.conv1.weight', 'Load weights'):
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r'conv1\.weight'):
        model.layer2[0].fuse()


# --- layers that people have changed --------------------------------------------------------------


def pruned(layer):
    prune.l1_unstructured(layer, 'weight', 0.5)


REMOVED = 'parametrize.remove_parametrizations'
COMPUTED = {
    'pruned': (pruned, 'prune.remove'),
    'weight norm': (parametrizations.weight_norm, REMOVED),
    'spectral norm': (parametrizations.spectral_norm, REMOVED),
    'orthogonal': (parametrizations.orthogonal, REMOVED),
    'old weight norm': (weight_norm, 'remove_weight_norm'),
    'old spectral norm': (spectral_norm, 'remove_spectral_norm'),
}
OLD_NORMS = pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')


class Adapter(nn.Module):
    """As peft replaces a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer


class Int8(torch.Tensor):
    """As torchao replaces a weight."""

    def new_empty(self, *args, **kwargs):
        return super().new_empty(*args, **kwargs).as_subclass(Int8)


def adapted(block):
    block.convs[0] = Adapter(block.convs[0])


def patched(block):
    forward = block.convs[0].forward
    block.convs[0].forward = lambda x: 2 * forward(x)


def quantized(block):
    weight = block.convs[0].weight.detach().as_subclass(Int8)
    block.convs[0].weight = nn.Parameter(weight, requires_grad=False)


def hooked(block):
    del block.convs[0].weight
    block.convs[0].weight = torch.ones(1)  # a hook of the user's computes it


REFUSED = {
    adapted: (r'adapter', r'merge_and_unload\(\) of peft'),
    patched: (r'forward', r'del layer\.forward'),
    quantized: (r'is a Int8', r'Quantize the model.* afterwards'),
    hooked: (r'is a Tensor', r'compute its weights, afterwards'),
}


@pytest.mark.parametrize('change', REFUSED)
@pytest.mark.parametrize('deploy', [reparameterize_model, timms])
def test_layers_that_do_more_are_refused(deploy, change):
    model = create(attn_layer='')
    change(model.layer2[0])
    what, remedy = REFUSED[change]
    with pytest.raises(ValueError, match=what) as error:
        deploy(model)
    error.match(remedy)
    error.match("'convs.0'" if deploy is timms else r"'layer2\.0\.convs\.0'")


def test_quantized_heads_stay():
    """A quantized weight that is not folded is left alone."""
    model = create()
    model.fc.weight = nn.Parameter(model.fc.weight.detach().as_subclass(Int8))
    assert isinstance(reparameterize_model(model).fc.weight, Int8)


@OLD_NORMS
@pytest.mark.parametrize('place', ['layer1.0.convs.0', 'fc'])
@pytest.mark.parametrize('kind', COMPUTED)
def test_computed_weights_are_refused(kind, place):
    """With the call that makes them parameters, after which the model deploys."""
    model, x = create(), image()
    layer = model.get_submodule(place)
    compute, remove = COMPUTED[kind]
    compute(layer)
    model.eval()
    with pytest.raises(ValueError, match=f"the weight of '{place}' is computed") as error:
        reparameterize_model(model)
    call = f"torch.nn.utils.{remove}(layer, 'weight')"
    assert f'Call {call} first' in str(error.value)
    with torch.inference_mode():
        expected = model(x)
    eval(call, {'torch': torch, 'layer': layer})
    with torch.inference_mode():
        assert relative_error(reparameterize_model(model)(x), expected) < 1e-5


def test_a_flop_counter_sees_a_deployed_model():
    """Every convolution; tools that know layers by their class do not see the fused ones."""
    model, x = create(), image()
    counts = []
    for one in (model, reparameterize_model(model)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            one(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
