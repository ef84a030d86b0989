"""Our encoders in segmentation_models_pytorch, by timm's name with `tu-` before it."""

import pytest
import timm
import torch
from torch.nn import functional as F

from tests.common import TINY, image, randomise, relative_error
from timm_res2net import reparameterize_model

smp = pytest.importorskip('segmentation_models_pytorch', reason='needs the extra integration')

STRIDE_16 = {'encoder_output_stride': 16}
ARCHITECTURES = {'Unet': {}, 'FPN': {}, 'DeepLabV3Plus': STRIDE_16, 'UPerNet': {}}


def build(architecture, encoder=TINY, encoder_weights=None, **kwargs):
    make = getattr(smp, architecture)
    return make(f'tu-{encoder}', encoder_weights=encoder_weights, classes=3, **kwargs)


def compare(model, x, **kwargs):
    """The encoder inside smp answers what timm's features with the same weights do."""
    expected = timm.create_model(TINY, features_only=True, **kwargs).eval()
    expected.load_state_dict(model.encoder.model.state_dict())
    assert model.encoder.out_channels == [x.shape[1], *expected.feature_info.channels()]
    with torch.no_grad():
        found, features = model.encoder.eval()(x), expected(x)
    assert len(found) == len(features) + 1
    for one, other in zip(found, [x, *features], strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < 1e-6  # float32


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_features_gradients_and_deploy_form(architecture):
    """The trained encoder folds in place; the decoder is smp's own business."""
    kwargs = ARCHITECTURES[architecture]
    stride = kwargs.get('encoder_output_stride', 32)
    model = randomise(build(architecture, **kwargs))
    x = image()
    compare(model, x, output_stride=stride)
    deepest = model.encoder(x)[-1]
    assert deepest.shape[2:] == (64 // stride, 64 // stride)
    mask = torch.randint(3, (2, 64, 64))
    F.cross_entropy(model.train()(x), mask).backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    with torch.no_grad():
        expected = model.eval()(x)
        model.encoder.model = reparameterize_model(model.encoder.model)
        assert not any('BatchNorm' in type(m).__name__ for m in model.encoder.modules())
        assert relative_error(model(x), expected) < 1e-5  # float32, other sums


@pytest.mark.parametrize('size', [(96, 64), (67, 93)])
def test_sizes(size):
    """Unet takes what 32 does not divide."""
    with torch.no_grad():
        assert build('Unet').eval()(torch.randn(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ('theirs', 'timms'),  # the arguments of smp, and what timm is asked for the same
    [
        ({'in_channels': 1}, {'in_chans': 1}),
        ({'encoder_depth': 3, 'decoder_channels': (32, 16, 8)}, {'out_indices': (0, 1, 2)}),
        ({'attn_layer': 'eca', 'scale': 3},) * 2,
    ],
)
def test_arguments_reach_the_encoder(theirs, timms):
    model = randomise(build('Unet', **theirs))
    x = image(channels=theirs.get('in_channels', 3))
    compare(model, x, **timms)
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
