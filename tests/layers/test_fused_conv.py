"""Every form of a layer against the plain one, and when it is chosen."""

import copy
import io
import struct
import threading

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.common import image, randomise, relative_error
from timm_res2net import reparameterize_model
from timm_res2net.layers import rules
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.layers.fused_block import FusedStage
from timm_res2net.layers.fused_conv import FusedConv2d, Unfused, fuse, fuse_sequential
from timm_res2net.layers.packs import (
    REMEMBERED,
    TRUSTED,
    Key,
    Packs,
    infer_layout,
    without_padding,
)
from timm_res2net.layers.rules import override

BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def layers(act=None, **kwargs):
    conv = nn.Conv2d(6, 8, 3, padding=1, **kwargs)
    return randomise(nn.Sequential(conv, nn.BatchNorm2d(8), act or nn.ReLU())).eval()


class Spy:
    """Counts how often oneDNN's operator ran, and how often a weight was packed."""

    def __init__(self, monkeypatch):
        self.packs, self.runs = 0, 0
        run, pack = FusedConv2d._forward_packed, Packs._pack

        def forward(layer, *args):
            self.runs += 1
            return run(layer, *args)

        def counted(packs, *args):
            self.packs += 1
            return pack(packs, *args)

        monkeypatch.setattr(FusedConv2d, '_forward_packed', forward)
        monkeypatch.setattr(Packs, '_pack', counted)


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('act', [nn.ReLU(), nn.SiLU(), nn.Identity()], ids=str)
@pytest.mark.parametrize(
    'kwargs', [{}, {'stride': 2}, {'dilation': 2}, {'groups': 2}, {'bias': False}], ids=str
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolution_norm_activation_and_add(packed, act, kwargs, layout, spy):
    conv, norm, act = layers(act, **kwargs)
    fused = fuse(conv, norm, act)
    x = image(2, 9, 6).contiguous(memory_format=layout)
    with torch.inference_mode(), override(packed=packed):
        before = norm(conv(x))
        residual = torch.randn(before.shape).contiguous(memory_format=layout)
        kept = residual.clone()
        for _ in range(3):  # packed, from the pack
            assert relative_error(fused(x), act(before)) < 1e-6
        for _ in range(3):
            assert relative_error(fused(x, residual), act(before + residual)) < 1e-6
        assert torch.equal(residual, kept)
        assert relative_error(fused(x, residual, True), act(before + kept)) < 1e-6
    assert spy.runs == 7 * packed


def test_float64_and_gradients_take_the_plain_form(spy):
    conv, norm, act = layers()
    fused = fuse(conv, norm, act)
    x = image(2, 9, 6).requires_grad_()
    fused(x).sum().backward()
    assert x.grad is not None
    assert fused.weight.grad is not None
    with torch.inference_mode():
        wide = copy.deepcopy(fused).double()
        assert relative_error(wide(x.double()), act(norm(conv(x))).double()) < 1e-6
    assert spy.runs == 0


@pytest.mark.skipif(not BF16, reason='oneDNN has no bfloat16 on this machine')
def test_bfloat16_and_autocast(spy):
    conv, norm, act = layers()
    x = image(2, 9, 6)
    fused = fuse(conv, norm, act)
    expected = act(norm(conv(x)))
    low, wide = copy.deepcopy(fused).bfloat16(), copy.deepcopy(fused).double()
    with torch.inference_mode():
        for _ in range(3):
            got = low(x.bfloat16())
            assert got.dtype == torch.bfloat16
            assert relative_error(got.float(), expected) < 0.02
        with torch.autocast('cpu', torch.bfloat16):
            for _ in range(3):
                assert fused(x).dtype == F.conv2d(x, fused.weight).dtype == torch.bfloat16
                assert relative_error(fused(x).float(), expected) < 0.02
            assert wide(x.double()).dtype == torch.float64  # autocast leaves it alone
        assert fused(x).dtype == torch.float32
    assert spy.runs == 10
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r'dtype|type'):
        low(x)  # as a plain convolution


def in_turn(fused, sizes, channels=6):
    """Run a layer on maps of these sizes, compare with the plain form, and count the packs kept."""
    counts = []
    with torch.inference_mode():
        for height, width in sizes:
            x = image(1, max(height, width), channels=channels)[..., :height, :width]
            plain = F.conv2d(x, fused.weight, fused.bias, 1, fused.padding, 1, fused.groups)
            expected = F.relu(plain)
            assert relative_error(fused(x), expected) < 1e-6
            counts.append(len(fused._packs.packs))
    return counts


