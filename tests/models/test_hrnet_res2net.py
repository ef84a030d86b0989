"""HRNet with Res2Net bottlenecks: the same network as timm's with its own blocks, and timm's
contract."""

import copy
import json
import pickle

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters, save_for_hf
from timm.models.hrnet import HighResolutionNet, cfg_cls
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.models.resnet import Bottleneck
from torch import nn

from tests.common import HRNETS, image, randomise, relative_error, slow_except
from timm_res2net import Bottle2neck, push_to_hub, reparameterize_model
from timm_res2net.convert import COUNTS

NAME = 'hrnet_w18_res2net'
SAME = 1e-4  # float32: what a compiler may reorder
# the stages of timm's small one, as arguments: the same code in fewer layers
SMALL = {
    f'stage{i}': timm.models.hrnet.cfg_cls['hrnet_w18_small_v2'][f'stage{i}'] for i in (2, 3, 4)
}
LEVELS = {'incre': [64, 128, 256, 512, 1024], '': [64, 18, 36, 72, 144]}
HAS_GETTER = hasattr(HighResolutionNet, 'forward_intermediates')
every_name = pytest.mark.parametrize('name', HRNETS)
every_name_slowly = pytest.mark.parametrize('name', slow_except([NAME], HRNETS))


def create(name: str = NAME, **kwargs) -> nn.Module:
    """A model of whole size."""
    return randomise(timm.create_model(name, **kwargs)).eval()


def small(**kwargs) -> nn.Module:
    return create(**{**SMALL, **kwargs})


def in_json(values: dict) -> dict:
    """As a file gives them back: tuples are lists."""
    return json.loads(json.dumps(values))


def by_hand(name: str) -> nn.Module:
    """timm's HRNet whose bottlenecks are replaced by timm's own Res2Net block, one by one."""
    model = timm.create_model(name.removesuffix('_res2net'))
    for parent in list(model.modules()):
        for key, block in parent.named_children():
            if isinstance(block, Bottleneck):
                new = TimmBottle2neck(
                    block.conv1.in_channels,
                    block.conv3.out_channels // 4,
                    downsample=block.downsample,
                    base_width=26,
                    scale=4,
                    norm_layer=nn.BatchNorm2d,
                )
                setattr(parent, key, new)
    return model


@every_name_slowly
def test_it_is_timms_hrnet_with_timms_res2net_blocks(name):
    model = create(name).double()
    reference = by_hand(name).double().eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    x = image(dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model(x), reference(x)) < 1e-12
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(Bottle2neck) == 4 + 4  # stage 1, and one for each level of the head
    assert Bottleneck not in kinds


@every_name
def test_figures_of_the_plan(name):
    params = {'hrnet_w18_res2net': 21_152_733, 'hrnet_w32_res2net': 41_110_209}
    assert COUNTS[name].params == params[name]  # which test_cfg counts


@every_name
def test_cfg(name):
    cfg = get_pretrained_cfg(name)
    assert cfg.tag == 'untrained'
    assert cfg.license is None
    assert not cfg.has_weights
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name].params
    assert model.get_submodule(cfg.first_conv).in_channels == 3
    assert model.get_submodule(cfg.classifier).out_features == 1000


@every_name_slowly
def test_forward_and_backward(name):
    model = create(name).train()
    model(image()).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize('location', LEVELS)
def test_features(location):
    """The levels of a classifier with the same weights, sorted, by timm's own class."""
    whole = small()
    x = image()
    with torch.no_grad():
        stem = whole.act1(whole.bn1(whole.conv1(x)))
        branches = whole.stages(whole.act2(whole.bn2(whole.conv2(stem))))
        if location:
            branches = [m(y) for m, y in zip(whole.incre_modules, branches, strict=True)]
        for asked, levels in ((None, (0, 1, 2, 3, 4)), ((4, -4), (1, 4)), ((0,), (0,))):
            kwargs = {} if asked is None else {'out_indices': asked}
            body = small(features_only=True, feature_location=location, **kwargs)
            assert body.load_state_dict(whole.state_dict(), strict=False).missing_keys == []
            assert body.feature_info.channels() == [LEVELS[location][i] for i in levels]
            assert body.feature_info.reduction() == [2 << i for i in levels]
            for level, feature in zip(levels, body(x), strict=True):
                assert torch.equal(feature, [stem, *branches][level])


@pytest.mark.skipif(not HAS_GETTER, reason="timm before 1.0.31 has no 'getter' for its HRNets")
def test_the_getter():
    body = small(features_only=True, feature_cls='getter', out_indices=(3, 1))
    plain = small(features_only=True, out_indices=(1, 3))
    plain.load_state_dict(body.model.state_dict(), strict=False)
    with torch.no_grad():
        for one, other in zip(body(image()), plain(image()), strict=True):
            assert torch.equal(one, other)
    assert body.feature_info.channels() == plain.feature_info.channels() == [128, 512]


def test_head():
    model = small()
    x = image()
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.get_classifier()(pooled), model(x))
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)


def test_other_channels_pooling_and_head():
    model = small(in_chans=1, num_classes=0, global_pool='max')
    with torch.no_grad():
        assert model(image(channels=1)).shape == (2, 2048)
    assert model.model_args['in_chans'] == 1
    assert model.model_args['global_pool'] == 'max'
    branches = small(head='')(image())
    assert [b.shape[1] for b in branches] == LEVELS[''][1:]


def test_groups():
    """The stages of timm's matcher, and every parameter once."""
    model = timm.create_model(NAME, device='meta')
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.slow
def test_tracing_and_export():
    """Not torch.jit.script, which refuses timm's own HRNet as well (timm 1.0.31)."""
    model = small()
    x = image()
    with torch.no_grad():
        for other in (torch.jit.trace(model, x), torch.export.export(model, (x,)).module()):
            assert relative_error(other(x), model(x)) < SAME


