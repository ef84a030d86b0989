"""Our models as backbones in transformers: bare, in DETR, and in Mask2Former."""

import pytest
import timm
import torch

from tests.common import TINY, image, randomise, relative_error
from timm_res2net import reparameterize_model

transformers = pytest.importorskip('transformers', reason='needs the extra integration')

SMALL = dict(encoder_layers=1, decoder_layers=2, num_queries=5, num_labels=3)
DETR = dict(
    **SMALL, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
    decoder_attention_heads=2,
)  # fmt: skip
MASK2FORMER = dict(
    **SMALL, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
    num_attention_heads=2, dim_feedforward=32,
)  # fmt: skip


def config(out_indices=(1, 2, 3, 4), **kwargs):
    return transformers.TimmBackboneConfig(backbone=TINY, out_indices=list(out_indices), **kwargs)


def features(out_indices=(1, 2, 3, 4), weights=None, **kwargs):
    """timm's own model, with the weights of another."""
    model = timm.create_model(TINY, features_only=True, out_indices=tuple(out_indices), **kwargs)
    if weights is not None:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        # frozen norms count no batches
        assert not unexpected and all(k.endswith('num_batches_tracked') for k in missing)
    return model.eval()


def same(found, expected, most=1e-6):  # float32
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < most


@pytest.mark.parametrize(
    ('out_indices', 'stride'), [([1, 2, 3, 4], None), ([0, 3], None), ([2, 4], 16)]
)
def test_features(out_indices, stride):
    settings = config(out_indices, output_stride=stride)
    backbone = randomise(transformers.AutoBackbone.from_config(settings)).eval()
    expected = features(out_indices, backbone._backbone.state_dict(), output_stride=stride)
    assert backbone.channels == expected.feature_info.channels()
    assert backbone.out_features == expected.feature_info.module_name()
    x = image()
    with torch.no_grad():
        same(backbone(x).feature_maps, expected(x))
        backbone._backbone = reparameterize_model(backbone._backbone)
        same(backbone(x).feature_maps, expected(x), 1e-5)


@pytest.mark.parametrize('frozen', [False, True])
def test_pretrained(frozen):
    """Frozen norms keep their statistics as transformers finishes the model.

    transformers 5.24 resets those of norms that learn: load them again.
    """
    backbone = transformers.TimmBackbone(config(freeze_batch_norm_2d=frozen), pretrained=True)
    expected = features(pretrained=True)
    if not frozen:
        for name, parameter in expected.named_parameters():
            assert torch.equal(backbone._backbone.get_parameter(name), parameter), name
        backbone._backbone.load_state_dict(expected.state_dict())
    x = image()
    with torch.no_grad():
        same(backbone.eval()(x).feature_maps, expected(x), 1e-5)  # another formula if frozen


LARGER = {  # the model, where timm's network is in it, its levels, and an output with its shape
    'DETR': (
        lambda: transformers.DetrForObjectDetection(
            transformers.DetrConfig(backbone_config=config([4]), **DETR)
        ),
        'model.backbone.model', (4,), 'pred_boxes', (2, 5, 4),
    ),
    'Mask2Former': (
        lambda: transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(backbone_config=config(), **MASK2FORMER)
        ),
        'model.pixel_level_module.encoder', (1, 2, 3, 4),
        'masks_queries_logits', (2, 5, 16, 16),
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', LARGER)
def test_a_larger_model(case):
    """Its features are timm's, and its output depends on every parameter."""
    make, place, levels, output, shape = LARGER[case]
    model = make().eval()
    body, expected = model.get_submodule(place), randomise(features(levels))
    getattr(body, '_backbone', body).load_state_dict(expected.state_dict())
    x = image()
    with torch.no_grad():
        found = body(x)
        same(getattr(found, 'feature_maps', found), expected(x))
    found = model(x)[output]
    assert found.shape == shape
    found.square().sum().backward()
    for name, parameter in body.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
