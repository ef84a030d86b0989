"""MMDetection's checkpoints, block semantics `mmdet`."""

from collections.abc import Collection
from functools import partial

from ..engine import Rule
from ..source import Published, Source
from .mmpretrain import save_openmmlab
from .official import AUTHORS_LICENSE, NO_LICENSE, block_rules, same


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
_start = partial(
    Published,
    license='unknown',
    license_source=f'{NO_LICENSE}. Training started from their weights',
)


def _file(config: str, digits: str, figure: str) -> Published:
    file = f'{config}-{digits}.pth'
    return _start(
        file,
        figure,
        figure_source="MMDetection's configs/res2net/README.md",
        by='MMDetection',
        url=f'{_OPENMMLAB}/mmdetection/v2.0/res2net/{config}/{file}',
    )


SOURCE = Source(
    name='mmdet',
    mark=r'stem\.0\.weight',
    rules=mmdet_rules,
    semantics=('mmdet', 'official'),
    license=f"{AUTHORS_LICENSE}, and MMDetection's start from those; its code is Apache-2.0.",
    save=save_openmmlab,
    published=(
        _start(
            'res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth',
            '',
            figure_source='',
            license_source=f'{NO_LICENSE}. These are their weights, converted',
            by='MMDetection',
            url=f'{_OPENMMLAB}/pretrain/third_party/res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth',
        ),
        _file('faster_rcnn_r2_101_fpn_2x_coco', '175f1da6', '43.0 box AP'),
        _file('mask_rcnn_r2_101_fpn_2x_coco', '17f061e8', '43.6 box AP, 38.7 mask AP'),
        _file('cascade_rcnn_r2_101_fpn_20e_coco', 'f4b7b7db', '45.7 box AP'),
        _file('cascade_mask_rcnn_r2_101_fpn_20e_coco', '8a7b41e1', '46.4 box AP, 40.0 mask AP'),
        _file('htc_r2_101_fpn_20e_coco', '3a8d2112', '47.5 box AP, 41.6 mask AP'),
        _start(
            'VFNet R2-101, 2x, without DCN (linked without a name)',
            '49.2 box AP',
            figure_source="VarifocalNet's README",
            by='VarifocalNet',
            url='https://drive.google.com/file/d/1E4o1CxaWUQV7-HAyqbITw7JD8mOF7tNW/view',
        ),
        _start(
            'res2net50_v1b_26w_4s-3cf99910_mmdetv2-92ed3313.pth',
            '',
            figure_source='',
            license_source=f'{NO_LICENSE}. These are their weights, converted',
            by='UniverseNet',
            url='https://github.com/shinya7y/weights/releases/download/v1.0.2/'
            'res2net50_v1b_26w_4s-3cf99910_mmdetv2-92ed3313.pth',
        ),
    ),
)
