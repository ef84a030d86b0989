"""Every form of a layer against the plain one, and when it is chosen."""

import copy
import io

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from tests.common import image, randomise, relative_error, saved
from timm_res2net.layers import fused_conv
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.layers.fused_block import FusedStage
from timm_res2net.layers.fused_conv import (
    MOST_PACKS,
    REMEMBERED,
    SMALL,
    FusedConv2d,
    Packs,
    fuse,
    fuse_sequential,
    fuses,
)

FIXTURES = [HealthCheck.function_scoped_fixture]
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture(autouse=True)
def small_and_anywhere(monkeypatch):
    """Small layers run packed, too, and on every machine that has oneDNN."""
    monkeypatch.setattr(fused_conv, 'SMALL', 1)
    monkeypatch.setattr(fused_conv, '_PACKS', torch.backends.mkldnn.is_available())


def layers(act=None, padding=1, **kwargs):
    conv = nn.Conv2d(6, 8, 3, padding=padding, **kwargs)
    return randomise(nn.Sequential(conv, nn.BatchNorm2d(8), act or nn.ReLU())).eval()


class Spy:
    """Counts how often oneDNN's operator ran, and how often a pack was looked for."""

    def __init__(self, monkeypatch):
        self.packs, self.runs = 0, 0
        run, find = FusedConv2d._forward_packed, Packs.find

        def forward(layer, *args):
            self.runs += 1
            return run(layer, *args)

        def counted(packs, *args):
            self.packs += 1
            return find(packs, *args)

        monkeypatch.setattr(FusedConv2d, '_forward_packed', forward)
        monkeypatch.setattr(Packs, 'find', counted)


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


@settings(max_examples=40, deadline=None, suppress_health_check=FIXTURES)
@given(
    packed=st.booleans(),
    act=st.sampled_from([nn.ReLU(), nn.SiLU(), nn.Identity()]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    bias=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    side=st.integers(1, 9),
)
def test_convolution_norm_activation_and_add(
    packed, act, stride, dilation, groups, bias, layout, side, spy
):
    kwargs = dict(stride=stride, dilation=dilation, groups=groups, bias=bias)
    conv, norm, act = layers(act, padding=2, **kwargs)
    fused, before = fuse(conv, norm, act), spy.runs
    x = image(2, side, 6).contiguous(memory_format=layout)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_conv, '_PACKS', packed)
        plain = norm(conv(x))
        residual = torch.randn(plain.shape).contiguous(memory_format=layout)
        kept = residual.clone()
        for _ in range(2):  # packed, from the pack
            assert relative_error(fused(x), act(plain)) < 1e-6
            assert relative_error(fused(x, residual), act(plain + residual)) < 1e-6
            assert torch.equal(residual, kept)
        assert relative_error(fused(x, residual, True), act(plain + kept)) < 1e-6
    assert spy.runs - before == 5 * packed


def test_small_convolutions_take_the_plain_form(spy, monkeypatch):
    monkeypatch.setattr(fused_conv, 'SMALL', SMALL)
    fused = fuse(nn.Conv2d(64, 64, 1, stride=2), nn.Identity(), nn.ReLU())
    with torch.inference_mode():
        for side, runs in ((30, 0), (32, 1), (30, 1)):  # 0.92 and 1.05 million multiply-adds
            fused(image(1, side, 64))
            assert spy.runs == runs


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
    assert spy.runs == 10


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_what_the_processor_does_not_support_takes_the_plain_form(dtype, spy, monkeypatch):
    def refuse(*args):
        raise RuntimeError('needs the cpu support')

    monkeypatch.setattr(torch.ops.mkldnn, '_reorder_convolution_weight', refuse)
    conv, norm, act = layers()
    fused, x = fuse(conv, norm, act).to(dtype), image(2, 9, 6)
    with torch.inference_mode():
        for _ in range(2):
            got = fused(x.to(dtype))
            assert relative_error(got.float(), act(norm(conv(x)))) < 0.02
    assert (spy.packs, spy.runs) == (1, 0)


# --- packs ----------------------------------------------------------------------------------------


def in_turn(fused, widths):
    """Run a layer on maps of these widths, and compare with the plain form."""
    with torch.inference_mode():
        for width in widths:
            x = image(1, max(9, width), channels=6)[..., :9, :width]
            expected = F.relu(F.conv2d(x, fused.weight, fused.bias, 1, fused.padding))
            assert relative_error(fused(x), expected) < 1e-6


