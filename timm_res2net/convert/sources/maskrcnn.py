"""Res2Net-maskrcnn's checkpoints (maskrcnn-benchmark), block semantics `maskrcnn`."""

from collections.abc import Collection, Mapping
from typing import IO

import torch

from ..engine import Rule
from ..source import Source
from .official import AUTHORS_LICENSE, block_rules

# maskrcnn-benchmark's frozen BatchNorm divides by the square root of the running variance, without
# the eps that torch adds to it
_EPS = 1e-5
_STEM = 'stem.conv1.weight'
_VARIANCES = ('bn1', 'bns.{i}', 'bn3', 'downsample.{i}')


def maskrcnn_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a backbone, or for a whole detector, whose pyramid and heads are
    dropped."""
    found = [key for key in keys if key.endswith(_STEM)]
    prefix = found[0].removesuffix(_STEM) if found else ''
    names = {
        'stem.bn1': 'bn1',
        **{name: name for name in (f'layer{{stage}}.{{block}}.{part}' for part in _VARIANCES)},
    }
    rules = (
        *(
            Rule(f'{theirs}.running_var', f'{ours}.running_var', shift=-_EPS)
            for theirs, ours in names.items()
        ),
        Rule(_STEM, 'conv1.weight'),
        Rule('stem.bn1.*', 'bn1.*'),
        *block_rules(),
    )
    return (
        *(rule._replace(source=prefix + rule.source) for rule in rules),
        *(Rule(head, '') for head in ('backbone.fpn.**', 'rpn.**', 'roi_heads.**')),
    )


def _save(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    torch.save({'model': dict(tensors)}, file)


SOURCE = Source(
    name='maskrcnn',
    mark=r'(\w+\.)*stem\.conv1\.weight',
    rules=maskrcnn_rules,
    semantics=('maskrcnn',),
    license=(
        f'{AUTHORS_LICENSE}, and Res2Net-maskrcnn starts from those; its code is MIT-licensed.'
    ),
    counts_batches=False,
    save=_save,
)