def test_a_shape_that_comes_again_is_not_packed_again(spy):
    fused = fuse(*layers())
    sizes = [(9, 9), (12, 9), (9, 9), (12, 9), (12, 12), (9, 9), (12, 9), (12, 12)]
    in_turn(fused, sizes)
    assert spy.packs == 3  # one for each shape
    in_turn(fused, sizes)
    assert spy.packs == 3


def test_the_number_of_packs_is_bounded(monkeypatch, spy):
    """A pack gives way to one that two inputs in a row ask for, not to an input in between."""
    layout = iter(range(100))
    known = {}

    def pack(packs, conv, x):
        spy.packs += 1
        width = x.shape[-1]
        return packs.originals[0], known.setdefault(width, b'%d' % next(layout))

    monkeypatch.setattr(Packs, '_pack', pack)
    for most, widths, counts, packings in (
        (1, [8, 9, 8, 9, 9, 8], [1, 1, 1, 1, 1, 1], 5),  # the second 9 in a row is kept
        (2, [8, 9, 8, 9, 9, 8], [1, 2, 2, 2, 2, 2], 2),
        (2, [8, 9, 7, 8, 7, 7, 9, 8], [1, 2, 2, 2, 2, 2, 2, 2], 6),
    ):
        monkeypatch.setattr('timm_res2net.layers.fused_conv.most_packs', lambda conv, n=most: n)
        spy.packs = 0
        assert in_turn(fuse(*layers()), [(12, width) for width in widths]) == counts
        assert spy.packs == packings, (most, widths)


def test_memory_of_packs():
    """At most two copies of a 1x1 weight that is small or slow to pack, and one of any other."""

    def most(out, into, kernel):
        return rules.most_packs(nn.Conv2d(into, out, kernel, device='meta'))

    assert most(832, 2048, 1) == most(512, 208, 1) == 2
    assert most(2048, 832, 1) == most(26, 26, 3) == most(208, 512, 3) == 1
    deployed = reparameterize_model(timm.create_model('res2net50_26w_4s', device='meta'))
    fused = [layer for layer in deployed.modules() if isinstance(layer, FusedConv2d)]
    packed = sum(rules.most_packs(layer) * layer.weight.numel() for layer in fused)
    assert packed <= 1.35 * sum(layer.weight.numel() for layer in fused)
    with override(packs=False):
        assert most(832, 2048, 1) == most(512, 208, 1) == 1


def test_shapes_are_forgotten(spy):
    """What is kept of shapes is bounded, and results stay right."""
    conv = nn.Conv2d(2, 2, 1)
    fused = fuse(conv, nn.Identity(), nn.ReLU())
    in_turn(fused, [(2, 1), (2, 2)], 2)
    for n in range(REMEMBERED - len(fused._packs.layouts)):
        fused._packs.layouts[Key(0, (n,), 0)] = b''
    fused._packs.most = 1
    with torch.inference_mode():
        fused(torch.ones(1, 2, 5, 7))  # height * width of no other
    assert len(fused._packs.layouts) == 1


def test_layouts_are_inferred_between_equal_neighbours():
    a, b = b'a', b'b'
    known = [(size, a if size < 60 else b) for size in range(10, 10 * TRUSTED + 10, 10)]
    assert infer_layout(known, 15) == a
    assert infer_layout(known, 30) == a  # also for a map of other sides
    assert infer_layout(known, 75) == b
    assert infer_layout(known, 55) is None  # it changes somewhere between 50 and 60
    assert infer_layout(known, 5) is None
    assert infer_layout(known, 500) is None
    assert infer_layout(known[: TRUSTED - 1], 15) is None
    assert infer_layout([*known, (20, b)], 75) is None
    assert infer_layout([*known[:-1], (80, a)], 75) is None
    assert infer_layout([(80, a), *known], 80) is None  # two maps of 80 pixels differ


