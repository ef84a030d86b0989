"""MindCV's checkpoints (MindSpore's .ckpt), block semantics `official`."""

from collections.abc import Collection, Mapping
from typing import Any

from ..engine import Rule, Source
from ..mindspore import dump_ckpt

_LEAVES = (
    ('gamma', 'weight'), ('beta', 'bias'), ('moving_mean', 'running_mean'),
    ('moving_variance', 'running_var'),
)  # fmt: skip
_BLOCK = 'layer{stage}.{block}'


def mindcv_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a checkpoint with these keys, MindCV's or timm's.

    In v1b, which has a deep stem, the shortcuts start with an average pool, except that of stage 1.
    timm has an identity there, so the numbers of the convolution and BatchNorm are larger by 1.
    """
    if 'conv1.0.weight' in keys:
        stem = {name: name for name in ('conv1.0', 'conv1.3', 'conv1.6')}
        norms = {name: name for name in ('conv1.1', 'conv1.4', 'bn1')}
        shortcuts = {'layer1.{block}': (0, 1), _BLOCK: (1, 1)}
    else:
        stem, norms, shortcuts = {'conv1': 'conv1'}, {'bn1': 'bn1'}, {_BLOCK: (0, 0)}
    convs = stem | {f'{_BLOCK}.{c}': f'{_BLOCK}.{c}' for c in ('conv1', 'convs.{i}', 'conv3')}
    norms |= {f'{_BLOCK}.{n}': f'{_BLOCK}.{n}' for n in ('bn1', 'bns.{i}', 'bn3')}
    for block, (theirs, ours) in shortcuts.items():
        convs[f'{block}.down_sample.{theirs}'] = f'{block}.downsample.{ours}'
        norms[f'{block}.down_sample.{theirs + 1}'] = f'{block}.downsample.{ours + 1}'
    return (
        *(Rule(f'{theirs}.weight', f'{ours}.weight') for theirs, ours in convs.items()),
        *(Rule(f'{theirs}.*', f'{ours}.*', stars=_LEAVES) for theirs, ours in norms.items()),
        Rule('classifier.*', 'fc.*'),
    )


def _builds(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the network that MindCV's constructor builds."""
    deep = bool(arguments['stem_type'])
    return {
        'cardinality': 1,
        'channels': (64, 128, 256, 512),
        'stem_type': 'deep' if deep else '',
        'stem_width': 32 if deep else None,
        'avg_down': deep,
        'down_kernel_size': 1,
        'replace_stem_pool': False,
    }


SOURCE = Source(
    name='mindcv',
    mark=r'layer1\.0\.bns\.0\.gamma',
    rules=mindcv_rules,
    semantics=('official',),
    license="MindCV's repository, which links its weights, is Apache-2.0.",
    counts_batches=False,
    save=dump_ckpt,
    builds=_builds,
)
