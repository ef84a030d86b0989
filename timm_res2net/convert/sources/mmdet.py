"""MMDetection's checkpoints, block semantics `mmdet`."""

from ..engine import Rule, Source, same
from .mmpretrain import save_openmmlab
from .official import AUTHORS_LICENSE, BLOCK_RULES

_RULES = (
    *(Rule(f'stem.{i}.*', f'conv1.{i}.*') for i in (0, 1, 3, 4, 6)),
    Rule('stem.7.*', 'bn1.*'),
    *BLOCK_RULES,
    *same('fc.*'),  # which a backbone still has if it was converted from the authors' classifier
)


SOURCE = Source(
    name='mmdet',
    mark=r'stem\.0\.weight',
    rules=lambda keys: _RULES,
    semantics=('mmdet', 'official'),
    license=f"{AUTHORS_LICENSE}, and MMDetection's start from those; its code is Apache-2.0.",
    save=save_openmmlab,
)