def test_layouts_that_depend_on_the_width_are_asked_for(monkeypatch, spy):
    """As the padding of a descriptor made it seem."""

    def pack(packs, conv, x):
        spy.packs += 1
        return packs.originals[0], b'%d' % x.shape[-1]

    monkeypatch.setattr(Packs, '_pack', pack)
    fused = fuse(*layers())
    sizes = [(9, width) for width in range(8, 28)]
    in_turn(fused, sizes)
    assert spy.packs == len(sizes)
    assert set(fused._packs.layouts.values()) == {b'%d' % width for _, width in sizes}


avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != 'AVX512',
    reason='oneDNN may choose other layouts where the rules were not measured',
)


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(16, 16, 1),
        pytest.param(nn.Conv2d(16, 16, 3, padding=1), marks=avx512),
        pytest.param(nn.Conv2d(48, 48, 3, groups=3), marks=avx512),
    ],
    ids=str,
)
def test_a_pack_serves_the_sizes_that_are_inferred(conv, spy):
    """Layouts of these convolutions do not depend on the size; after eight sizes no one asks."""
    fused, channels = fuse(conv, nn.Identity(), nn.ReLU()), conv.in_channels
    in_turn(fused, [(n, n) for n in (4, 40, 8, 12, 16, 20, 24, 28)], channels)
    assert len(fused._packs.packs) == 1
    assert len({id(layout) for layout in fused._packs.layouts.values()}) == 1
    before = spy.packs
    in_turn(fused, [(n, m) for n in range(5, 40) for m in (7, 20, 33)], channels)
    assert spy.packs == before


def descriptor(dims=(8, 6, 3, 3), strides=(54, 9, 3, 1), blocks=(), filler=bytes(4)):
    """A memory descriptor of oneDNN 3 for float32; `filler` is what C leaves uninitialized."""

    def twelve(values):
        return struct.pack('=12q', *values, *[0] * (12 - len(values)))

    return b''.join((
        struct.pack('=ii', 1, len(dims)), twelve(dims), struct.pack('=i', 3), filler,
        twelve(dims), twelve(()), bytes(8), struct.pack('=i', 2), filler, twelve(strides),
        struct.pack('=i', len(blocks)), filler, twelve(blocks), twelve([0] * len(blocks)),
        filler * 39,
    ))  # fmt: skip


def test_padding_does_not_tell_layouts_apart():
    numbers = 8 * 6 * 9
    real = torch.ops.mkldnn._get_mkldnn_serialized_md(torch.randn(8, 6, 3, 3).to_mkldnn())
    layout = without_padding(descriptor(), numbers)
    assert layout == without_padding(real.numpy().tobytes(), numbers)
    assert layout == without_padding(descriptor(filler=b'junk'), numbers)
    others = [dict(strides=(54, 1, 18, 6)), dict(dims=(8, 6, 9, 1)), dict(blocks=(16,))]
    assert layout not in [without_padding(descriptor(**other), numbers) for other in others]
    for unknown in (b'', descriptor()[:300]):
        assert without_padding(unknown, numbers) == unknown
    assert without_padding(descriptor(), 7) == descriptor()


def test_new_weights_are_noticed():
    fused = fuse(*layers())
    other = fuse(*randomise(nn.Sequential(*layers()), 7).eval())
    x = image(2, 9, 6)

    def check(weight, bias):
        for _ in range(3):
            assert relative_error(fused(x), F.relu(F.conv2d(x, weight, bias, 1, 1))) < 1e-6

    with torch.no_grad():
        check(fused.weight, fused.bias)
        fused.load_state_dict(other.state_dict())  # in place
        check(other.weight, other.bias)
        fused.bias.add_(1)
        check(other.weight, other.bias + 1)
        fused.weight = nn.Parameter(other.weight * 2)  # another tensor
        check(other.weight * 2, other.bias + 1)
        fused.bfloat16().float()  # rounded, perhaps to where the first one was
        check(other.weight.bfloat16().float() * 2, (other.bias + 1).bfloat16().float())
        fused.weight.data.mul_(3)  # torch does not count it
        check(other.weight.bfloat16().float() * 6, (other.bias + 1).bfloat16().float())
        fused.weight.data[3, 2] = 0  # nor is it sampled
        fused.load_state_dict(fused.state_dict())
        check(fused.weight, fused.bias)
        fused.weight.data.fill_(float('nan'))
        assert fused(x).isnan().all()


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(2048, 832, 1),
        nn.Conv2d(26, 26, 3),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.Conv2d(3, 64, 7).to(memory_format=torch.channels_last),
        nn.Conv2d(1, 1, 1),
    ],
    ids=str,
)
def test_a_few_values_are_sampled(conv):
    """A view, whatever the layout, of at most some hundred values."""
    fused = fuse(conv, nn.Identity())
    sample = fused._sample()
    assert 1 <= sample.numel() <= 128
    before = sample.clone()
    fused.weight.data.add_(1)
    assert torch.equal(sample, before + 1)


