"""Key rules for PaddleClas and PaddleDetection checkpoints (.pdparams), block semantics
`paddle`."""

from collections.abc import Collection

from .engine import Rule, conv_bn

__all__ = ['paddle_rules']

_NAMES = ('_conv.weight', '_batch_norm', ('weight', 'bias', '_mean', '_variance'))

_PLAIN_STEM = conv_bn('conv1', ('conv1', 'bn1'), _NAMES)
_DEEP_STEM = (
    *conv_bn('conv1_1', ('conv1.0', 'conv1.1'), _NAMES),
    *conv_bn('conv1_2', ('conv1.3', 'conv1.4'), _NAMES),
    *conv_bn('conv1_3', ('conv1.6', 'bn1'), _NAMES),
)
_BLOCK = 'layer{stage+1}.{block}'
# The star is the name that Paddle's static graph gave the block, res2a to res5c or res4b22: {stage}
# and {block} say the same. branch2b counts its splits from 1.
_BODY = (
    *conv_bn('bb_{stage}_{block}.conv0', (f'{_BLOCK}.conv1', f'{_BLOCK}.bn1'), _NAMES),
    *conv_bn(
        'bb_{stage}_{block}.*_branch2b_{i+1}',
        (f'{_BLOCK}.convs.{{i}}', f'{_BLOCK}.bns.{{i}}'),
        _NAMES,
    ),
    *conv_bn('bb_{stage}_{block}.conv2', (f'{_BLOCK}.conv3', f'{_BLOCK}.bn3'), _NAMES),
)
_HEAD = (
    Rule('out.weight', 'fc.weight', transpose=True),
    Rule('out.bias', 'fc.bias'),
)


def paddle_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """The table for a checkpoint with these keys.

    A deep stem (the vd models) comes with an average pool in the shortcut, which moves its
    convolution and BatchNorm one place on.
    """
    deep = 'conv1_1._conv.weight' in keys
    conv, bn = (1, 2) if deep else (0, 1)
    shortcut = conv_bn(
        'bb_{stage}_{block}.short',
        (f'{_BLOCK}.downsample.{conv}', f'{_BLOCK}.downsample.{bn}'),
        _NAMES,
    )
    return (*(_DEEP_STEM if deep else _PLAIN_STEM), *_BODY, *shortcut, *_HEAD)
