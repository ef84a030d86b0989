"""The block: its arguments, its semantics, its errors."""

import copy

import pytest
import timm
import torch
from timm.layers import DropBlock2d, DropPath, EcaModule, SEModule
from torch import nn

from tests.common import (
    DILATES_FIRST,
    HRNETS,
    NAMES,
    TABLE,
    TINY,
    Reference,
    image,
    randomise,
    relative_error,
    slow_except,
)
from timm_res2net import Bottle2neck, Res2Net, reparameterize_model
from timm_res2net.layers.bottle2neck import ATTN_LAYERS
from timm_res2net.layers.semantics import SEMANTICS

LAYERS = (2, 2, 2, 2)


def small(**kwargs) -> Res2Net:
    kwargs = {'layers': LAYERS, 'channels': (16, 24, 32, 48), 'num_classes': 7, **kwargs}
    return randomise(Res2Net(**kwargs).double()).eval()


@pytest.mark.parametrize('semantics', TABLE)
@pytest.mark.parametrize('output_stride', [32, 16, 8])
@pytest.mark.parametrize(
    ('scale', 'groups', 'attn', 'avg_down'),
    [
        (4, 1, '', False),
        (1, 1, '', True),
        (2, 2, 'se', False),
        (8, 1, 'se', True),
        (3, 4, '', True),
    ],
)
def test_equals_the_plain_reference(semantics, output_stride, scale, groups, attn, avg_down):
    # avg_down with dilation pads as TensorFlow does in timm's ResNet: not a matter of this block,
    # except where the shortcut does not pool
    avg_down = avg_down and (output_stride == 32 or semantics in DILATES_FIRST)
    model = small(
        semantics=semantics,
        output_stride=output_stride,
        scale=scale,
        cardinality=groups,
        attn_layer=attn,
        avg_down=avg_down,
    )
    reference = Reference(
        model.state_dict(), semantics, LAYERS, scale, groups, avg_down=avg_down, se=attn == 'se'
    )
    x = image(size=65, dtype=torch.float64)  # odd: where pads are counted matters
    error = relative_error(model(x), reference(x, output_stride))
    assert error < 1e-12  # float64: 2e-16 a sum, a few thousand sums


@pytest.mark.parametrize('semantics', [s for s in TABLE if s != 'official'])
def test_semantics_are_told_apart(semantics):
    """The same weights under another semantics fit every key and are wrong by some percent."""
    model = small(semantics=semantics)
    other = small()
    other.load_state_dict(model.state_dict(), strict=True)
    x = image(dtype=torch.float64)
    assert relative_error(other(x), model(x)) > 0.01


def test_table_of_semantics_covers_the_reference():
    assert set(SEMANTICS) == set(TABLE)


@pytest.mark.parametrize('name', ATTN_LAYERS)
def test_attention_by_name(name):
    block = Bottle2neck(64, 16, attn_layer=name).eval()
    assert block.se is not None
    assert block(image(1, 9, 64)).shape == (1, 64, 9, 9)


@pytest.mark.parametrize('nothing', ['', None])
def test_no_attention(nothing):
    assert Bottle2neck(64, 16, attn_layer=nothing).se is None


def test_attention_by_class():
    assert isinstance(Bottle2neck(64, 16, attn_layer=EcaModule).se, EcaModule)


@pytest.mark.parametrize('planes', [16, 18, 64])
def test_se_reduces_to_a_sixteenth(planes):
    se = Bottle2neck(planes * 4, planes, attn_layer='se').se
    assert isinstance(se, SEModule)
    assert se.fc1.out_channels == planes * 4 // 16
    assert se.fc1.bias is not None
    assert se.fc2.bias is not None


def test_arguments_that_timm_passes_have_no_effect():
    torch.manual_seed(3)
    plain = Bottle2neck(64, 16)
    torch.manual_seed(3)
    other = Bottle2neck(64, 16, reduce_first=2, aa_layer=nn.AvgPool2d)
    x = image(1, 9, 64)
    assert torch.equal(plain(x), other(x))


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


