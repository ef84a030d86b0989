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
_VARIANCES = ('bn1', 'bns.{i}', 'bn3', 'downsample.{i}')


def maskrcnn_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules, which move the stem and correct the running variances."""
    names = {
        'stem.bn1': 'bn1',
        **{name: name for name in (f'layer{{stage}}.{{block}}.{part}' for part in _VARIANCES)},
    }
    return (
        *(
            Rule(f'{theirs}.running_var', f'{ours}.running_var', shift=-_EPS)
            for theirs, ours in names.items()
        ),
        Rule('stem.conv1.weight', 'conv1.weight'),
        Rule('stem.bn1.*', 'bn1.*'),
        *block_rules(),
    )


def _save(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    torch.save({'model': dict(tensors)}, file)


SOURCE = Source(
    name='maskrcnn',
    mark=r'stem\.conv1\.weight',
    rules=maskrcnn_rules,
    semantics=('maskrcnn',),
    license=(
        f'{AUTHORS_LICENSE}, and Res2Net-maskrcnn starts from those; its code is MIT-licensed.'
    ),
    counts_batches=False,
    save=_save,
)
