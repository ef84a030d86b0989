"""Checkpoints of the article's network and of 4uiiurz1/pytorch-res2net, block semantics `caffe`.

In these blocks the first split passes and the others are convolved; here the last split passes. The
two are the same network if the channels between conv1 and conv3 are rotated by one split. The
biases of the article's convolutions are subtracted from the running means of the BatchNorms that
follow them.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..engine import Rule
from ..source import Source
from .official import same

_BLOCK = 'layer{stage}.{block}'


def article_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, the article's or timm's."""
    convolved = max(
        sum(key.startswith(f'layer1.0.{name}.') and key.endswith('.weight') for key in keys)
        for name in ('conv2', 'convs')
    )
    splits = 1 + convolved
    out, into = (0, splits), (1, splits)
    b = _BLOCK
    return (
        *same('conv1.weight'),
        Rule('conv1.bias', 'bn1.running_mean', into_mean=True),
        *same('bn1.*'),
        Rule(f'{b}.conv1.weight', f'{b}.conv1.weight', rotate=out),
        Rule(f'{b}.conv1.bias', f'{b}.bn1.running_mean', into_mean=True, rotate=out),
        *same(f'{b}.bn1.num_batches_tracked'),
        Rule(f'{b}.bn1.*', f'{b}.bn1.*', rotate=out),
        Rule(f'{b}.conv2.{{i}}.weight', f'{b}.convs.{{i}}.weight'),
        Rule(f'{b}.conv2.{{i}}.bias', f'{b}.bns.{{i}}.running_mean', into_mean=True),
        Rule(f'{b}.bn2.{{i}}.*', f'{b}.bns.{{i}}.*'),
        Rule(f'{b}.conv3.weight', f'{b}.conv3.weight', rotate=into),
        Rule(f'{b}.conv3.bias', f'{b}.bn3.running_mean', into_mean=True),
        *same(f'{b}.bn3.*', f'{b}.se.*.*', f'{b}.downsample.0.weight'),
        Rule(f'{b}.downsample.0.bias', f'{b}.downsample.1.running_mean', into_mean=True),
        *same(f'{b}.downsample.1.*', 'fc.*'),
    )


def _limits(arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return why the article's constructor cannot build the widths of a network, or ''."""
    planes = arguments['channels'][0] * arguments['cardinality']
    inside = tensors['layer1.0.conv1.weight'].shape[0]
    if arguments['scale'] >= 2 and inside == planes:
        return ''
    return (
        f'its first blocks have {inside} channels in {arguments["scale"]} splits, and the '
        f"article's {planes} in at least 2"
    )


SOURCE = Source(
    name='article',
    mark=r'layer1\.0\.conv2\.0\.weight',
    first=r'layer1\.0\.conv2\.0\.weight',
    rules=article_rules,
    semantics=('caffe',),
    license='The weights belong to the person who trained them.',
    has_se=True,
    limits=_limits,
)
