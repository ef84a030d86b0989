"""Checkpoints of the article's network and of 4uiiurz1/pytorch-res2net, block semantics `caffe`.

In these blocks the first split passes and the others are convolved; here the last split passes. The
two are the same network if the channels between conv1 and conv3 are rotated by one split. In the
article's blocks every convolution has a bias, which is subtracted from the running mean of the
BatchNorm that follows it; 4uiiurz1's have none. The stem of neither has one.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

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


def _builds(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the network that the two constructors build."""
    first, scale = arguments['channels'][0], max(arguments['scale'], 2)
    channels = (first, first * 2, first * 4, first * 8)
    widths = [int(planes * arguments['base_width'] / 64) for planes in arguments['channels']]
    fits = all(w * scale == p for w, p in zip(widths, arguments['channels'], strict=True))
    return {
        'in_chans': 3,
        'num_classes': max(arguments['num_classes'], 1),  # there is always a classifier
        'channels': channels,
        'scale': scale,
        'base_width': arguments['base_width'] if fits else 64 / scale,
    }


ARTICLE = Source(
    name='article',
    mark=r'layer1\.0\.conv2\.0\.bias',
    first=_FIRST,
    rules=article_rules,
    semantics=('caffe',),
    license='The weights belong to the person who trained them.',
    has_se=True,
    builds=_builds,
)
PYTORCH_RES2NET = replace(ARTICLE, name='4uiiurz1', mark=_FIRST, rules=pytorch_res2net_rules)
