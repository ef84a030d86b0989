"""The block and its deploy form, against a plain reference and against timm's block."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropBlock2d, DropPath, EcaModule, SEModule
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from torch import nn

from tests.common import (
    DILATES_FIRST,
    TABLE,
    Reference,
    image,
    randomise,
    relative_error,
)
from timm_res2net import Bottle2neck, Res2Net
from timm_res2net.layers import fused_conv
from timm_res2net.layers.bottle2neck import ATTN_LAYERS
from timm_res2net.layers.fused_block import FusedBottle2neck
from timm_res2net.layers.semantics import SEMANTICS

KINDS = (None, 'first', 'strided', 'dilated')  # None: not the first block of its stage


def blocks(**more):
    """Arguments of a block: those of `build`."""
    return st.fixed_dictionaries(
        {
            'semantics': st.sampled_from(sorted(TABLE)),
            'kind': st.sampled_from(KINDS),
            'scale': st.sampled_from([1, 2, 3, 4, 8]),
            'cardinality': st.integers(1, 3),
            'base_width': st.integers(16, 60),
            'planes': st.integers(4, 12),
            'avg_down': st.booleans(),
            'attn_layer': st.sampled_from(['', 'se']),
            **more,
        }
    )


def build(kind, planes, avg_down, semantics, dtype=torch.float64, **kwargs):
    """A randomised block, and the stride and the dilation of its convolutions."""
    stride, dilation = (2 if kind == 'strided' else 1), (2 if kind == 'dilated' else 1)
    inplanes, outplanes = planes * 3, planes * 4
    if kind is None:
        inplanes, downsample = outplanes, None
    else:
        conv = nn.Conv2d(inplanes, outplanes, 1, 1 if avg_down else stride, bias=False)
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        pool = pool if dilation + stride > 2 else nn.Identity()
        downsample = nn.Sequential(*[pool] * avg_down, conv, nn.BatchNorm2d(outplanes))
    block = Bottle2neck(
        inplanes, planes, stride, downsample, dilation=dilation, semantics=semantics,
        first_dilation=1 if kind == 'dilated' else None, **kwargs,
    )  # fmt: skip
    first = dilation if semantics in DILATES_FIRST else 1
    return randomise(block).eval().to(dtype), stride, first


@settings(max_examples=120, deadline=None)
@given(blocks())
def test_equals_the_plain_reference(case):
    # timm's own shortcut of a dilated block pads as TensorFlow does: not a matter of the block
    pools = case['kind'] != 'dilated' or case['semantics'] in DILATES_FIRST
    case = {**case, 'avg_down': case['avg_down'] and pools and case['kind'] is not None}
    block, stride, dilation = build(**case)
    reference = Reference(
        block.state_dict(), case['semantics'], (), case['scale'], case['cardinality'],
        avg_down=case['avg_down'], se=case['attn_layer'] == 'se', names=lambda name: name[2:],
    )  # fmt: skip
    x = image(2, 9, block.conv1.in_channels, dtype=torch.float64)  # odd: pads matter
    got = block(x)
    expected = reference.block(x, 'b', case['kind'], stride, dilation)
    assert got.shape == expected.shape
    assert relative_error(got, expected) < 1e-13  # float64


ACTS = {'act_layer': st.sampled_from([nn.ReLU, nn.SiLU, nn.LeakyReLU])}
GROUPS = functools.partial(nn.GroupNorm, 1)  # does not fuse
NORMS = {'norm_layer': st.sampled_from([nn.BatchNorm2d, nn.SyncBatchNorm, GROUPS])}
SIDES = {'side': st.tuples(st.integers(2, 12), st.integers(2, 12))}
ANY = dict(ACTS | NORMS | SIDES, attn_layer=st.sampled_from(['', 'se', 'eca', 'cbam']))
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}


@settings(max_examples=60, deadline=None)
@given(blocks(**ANY), st.sampled_from(sorted(DTYPES, key=str)), st.booleans())
def test_deployed_equals_plain(case, dtype, channels_last):
    """In a block's own dtype and before and after its weights are packed."""
    height, width = case.pop('side')
    case['avg_down'] = case['avg_down'] and case['kind'] != 'dilated'  # timm pads that pool
    block, _, _ = build(**case, dtype=dtype)
    before = copy.deepcopy(block.state_dict())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = image(2, 12, block.conv1.in_channels, dtype=dtype)[..., :height, :width]
    x = x.contiguous(memory_format=layout)
    fused, kept = block.fuse(), x.clone()
    assert isinstance(fused, FusedBottle2neck) == (case['norm_layer'] is not GROUPS)
    assert not fused.training
    small, fused_conv.SMALL = fused_conv.SMALL, 1
    try:
        with torch.inference_mode():
            expected = block(x)
            for _ in range(2):
                assert relative_error(fused(x), expected) < DTYPES[dtype]
        grads = fused(x.requires_grad_(False))
        assert relative_error(grads, expected) < DTYPES[dtype]
    finally:
        fused_conv.SMALL = small
    assert torch.equal(x, kept)
    assert list(block.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())


