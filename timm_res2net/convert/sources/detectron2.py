"""Res2Net-detectron2's checkpoints, block semantics `detectron2`.

Its configs leave detectron2's default `STRIDE_IN_1X1: True`, and its block cannot run with False.
Its ImageNet backbone is the authors' classifier under other names, so its semantics are `official`.
That file has the classifier's last layer, which a detector does not have.
"""

from collections.abc import Mapping
from typing import IO

import torch

from ..engine import Rule, Source
from .official import AUTHORS_LICENSE

_THEIRS = 'res{stage+1}.{block}'
_BLOCK = 'layer{stage}.{block}'
_RULES = (
    Rule('stem.conv1.{i}.*', 'conv1.{i}.*'),
    Rule('stem.bn1.*', 'bn1.*'),
    *(
        rule
        for i in (1, 3)
        for rule in (
            Rule(f'{_THEIRS}.conv{i}.weight', f'{_BLOCK}.conv{i}.weight'),
            Rule(f'{_THEIRS}.conv{i}.norm.*', f'{_BLOCK}.bn{i}.*'),
        )
    ),
    Rule(f'{_THEIRS}.convs.{{i}}.weight', f'{_BLOCK}.convs.{{i}}.weight'),
    Rule(f'{_THEIRS}.bns.{{i}}.*', f'{_BLOCK}.bns.{{i}}.*'),
    Rule(f'{_THEIRS}.shortcut.1.weight', f'{_BLOCK}.downsample.1.weight'),
    Rule(f'{_THEIRS}.shortcut.1.norm.*', f'{_BLOCK}.downsample.2.*'),
    # the project's converter names a classifier's last layer so
    Rule('stem.fc.*', 'fc.*'),
)


def _save(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    # without an author, detectron2 matches the keys by heuristics
    torch.save({'model': dict(tensors), '__author__': 'timm_res2net'}, file)


SOURCE = Source(
    name='detectron2',
    mark=r'res2\.0\.conv1\.norm\.weight',
    first=r'res2\.0\.convs\.0\.weight',
    rules=lambda keys: _RULES,
    semantics=('detectron2', 'official', 'mmdet'),
    license=(
        f'{AUTHORS_LICENSE}, and Res2Net-detectron2 starts from those; its code is Apache-2.0.'
    ),
    counts_batches=False,
    save=_save,
)
