"""Arguments read off shapes."""

import pytest
import torch

from tests.convert.helpers import random_weights, tiny
from timm_res2net.convert.infer import infer_arguments


def test_an_attention_that_shapes_do_not_tell():
    weights = random_weights('test_res2net_se', attn_layer='eca')
    with pytest.raises(ValueError, match='attention is not SE'):
        infer_arguments(weights)


@pytest.mark.parametrize(
    ('key', 'shape', 'words'),
    [
        ('layer2.0.convs.0.weight', None, ["no 'layer2.0.convs.0.weight'"]),
        (
            'layer1.0.se.fc1.weight',
            (8, 64, 1, 1),
            ['64 channels to 8', 'by 16, to 4'],
        ),
        (
            'layer2.0.convs.0.weight',
            (40, 40, 3, 3),
            ['6 channels to 16 planes', '40 channels to 32 planes'],
        ),
        (
            'layer1.0.convs.0.weight',
            (0, 6, 3, 3),
            ["'layer1.0.convs.0.weight' has the shape (0, 6, 3, 3)", '4 sizes of at least 1'],
        ),
        ('fc.weight', (), ["'fc.weight' has the shape ()", '2 sizes of at least 1']),
        (
            'layer1.0.conv3.weight',
            (7, 24, 1, 1),
            ["'layer1.0.conv3.weight' has 7 channels", 'multiple of 4'],
        ),
    ],
)
def test_shapes_of_no_res2net(key, shape, words):
    weights = {**tiny(), key: torch.ones(shape or ())}
    if shape is None:
        del weights[key]
    with pytest.raises(ValueError) as error:
        infer_arguments(weights)
    assert all(word in str(error.value) for word in words)