@pytest.mark.parametrize('semantics', TABLE)
@pytest.mark.parametrize('output_stride', [32, 16, 8])
def test_a_network_equals_the_plain_reference(semantics, output_stride):
    """Which kind of first block each stage has; the official weights are wrong for the others."""
    layers, kwargs = (2, 2, 2, 2), {'channels': (16, 24, 32, 48), 'num_classes': 7}
    kwargs.update(layers=layers, output_stride=output_stride)
    model = randomise(Res2Net(semantics=semantics, **kwargs).double()).eval()
    x = image(1, size=65, dtype=torch.float64)
    got = model(x)
    reference = Reference(model.state_dict(), semantics, layers, 4)
    assert relative_error(got, reference(x, output_stride)) < 1e-12
    official = Res2Net(**kwargs).double().eval()
    official.load_state_dict(model.state_dict())
    assert set(SEMANTICS) == set(TABLE)
    assert (relative_error(official(x), got) > 1e-3) == (semantics != 'official')


@pytest.mark.parametrize('kwargs', [{}, {'norm_layer': nn.BatchNorm2d, 'attn_layer': SEModule}])
def test_same_seed_same_weights_and_outputs_as_timm(kwargs):
    """Keys, order, and the arguments that timm passes for other blocks."""
    made = []
    for cls in (Bottle2neck, TimmBottle2neck):
        torch.manual_seed(5)
        made.append(cls(64, 16, **{'norm_layer': nn.BatchNorm2d, **kwargs}, reduce_first=2))
    ours, theirs = made
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = image(1, 9, 64)
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(randomise(ours).state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ATTN_LAYERS)
def test_attention_by_name(name):
    block = Bottle2neck(64, 16, attn_layer=name).eval()
    assert block.se is not None
    assert block(image(1, 9, 64)).shape == (1, 64, 9, 9)


def test_attention():
    for nothing in ('', None):
        assert Bottle2neck(64, 16, attn_layer=nothing).se is None
    assert isinstance(Bottle2neck(64, 16, attn_layer=EcaModule).se, EcaModule)
    for planes, reduced in ((2, 1), (16, 4), (18, 4)):
        se = Bottle2neck(planes * 4, planes, base_width=64, attn_layer='se').se
        assert isinstance(se, SEModule)
        assert se.fc1.out_channels == reduced  # a sixteenth
        assert se.fc1.bias is not None


def test_drop_block_and_drop_path():
    block = randomise(
        Bottle2neck(64, 16, drop_block=lambda: DropBlock2d(0.5, 3), drop_path=DropPath(0.5))
    )
    x = image(8, 9, 64)
    assert not torch.equal(block(x), block(x))  # it draws
    shortcuts = (block(x) == x.relu()).flatten(1).all(1)
    assert 0 < int(shortcuts.sum()) < 8  # 2 of 2**8 draws would keep all or none
    block.eval()
    assert torch.equal(block(x), block(x))
    block.drop_path = None
    assert not torch.equal(block.train()(x), block(x))


def test_width_of_a_split():
    """Rounded down, times the groups."""
    for base_width, groups, width in ((64 / 3, 1, 14), (26, 1, 17), (4.5, 2, 4), (64 / 42, 1, 1)):
        block = Bottle2neck(64, 42, base_width=base_width, cardinality=groups)
        assert block.width == width
        assert block.convs[0].groups == groups


def test_zero_init_last_makes_the_block_its_shortcut():
    block = randomise(Bottle2neck(64, 16, attn_layer='se')).eval()
    nn.init.zeros_(block.bn3.bias)
    block.zero_init_last()
    x = image(1, 9, 64).abs()
    assert torch.allclose(block(x), x + block.se(block.bn3(torch.zeros(1, 64, 9, 9))))
    Bottle2neck(64, 16, norm_layer=lambda c, **kwargs: nn.Identity()).zero_init_last()


@pytest.mark.parametrize(
    ('kwargs', 'remedy'),
    [
        ({'base_width': 3}, 'at least 4'),
        ({'semantics': 'torch'}, 'official, mmdet, detectron2, maskrcnn, paddle, caffe'),
        ({'attn_layer': 'sse'}, 'se, ese, eca'),
        ({'attn_layer': 'halo'}, 'se, ese, eca'),
    ],
)
def test_impossible_values(kwargs, remedy):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=name) as error:
        Bottle2neck(64, 16, **kwargs)
    assert repr(value) in str(error.value)
    assert remedy in str(error.value)


# --- activations ----------------------------------------------------------------------------------


def test_each_activation_is_called_once_and_can_be_replaced():
    """Quantizers and DeepLift keep one record for each module."""
    block, calls = randomise(Bottle2neck(64, 16)).eval(), []
    x = image(1, 9, 64)
    names = ('relu', 'act1', 'acts.0', 'acts.1', 'acts.2')
    for name in names:
        block.get_submodule(name).register_forward_hook(lambda *args, name=name: calls.append(name))
    before = block(x)
    assert sorted(calls) == sorted(names)
    for name in names:
        block.set_submodule(name, nn.SiLU())
        expected = block(x)
        assert relative_error(expected, before) > 1e-3
        before = expected
        for same in (block.fuse(), copy.deepcopy(block)):
            assert relative_error(same(x), expected) < 1e-5
    assert relative_error(torch.jit.script(block)(x), expected) < 1e-5
    theirs = TimmBottle2neck(64, 16, norm_layer=nn.BatchNorm2d).eval()
    theirs.load_state_dict(block.state_dict(), strict=False)
    theirs.relu = nn.SiLU()
    assert torch.equal(block(x), theirs(x))
