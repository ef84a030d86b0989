"""Res2Net-maskrcnn's checkpoints (maskrcnn-benchmark), block semantics `maskrcnn`."""

import torch

from ..engine import Rule, Source
from .official import AUTHORS_LICENSE, BLOCK_RULES

# maskrcnn-benchmark's frozen BatchNorm divides by the square root of the running variance, without
# the eps that torch adds to it
_EPS = 1e-5
_RULES = (
    Rule('stem.bn1.running_var', 'bn1.running_var', shift=-_EPS),
    Rule('layer{stage}.**.running_var', 'layer{stage}.**.running_var', shift=-_EPS),
    Rule('stem.conv1.weight', 'conv1.weight'),
    Rule('stem.bn1.*', 'bn1.*'),
    *BLOCK_RULES,
)


SOURCE = Source(
    name='maskrcnn',
    mark=r'stem\.conv1\.weight',
    rules=lambda keys: _RULES,
    semantics=('maskrcnn',),
    license=(
        f'{AUTHORS_LICENSE}, and Res2Net-maskrcnn starts from those; its code is MIT-licensed.'
    ),
    counts_batches=False,
    save=lambda tensors, file: torch.save({'model': tensors}, file),
)
