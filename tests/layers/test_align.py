"""Aligned widths against the same model without: function, training, and everything around it."""

import copy
import io
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

from tests.common import DEVICES, TINY, image, randomise, relative_error, slow_except
from timm_res2net import align_widths, reparameterize_model
from timm_res2net.layers.align import AlignedBatchNorm2d, AlignedConv2d, align_blocks, aligned_width
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.layers.fold import pad_splits
from timm_res2net.semantics import SEMANTICS


def two(name=TINY, multiple=8, **kwargs):
    """The same weights without and with aligned widths, in float64."""
    plain = randomise(timm.create_model(name, **kwargs)).double()
    aligned = align_widths(copy.deepcopy(plain), multiple)
    assert any(isinstance(module, AlignedConv2d) for module in aligned.modules())
    return plain, aligned


def test_padding():
    x = torch.arange(12.0).view(6, 2)
    got = pad_splits(x, 0, (3, 2, 4), value=-1)
    minus = torch.full((2, 2), -1.0)
    assert torch.equal(got, torch.cat([x[:2], minus, x[2:4], minus, x[4:], minus]))
    assert torch.equal(pad_splits(x.T, 1, (3, 2, 4), value=-1), got.T)
    assert pad_splits(x, 0, (3, 2, 2)) is x


@pytest.mark.parametrize(
    ('width', 'groups', 'multiple', 'padded'),
    [(26, 1, 8, 32), (52, 1, 8, 56), (104, 1, 8, 104), (26, 1, 1, 26), (32, 8, 8, 32),
     (12, 4, 8, 16), (15, 3, 8, 24), (6, 2, 5, 10)],
)  # fmt: skip
def test_width(width, groups, multiple, padded):
    assert aligned_width(width, groups, multiple) == padded


@pytest.mark.parametrize('semantics', SEMANTICS)
@pytest.mark.parametrize('scale', slow_except([1, 4], [1, 2, 4, 8]))
@pytest.mark.parametrize(
    'kwargs', [{}, {'cardinality': 2}, {'output_stride': 8}, {'act_layer': 'sigmoid'}], ids=str
)
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_function_statistics_and_gradients(semantics, scale, kwargs, mode):
    plain, aligned = two(semantics=semantics, scale=scale, base_width=28, **kwargs)
    plain.train(mode == 'train')
    aligned.train(mode == 'train')
    x = image(3, 33).double()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, got = plain(one), aligned(other)
    assert relative_error(got, expected) < 1e-12
    expected.square().sum().backward()
    got.square().sum().backward()
    assert relative_error(other.grad, one.grad) < 1e-10
    for (name, p), q in zip(plain.named_parameters(), aligned.parameters(), strict=True):
        assert (q.grad - p.grad).abs().max() <= 1e-10 * max(float(p.grad.abs().max()), 1), name
    for (name, p), q in zip(plain.named_buffers(), aligned.buffers(), strict=True):
        assert (q - p).abs().max() <= 1e-12 * max(float(p.abs().max()), 1), name


@pytest.mark.parametrize(
    ('name', 'multiple'),
    [
        ('res2net50_26w_4s', 8),
        pytest.param('res2next50', 24, marks=pytest.mark.slow),
        pytest.param('res2net50d', 16, marks=pytest.mark.slow),
    ],
)
def test_timms_own_models(name, multiple):
    plain, aligned = two(name, multiple)
    plain.eval()
    aligned.eval()
    x = image(1, 65).double()
    assert type(aligned) is type(plain)
    assert isinstance(aligned.layer1[0], TimmBottle2neck)
    with torch.inference_mode():
        assert relative_error(aligned(x), plain(x)) < 1e-12
        assert relative_error(reparameterize_model(aligned)(x), plain(x)) < 1e-12


def optimizer(model, name):
    if name == 'sgd':
        return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    if name == 'adamw':
        return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    return create_optimizer_v2(model, opt='lamb', lr=1e-3, weight_decay=0.05)