@pytest.fixture
def layouts(monkeypatch):
    """Let the layout depend on the width alone, by a table that the test fills."""
    table = {}
    reorder = torch.ops.mkldnn._reorder_convolution_weight
    made = {}

    def pack(weight, padding, stride, dilation, groups, shape):
        packed = reorder(weight, padding, stride, dilation, groups, shape)
        made[id(packed)] = packed, table[shape[-1]]
        return packed

    def describe(packed):
        return torch.tensor(list(made[id(packed)][1].encode()), dtype=torch.uint8)

    monkeypatch.setattr(torch.ops.mkldnn, '_reorder_convolution_weight', pack)
    monkeypatch.setattr(torch.ops.mkldnn, '_get_mkldnn_serialized_md', describe)
    return table


def test_the_number_of_packs_is_bounded(layouts, spy):
    """Shapes of one layout share a pack; a layout that is missed twice in a row gets one."""
    layouts.update({7: 'a', 8: 'a', 9: 'b', 10: 'c', 11: 'd'})
    fused = fuse(*layers())
    for widths, packs, kept in (
        ([7, 8, 9, 8, 9, 7], 3, 'ab'),
        ([10, 8, 11, 9, 10, 11], 4, 'ab'),  # packed for one call each
        ([11, 11, 11], 1, 'd'),
        ([8, 11, 8], 1, 'da'),
    ):
        spy.packs = 0
        in_turn(fused, widths)
        assert spy.packs == packs, widths
        assert b''.join(fused._packs.of_layout).decode() == kept
        assert len(fused._packs.of_layout) <= MOST_PACKS
        held = {id(pack) for pack in fused._packs.of_shape.values()}
        assert held <= {id(pack) for pack in fused._packs.of_layout.values()}


def test_shapes_are_forgotten():
    """What is kept of shapes is bounded, and results stay right."""
    fused = fuse(*layers())
    in_turn(fused, [8])
    for n in range(REMEMBERED - 1):
        fused._packs.of_shape[n] = None
    in_turn(fused, [9, 8])
    assert len(fused._packs.of_shape) == 2


# --- new weights ----------------------------------------------------------------------------------


def write(fused, other):
    with torch.no_grad():
        fused.weight.copy_(other.weight)


def replace_by_an_older_name(fused, other):
    """The same memory and version under another parameter, written to in between."""
    older = nn.Parameter(fused.weight.data)
    write(fused, other)
    fused.weight = older


def set_data(fused, other):
    fused.weight.data = other.weight.detach().clone()


CHANGES = {
    'write': write,
    'assign': lambda fused, other: fused.load_state_dict(other.state_dict(), assign=True),
    'older': replace_by_an_older_name,
    'data': set_data,
    'round': lambda fused, other: fused.bfloat16().float(),
    'swap': lambda fused, other: torch.utils.swap_tensors(
        fused.weight, nn.Parameter(other.weight.detach().clone())
    ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_new_weights_are_noticed(change):
    fused = fuse(*layers())
    other = fuse(*randomise(nn.Sequential(*layers()), 7).eval())
    x = image(2, 9, 6)
    with torch.inference_mode():
        for _ in range(2):
            before = fused(x)
    CHANGES[change](fused, other)
    with torch.inference_mode():
        expected = F.relu(F.conv2d(x, fused.weight, fused.bias, 1, 1))
        for _ in range(3):
            assert relative_error(fused(x), expected) < 1e-6
        assert relative_error(before, expected) > 1e-4


def test_copies_and_files_have_no_pack():
    fused, x = fuse(*layers()), image(2, 9, 6)
    with torch.inference_mode():
        expected = [fused(x) for _ in range(3)][-1]
        assert fused._packs is not None
        file = io.BytesIO(saved(fused))
        for same in (copy.deepcopy(fused), torch.load(file, weights_only=False)):
            assert same._packs is None
            assert relative_error(same(x), expected) < 1e-6
    assert set(fused.state_dict()) == {'weight', 'bias'}


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
        pruned = copy.deepcopy(fused)  # its weight is no parameter any more
        prune.identity(pruned, 'weight')
        assert relative_error(pruned(x), expected) < 1e-6
        born = copy.deepcopy(fused)  # its weights have no version
        assert relative_error(born(x), expected) < 1e-6
        born.weight = fused.weight
        assert relative_error(born(x), expected) < 1e-6
    assert spy.runs == runs + 1  # the last one
    for wrong in (image(2, 9, 5), image(2, 9, 6).int()):  # torch's own errors
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r'channels|dtype|type'):
            fused(wrong)


# --- what fuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('conv', 'norm'),
    [
        ({}, nn.GroupNorm(2, 8)),
        ({}, nn.BatchNorm2d(8, track_running_stats=False)),
        ({}, BatchNormAct2d(8)),
        ({'padding_mode': 'reflect'}, nn.BatchNorm2d(8)),
        ({'padding': 'same'}, nn.BatchNorm2d(8)),
        (None, nn.BatchNorm2d(8)),
    ],
    ids=['group', 'no statistics', 'with an activation', 'reflect', 'same', 'no convolution'],
)
def test_what_does_not_fuse_is_kept(conv, norm):
    conv = nn.Identity() if conv is None else nn.Conv2d(8, 8, 3, **{'padding': 1, **conv})
    whole = randomise(nn.Sequential(conv, norm)).eval()
    assert not fuses(conv, norm)
    x = image(2, 9, 8)
    assert torch.equal(fuse_sequential(whole)(x), whole(x))
    block = Bottle2neck(32, 8, base_width=64).eval()
    block.convs[1], block.bns[1] = conv, norm
    same = block.fuse()
    x = image(2, 9, 32)
    assert torch.equal(same(x), block(x))
    assert type(same) is Bottle2neck
    assert same is not block


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


