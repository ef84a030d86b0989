"""The authors' functions, in code that carried a copy of their file."""

import copy
import inspect
import pickle

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from tests.common import from_folder, image, random_weights, randomise, slow_except
from timm_res2net import authors, reparameterize_model
from timm_res2net.authors import Bottle2neck, Res2Net

# the authors' names and the registered networks whose weights they load
NAMES = {
    'res2net50_26w_4s': 'res2net50_26w_4s',
    'res2net50_26w_6s': 'res2net50_26w_6s',
    'res2net50_26w_8s': 'res2net50_26w_8s',
    'res2net50_48w_2s': 'res2net50_48w_2s',
    'res2net50_14w_8s': 'res2net50_14w_8s',
    'res2net101_26w_4s': 'res2net101_26w_4s',
    'res2next50': 'res2next50',
    'res2net50': 'res2net50_26w_4s',
    'res2net50_v1b': 'res2net50d',
    'res2net101_v1b': 'res2net101d',
    'res2net50_v1b_26w_4s': 'res2net50d',
    'res2net101_v1b_26w_4s': 'res2net101d',
    'res2net152_v1b_26w_4s': 'res2net152d',
}
IN_TIMM = [name for name, registered in NAMES.items() if registered != 'res2net152d']


class Segmenter(nn.Module):
    """A network in the manner of those repositories: an encoder taken apart, and a decoder."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.resnet = encoder
        self.reduce = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (256, 512, 1024, 2048))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        size = x.shape[-2:]
        x = self.resnet.conv1(x)
        x = self.resnet.bn1(x)
        x = self.resnet.relu(x)
        x = self.resnet.maxpool(x)
        x1 = self.resnet.layer1(x)
        x2 = self.resnet.layer2(x1)
        x3 = self.resnet.layer3(x2)
        x4 = self.resnet.layer4(x3)
        whole = 0
        for reduce, level in zip(self.reduce, (x1, x2, x3, x4), strict=True):
            level = F.interpolate(reduce(level), x1.shape[-2:], mode='bilinear')
            whole = self.head(level + whole)
        shared = self.resnet.fc(torch.flatten(self.resnet.avgpool(x4), 1)).mean()
        return F.interpolate(self.out(whole), size, mode='bilinear') + shared


def before(name):
    """timm's network, the reference, with the names that the authors' copy has."""
    encoder = timm.create_model(NAMES[name])
    encoder.__dict__['relu'] = encoder.act1
    encoder.__dict__['avgpool'] = nn.AdaptiveAvgPool2d(1)
    return encoder


@pytest.mark.parametrize('name', NAMES)
def test_same_network(name):
    """Keys, shapes and the order of the modules; every name of the authors' files is here."""
    ours = getattr(authors, name)(device='meta')
    assert inspect.signature(getattr(authors, name)).parameters['pretrained'].default is False
    theirs = timm.create_model(NAMES[name], device='meta')
    assert type(ours) is Res2Net
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    assert [name for name, _ in ours.named_children()] == [
        'conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4', 'avgpool', 'fc',
    ]  # fmt: skip
    assert type(ours.avgpool) is nn.AdaptiveAvgPool2d
    assert ours.pretrained_cfg == {**theirs.pretrained_cfg, 'architecture': 'res2net_custom'}


def narrow(function=authors.res2net50_v1b, **kwargs):
    shape = {'layers': (1, 1, 1, 1), 'channels': (32, 16, 24, 40), 'num_classes': 3}
    return randomise(function(**{**shape, **kwargs})).eval()


def test_the_authors_class_and_arguments():
    """Those of their class, and their names in the functions, which replace the functions' own."""
    net = Res2Net(Bottle2neck, [1, 2, 1, 1], baseWidth=14, scale=8, num_classes=5, device='meta')
    by_name = authors.res2net50_14w_8s(layers=[1, 2, 1, 1], num_classes=5, device='meta')
    other = authors.res2net101_v1b(
        layers=[1, 2, 1, 1], stem_type='', avg_down=False, baseWidth=14, scale=8, num_classes=5,
        device='meta',
    )  # fmt: skip
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (net, by_name, other)]
    assert shapes[0] == shapes[1] == shapes[2]
    v1b = Res2Net(Bottle2neck, [3, 4, 6, 3], baseWidth=26, scale=4, device='meta', **authors.V1B)
    assert v1b.state_dict().keys() == authors.res2net50_v1b(device='meta').state_dict().keys()
    assert authors.res2net50_48w_2s(base_width=26, device='meta').layer1[0].width == 26
    with pytest.raises(ValueError, match=r'block must be Bottle2neck.*BasicBlock'):
        Res2Net(timm.models.resnet.BasicBlock, [2, 2, 2, 2])
    with pytest.raises(TypeError, match="'width'"):
        authors.res2net50(width=26)


