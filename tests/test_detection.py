"""The backbone for torchvision's detectors."""

import copy

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import FrozenBatchNorm2d, misc
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tests.common import TINY, model_folder, randomise, slow_except
from timm_res2net import detection_backbone
from timm_res2net.folder.folder import ModelFolder

P6P7 = {'out_indices': (2, 3, 4), 'extra_blocks': 'p6p7'}
FROZEN = (misc.FrozenBatchNorm2d, FrozenBatchNorm2d, FrozenBatchNormAct2d)
FEW = {'rpn_post_nms_top_n_train': 50, 'box_batch_size_per_image': 16}  # proposals
# arguments of the backbone and of the detector, and the levels
DETECTORS = {
    FasterRCNN: ({}, FEW, ['0', '1', '2', '3', 'pool']),
    MaskRCNN: ({}, FEW, ['0', '1', '2', '3', 'pool']),
    RetinaNet: (P6P7, {}, ['0', '1', '2', 'p6', 'p7']),
    FCOS: (P6P7, {}, ['0', '1', '2', 'p6', 'p7']),
}


@pytest.mark.parametrize('detector', slow_except([FCOS], DETECTORS))
def test_detectors_train_and_answer(detector):
    kwargs, settings, names = DETECTORS[detector]
    backbone = detection_backbone(TINY, pretrained=True, **kwargs)
    finest = 4 if '3' in names else 8
    with torch.no_grad():
        levels = backbone.eval()(torch.randn(1, 3, 128, 128))
    assert {key: tuple(level.shape) for key, level in levels.items()} == {
        key: (1, 256, 128 // (finest << i), 128 // (finest << i)) for i, key in enumerate(names)
    }
    model = detector(backbone, num_classes=3, min_size=128, max_size=128, **settings)
    image, mask = torch.rand(3, 128, 128), torch.zeros(1, 128, 128, dtype=torch.uint8)
    mask[0, 20:100, 30:90] = 1
    boxes = torch.tensor([[30.0, 20.0, 90.0, 100.0]])
    target = {'boxes': boxes, 'labels': torch.tensor([1]), 'masks': mask}
    before = copy.deepcopy(backbone.body.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    sum(model.train()([image], [target]).values()).backward()
    optimizer.step()
    # three stages learn, the rest and all of BatchNorm stay
    for key, value in backbone.body.state_dict().items():
        learns = key.startswith(('layer2', 'layer3', 'layer4')) and '.bn' not in key
        learns = learns and 'downsample.1' not in key
        assert torch.equal(value, before[key]) != learns, key
    assert {'boxes', 'labels', 'scores'} <= model.eval()([image])[0].keys()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_it_is_timms_features_under_a_pyramid(dtype):
    """The same levels, in the same order, as torchvision's own network makes of timm's features."""
    kwargs = {'output_stride': 16, 'layers': (1, 1, 1, 1), 'channels': (16, 32, 48, 64)}
    kwargs['dtype'] = dtype
    backbone = detection_backbone('res2net50_se', (1, 3), 64, None, 5, 'batch', **kwargs)
    randomise(backbone).eval()
    body = timm.create_model('res2net50_se', features_only=True, out_indices=(1, 3), **kwargs)
    body.eval().load_state_dict(backbone.body.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=dtype)
    with torch.no_grad():
        expected = backbone.fpn(dict(zip('01', body(x), strict=True)))
        levels = backbone(x)
    assert list(levels) == ['0', '1']
    for key, level in levels.items():
        assert torch.equal(level, expected[key])
        assert (level.shape[1], level.dtype) == (backbone.out_channels, dtype)
    on_meta = detection_backbone(TINY, device='meta', extra_blocks='p6p7')
    assert {tensor.device.type for tensor in on_meta.state_dict().values()} == {'meta'}


@pytest.mark.parametrize('trainable', range(6))
def test_trainable_layers(trainable):
    backbone = detection_backbone(TINY, trainable_layers=trainable, norm='frozen')
    stages = ('layer4', 'layer3', 'layer2', 'layer1', 'conv1')
    assert {key.partition('.')[0] for key in trained(backbone)} == set(stages[:trainable])
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def trained(backbone: nn.Module) -> set[str]:
    return {key for key, p in backbone.body.named_parameters() if p.requires_grad}


def test_weights_freeze_what_torchvision_freezes(tmp_path):
    body = timm.create_model(TINY, features_only=True)
    torch.save(body.state_dict(), tmp_path / 'body.pth')
    pretrained = detection_backbone(TINY, pretrained=True)
    assert {key.partition('.')[0] for key in trained(pretrained)} == {'layer2', 'layer3', 'layer4'}
    loaded = detection_backbone(TINY, checkpoint_path=str(tmp_path / 'body.pth'))
    later = detection_backbone(TINY, trainable_layers=3, norm='frozen')
    later.body.load_state_dict(body.state_dict())
    assert trained(loaded) == trained(later) == trained(pretrained)
    # nothing random is frozen
    for settings in ({}, {'pretrained': True, 'trainable_layers': 5, 'norm': 'batch'}):
        live = detection_backbone(TINY, **settings)
        assert trained(live) == {key for key, _ in live.body.named_parameters()}
        assert not any(isinstance(m, FROZEN) for m in live.modules())


def test_norms():
    """Those of every stage."""
    kinds = {'batch': {nn.BatchNorm2d}, 'frozen': {*FROZEN}, 'sync': {nn.SyncBatchNorm}}
    numbers = set()
    for norm, kind in kinds.items():
        norms = [
            m for m in detection_backbone(TINY, norm=norm).modules() if hasattr(m, 'running_var')
        ]
        assert {type(m) for m in norms} <= kind
        numbers.add(len(norms))
    assert len(numbers) == 1 and 0 not in numbers


def test_folders_and_other_models(tmp_path):
    folder = model_folder(tmp_path / 'net', num_classes=3, layers=(1, 1, 1, 1))
    weights = ModelFolder(folder).load().eval().state_dict()
    body = detection_backbone(str(folder), pretrained=True).body
    assert torch.equal(body.state_dict()['layer4.0.conv3.weight'], weights['layer4.0.conv3.weight'])
    (tmp_path / 'net.pth').touch()
    with pytest.raises(ValueError, match=r'net.pth'):
        detection_backbone(str(tmp_path / 'net.pth'))
    other = detection_backbone('mobilenetv3_small_050', extra_blocks=LastLevelP6P7(288, 256))
    with torch.no_grad():
        assert list(other.eval()(torch.randn(1, 3, 64, 64)))[-2:] == ['p6', 'p7']
    with pytest.raises(ValueError, match=r'Create it with features_only=True'):
        detection_backbone(timm.create_model(TINY))
