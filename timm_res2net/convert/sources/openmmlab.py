"""Key rules for OpenMMLab: MMPretrain (MMClassification), block semantics `official`, and
MMDetection, block semantics `mmdet`."""

from collections.abc import Collection

from ..engine import Rule
from .official import block_rules

__all__ = ['mmdet_rules', 'mmpretrain_rules']


def mmpretrain_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """MMPretrain's table, for a whole classifier (`backbone.`, `head.fc`), its bare backbone with a
    deep stem (`stem.`), or, to write a classifier, keys under timm's names."""
    prefix = '' if any(key.startswith('stem.') for key in keys) else 'backbone.'
    deep = any(key in keys for key in ('conv1.0.weight', f'{prefix}stem.0.conv.weight'))
    stem = {'conv1.weight': 'conv1.weight', 'bn1.*': 'bn1.*'}
    if deep:
        pairs = (('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1'))
        stem = {}
        for i, (conv, bn) in enumerate(pairs):
            stem.update({f'stem.{i}.conv.weight': f'{conv}.weight', f'stem.{i}.bn.*': f'{bn}.*'})
    return (
        *(Rule(f'{prefix}{theirs}', ours) for theirs, ours in stem.items()),
        *block_rules(prefix),
        Rule('head.fc.*', 'fc.*'),
    )


def mmdet_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """MMDetection's table, for a backbone or for a whole detector, whose neck and heads go.

    A bare backbone that was converted from the authors' classifier still has its `fc`.
    """
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in keys) else ''
    heads = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'semantic_head')
    return (
        *(Rule(f'{prefix}stem.{i}.*', f'conv1.{i}.*') for i in (0, 1, 3, 4, 6)),
        Rule(f'{prefix}stem.7.*', 'bn1.*'),
        *block_rules(prefix),
        Rule(f'{prefix}fc.*', 'fc.*'),
        *(Rule(f'{head}.**', '') for head in heads),
    )