def test_parts_and_nodes():
    """The modules in their order, as features, as nodes of a graph, and what code keeps of them."""
    net, x = narrow(), image(1)
    kept = []
    net.bn1.register_forward_hook(lambda module, inputs, out: kept.append((out, out.clone())))
    with torch.no_grad():
        expected = net(x)
        levels = net.forward_intermediates(x, intermediates_only=True)
        pooled = nn.Sequential(*list(net.children())[:-1])(x)
        assert pooled.shape == (1, 160, 1, 1)
        assert torch.equal(net.fc(pooled.flatten(1)), expected)
        assert torch.equal(net.forward_head(levels[-1], pre_logits=True), pooled.flatten(1))
        nodes = create_feature_extractor(net, {'relu': 'stem', 'avgpool': 'pooled'})(x)
        assert torch.equal(nodes['stem'], levels[0])
        assert torch.equal(nodes['pooled'], pooled)
        for feature_cls in ('list', 'hook', 'fx', 'getter'):
            body = narrow(features_only=True, feature_cls=feature_cls)
            for body_level, level in zip(body(x), levels, strict=True):
                assert torch.equal(body_level, level)
            if feature_cls != 'fx':
                folded = reparameterize_model(body)
                assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
                torch.testing.assert_close(folded(x), levels, rtol=1e-4, atol=1e-5)
        net.set_grad_checkpointing()
        assert torch.equal(net(x), expected)
        net.reset_classifier(2, 'max')
        assert torch.equal(net(x), net.fc(levels[-1].amax((2, 3))))
        net.reset_classifier(0, '')
        assert torch.equal(net(x), levels[-1])
    assert all(torch.equal(*pair) for pair in kept)
    assert not torch.equal(narrow(drop_rate=0.5).train()(x), narrow(drop_rate=0.5).train()(x))


@pytest.mark.parametrize('name', slow_except(['res2net50_v1b_26w_4s'], IN_TIMM))
def test_a_whole_model_before_and_after_the_switch(name):
    """Its checkpoint loads with strict=True, and its outputs are the same, bit for bit."""
    old = randomise(Segmenter(before(name))).eval()
    new = Segmenter(getattr(authors, name)())
    new.load_state_dict(old.state_dict(), strict=True)
    x = image(1)
    with torch.inference_mode():
        assert torch.equal(new.eval()(x), old(x))
        assert torch.equal(new.resnet(x), old.resnet(x))


def test_the_encoder_in_a_model_is_deployed_and_copied():
    encoder = authors.res2net50_v1b_26w_4s(num_classes=3, layers=(1, 1, 1, 1))
    segmenter, x = randomise(Segmenter(encoder)).eval(), image(1)
    deployed = reparameterize_model(segmenter)
    assert not [m for m in deployed.resnet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert isinstance(deployed.head[1], nn.BatchNorm2d)  # the decoder stays as it is
    with torch.inference_mode():
        expected = segmenter(x)
        for _ in range(2):  # the weights are packed on the way
            torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-5)
        for one in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
            assert one.resnet.relu is one.resnet.act1 is not segmenter.resnet.relu
            assert torch.equal(one(x), expected)
        scripted = torch.jit.script(segmenter.resnet)
        torch.testing.assert_close(scripted(x), segmenter.resnet(x))


def test_a_file_of_the_authors(tmp_path):
    """The classes of the file are those of ImageNet; other classes, or none, drop the head."""
    file, layers = tmp_path / 'res2net50_v1b_26w_4s-3cf99910.pth', (1, 1, 1, 1)
    old = random_weights('res2net50d', layers=layers)
    torch.save(old, file)
    loaded = authors.res2net50_v1b(pretrained=file, layers=layers).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in old.items())
    few = authors.res2net50_v1b(pretrained=str(file), num_classes=5, layers=layers)
    assert few.fc.weight.shape == (5, 2048)
    torch.save({key: value for key, value in old.items() if not key.startswith('fc.')}, file)
    with pytest.raises(RuntimeError, match=r'no classifier.*num_classes=0'):
        authors.res2net50_v1b(pretrained=file, layers=layers)
    body = authors.res2net50_v1b(pretrained=file, num_classes=0, layers=layers)
    for net in (few, body):
        assert torch.equal(net.layer4[0].conv3.weight, old['layer4.0.conv3.weight'])


@pytest.mark.parametrize('function', [authors.res2net50_14w_8s, authors.res2net50_v1b])
def test_saved_by_timm_and_loaded(function, tmp_path):
    """As a network of this package, with the arguments in the config or left to timm."""
    net, x = narrow(function, attn_layer='se'), image(1)
    for more in ({}, {'model_args': net.model_args}):
        save_for_hf(net, tmp_path, safe_serialization=True, **more)
        with torch.no_grad():
            assert torch.equal(from_folder(tmp_path)(x), net(x))
    overlay = {'description': 'mine'}
    assert narrow(function, pretrained_cfg_overlay=overlay).pretrained_cfg['description'] == 'mine'


def test_what_is_not_there(tmp_path):
    path = tmp_path / 'none.pth'
    with pytest.raises(FileNotFoundError, match=r'none\.pth\. Check the path'):
        authors.res2net50(pretrained=path)
    with pytest.raises(ValueError, match="no weights of 'res2net152d'") as error:
        authors.res2net152_v1b_26w_4s(pretrained=True)
    assert "pretrained='path.pth'" in str(error.value)


def test_modules_are_replaced_and_deleted():
    """As in the authors' network, and the deploy form computes what the network then does."""
    net, x = authors.res2net50(num_classes=2, layers=(1, 1, 1, 1)).eval(), image(1)
    assert net.layer1[0].bn3.weight.unique().tolist() == [1.0]  # does not start as its shortcut
    with torch.inference_mode():
        net.relu = nn.SiLU()
        net.avgpool = nn.AdaptiveMaxPool2d(1)
        assert len(list(net.children())) == 10
        level = net.layer4(
            net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))))
        )
        assert torch.equal(net(x), net.fc(level.amax((2, 3))))
        torch.testing.assert_close(reparameterize_model(net)(x), net(x), rtol=1e-4, atol=1e-5)
        del net.avgpool, net.fc
        folded = reparameterize_model(net)
        torch.testing.assert_close(folded.forward_features(x), level, rtol=1e-4, atol=1e-5)
    assert not hasattr(net, 'avgpool')
