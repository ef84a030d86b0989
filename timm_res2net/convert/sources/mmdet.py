"""MMDetection's checkpoints, block semantics `mmdet`."""

from collections.abc import Collection
from functools import partial

from ..engine import Rule
from ..source import Published, Source
from .mmpretrain import save_openmmlab
from .official import AUTHORS_LICENSE, block_rules

_HEADS = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'semantic_head')


def mmdet_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules for a backbone, or for a whole detector, whose neck and heads are dropped.

    A bare backbone that was converted from the authors' classifier still has its `fc`.
    """
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in keys) else ''
    return (
        *(Rule(f'{prefix}stem.{i}.*', f'conv1.{i}.*') for i in (0, 1, 3, 4, 6)),
        Rule(f'{prefix}stem.7.*', 'bn1.*'),
        *block_rules(prefix),
        Rule(f'{prefix}fc.*', 'fc.*'),
        *(Rule(f'{head}.**', '') for head in _HEADS),
    )


_file = partial(
    Published,
    figure_source="MMDetection's README",
    license='cc-by-nc-sa-4.0',
    license_source="the authors' README: training started from their weights",
    by='MMDetection',
)

SOURCE = Source(
    name='mmdet',
    mark=r'(backbone\.)?stem\.0\.weight',
    rules=mmdet_rules,
    semantics=('mmdet', 'official'),
    license=f"{AUTHORS_LICENSE}, and MMDetection's start from those; its code is Apache-2.0.",
    save=save_openmmlab,
    published=(
        _file('res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth', ''),
        _file('faster_rcnn_r2_101_fpn_2x_coco-175f1da6.pth', '43.0 box AP'),
        _file('mask_rcnn_r2_101_fpn_2x_coco-17f061e8.pth', '43.6 box AP'),
        _file('cascade_rcnn_r2_101_fpn_20e_coco-f4b7b7db.pth', '45.7 box AP'),
        _file('cascade_mask_rcnn_r2_101_fpn_20e_coco-8a7b41e1.pth', '46.4 box AP'),
        _file('htc_r2_101_fpn_20e_coco-3a8d2112.pth', '47.5 box AP'),
    ),
)
