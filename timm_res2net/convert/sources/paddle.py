"""Checkpoints of PaddleClas and PaddleDetection (.pdparams), block semantics `paddle`."""

import re
from collections.abc import Collection, Mapping

from ..engine import Rule, Source
from ..pickles import dump_arrays

_LEAVES = (('_mean', 'running_mean'), ('_variance', 'running_var'))
_BLOCK = 'layer{stage+1}.{block}'
_IN_BLOCK = re.compile(r'(layer|bb_)(\d+)[._](\d+)\.')
# of the deep stem
_STEM = {'1': ('conv1.0', 'conv1.1'), '2': ('conv1.3', 'conv1.4'), '3': ('conv1.6', 'bn1')}


def _rules(
    pairs: Mapping[str, tuple[str, str]], conv: str = '_conv', norm: str = '_batch_norm'
) -> tuple[Rule, ...]:
    """Return the rules of convolutions and their BatchNorms, by their prefix in Paddle."""
    return tuple(
        rule
        for theirs, ours in pairs.items()
        for rule in (
            Rule(f'{theirs}.{conv}.weight', f'{ours[0]}.weight'),
            Rule(f'{theirs}.{norm}.*', f'{ours[1]}.*', stars=_LEAVES),
        )
    )


_DET_BLOCK = 'res{stage+2}.blocks.{block}'
_DET_RULES = _rules(
    {
        'res1.conv1': ('conv1', 'bn1'),
        **{f'res1.conv1_{i}': pair for i, pair in _STEM.items()},
        f'{_DET_BLOCK}.branch2a': (f'{_BLOCK}.conv1', f'{_BLOCK}.bn1'),
        f'{_DET_BLOCK}.branch2b.{{i}}': (f'{_BLOCK}.convs.{{i}}', f'{_BLOCK}.bns.{{i}}'),
        f'{_DET_BLOCK}.branch2c': (f'{_BLOCK}.conv3', f'{_BLOCK}.bn3'),
        # PaddleDetection builds its vd backbones without the average pool in the shortcut
        f'{_DET_BLOCK}.branch1': (f'{_BLOCK}.downsample.0', f'{_BLOCK}.downsample.1'),
    },
    conv='conv',
    norm='norm',
)


def paddle_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, Paddle's or timm's.

    If the keys are timm's, the rules are PaddleClas's. Its models with a deep stem (vd) have an
    average pool at the start of a shortcut, so the numbers of the convolution and BatchNorm are
    larger by 1.

    The names of a block's branches repeat its name in Paddle's static graph: a letter, except in
    stage 3 of networks of 101 layers and more (res4a, res4b1, res4b2, ...).
    """
    if 'res2.blocks.0.branch2a.conv.weight' in keys:
        return _DET_RULES
    deep = not {'conv1_1._conv.weight', 'conv1.0.weight'}.isdisjoint(keys)
    stem = (
        {f'conv1_{i}': pair for i, pair in _STEM.items()} if deep else {'conv1': ('conv1', 'bn1')}
    )
    conv, bn = (1, 2) if deep else (0, 1)
    block = 'bb_{stage}_{block}'
    pairs = {
        **stem,
        f'{block}.conv0': (f'{_BLOCK}.conv1', f'{_BLOCK}.bn1'),
        f'{block}.conv2': (f'{_BLOCK}.conv3', f'{_BLOCK}.bn3'),
        f'{block}.short': (f'{_BLOCK}.downsample.{conv}', f'{_BLOCK}.downsample.{bn}'),
    }
    matches = [m for m in map(_IN_BLOCK.match, keys) if m]
    blocks = sorted({(int(m[2]) - (m[1] == 'layer'), int(m[3])) for m in matches})
    for stage, i in blocks:
        name = f'b{i}' if stage == 2 and i and (2, 6) in blocks else chr(ord('a') + i)
        timms = f'layer{stage + 1}.{i}'
        pairs[f'bb_{stage}_{i}.res{stage + 2}{name}_branch2b_{{i+1}}'] = (
            f'{timms}.convs.{{i}}',
            f'{timms}.bns.{{i}}',
        )
    return (
        *_rules(pairs),
        Rule('out.weight', 'fc.weight', transpose=True),
        Rule('out.bias', 'fc.bias'),
    )


SOURCE = Source(
    name='paddle',
    mark=r'bb_0_0\.conv0\._conv\.weight|res2\.blocks\.0\.branch2a\.conv\.weight',
    first=r'bb_0_0\.\w+_branch2b_1\._conv\.weight|res2\.blocks\.0\.branch2b\.0\.conv\.weight',
    rules=paddle_rules,
    semantics=('paddle',),
    license="PaddleClas's and PaddleDetection's published weights are Apache-2.0.",
    counts_batches=False,
    save=dump_arrays,
)