def test_copies_and_files_have_no_pack():
    fused, x = fuse(*layers()), image(2, 9, 6)
    with torch.inference_mode():
        expected = [fused(x) for _ in range(3)][-1]
        assert fused._packs is not None
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        for same in (copy.deepcopy(fused), torch.load(buffer, weights_only=False)):
            assert same._packs is None
            assert relative_error(same(x), expected) < 1e-6
    assert set(fused.state_dict()) == {'weight', 'bias'}


def test_threads_may_share_a_layer():
    fused, x, y = fuse(*layers()), image(2, 9, 6), image(2, 12, 6)
    expected = {9: fused(x).detach(), 12: fused(y).detach()}
    worst = []

    def work():
        with torch.inference_mode():
            for _ in range(50):
                for one in (x, x, y, y):
                    worst.append(relative_error(fused(one), expected[one.shape[-1]]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 800
    assert max(worst) < 1e-6


def test_observers_see_plain_operators(spy, monkeypatch):
    fused, x = fuse(*layers()), image(2, 9, 6)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            fused(x)
        assert counter.get_total_flops() == 2 * 2 * 8 * 81 * 6 * 9
        expected = fused(x)
        runs = spy.runs
        mapped = torch.vmap(lambda one: fused(one[None])[0])(x)
        assert relative_error(mapped, expected) < 1e-6
        meta = copy.deepcopy(fused).to('meta')
        assert meta(x.to('meta')).shape == expected.shape
        assert fused(x[:0]).shape == (0, 8, 9, 9)
        assert relative_error(fused(x[0]), expected[0]) < 1e-6  # no batch
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, 'enabled', False)
            assert relative_error(fused(x), expected) < 1e-6
        graph = torch.fx.symbolic_trace(nn.Sequential(fused))
        assert relative_error(graph(x), expected) < 1e-6
    with torch.inference_mode():
        born = copy.deepcopy(fused)  # its weights have no version
        assert relative_error(born(x), expected) < 1e-6
        born.weight = fused.weight
        assert relative_error(born(x), expected) < 1e-6
    assert spy.runs == runs


def test_override():
    for name in rules.FORMS:
        with override(**{name: False}):
            assert rules._forced == {name: False}
            with override(**{name: True}):
                assert rules._forced == {name: True}
            assert rules._forced == {name: False}
    with pytest.raises(RuntimeError), override(packed=False):
        raise RuntimeError
    assert rules._forced == {}
    with (
        pytest.raises(ValueError, match=r"'linear'.*merge, packed, packs, slices"),
        override(linear=True),
    ):
        pass


def test_what_was_not_measured_stays_plain(spy, monkeypatch):
    fused, x = fuse(*layers()), image(2, 9, 6)
    monkeypatch.setattr(rules, '_PACKS', False)
    with torch.inference_mode():
        fused(x)
        assert spy.runs == 0
        with override(packed=True):
            fused(x)
        assert spy.runs == 1


def test_slices_are_written_where_the_tensor_is_large():
    maker = nn.Identity()
    with torch.inference_mode():
        assert not rules.writes_slices(maker, torch.empty(1, 104, 138, 138))
        assert rules.writes_slices(maker, torch.empty(1, 104, 139, 139))
    assert not rules.writes_slices(maker, torch.empty(1, 104, 139, 139))  # gradients are on


@pytest.mark.parametrize(
    ('conv', 'norm'),
    [
        (nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8)),
        (nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False)),
        (nn.Conv2d(6, 8, 3, padding=1), BatchNormAct2d(8)),
        (nn.Conv2d(6, 8, 3, padding=1, padding_mode='reflect'), nn.BatchNorm2d(8)),
        (nn.Conv2d(6, 8, 3, padding='same'), nn.BatchNorm2d(8)),
        (nn.Conv2d(6, 8, 3, padding='valid'), nn.BatchNorm2d(8)),
        (nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)), nn.BatchNorm2d(8)),
    ],
    ids=[
        'group',
        'no statistics',
        'with an activation',
        'reflect',
        'same',
        'valid',
        'no convolution',
    ],
)
def test_what_does_not_fuse_is_kept(conv, norm):
    whole = randomise(nn.Sequential(conv, norm)).eval()
    kept = fuse(*whole, nn.ReLU())
    assert type(kept) is Unfused
    x = image(2, 9, 6)
    assert torch.equal(kept(x), whole(x).relu())
    assert torch.equal(kept(x, kept(x)), (whole(x) + whole(x).relu()).relu())
    assert kept.conv is not conv
    assert torch.equal(fuse_sequential(whole)(x), whole(x))


