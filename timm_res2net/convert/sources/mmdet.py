"""MMDetection's checkpoints, block semantics `mmdet`."""

from collections.abc import Collection

from ..engine import Rule
from ..source import Source
from .mmpretrain import save_openmmlab
from .official import AUTHORS_LICENSE, block_rules, same


def mmdet_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a backbone.

    One that was converted from the authors' classifier still has its `fc`.
    """
    return (
        *(Rule(f'stem.{i}.*', f'conv1.{i}.*') for i in (0, 1, 3, 4, 6)),
        Rule('stem.7.*', 'bn1.*'),
        *block_rules(),
        *same('fc.*'),
    )


_OPENMMLAB = 'https://download.openmmlab.com'


SOURCE = Source(
    name='mmdet',
    mark=r'stem\.0\.weight',
    rules=mmdet_rules,
    semantics=('mmdet', 'official'),
    license=f"{AUTHORS_LICENSE}, and MMDetection's start from those; its code is Apache-2.0.",
    save=save_openmmlab,
)
