"""MindCV's checkpoints (MindSpore's .ckpt), block semantics `official`."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..engine import Rule, Source, conv_bn, same
from ..mindspore import dump_ckpt

_BN = ('gamma', 'beta', 'moving_mean', 'moving_variance')
_TORCH = ('weight', 'bias', 'running_mean', 'running_var')
_BLOCK = 'layer{stage}.{block}'


def _pair(parent: str, theirs: tuple[str, str], ours: tuple[str, str]) -> tuple[Rule, ...]:
    """Return the rules of a convolution and its BatchNorm, which have the same parent."""
    conv, bn = theirs
    return conv_bn(
        parent, (f'{parent}.{ours[0]}', f'{parent}.{ours[1]}'), (f'{conv}.weight', bn, _BN)
    )


def mindcv_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, MindCV's or timm's.

    In v1b, which has a deep stem, the shortcuts start with an average pool, except that of stage 1.
    timm has an identity there, so the numbers of the convolution and BatchNorm are larger by 1.
    """
    names = [('conv1', 'bn1'), ('convs.{i}', 'bns.{i}'), ('conv3', 'bn3')]
    if 'conv1.0.weight' in keys:
        stem = (
            *_pair('conv1', ('0', '1'), ('0', '1')),
            *_pair('conv1', ('3', '4'), ('3', '4')),
            *same('conv1.6.weight'),
        )
        pooled = ('downsample.1', 'downsample.2')
        shortcuts = (
            *_pair('layer1.{block}', ('down_sample.0', 'down_sample.1'), pooled),
            *_pair(_BLOCK, ('down_sample.1', 'down_sample.2'), pooled),
        )
    else:
        stem = same('conv1.weight')
        plain = ('downsample.0', 'downsample.1')
        shortcuts = _pair(_BLOCK, ('down_sample.0', 'down_sample.1'), plain)
    return (
        *stem,
        *(Rule(f'bn1.{theirs}', f'bn1.{ours}') for theirs, ours in zip(_BN, _TORCH, strict=True)),
        *(rule for pair in names for rule in _pair(_BLOCK, pair, pair)),
        *shortcuts,
        Rule('classifier.*', 'fc.*'),
    )


def _limits(arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return why MindCV's constructor cannot build a network, or ''."""
    if arguments['cardinality'] > 1:
        return 'its convolutions have groups, and those of mindcv have none'
    if arguments['channels'] != (64, 128, 256, 512):
        return f'its stages have the planes {arguments["channels"]}, and mindcv has 64 to 512'
    deep = {'stem_type': 'deep', 'stem_width': 32, 'avg_down': True}
    plain = {'stem_type': '', 'avg_down': False}
    rest = {'down_kernel_size': 1, 'replace_stem_pool': False}
    for kind in (deep, plain):
        if {**arguments, **kind, **rest} == arguments:
            return ''
    return 'its stem or its shortcuts are neither those of the plain network nor those of v1b'


SOURCE = Source(
    name='mindcv',
    mark=r'layer1\.0\.bns\.0\.gamma',
    rules=mindcv_rules,
    semantics=('official',),
    license="MindCV's repository, which links its weights, is Apache-2.0.",
    counts_batches=False,
    save=dump_ckpt,
    limits=_limits,
)
