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
# SE modules of Linear layers, which mostly have no biases
_LINEAR = {'se.fc.0': 'se.fc1', 'se.fc.2': 'se.fc2'}
BLOCK_RULES = tuple(
    Rule(f'layer{{stage}}.{{block}}.{theirs}', f'layer{{stage}}.{{block}}.{ours}', linear=linear)
    for theirs, ours, linear in (
        *((part, part, False) for part in _PARTS),
        *((f'{theirs}.weight', f'{ours}.weight', True) for theirs, ours in _LINEAR.items()),
        *((f'{theirs}.bias', f'{ours}.bias', False) for theirs, ours in _LINEAR.items()),
    )
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
