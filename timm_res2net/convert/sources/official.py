"""The authors' checkpoints (v1, v1b and Res2NeXt), whose keys are timm's."""

from collections.abc import Collection

from ..engine import Rule
from ..source import Source

AUTHORS_LICENSE = (
    "The authors' README licenses the code under CC BY-NC-SA 4.0 and names no license for the "
    'weights'
)


def same(*keys: str) -> tuple[Rule, ...]:
    """Return rules for keys that keep their names."""
    return tuple(Rule(key, key) for key in keys)


def block_rules() -> tuple[Rule, ...]:
    """Return the rules of the blocks for a project that names them as timm does."""
    block = 'layer{stage}.{block}'
    parts = (
        'conv1.weight', 'bn1.*', 'convs.{i}.weight', 'bns.{i}.*', 'conv3.weight', 'bn3.*',
        'se.*.*', 'downsample.{i}.*',
    )  # fmt: skip
    # SE modules of Linear layers, which mostly have no biases
    linear = {'se.fc.0': 'se.fc1', 'se.fc.2': 'se.fc2'}
    return (
        *same(*(f'{block}.{part}' for part in parts)),
        *(
            Rule(f'{block}.{theirs}.weight', f'{block}.{ours}.weight', linear=True)
            for theirs, ours in linear.items()
        ),
        *(
            Rule(f'{block}.{theirs}.bias', f'{block}.{ours}.bias')
            for theirs, ours in linear.items()
        ),
    )


def official_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules, which rename nothing. Only v1b has the keys of a deep stem."""
    stem = same('conv1.weight', 'conv1.{i}.*', 'bn1.*', 'maxpool.{i}.*')
    return (*stem, *block_rules(), *same('fc.*'))


SOURCE = Source(
    name='official',
    mark=r'layer1\.0\.convs\.0\.weight',
    rules=official_rules,
    # a state dict under these keys may have been trained with other blocks
    semantics=('official', 'mmdet', 'detectron2', 'maskrcnn', 'paddle', 'caffe'),
    license=f'{AUTHORS_LICENSE}.',
)
