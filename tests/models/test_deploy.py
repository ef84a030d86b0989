"""The deploy form of a whole model against the model it was made from, in every use."""

import copy
import multiprocessing
import pickle
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from timm.utils import reparameterize_model as timms
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from tests.common import DEVICES, TINY, image, network, relative_error
from timm_res2net import Res2Net, reparameterize_model
from timm_res2net.export import load_network
from timm_res2net.folder.take import take
from timm_res2net.layers import fused_conv
from timm_res2net.layers.fused_block import FusedBottle2neck, FusedStage
from timm_res2net.layers.fused_conv import fuse

BNS = (nn.BatchNorm2d, nn.SyncBatchNorm)
DEEP = {'stem_type': 'deep', 'stem_width': 8}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """All layers of the digits model run packed."""
    monkeypatch.setattr(fused_conv, 'SMALL', 1)


def folded(model):
    return not [name for name, m in model.named_modules() if isinstance(m, BNS)]


NARROW = {'layers': (1, 2, 1, 1), 'channels': (64, 16, 24, 32), 'num_classes': 7}


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        (TINY, {}),
        (TINY, {'output_stride': 8, 'semantics': 'mmdet'}),
        (TINY, {**DEEP, 'avg_down': True, 'replace_stem_pool': True, 'attn_layer': ''}),
        (TINY, {'stem_type': 'deep_tiered', 'act_layer': 'silu', 'scale': 1}),
        (TINY, {'norm_layer': 'groupnorm1'}),
        (TINY, {'in_chans': 4, 'aa_layer': 'avg'}),
        ('res2net50d', NARROW),  # timm's own
        ('res2next50', NARROW),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [63, 17])  # also maps of one pixel, where memory formats coincide
def test_every_argument(name, kwargs, size):
    model = network(name, base_width=9, **kwargs).double()
    x = image(2, size, kwargs.get('in_chans', 3)).double()
    deployed = reparameterize_model(model)
    with torch.inference_mode():
        expected = model(x)
        assert relative_error(deployed(x), expected) < 1e-12
        assert relative_error(timms(model)(x), expected) < 1e-12
        for layout in (torch.contiguous_format, torch.channels_last):
            low = x.float().contiguous(memory_format=layout)
            for _ in range(2):  # packed, from the pack
                assert relative_error(deployed.float()(low), expected) < 1e-5
    assert folded(deployed)
    assert sum(isinstance(m, FusedBottle2neck) for m in deployed.modules()) in (
        {0} if 'norm_layer' in kwargs else {5, 6}
    )
    assert type(deployed) is type(model)
    assert not deployed.training


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter'])
def test_features(feature_cls):
    body = network(features_only=True, feature_cls=feature_cls, out_indices=(0, 1, 2, 3, 4), **DEEP)
    x = image(1, 65)
    deployed = reparameterize_model(body)
    with torch.inference_mode():
        # what the caller holds of one call is as it was after the next
        expected, *results = (net(x) for net in (body, deployed, deployed, copy.deepcopy(deployed)))
    for result in results:
        for i in expected if isinstance(expected, dict) else range(5):
            assert relative_error(result[i], expected[i]) < 1e-5
    assert folded(deployed)
    assert sum(isinstance(module, FusedStage) for module in deployed.modules()) == 4
    assert deployed.feature_info.channels() == body.feature_info.channels()


def test_plain_and_packed_layers_in_one_network(monkeypatch):
    """As it is used: convolutions below a million multiply-adds run in the plain form."""
    monkeypatch.undo()
    model, x = network(attn_layer=''), image(1)
    with torch.inference_mode():  # its weights are not born there, so that they can be packed
        deployed = reparameterize_model(model)
        assert not timms(model).layer1[0].conv1.weight.is_inference()
        for _ in range(2):
            assert relative_error(deployed(x), model(x)) < 1e-5
    fused = [m for m in deployed.modules() if isinstance(m, fused_conv.FusedConv2d)]
    packed = [m for m in fused if m._packs is not None]
    packs = platform.machine() == 'x86_64' and torch.backends.mkldnn.is_available()
    assert (0 < len(packed) < len(fused)) == packs