def train(model, name, steps=20):
    """Losses of a few steps with clipping, and an EMA copy that followed."""
    generator, device = torch.Generator().manual_seed(3), next(model.parameters()).device
    x = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64).to(device)
    y = torch.tensor([0, 3, 5, 9], device=device)
    opt, ema = optimizer(model, name), ModelEmaV3(model, decay=0.9)
    losses = []
    for step in range(steps):
        opt.zero_grad()
        loss = F.cross_entropy(model.train()(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        ema.update(model, step)
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64), opt, ema.module


@pytest.mark.parametrize('name', slow_except(['adamw'], ['sgd', 'adamw', 'lamb']))
def test_training(name):
    plain, aligned = two()
    before = aligned.layer1[0].bn1.running_var.clone()
    ours = train(aligned, name)
    theirs = train(plain, name)
    assert theirs[0][-1] < theirs[0][0]
    assert relative_error(ours[0], theirs[0]) < 1e-10
    for got, expected in ((aligned, plain), (ours[2], theirs[2])):
        for key, value in expected.state_dict().items():
            found = got.state_dict()[key]
            assert found.shape == value.shape
            assert (found - value).abs().max() <= 1e-10 * max(float(value.abs().max()), 1), key
    for a, b in zip(ours[1].state.values(), theirs[1].state.values(), strict=True):
        for key, value in b.items():
            if isinstance(value, torch.Tensor):
                assert a[key].shape == value.shape, key
                assert (a[key] - value).abs().max() <= 1e-10 * max(float(value.abs().max()), 1)
    # the EMA copy followed, and is aligned itself
    assert not torch.equal(ours[2].layer1[0].bn1.running_var, before)
    assert isinstance(ours[2].layer1[0].bn1, AlignedBatchNorm2d)


@pytest.mark.parametrize('device', DEVICES)
def test_training_on_a_device(device):
    plain, aligned = (model.to(device) for model in two())
    losses = [train(model, 'sgd', steps=3)[0] for model in (plain, aligned)]
    assert relative_error(*losses) < 1e-10
    x, y = image(4, 33).to(device), torch.tensor([0, 3, 5, 9], device=device)
    with torch.autocast(device, torch.bfloat16):
        low = [F.cross_entropy(m.float()(x), y).item() for m in (plain, aligned)]
    assert low[0] == pytest.approx(low[1], rel=0.05)  # 8 bits, a few dozen roundings


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(0)
    plain = timm.create_model(TINY).state_dict()
    torch.manual_seed(0)
    aligned = timm.create_model(TINY, width_multiple=8).state_dict()
    assert list(plain) == list(aligned)
    assert all(torch.equal(plain[key], aligned[key]) for key in plain)


def test_weights_go_either_way(tmp_path):
    plain, aligned = two()
    save_file(aligned.state_dict(), tmp_path / 'model.safetensors')
    state = load_file(tmp_path / 'model.safetensors')
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    fresh = timm.create_model(TINY).double().eval()
    fresh.load_state_dict(state)
    x = image().double()
    assert relative_error(aligned.eval()(x), fresh(x)) < 1e-12
    pretrained = timm.create_model(TINY, pretrained=True, width_multiple=8).eval()
    reference = timm.create_model(TINY, pretrained=True).eval()
    assert relative_error(pretrained(image()), reference(image())) < 1e-5
    assert pretrained.model_args['width_multiple'] == 8
    assert aligned.model_args['width_multiple'] == 8
    assert plain.model_args['width_multiple'] == 1


def test_optimizer_and_parameters_stay():
    """A model that is aligned while it trains: the optimizer goes on with the same tensors."""
    model = randomise(timm.create_model(TINY))
    before = list(model.parameters()), list(model.buffers())
    assert align_widths(model, 8) is model
    after = list(model.parameters()), list(model.buffers())
    for one, other in zip(before, after, strict=True):
        assert [id(t) for t in one] == [id(t) for t in other]


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter', 'fx'])
def test_features(feature_cls):
    kwargs = {'features_only': True, 'feature_cls': feature_cls}
    plain = randomise(timm.create_model(TINY, **kwargs)).eval()
    aligned = timm.create_model(TINY, width_multiple=8, **kwargs).eval()
    aligned.load_state_dict(plain.state_dict())
    outs, expected = aligned(image()), plain(image())
    if isinstance(outs, dict):
        outs, expected = list(outs.values()), list(expected.values())
    assert [o.shape for o in outs] == [e.shape for e in expected]
    assert all(relative_error(o, e) < 1e-5 for o, e in zip(outs, expected, strict=True))
    assert aligned.feature_info.channels() == plain.feature_info.channels()


def test_script_and_copies():
    plain, aligned = two()
    plain.eval()
    aligned.eval()
    x = image(2, 65).double()
    expected = plain(x)
    assert relative_error(torch.jit.script(aligned)(x), expected) < 1e-12
    assert relative_error(torch.jit.trace(aligned, x)(x), expected) < 1e-12
    assert relative_error(copy.deepcopy(aligned)(x), expected) < 1e-12
    buffer = io.BytesIO()
    torch.save(aligned, buffer)
    buffer.seek(0)
    assert relative_error(torch.load(buffer, weights_only=False)(x), expected) < 1e-12
    scripted = torch.jit.script(aligned.train())
    assert relative_error(scripted(x), plain.train()(x)) < 1e-10


@pytest.mark.slow
def test_export_and_compile():
    plain, aligned = two()
    plain.eval()
    aligned.eval()
    x = image(2, 65).double()
    exported = torch.export.export(aligned, (x,)).module()
    assert relative_error(exported(x), plain(x)) < 1e-12
    for mode in (False, True):
        compiled = torch.compile(aligned.train(mode), backend='eager', fullgraph=True)
        assert relative_error(compiled(x), plain.train(mode)(x)) < 1e-12


DDP = """
import os, sys, copy
import torch, timm, timm_res2net
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
rank = int(sys.argv[1])
dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
torch.set_num_threads(1)
plain = timm.create_model('test_res2net_se', zero_init_last=False).double()
models = [plain, timm_res2net.align_widths(copy.deepcopy(plain), 8)]
for model in models:
    ddp = DDP(model)
    opt = torch.optim.SGD(ddp.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        x = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
        opt.zero_grad()
        ddp(x).square().mean().backward()
        opt.step()
pairs = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
worst = max(float((a - b).abs().max()) for a, b in pairs)
assert worst < 1e-10, worst
total = sum(p.sum() for p in models[1].parameters()).detach()
other = total.clone()
dist.broadcast(other, 0)
assert torch.equal(total, other)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', DDP, str(rank), str(tmp_path / 'store')],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    errors = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors


def test_the_deploy_form_has_the_padding_baked_in():
    plain, aligned = two()
    deployed = reparameterize_model(aligned)
    assert not [m for m in deployed.modules() if isinstance(m, AlignedConv2d | AlignedBatchNorm2d)]
    assert deployed.layer1[0].conv1.out_channels % 8 == 0
    with torch.inference_mode():
        x = image(1, 65).double()
        assert relative_error(deployed(x), plain.eval()(x)) < 1e-12


def test_what_is_aligned_already_stays_plain():
    model = align_widths(timm.create_model('res2net50_26w_4s'), 8)
    assert type(model.layer1[0].conv1) is AlignedConv2d
    assert type(model.layer3[0].conv1) is nn.Conv2d  # 104 channels
    model = align_widths(timm.create_model(TINY), 1)
    assert not [m for m in model.modules() if isinstance(m, AlignedConv2d)]


@pytest.mark.parametrize('multiple', [0, -8, 8.0, '8', True, None])
def test_multiple(multiple):
    with pytest.raises(ValueError, match='width_multiple must be a whole number') as error:
        align_widths(timm.create_model(TINY), multiple)
    assert repr(multiple) in str(error.value)


@pytest.mark.parametrize(
    ('kwargs', 'value', 'remedy'),
    [
        ({'norm_layer': 'groupnorm1'}, 'GroupNorm1', 'Leave width_multiple at 1'),
        ({'drop_block_rate': 0.1}, 'DropBlock', 'width_multiple at 1 or drop_block_rate at 0'),
    ],
)
def test_what_cannot_be_aligned(kwargs, value, remedy):
    with pytest.raises(ValueError, match=value) as error:
        timm.create_model(TINY, width_multiple=8, **kwargs)
    assert remedy in str(error.value)
    model = timm.create_model(TINY, **kwargs)
    with pytest.raises(ValueError):
        align_widths(model, 8)
    assert not [m for m in model.modules() if isinstance(m, AlignedConv2d)]


def test_twice():
    with pytest.raises(ValueError, match=r'already aligned.*another width_multiple'):
        align_widths(timm.create_model(TINY, width_multiple=8), 16)


CONVERTERS = {
    'torch': nn.SyncBatchNorm.convert_sync_batchnorm,
    'timm': timm.layers.convert_sync_batchnorm,
    'freeze': timm.layers.freeze_batch_norm_2d,
    'split': timm.layers.convert_splitbn_model,
}


@pytest.mark.parametrize('name', CONVERTERS)
def test_conversion_to_another_norm(name):
    with pytest.raises(RuntimeError, match=r'aligned widths cannot be converted.*width_multiple=1'):
        CONVERTERS[name](timm.create_model(TINY, width_multiple=8))
    converted = CONVERTERS[name](timm.create_model(TINY))
    norm = type(converted.layer1[0].bn1).__name__
    with pytest.raises(ValueError, match=rf'{norm}.*Leave width_multiple at 1'):
        align_widths(converted, 8)


def test_all_blocks_or_none():
    model = timm.create_model(TINY)
    model.layer4[0].convs[0].padding_mode = 'reflect'
    with pytest.raises(ValueError, match=r'plain Conv2d.*Leave width_multiple at 1') as error:
        align_widths(model, 8)
    assert str(model.layer4[0].convs[0]) in str(error.value)
    assert not [m for m in model.modules() if isinstance(m, AlignedConv2d)]


@pytest.mark.parametrize(
    'arguments',
    [{'momentum': None}, {'track_running_stats': False}, {'affine': False}, {}],
    ids=['average', 'no statistics', 'no affine', 'statistics no longer tracked'],
)
def test_any_batchnorm(arguments):
    """What a BatchNorm2d may be: a cumulative average, no statistics, no affine."""
    plain = Bottle2neck(
        32, 8, base_width=26, norm_layer=lambda n, **dd: nn.BatchNorm2d(n, **arguments)
    ).double()
    if not arguments:
        for norm in (plain.bn1, *plain.bns):
            norm.track_running_stats = False
    aligned = copy.deepcopy(plain)
    align_blocks([aligned], 8)
    assert isinstance(aligned.bn1, AlignedBatchNorm2d)
    for mode in (True, True, False):
        x = image(2, 9, 32).double()
        assert relative_error(aligned.train(mode)(x), plain.train(mode)(x)) < 1e-12
    for a, b in zip(aligned.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_adapters_are_refused():
    """LoRA creates its layers by the class of the layer that it adapts."""
    conv = align_widths(timm.create_model(TINY), 8).layer1[0].conv1
    with pytest.raises(ValueError, match='takes no adapter') as error:
        type(conv)(conv.in_channels, 4, conv.kernel_size, bias=False)
    error.match(r'width_multiple=1.*merge_and_unload\(\)')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore:Constant folding:UserWarning')
def test_torchs_older_onnx_exporter():
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs the extra export')
    model, x, file = (
        align_widths(randomise(timm.create_model(TINY)), 8).eval(),
        image(),
        io.BytesIO(),
    )
    torch.onnx.export(
        model, (x,), file, dynamo=False, input_names=['x'], dynamic_axes={'x': {0: 'batch'}}
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    for one in (x, image(3)):
        (got,) = session.run(None, {'x': one.numpy()})
        assert relative_error(torch.from_numpy(got), model(one)) < 1e-5
