"""Checkpoints of PaddleClas and PaddleDetection (.pdparams), block semantics `paddle`."""

import re
from collections.abc import Collection, Iterable, Iterator

from ..engine import Rule, Source, conv_bn
from ..pickles import dump_arrays

_BN = ('weight', 'bias', '_mean', '_variance')
_CLAS = ('_conv.weight', '_batch_norm', _BN)
_DET = ('conv.weight', 'norm', _BN)
_BLOCK = 'layer{stage+1}.{block}'
_IN_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.')
# convolutions and norms of the deep stem under timm's keys
_STEM = {'1': ('conv1.0', 'conv1.1'), '2': ('conv1.3', 'conv1.4'), '3': ('conv1.6', 'bn1')}
# The star matches the block's name in Paddle's static graph, such as res2a or res4b22, which
# repeats {stage} and {block}. branch2b counts splits from 1.
_CLAS_BODY = (
    *conv_bn('bb_{stage}_{block}.conv0', (f'{_BLOCK}.conv1', f'{_BLOCK}.bn1'), _CLAS),
    *conv_bn(
        'bb_{stage}_{block}.*_branch2b_{i+1}',
        (f'{_BLOCK}.convs.{{i}}', f'{_BLOCK}.bns.{{i}}'),
        _CLAS,
    ),
    *conv_bn('bb_{stage}_{block}.conv2', (f'{_BLOCK}.conv3', f'{_BLOCK}.bn3'), _CLAS),
)
_CLAS_HEAD = (
    Rule('out.weight', 'fc.weight', transpose=True),
    Rule('out.bias', 'fc.bias'),
)
_DET_BODY = tuple(
    rule
    for part, names in {
        'branch2a': (f'{_BLOCK}.conv1', f'{_BLOCK}.bn1'),
        'branch2b.{i}': (f'{_BLOCK}.convs.{{i}}', f'{_BLOCK}.bns.{{i}}'),
        'branch2c': (f'{_BLOCK}.conv3', f'{_BLOCK}.bn3'),
        # PaddleDetection builds its vd backbones without the average pool in the shortcut
        'branch1': (f'{_BLOCK}.downsample.0', f'{_BLOCK}.downsample.1'),
    }.items()
    for rule in conv_bn(f'res{{stage+2}}.blocks.{{block}}.{part}', names, _DET)
)


_DET_RULES = (
    *conv_bn('res1.conv1', ('conv1', 'bn1'), _DET),
    *(rule for i, pair in _STEM.items() for rule in conv_bn(f'res1.conv1_{i}', pair, _DET)),
    *_DET_BODY,
)


def paddle_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, Paddle's or timm's.

    If the keys are timm's, the rules are PaddleClas's. Its models with a deep stem (vd) have an
    average pool at the start of a shortcut, so the numbers of the convolution and BatchNorm are
    larger by 1.
    """
    if 'res2.blocks.0.branch2a.conv.weight' in keys:
        return _DET_RULES
    deep = not {'conv1_1._conv.weight', 'conv1.0.weight'}.isdisjoint(keys)
    stem = (
        [rule for i, pair in _STEM.items() for rule in conv_bn(f'conv1_{i}', pair, _CLAS)]
        if deep
        else conv_bn('conv1', ('conv1', 'bn1'), _CLAS)
    )
    conv, bn = (1, 2) if deep else (0, 1)
    shortcut = conv_bn(
        'bb_{stage}_{block}.short',
        (f'{_BLOCK}.downsample.{conv}', f'{_BLOCK}.downsample.{bn}'),
        _CLAS,
    )
    body = (*_CLAS_BODY, *shortcut)
    return (*stem, *(_spell(body, keys) if 'layer1.0.conv1.weight' in keys else body), *_CLAS_HEAD)


def _spell(rules: Iterable[Rule], keys: Collection[str]) -> Iterator[Rule]:
    """Yield the rules with each star replaced by the names of the blocks.

    A star cannot be written back because timm's keys do not have these names. PaddleClas names
    blocks by letters, except those of stage 3 in networks of 101 layers and more: res4a, res4b1,
    res4b2, ...

    Args:
        rules: The rules.
        keys: Keys of the network under timm's names.
    """
    blocks = sorted({(int(m[1]) - 1, int(m[2])) for m in map(_IN_BLOCK.match, keys) if m})
    numbered = (2, 6) in blocks
    for rule in rules:
        if '*' not in rule.source:
            yield rule
            continue
        for stage, block in blocks:
            last = f'b{block}' if numbered and stage == 2 and block else chr(ord('a') + block)
            number = {'{stage}': stage, '{stage+1}': stage + 1, '{block}': block}
            source, target = rule.source.replace('*', f'res{stage + 2}{last}'), rule.target
            for field, value in number.items():
                source, target = (text.replace(field, str(value)) for text in (source, target))
            yield rule._replace(source=source, target=target)


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