def test_either_mode():
    """timm's scripts fuse before any eval()."""
    model, x = network(), image()
    with torch.inference_mode():
        expected = model(x)
        deployed = reparameterize_model(model.train())
        assert not [m for m in deployed.modules() if m.training]
        assert relative_error(deployed(x), expected) < 1e-5
        assert relative_error(timms(model).eval()(x), expected) < 1e-5
        assert model.training
        assert timms(model).layer1[0].training


@pytest.mark.parametrize('device', DEVICES)
def test_on_a_device(device):
    model = network().to(device)
    deployed = reparameterize_model(model)
    assert {t.device.type for t in (*deployed.parameters(), *deployed.buffers())} == {device}
    x = image(2, 65, device=device)
    low = reparameterize_model(copy.deepcopy(model).bfloat16())
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        with torch.autocast(device, torch.bfloat16):
            lows = [deployed(x), low(x.bfloat16())]
        for _ in range(3):
            wide = deployed(x).double()
        expected = model.double()(x.double())
    # a GPU may convolve float32 in TF32, with bfloat16's range and 10 bits
    assert relative_error(wide, expected) < (1e-5 if device == 'cpu' else 1e-2)
    assert all(relative_error(one.double(), expected) < 0.1 for one in lows)
    meta = reparameterize_model(timm.create_model(TINY, device='meta'))
    assert {p.device.type for p in meta.parameters()} == {'meta'}


def test_a_deployed_network_is_a_network():
    """Its gradients, its state dict, and what a FLOP counter sees of it."""
    model, x = network().double(), image().double()
    deployed = reparameterize_model(model)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(one).square().sum().backward()
    deployed(two).square().sum().backward()
    assert relative_error(two.grad, one.grad) < 1e-11
    assert all(p.grad is not None for p in deployed.parameters())
    other = reparameterize_model(timm.create_model(TINY)).double()
    other.load_state_dict(deployed.state_dict())
    counts = []
    with torch.no_grad():
        assert torch.equal(other(x), deployed(x))
        for either in (model, deployed):
            with FlopCounterMode(display=False) as counter:
                either(x)
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.no_grad():
        assert torch.equal(timms(deployed)(x), other(x))  # timm's function leaves it alone


# --- what is not finite ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def both():
    """A model and its deploy form, both with every kind of guarded layer: a deep stem, stages."""
    model = network(**DEEP)
    return model, reparameterize_model(model)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('bad', [float('nan'), float('-inf')])
def test_an_image_that_is_not_finite(both, bad, dtype):
    """The deployed model gives NaN where the plain model does, before and after packing."""
    model, deployed = (copy.deepcopy(one).to(dtype) for one in both)
    good = image(1, dtype=dtype)
    damaged = good.clone()
    damaged[0, 0, 5, 5] = bad
    with torch.inference_mode():
        expected, finite = model(damaged), model(good)
        assert not expected.isfinite().all()
        for _ in range(2):
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
            for _ in range(2):
                got = deployed.get_submodule(part)(x)
                assert torch.equal(got.isnan(), expected.isnan())


def test_the_plain_form_ends_with_the_bad_image(both):
    """After a bad image, and after an error in it, good ones run packed again."""
    _, deployed = both
    layer = deployed.layer1[0].conv1
    with torch.inference_mode():
        deployed(image(1) * float('nan'))
        with pytest.raises(RuntimeError):
            deployed.layer1(torch.full((1, 3, 8, 8), float('nan')))  # channels do not fit
        layer._packs = None
        deployed(image(1))
        assert layer._packs is not None or not fused_conv._PACKS