@pytest.mark.slow
@every_name
def test_compiles_without_a_graph_break(name):
    torch._dynamo.reset()
    model = create(name)
    x = image(1, 32)
    with torch.no_grad():
        compiled = torch.compile(copy.deepcopy(model), backend='eager', fullgraph=True)
        assert relative_error(compiled(x), model(x)) < SAME


def test_bfloat16():
    model = small()
    x = image()
    with torch.no_grad():
        low = copy.deepcopy(model).bfloat16()(x.bfloat16())
        # bfloat16 keeps 8 bits: 0.4 % a rounding, growing with the root of the depth
        assert relative_error(low.float(), model(x)) < 0.15


def test_copies_and_meta_device():
    model = small()
    x = image(1)
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), model(x))
    meta = timm.create_model(NAME, device='meta', dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {('meta', torch.float16)}


def test_deployed():
    model = small(attn_layer='se', semantics='paddle')
    x = image()
    with torch.no_grad():
        expected = model(x)
        assert relative_error(reparameterize_model(model)(x), expected) < 1e-5  # float32


ARGUMENTS = {
    'scale': 2, 'base_width': 48, 'cardinality': 2, 'semantics': 'caffe', 'attn_layer': 'eca',
    'in_chans': 1, 'global_pool': 'avgmax', 'num_classes': 3,
}  # fmt: skip


def test_saved_by_timm_and_loaded(tmp_path):
    model = small(**ARGUMENTS)
    save_for_hf(model, tmp_path / 'm', model_args=model.model_args, safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path / "m"}', pretrained=True).eval()
    assert in_json(again.model_args) == in_json(model.model_args)
    with torch.no_grad():
        assert torch.equal(again(image(channels=1)), model(image(channels=1)))


def test_branches_of_a_saved_classifier(tmp_path, caplog):
    """Without a word about the head, whose attention has no place there."""
    model = small(attn_layer='se')
    torch.save(model.state_dict(), tmp_path / 'net.pth')
    overlay = {'file': str(tmp_path / 'net.pth')}
    body = timm.create_model(
        NAME, features_only=True, feature_location='', attn_layer='se', pretrained=True,
        pretrained_cfg_overlay=overlay, **SMALL,
    ).eval()  # fmt: skip
    x = image(1)
    with torch.no_grad():
        stem = model.act1(model.bn1(model.conv1(x)))
        branches = model.stages(model.act2(model.bn2(model.conv2(stem))))
        for one, other in zip(body(x)[1:], branches, strict=True):
            assert torch.equal(one, other)
    assert caplog.text == ''


@pytest.mark.parametrize('kind', slow_except(['model'], ['model', 'folder']))
def test_pushed(kind, tmp_path):
    """From memory, and from a folder that timm wrote."""
    model = small(**dict(ARGUMENTS, in_chans=3))
    source = model
    if kind == 'folder':
        source = tmp_path / 'm'
        save_for_hf(model, source, model_args=model.model_args, safe_serialization=True)
    done = push_to_hub(source, 'me/hrnet', license='mit', dry_run=True)
    assert done.config.architecture == NAME
    assert in_json(done.config.model_args) == in_json(model.model_args)
    assert done.config.num_classes == 3
    assert 'import timm, timm_res2net' in done.card


@pytest.mark.parametrize('head', ['', 'incre'])
def test_a_network_without_its_classifier_is_not_pushed(head):
    with pytest.raises(ValueError, match=r'HighResolutionRes2Net is .*timm\.create_model'):
        push_to_hub(small(head=head), 'me/hrnet', license='mit', dry_run=True)


def test_the_gates_start_at_the_identity(tmp_path):
    """A plain network's weights in one with SE: the same outputs, bit for bit."""
    plain = small()
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    gated = timm.create_model(
        NAME,
        attn_layer='se',
        pretrained=True,
        pretrained_cfg_overlay={'file': str(tmp_path / 'plain.pth')},
        **SMALL,
    ).eval()
    with torch.no_grad():
        assert torch.equal(gated(image()), plain(image()))


def test_timms_own_is_untouched():
    """The table that timm keeps is shared by all its models and must not change."""
    before = copy.deepcopy(cfg_cls)
    small(stem_width=32)
    assert cfg_cls == before
    kinds = [type(m) for m in timm.create_model('hrnet_w18', device='meta').modules()]
    assert Bottle2neck not in kinds


@pytest.mark.parametrize(
    ('kwargs', 'error', 'value', 'remedy'),
    [
        ({'output_stride': 16}, ValueError, '16', 'output_stride must be 32'),
        ({'wide': 1}, TypeError, 'wide', 'unexpected keyword'),
        ({'head': 'pose'}, ValueError, "'pose'", "one of classification, incre, ''"),
        (
            {'features_only': True, 'feature_location': 'neck'},
            ValueError,
            "'neck'",
            "feature_location must be one of incre, ''",
        ),
        ({'scale': 0}, ValueError, 'got 0', 'scale must be a whole number from 1 to 16'),
        (
            {'features_only': True, 'feature_cls': 'fx'},
            ValueError,
            "feature_cls='fx'",
            "Leave it out, or use 'getter'",
        ),
        (
            {'features_only': True, 'out_indices': (5,)},
            ValueError,
            'got (5,)',
            'levels from 0 to 4',
        ),
    ],
)
def test_refused(kwargs, error, value, remedy):
    with pytest.raises(error) as found:
        timm.create_model(NAME, **SMALL, **kwargs)
    assert value in str(found.value)
    assert remedy in str(found.value)