def test_no_norm():
    conv, _, act = layers()
    fused = fuse(conv, nn.Identity(), act)
    x = image(2, 9, 6)
    assert type(fused) is FusedConv2d
    assert torch.equal(fused(x), act(conv(x)))
    assert fused.weight is not conv.weight


def test_a_sequence_keeps_its_names():
    before = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
    )  # fmt: skip
    before = randomise(before).double().eval()
    fused = fuse_sequential(before)
    x = image(2, 12, 6).double()
    assert relative_error(fused(x), before(x)) < 1e-13
    assert [type(layer) for layer in fused] == [
        nn.AvgPool2d, FusedConv2d, nn.Identity, nn.Identity, FusedConv2d, nn.Identity,
    ]  # fmt: skip
    assert not fused.training
    assert set(fused.state_dict()) == {'1.weight', '1.bias', '4.weight', '4.bias'}


def stage():
    """Three blocks, the first of them with a shortcut of its own, and their deploy form."""
    shortcut = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32))
    blocks = [
        Bottle2neck(32, 8, base_width=26, downsample=d).eval() for d in (shortcut, None, None)
    ]
    whole = randomise(nn.Sequential(*blocks)).eval()
    return whole, FusedStage(*(block.fuse() for block in whole))


@pytest.mark.parametrize('slices', [False, True])
def test_a_stage_writes_over_its_own_tensors_only(slices):
    whole, fused = stage()
    x = image(2, 9, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), override(slices=slices):
        expected = whole(x)
        for _ in range(3):
            kept = x.clone()
            assert relative_error(fused(x), expected) < 1e-5
            assert torch.equal(x, kept)
            for one, other in zip(fused, whole, strict=True):
                assert relative_error(one(x), other(x)) < 1e-5
                assert torch.equal(x, kept)


def test_a_stage_does_write_over_them():
    _, fused = stage()
    x = image(2, 9, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        made = fused[0](x)
        place = made.data_ptr()
        assert fused[1].run(made, True).data_ptr() == place
        assert fused[1].run(made, False).data_ptr() != place


@pytest.mark.parametrize(
    'where',
    ['0', '1', '0.conv1', '1.conv1', '1.convs.0', '1.convs.1', '0.conv3', '0.downsample',
     '0.downsample.0', 'everywhere'],
)  # fmt: skip
@pytest.mark.parametrize('kind', ['before', 'after'])
def test_what_a_hook_was_shown_stays(where, kind):
    whole, fused = stage()
    seen = []
    x = image(2, 9, 32)

    def hook(module, *shown):
        for tensor in (*shown[0], *shown[1:]):
            if isinstance(tensor, torch.Tensor):
                seen.append((tensor, tensor.clone()))

    if where == 'everywhere' and kind == 'before':
        handle = nn.modules.module.register_module_forward_pre_hook(hook)
    elif where == 'everywhere':
        handle = nn.modules.module.register_module_forward_hook(hook)
    elif kind == 'before':
        handle = fused.get_submodule(where).register_forward_pre_hook(hook)
    else:
        handle = fused.get_submodule(where).register_forward_hook(hook)
    with torch.inference_mode(), override(slices=True):
        for _ in range(3):
            got = fused(x)
        handle.remove()
        assert relative_error(got, whole(x)) < 1e-5
    assert seen
    assert all(torch.equal(tensor, copied) for tensor, copied in seen)


def test_a_stage_runs_whatever_stands_in_it():
    whole, fused = stage()
    fused[2] = nn.Identity()
    fused[1].forward = lambda x: x * 2
    with torch.inference_mode():
        x = image(2, 9, 32)
        assert relative_error(fused(x), whole[0](x) * 2) < 1e-5