@pytest.mark.parametrize('device', ['meta', 'cpu'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_device_and_dtype(device, dtype):
    block = Bottle2neck(64, 16, attn_layer='se', device=device, dtype=dtype)
    for tensor in (*block.parameters(), *(b for b in block.buffers() if b.is_floating_point())):
        assert tensor.dtype == dtype
        assert tensor.device.type == device
    assert block(image(1, 9, 64, device=device, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize('base_width', [64 / 3, 64 / 7, 26, 4.5])
def test_width_of_a_split(base_width):
    assert Bottle2neck(64, 42, base_width=base_width).width == int(42 * base_width / 64 + 1e-9)


def test_zero_init_last_makes_the_block_its_shortcut():
    block = Bottle2neck(64, 16, attn_layer='se').eval()
    block.zero_init_last()
    x = image(1, 9, 64).abs()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ('kwargs', 'remedy'),
    [
        ({'scale': 0}, 'a whole number from 1 to'),
        ({'scale': 2.5}, 'a whole number from 1 to'),
        ({'cardinality': 0}, 'a whole number from 1 to'),
        ({'base_width': 3}, 'at least 4'),
        ({'drop_path': 26.0}, 'a module, or None'),
        ({'downsample': 13}, 'a module, or None'),
        ({'dilation': 21.3}, 'a whole number from 1 to 64'),
        ({'act_layer': 'os.system'}, "one of timm's activations, such as relu"),
        ({'semantics': 'torch'}, 'official, mmdet, detectron2, maskrcnn, paddle, caffe'),
        ({'attn_layer': 'sse'}, 'se, ese, eca'),
        ({'attn_layer': 'halo'}, 'se, ese, eca'),
        ({'attn_layer': 5}, 'se, ese, eca'),
        ({'attn_layer': nn.Identity()}, 'se, ese, eca'),
    ],
)
def test_impossible_values(kwargs, remedy):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=name) as error:
        Bottle2neck(64, 16, **kwargs)
    assert repr(value) in str(error.value)
    assert remedy in str(error.value)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="unexpected keyword argument 'scales'"):
        Bottle2neck(64, 16, scales=4)


def test_same_seed_same_weights_as_timm():
    from timm.models.res2net import Bottle2neck as Timms

    kwargs = {'norm_layer': nn.BatchNorm2d, 'attn_layer': SEModule}
    torch.manual_seed(5)
    ours = Bottle2neck(64, 16, **kwargs).state_dict()
    torch.manual_seed(5)
    theirs = Timms(64, 16, **kwargs).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_timm_can_build_its_resnet_from_the_block():
    """Standard timm: the block under another network, with arguments it does not know about."""
    model = timm.models.resnet.ResNet(Bottle2neck, (1, 1, 1, 1), base_width=26, num_classes=3)
    assert model.eval()(image()).shape == (2, 3)


# --- activations ----------------------------------------------------------------------------------

MADE = {
    'plain': lambda model: model,
    'deployed': reparameterize_model,
}


def calls_of_activations(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """How often each activation of the blocks and of a Res2Net's stem is called in a pass."""
    acts = {
        name: module
        for name, module in model.named_modules()
        # timm's HRNet uses one for all outputs of a module
        if isinstance(module, nn.ReLU | nn.SiLU | nn.PReLU) and not name.endswith('fuse_act')
    }
    calls = dict.fromkeys(acts, 0)

    def count(name):
        def hook(module, args):
            calls[name] += 1

        return hook

    for name, act in acts.items():
        act.register_forward_pre_hook(count(name))
    model(x)
    return calls


DEEP = {'stem_type': 'deep', 'stem_width': 8}


@pytest.mark.parametrize('made', MADE)
@pytest.mark.parametrize(
    ('name', 'kwargs'),
    slow_except(
        [(TINY, DEEP)],
        [
            (TINY, DEEP),
            (TINY, {'features_only': True}),
            (TINY, {'attn_layer': '', 'semantics': 'paddle'}),
            (TINY, {'scale': 1, 'act_layer': 'silu', 'norm_layer': 'groupnorm1'}),
            *((name, {}) for name in (*NAMES, *HRNETS)),
        ],
    ),
    ids=lambda value: value if isinstance(value, str) else '-'.join(value),
)
def test_each_activation_is_called_once(name, kwargs, made):
    """Quantizers and DeepLift keep one record for each module."""
    model = MADE[made](timm.create_model(name, device='meta', **kwargs).eval())
    calls = calls_of_activations(model, image(device='meta'))
    assert len(calls) > 12  # four blocks of three
    assert set(calls.values()) == {1}


def test_an_activation_with_parameters_stays_one_module():
    """As in timm, whose checkpoints hold its parameter once a block."""
    ours = timm.create_model(TINY, act_layer='prelu', attn_layer='')
    theirs = timm.create_model(
        'res2net50_26w_4s', act_layer='prelu', layers=(1, 1, 1, 1), device='meta'
    )
    assert list(ours.layer1[0].state_dict()) == list(theirs.layer1[0].state_dict())
    block = randomise(ours).eval().layer1[0]
    with torch.no_grad():
        block.relu.weight.fill_(-0.5)
    x = image(1, 9, block.conv1.in_channels)
    expected = block(x)
    assert relative_error(block.fuse()(x), expected) < 1e-5
    assert torch.equal(torch.jit.script(block)(x), expected)
    assert calls_of_activations(block, x) == {'relu': 2 + len(block.convs)}


def as_in_timm(block: Bottle2neck, act: nn.Module) -> nn.Module:
    """timm's block with the same weights and one activation."""
    from timm.models.res2net import Bottle2neck as Timms

    other = Timms(64, 16, norm_layer=nn.BatchNorm2d, base_width=26).eval()
    other.load_state_dict(block.state_dict(), strict=False)
    other.relu = act
    return other


def set_each_child(module):
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        else:
            set_each_child(child)


def set_each_found_before(block):
    for name in [name for name, m in block.named_modules() if isinstance(m, nn.ReLU)]:
        block.set_submodule(name, nn.SiLU())


@pytest.mark.parametrize('change', [set_each_child, set_each_found_before])
def test_activations_can_be_replaced(change):
    block = randomise(Bottle2neck(64, 16)).eval()
    x = image(1, 9, 64)
    change(block)
    expected = as_in_timm(block, nn.SiLU())(x)
    assert torch.equal(block(x), expected)
    assert relative_error(block.fuse()(x), expected) < 1e-5
    names = ('relu', 'act1', 'acts.0', 'acts.1', 'acts.2')
    assert calls_of_activations(block, x) == dict.fromkeys(names, 1)


def test_one_activation_can_be_replaced():
    shortcut = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))
    block = randomise(Bottle2neck(64, 16, downsample=shortcut)).eval()
    x = image(1, 9, 64)
    before = block(x)
    block.acts[1] = nn.LeakyReLU(0.3)
    expected = block(x)
    assert relative_error(expected, before) > 0.01
    for same in (block.fuse(), copy.deepcopy(block), torch.jit.script(block)):
        assert relative_error(same(x), expected) < 1e-5
