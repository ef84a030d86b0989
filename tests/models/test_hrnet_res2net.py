"""HRNet with Res2Net bottlenecks: timm's network with timm's own blocks, and timm's contract."""

import copy
import functools
import pickle

import pytest
import timm
import torch
from timm.models.hrnet import cfg_cls
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.models.resnet import Bottleneck
from torch import nn

from tests.common import image, network, randomise, relative_error
from timm_res2net import Bottle2neck, push_to_hub, reparameterize_model

NAME = 'hrnet_w18_res2net'
# the same code in fewer and narrower layers
SMALL = {
    f'stage{i}': dict(
        cfg_cls['hrnet_w18'][f'stage{i}'],
        num_modules=1,
        num_blocks=(1,) * i,
        num_channels=tuple(4 << branch for branch in range(i)),
    )
    for i in (2, 3, 4)
}
small = functools.partial(network, NAME, **SMALL)
LEVELS = {'incre': [64, 128, 256, 512, 1024], '': [64, 4, 8, 16, 32]}


@pytest.mark.parametrize('kwargs', [SMALL, pytest.param({}, marks=pytest.mark.slow)], ids=len)
def test_it_is_timms_hrnet_with_timms_res2net_blocks(kwargs):
    model = timm.create_model(NAME, **kwargs)
    weight = model.layer1[0].conv3.weight.detach()  # a normal of variance 2 / fan_out
    assert abs(float(weight.std()) / (2 / len(weight)) ** 0.5 - 1) < 0.05
    randomise(model).double().eval()
    reference = timm.create_model(NAME.removesuffix('_res2net'), **kwargs)
    assert Bottle2neck not in [type(m) for m in reference.modules()]  # timm's own is untouched
    for parent in list(reference.modules()):
        for key, block in parent.named_children():
            if isinstance(block, Bottleneck):
                planes, options = block.conv3.out_channels // 4, {'downsample': block.downsample}
                new = TimmBottle2neck(
                    block.conv1.in_channels, planes, norm_layer=nn.BatchNorm2d, **options
                )
                setattr(parent, key, new)
    reference.double().eval().load_state_dict(model.state_dict(), strict=True)
    x = image(dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model(x), reference(x)) < 1e-12
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(Bottle2neck) == 4 + 4  # stage 1, and one for each level of the head
    model.train()(x).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize('location', LEVELS)
def test_features(location, tmp_path, caplog):
    """The levels of a plain classifier's file, sorted, whose gates start at the identity."""
    whole = small()
    torch.save(whole.state_dict(), tmp_path / 'net.pth')
    overlay = {'file': str(tmp_path / 'net.pth')}
    kwargs = {'attn_layer': 'se', 'pretrained_cfg_overlay': overlay, **SMALL}
    x = image()
    with torch.no_grad():
        assert torch.equal(timm.create_model(NAME, True, **kwargs).eval()(x), whole(x))
        stem = whole.act1(whole.bn1(whole.conv1(x)))
        branches = whole.stages(whole.act2(whole.bn2(whole.conv2(stem))))
        if location:
            branches = [m(y) for m, y in zip(whole.incre_modules, branches, strict=True)]
        for more, levels in (
            ({'feature_location': location}, (0, 1, 2, 3, 4)),
            ({'feature_location': location, 'out_indices': (4, -4)}, (1, 4)),
            *([({'feature_cls': 'getter'}, (0, 1, 2, 3, 4))] if location else ()),
        ):
            body = timm.create_model(NAME, True, features_only=True, **more, **kwargs).eval()
            assert body.feature_info.channels() == [LEVELS[location][i] for i in levels]
            assert body.feature_info.reduction() == [2 << i for i in levels]
            for level, feature in zip(levels, body(x), strict=True):
                assert torch.equal(feature, [stem, *branches][level])
            assert 'classifier' not in body.pretrained_cfg
    assert caplog.text == ''


def test_head_copies_and_deploy():
    model = small(semantics='paddle', attn_layer='se')
    x = image()
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)
        assert relative_error(reparameterize_model(model)(x), expected) < 1e-5  # float32
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        assert torch.equal(model.get_classifier()(pooled), expected)
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        branches = small(head='')
        assert [b.shape[1] for b in branches(x)] == LEVELS[''][1:]
    with pytest.raises(ValueError, match=r'HighResolutionRes2Net is .*timm\.create_model'):
        push_to_hub(branches, 'me/hrnet', license='mit', dry_run=True)
