"""The authors' checkpoints (v1, v1b and Res2NeXt), whose keys are timm's."""

from ..engine import Rule, Source, same

AUTHORS_LICENSE = (
    "The authors' README licenses the code under CC BY-NC-SA 4.0 and names no license for the "
    'weights'
)


_PARTS = (
    'conv1.weight', 'bn1.*', 'convs.{i}.weight', 'bns.{i}.*', 'conv3.weight', 'bn3.*', 'se.*.*',
    'downsample.{i}.*',
)  # fmt: skip
_BLOCK = 'layer{stage}.{block}'
BLOCK_RULES = (
    *same(*(f'{_BLOCK}.{part}' for part in _PARTS)),
    # SE modules of Linear layers, which mostly have no biases
    *(
        Rule(f'{_BLOCK}.se.fc.{i}.{leaf}', f'{_BLOCK}.se.{name}.{leaf}', linear=leaf == 'weight')
        for i, name in ((0, 'fc1'), (2, 'fc2'))
        for leaf in ('weight', 'bias')
    ),
)
"""Rules of the blocks for a project that names them as timm does."""
# Only v1b has the keys of a deep stem.
OFFICIAL_RULES = (
    *same('conv1.weight', 'conv1.{i}.*', 'bn1.*', 'maxpool.{i}.*'),
    *BLOCK_RULES,
    *same('fc.*'),
)


SOURCE = Source(
    name='official',
    mark=r'layer1\.0\.convs\.0\.weight',
    rules=lambda keys: OFFICIAL_RULES,
    # a state dict under these keys may have been trained with other blocks
    semantics=('official', 'mmdet', 'detectron2', 'maskrcnn', 'paddle', 'caffe'),
    license=f'{AUTHORS_LICENSE}.',
)
