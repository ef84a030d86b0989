"""Res2Net-maskrcnn's checkpoints (maskrcnn-benchmark), block semantics `maskrcnn`."""

from ..engine import Rule, Source, save_torch
from .official import AUTHORS_LICENSE, BLOCK_RULES

# maskrcnn-benchmark's frozen BatchNorm divides by the square root of the running variance, without
# the eps that torch adds to it
_EPS = 1e-5
_VARIANCES = ('bn1', 'bns.{i}', 'bn3', 'downsample.{i}')


_NORMS = {
    'stem.bn1': 'bn1',
    **{name: name for name in (f'layer{{stage}}.{{block}}.{part}' for part in _VARIANCES)},
}
_RULES = (
    *(
        Rule(f'{theirs}.running_var', f'{ours}.running_var', shift=-_EPS)
        for theirs, ours in _NORMS.items()
    ),
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
    save=lambda tensors, file: save_torch({'model': tensors}, file),
)
