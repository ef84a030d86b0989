"""Checkpoints of the article's network and of 4uiiurz1/pytorch-res2net, block semantics `caffe`.

In these blocks the first split passes and the others are convolved; here the last split passes. The
two are the same network if the channels between conv1 and conv3 are rotated by one split. In the
article's blocks every convolution has a bias, which is subtracted from the running mean of the
BatchNorm that follows it; 4uiiurz1's have none. The stem of neither has one.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..engine import Rule, Source, same

_BLOCK = 'layer{stage}.{block}'
_FIRST = r'layer1\.0\.conv2\.0\.weight'


def pytorch_res2net_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, 4uiiurz1's or timm's."""
    convolved = max(
        sum(key.startswith(f'layer1.0.{name}.') and key.endswith('.weight') for key in keys)
        for name in ('conv2', 'convs')
    )
    splits = 1 + convolved
    out, into = (0, splits), (1, splits)
    b = _BLOCK
    return (
        *same('conv1.weight', 'bn1.*'),
        Rule(f'{b}.conv1.weight', f'{b}.conv1.weight', rotate=out),
        *same(f'{b}.bn1.num_batches_tracked'),
        Rule(f'{b}.bn1.*', f'{b}.bn1.*', rotate=out),
        Rule(f'{b}.conv2.{{i}}.weight', f'{b}.convs.{{i}}.weight'),
        Rule(f'{b}.bn2.{{i}}.*', f'{b}.bns.{{i}}.*'),
        Rule(f'{b}.conv3.weight', f'{b}.conv3.weight', rotate=into),
        *same(f'{b}.bn3.*', f'{b}.se.*.*', f'{b}.downsample.0.weight', f'{b}.downsample.1.*'),
        *same('fc.*'),
    )


def article_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, the article's or timm's."""
    rules = pytorch_res2net_rules(keys)
    rotate = next(rule.rotate for rule in rules if rule.rotate)
    b = _BLOCK
    return (
        *rules,
        Rule(f'{b}.conv1.bias', f'{b}.bn1.running_mean', into_mean=True, rotate=rotate),
        Rule(f'{b}.conv2.{{i}}.bias', f'{b}.bns.{{i}}.running_mean', into_mean=True),
        Rule(f'{b}.conv3.bias', f'{b}.bn3.running_mean', into_mean=True),
        Rule(f'{b}.downsample.0.bias', f'{b}.downsample.1.running_mean', into_mean=True),
    )


def _limits(arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return why the two constructors cannot build a network, or ''."""
    first, *others = arguments['channels']
    if arguments['in_chans'] != 3:
        return f'it takes {arguments["in_chans"]} channels, and the stem there takes 3'
    if not arguments['num_classes']:
        return 'it has no classifier, and the network there always has one'
    if others != [first * 2, first * 4, first * 8]:
        return f'its channels are {arguments["channels"]}, and there they double with every stage'
    for stage, channels in enumerate(arguments['channels'], 1):
        planes = channels * arguments['cardinality']
        inside = tensors[f'layer{stage}.0.conv1.weight'].shape[0]
        if arguments['scale'] < 2 or inside != planes:
            return (
                f'the blocks of stage {stage} have {inside} channels in {arguments["scale"]} '
                f'splits, and there {planes} in at least 2'
            )
    return ''


ARTICLE = Source(
    name='article',
    mark=r'layer1\.0\.conv2\.0\.bias',
    first=_FIRST,
    rules=article_rules,
    semantics=('caffe',),
    license='The weights belong to the person who trained them.',
    has_se=True,
    limits=_limits,
)
PYTORCH_RES2NET = Source(
    name='4uiiurz1',
    mark=_FIRST,
    first=_FIRST,
    rules=pytorch_res2net_rules,
    semantics=('caffe',),
    license='The weights belong to the person who trained them.',
    has_se=True,
    limits=_limits,
)