def test_a_stage_writes_over_its_own_tensors_only():
    whole, fused = stage()
    x = image(2, 9, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
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
        assert fused[1].run(made, True, True).data_ptr() == place
        assert fused[1].run(made, True, False).data_ptr() != place
        assert fused[1].run(made).data_ptr() != place
        shortcut = fused[0].downsample(x)
        fused[0].downsample.forward = lambda x: shortcut
        assert fused[0].run(x, False, True).data_ptr() == shortcut.data_ptr()
        del fused[0].downsample.forward
        fused[0].run = lambda *args: made
        assert fused(x).data_ptr() == place


@pytest.mark.parametrize('where', ['1', '0.conv1', '1.convs.1', '0.conv3', '0.downsample', ''])
@pytest.mark.parametrize('kind', ['forward_pre_hook', 'forward_hook'])
def test_what_a_hook_was_shown_stays(where, kind):
    """On a block, a layer, a shortcut, and on all modules."""
    whole, fused = stage()
    seen = []
    x = image(2, 9, 32)

    def hook(module, *shown):
        for tensor in (*shown[0], *shown[1:]):
            if isinstance(tensor, torch.Tensor):
                seen.append((tensor, tensor.clone()))

    if where:
        handle = getattr(fused.get_submodule(where), f'register_{kind}')(hook)
    else:
        handle = getattr(nn.modules.module, f'register_module_{kind}')(hook)
    with torch.inference_mode():
        for _ in range(2):
            got = fused(x)
        handle.remove()
        assert relative_error(got, whole(x)) < 1e-5
    assert seen
    assert all(torch.equal(tensor, copied) for tensor, copied in seen)


def test_a_stage_runs_whatever_stands_in_it():
    whole, fused = stage()
    fused[2] = nn.Identity()
    fused[1].forward = lambda x: x * 2
    x, seen, forward = image(2, 9, 32), [], fused[0].conv3.forward

    def note(*args):
        seen.append(forward(*args))
        seen.append(seen[0].clone())
        return seen[0]

    fused[0].conv3.forward = note
    with torch.inference_mode():
        assert relative_error(fused(x), whole[0](x) * 2) < 1e-5
    assert torch.equal(*seen)  # what it returned


def test_a_stage_looks_once(monkeypatch):
    """At its input; neither its blocks nor their layers do. A block that runs alone does."""
    _, fused = stage()
    seen, look = [], fused_conv.is_finite

    def is_finite(x):
        seen.append(x)
        return look(x)

    monkeypatch.setattr(fused_conv, 'is_finite', is_finite)
    x = image(2, 9, 32)
    with torch.inference_mode():
        for module in (fused, fused[1]):
            module(x)
            assert [id(one) for one in seen] == [id(x)]
            seen.clear()
        fused[1].register_forward_hook(lambda *args: None)  # the stage calls its blocks
        fused(x)
    assert [id(one) for one in seen] == [id(x)]
