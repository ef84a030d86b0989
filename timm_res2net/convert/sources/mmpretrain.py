"""MMPretrain's checkpoints (formerly MMClassification), block semantics `official`."""

from collections.abc import Collection, Mapping
from typing import IO

import torch

from ..engine import Rule, Source
from .official import AUTHORS_LICENSE, BLOCK_RULES


def mmpretrain_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a backbone, and for the classifier's `head.fc` beside it."""
    deep = any(key in keys for key in ('conv1.0.weight', 'stem.0.conv.weight'))
    stem = {'conv1.weight': 'conv1.weight', 'bn1.*': 'bn1.*'}
    if deep:
        pairs = (('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1'))
        stem = {}
        for i, (conv, bn) in enumerate(pairs):
            stem.update({f'stem.{i}.conv.weight': f'{conv}.weight', f'stem.{i}.bn.*': f'{bn}.*'})
    return (
        *(Rule(theirs, ours) for theirs, ours in stem.items()),
        *BLOCK_RULES,
        Rule('head.fc.*', 'fc.*'),
    )


def _save(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Write a classifier, whose backbone has a prefix."""
    named = {
        key if key.startswith('head.') else f'backbone.{key}': value
        for key, value in tensors.items()
    }
    save_openmmlab(named, file)


def save_openmmlab(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Write a checkpoint as MMEngine does."""
    torch.save({'meta': {}, 'state_dict': dict(tensors)}, file)


SOURCE = Source(
    name='mmpretrain',
    mark=r'stem\.0\.conv\.weight|head\.fc\.weight',
    rules=mmpretrain_rules,
    semantics=('official', 'maskrcnn'),  # the latter if it was trained with style='caffe'
    license=f"{AUTHORS_LICENSE}, and MMPretrain's are those converted; its code is Apache-2.0.",
    save=_save,
)
