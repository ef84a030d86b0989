"""The authors' functions, in code that carried a copy of their file."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.common import image, randomise, slow_except
from timm_res2net import authors, reparameterize_model
from timm_res2net.authors import AuthorsRes2Net

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
    theirs = timm.create_model(NAMES[name], device='meta')
    assert isinstance(ours, AuthorsRes2Net)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    children = [name for name, _ in ours.named_children()]
    assert [*children[:2], 'relu', *children[3:8], 'avgpool', children[9]] == [
        'conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4', 'avgpool', 'fc',
    ]  # fmt: skip
    assert len(children) == 10
    assert ours.pretrained_cfg['architecture'] == NAMES[name]


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
            assert one.resnet.relu is one.resnet.act1
            assert torch.equal(one(x), expected)
        scripted = torch.jit.script(segmenter.resnet)
        torch.testing.assert_close(scripted(x), segmenter.resnet(x))


def test_a_file_of_the_authors(tmp_path):
    """The classes of the file are those of ImageNet; another number of classes drops the head."""
    file = tmp_path / 'res2net50_v1b_26w_4s-3cf99910.pth'
    old = randomise(before('res2net50_v1b'))
    torch.save(old.state_dict(), file)
    loaded = authors.res2net50_v1b(pretrained=file)
    for key, value in old.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    few = authors.res2net50_v1b(pretrained=str(file), num_classes=5)
    assert few.fc.weight.shape == (5, 2048)
    assert torch.equal(few.layer4[2].conv3.weight, old.layer4[2].conv3.weight)


def test_what_is_not_there(tmp_path):
    path = tmp_path / 'none.pth'
    with pytest.raises(FileNotFoundError, match=r'none\.pth\. Check the path'):
        authors.res2net50(pretrained=path)
    with pytest.raises(ValueError, match="no weights of 'res2net152d'") as error:
        authors.res2net152_v1b_26w_4s(pretrained=True)
    assert "pretrained='path.pth'" in str(error.value)


def test_the_other_names_are_the_modules_themselves():
    """A hook on them fires, and they can be replaced and deleted, as in the authors' network."""
    net = authors.res2net50(num_classes=2, layers=(1, 1, 1, 1)).eval()
    assert net.layer1[0].bn3.weight.unique().tolist() == [1.0]  # does not start as its shortcut
    seen = []
    net.avgpool.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    with torch.inference_mode():
        net(image(1))
        assert seen == [(1, 2048, 1, 1)]
        net.relu = nn.SiLU()
        assert net.act1 is net.relu
        assert len(list(net.children())) == 10
        net.avgpool = nn.AdaptiveMaxPool2d(1)
        x = net.forward_features(image(1))
        assert torch.equal(net.forward_head(x), net.fc(x.amax((2, 3))))
        del net.avgpool, net.fc
        assert isinstance(net.avgpool, nn.Identity)