def test_weights_that_are_not_finite_are_not_deployed():
    model = network()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0] = float('nan')
        model.layer1[0].bn3.running_var[1] = -model.layer1[0].bn3.eps
        model.fc.bias[2] = float('inf')
    with pytest.raises(ValueError, match='hold NaN or infinity') as error:
        reparameterize_model(model)
    for name in ('3: fc.bias, layer1.0.bn3.running_var, layer2.0.conv1.weight', 'Load weights'):
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r'conv1\.weight'):
        model.layer2[0].fuse()


# --- models that are refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (
            lambda: network(features_only=True, feature_cls='fx'),
            "'list', 'dict', 'hook' or 'getter'",
        ),
        (lambda: nn.Sequential(torch.compile(network(), backend='eager')), 'Compile it afterwards'),
        (lambda: torch.jit.trace(network(), image()), 'Compile it afterwards'),
        (lambda: reparameterize_model(network()), 'already deployed.*Pass the original model'),
        (lambda: timms(network()), 'already deployed.*Pass the original model'),
        (
            lambda: timm.create_model('dla60_res2net', device='meta'),
            "no Res2Net block.*timm's DLAs",
        ),
    ],
)
def test_models_that_are_refused(make, words):
    model = make()
    with pytest.raises(ValueError, match=f'Cannot reparameterize {type(model).__name__}.*{words}'):
        reparameterize_model(model)


STEPS = {
    'reparameterize': reparameterize_model,
    'push': take,
    'export': lambda model: load_network(model, True, False, {}).model,
}
WRAPPERS = [
    lambda model: torch.compile(model, backend='eager'), nn.DataParallel, ModelEmaV3, AveragedModel,
]  # fmt: skip


def test_a_wrapped_model_is_the_model_inside():
    model, x = network(), image(1)
    config = take(model).config
    for wrap in WRAPPERS:
        wrapped = wrap(model)
        assert take(wrapped).config == config
        for step in ('reparameterize', 'export'):
            inside = STEPS[step](wrapped)
            assert type(inside) is Res2Net
            with torch.inference_mode():
                assert relative_error(inside(x), model(x)) < 1e-5


def test_a_name_is_not_a_model():
    with pytest.raises(TypeError, match=r"Cannot reparameterize 'test_res2net_se'.*nn.Module"):
        reparameterize_model(TINY)


class Int8(torch.Tensor):
    """As torchao replaces a weight."""

    def new_empty(self, *args, **kwargs):
        return super().new_empty(*args, **kwargs).as_subclass(Int8)


def patched(block):
    forward = block.convs[0].forward
    block.convs[0].forward = lambda x: 2 * forward(x)


def quantized(block):
    weight = block.convs[0].weight.detach().as_subclass(Int8)
    block.convs[0].weight = nn.Parameter(weight, requires_grad=False)


REFUSED = {
    patched: r'forward.*del layer\.forward',
    quantized: r'Int8.*Quantize the model.* afterwards',
}


@pytest.mark.parametrize('change', REFUSED)
@pytest.mark.parametrize('deploy', [reparameterize_model, timms])
def test_layers_that_do_more_are_refused(deploy, change):
    model = network(attn_layer='')
    model.fc.weight = nn.Parameter(model.fc.weight.detach().as_subclass(Int8))
    reparameterize_model(model)  # a quantized weight that is not folded is left alone
    change(model.layer2[0])
    with pytest.raises(ValueError, match=REFUSED[change]) as error:
        deploy(model)
    error.match("'convs.0'" if deploy is timms else r"'layer2\.0\.convs\.0'")


@pytest.fixture
def group():
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('step', STEPS)
def test_sharded_weights_are_refused(step, group):
    model = network()
    fully_shard(model, mesh=init_device_mesh('cpu', (1,)))
    with pytest.raises(ValueError, match=f'Cannot {step} .*get_model_state_dict.*full_state_dict'):
        STEPS[step](model)


def pruned(layer):
    prune.l1_unstructured(layer, 'weight', 0.5)


