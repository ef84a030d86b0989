"""Our encoders in segmentation_models_pytorch, by timm's name with `tu-` before it."""

import pytest
import timm
import torch
from torch.nn import functional as F

from tests.common import TINY, image, randomise, relative_error, slow_except
from timm_res2net import reparameterize_model

smp = pytest.importorskip('segmentation_models_pytorch', reason='needs the extra integration')

STRIDE_16 = {'encoder_output_stride': 16}
ARCHITECTURES = {'Unet': {}, 'FPN': {}, 'DeepLabV3Plus': STRIDE_16, 'UPerNet': {}}
ENCODERS = slow_except([TINY], [TINY, 'res2net50_se'])
SIZES = [
    # name, size; Unet alone takes what 32 does not divide
    *((name, (96, 64)) for name in ARCHITECTURES),
    ('Unet', (100, 76)),
    ('Unet', (67, 93)),
]
ARGUMENTS = [
    # encoder, smp's arguments, ours through smp, what timm is asked for the same
    ('test_res2net_se', {'in_channels': 1}, {}, {'in_chans': 1}),
    (
        'test_res2net_se',
        {'encoder_depth': 3, 'decoder_channels': (32, 16, 8)},
        {},
        {'out_indices': (0, 1, 2)},
    ),
    (TINY, {}, {'attn_layer': 'eca', 'scale': 3, 'semantics': 'paddle'}, {}),
]


def build(architecture, encoder, **kwargs):
    return getattr(smp, architecture)(
        f'tu-{encoder}', **{'encoder_weights': None, 'classes': 3, **kwargs}
    )


def compare(model, encoder, x, **kwargs):
    """The encoder inside smp answers what timm's features with the same weights do."""
    expected = timm.create_model(encoder, features_only=True, **kwargs).eval()
    expected.load_state_dict(model.encoder.model.state_dict())
    assert model.encoder.out_channels == [x.shape[1], *expected.feature_info.channels()]
    with torch.no_grad():
        found, features = model.encoder.eval()(x), expected(x)
    assert len(found) == len(features) + 1
    for one, other in zip(found, [x, *features], strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < 1e-6  # float32


@pytest.mark.parametrize('encoder', ENCODERS)
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_features_and_gradients(architecture, encoder):
    kwargs = ARCHITECTURES[architecture]
    stride = kwargs.get('encoder_output_stride', 32)
    model = randomise(build(architecture, encoder, **kwargs))
    x = image()
    compare(model, encoder, x, output_stride=stride)
    deepest = model.encoder(x)[-1]
    assert deepest.shape[2:] == (64 // stride, 64 // stride)
    mask = torch.randint(3, (2, 64, 64))
    F.cross_entropy(model.train()(x), mask).backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize(('architecture', 'size'), SIZES)
def test_sizes(architecture, size):
    model = build(architecture, 'test_res2net_se', **ARCHITECTURES[architecture]).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(('encoder', 'theirs', 'ours', 'timms'), ARGUMENTS)
def test_arguments_reach_the_encoder(encoder, theirs, ours, timms):
    model = randomise(build('Unet', encoder, **theirs, **ours))
    x = image(channels=theirs.get('in_channels', 3))
    compare(model, encoder, x, **timms, **ours)
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 3, 64, 64)


@pytest.mark.parametrize('encoder', ['test_res2net_se', 'test_res2net_se.digits'])
def test_pretrained(encoder):
    """encoder_weights=True is timm's pretrained=True; the tag stands in the encoder's name."""
    model = build('FPN', encoder, encoder_weights=True)
    expected = timm.create_model(encoder, pretrained=True, features_only=True).state_dict()
    found = model.encoder.model.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    params = smp.encoders.get_preprocessing_params(f'tu-{encoder}')
    cfg = timm.get_pretrained_cfg(encoder)
    assert (params['mean'], params['std']) == (list(cfg.mean), list(cfg.std))


@pytest.mark.filterwarnings('ignore:For .tu-. .timm universal. encoders:UserWarning')
@pytest.mark.parametrize('weights', ['imagenet', False])
def test_all_but_none_is_true(weights):
    """smp loads the default tag, with a warning for a name, as for every encoder of timm's."""
    model = build('FPN', 'test_res2net_se', encoder_weights=weights)
    expected = timm.create_model('test_res2net_se', pretrained=True).state_dict()
    key = 'layer4.0.conv3.weight'
    assert torch.equal(model.encoder.model.state_dict()[key], expected[key])


@pytest.mark.parametrize('architecture', slow_except(['Unet'], ARCHITECTURES))
def test_training(architecture):
    """A few steps on bright rectangles."""
    model = build(
        architecture, 'test_res2net_se', encoder_weights=True, **ARCHITECTURES[architecture]
    ).train()
    x, mask = 0.1 * image(4), torch.zeros(4, 64, 64, dtype=torch.long)
    for i, label in enumerate([1, 2, 1, 2]):
        mask[i, 8 * i : 8 * i + 32, 16:48] = label
    x += mask[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize('architecture', ['Unet', 'DeepLabV3Plus'])
def test_deploy_form(architecture):
    """The trained encoder folds in place; the decoder is smp's own business."""
    kwargs = ARCHITECTURES[architecture]
    model = randomise(build(architecture, 'test_res2net_se', **kwargs)).eval()
    x = image()
    with torch.no_grad():
        expected = model(x)
        model.encoder.model = reparameterize_model(model.encoder.model)
        assert not any('BatchNorm' in type(m).__name__ for m in model.encoder.modules())
        assert relative_error(model(x), expected) < 1e-5  # float32, other sums
