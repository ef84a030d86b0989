"""Key rules for the article's network and 4uiiurz1/pytorch-res2net, block semantics `caffe`.

There the first split of a block passes and the others are convolved; here the last one passes. That
is the same network with the channels between conv1 and conv3 rotated by one split. The article's
convolutions carry biases, which their BatchNorms swallow.
"""

from collections.abc import Collection

from ..engine import Rule
from .official import same

__all__ = ['article_rules']

_BLOCK = 'layer{stage}.{block}'


def article_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """The table for a checkpoint with these keys, of either spelling."""
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