def hooked(layer):
    del layer.weight
    layer.weight = torch.ones(1)  # a hook of the user's computes it


def adapted(layer):
    layer.base_layer = copy.deepcopy(layer)  # as peft's layers have it


COMPUTED = {
    'prune.remove': (pruned, prune.remove),
    'remove_parametrizations': (
        parametrizations.spectral_norm,
        remove_parametrizations,
    ),
    'remove_weight_norm': (weight_norm, nn.utils.remove_weight_norm),
    'remove_spectral_norm': (spectral_norm, nn.utils.remove_spectral_norm),
    'first': (hooked, None),
    'merge_and_unload': (adapted, None),
}


@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
@pytest.mark.parametrize('place', ['layer1.0.convs.0', 'fc'])
@pytest.mark.parametrize('call', COMPUTED)
def test_computed_weights_are_refused(call, place):
    """At every step, with the call that makes them parameters, after which the model deploys."""
    model, x = network(), image()
    layer = model.get_submodule(place)
    compute, undo = COMPUTED[call]
    compute(layer)
    model.eval()
    for step, run in STEPS.items():
        with pytest.raises(ValueError, match=f"Cannot {step} Res2Net, .*'{place}' .*{call}"):
            run(model)
    if undo is not None:
        with torch.inference_mode():
            expected = model(x)
            undo(layer, 'weight')
            assert relative_error(reparameterize_model(model)(x), expected) < 1e-5


# --- threads, hooks, copies and forks: each answer is the sequential one --------------------------


def watch(module, args, output):
    """A hook that changes nothing."""


class Case:
    """A deployed model, inputs of several shapes, and what a fresh copy answers to each."""

    def __init__(self, **kwargs):
        self.plain = network(**kwargs)
        self.model = reparameterize_model(self.plain)
        shapes = [(1, 3, 64, 64), (2, 3, 48, 80), (1, 3, 96, 64), (3, 3, 33, 65)]
        self.inputs = [torch.randn(shape) for shape in shapes]
        copies = [copy.deepcopy(self.model) for _ in shapes]  # not in inference, where none packs
        with torch.inference_mode():
            self.expected = [one(x) for one, x in zip(copies, self.inputs, strict=True)]

    def check(self, model: nn.Module | None = None) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            for x, expected in zip(self.inputs, self.expected, strict=True):
                assert torch.equal((model or self.model)(x), expected)


@pytest.mark.parametrize('kwargs', [{'attn_layer': ''}, {}], ids=str)
def test_threads(kwargs):
    """Four of them, while the model is copied, pickled and watched."""
    case, copies = Case(**kwargs), []
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(case.check) for _ in range(12)]
        while not all(result.done() for result in results):
            handles = [m.register_forward_hook(watch) for m in case.model.modules()]
            copies = [copy.deepcopy(case.model), pickle.loads(pickle.dumps(case.model))]
            for handle in handles:
                handle.remove()
    for result in results:
        result.result()
    for model in copies:
        case.check(model)


@pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(), reason='this system cannot fork'
)
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_fork():
    """As the workers of a DataLoader, which run in one thread."""
    case = Case()
    case.check()  # packed in the parent
    child = multiprocessing.get_context('fork').Process(target=case.check)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_one_tensor_in_several_places():
    """A batch that repeats an image without a copy of it, and a residual that is the input."""
    case = Case(attn_layer='')
    x = case.inputs[0].expand(3, -1, -1, -1)
    layer = fuse(nn.Conv2d(8, 8, 1), nn.Identity(), nn.ReLU())
    z = image(2, 9, 8).contiguous(memory_format=torch.channels_last)
    kept = z.clone()
    with torch.inference_mode():
        expected = F.relu(F.conv2d(z, layer.weight, layer.bias) + z)
        for _ in range(2):
            assert relative_error(case.model(x), case.plain(x)) < 1e-5
            assert relative_error(layer(z, z), expected) < 1e-5
            assert torch.equal(z, kept)
