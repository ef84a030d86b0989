"""Whose checkpoint it is: every known source, what tells it from the others, and its table."""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from ...text import list_some
from ..engine import Rule
from .article import article_rules
from .detectron2 import detectron2_rules
from .official import official_rules
from .openmmlab import mmdet_rules, mmpretrain_rules
from .paddle import paddle_rules

__all__ = ['SOURCES', 'Source', 'recognise']


class Source(NamedTuple):
    """A project whose checkpoints are known.

    Attributes:
        mark: Regular expression for a key that tells the source.
        rules: The table, for a checkpoint with given keys.
        semantics: Block semantics that its checkpoints may mean, the usual one first.
        licence: What is known of its published files.
    """

    mark: str
    rules: Callable[[Collection[str]], tuple[Rule, ...]]
    semantics: tuple[str, ...]
    licence: str


_AUTHORS = "The authors' README has said CC BY-NC-SA 4.0 for their weights since 2021"

# In the order in which they are tried: an earlier mark may also fit a later source.
SOURCES = {
    'paddle': Source(
        r'bb_0_0\.conv0\._conv\.weight|(backbone\.)?res2\.blocks\.0\.branch2a\.conv\.weight',
        paddle_rules,
        ('paddle',),
        "PaddleClas's and PaddleDetection's published weights are Apache-2.0.",
    ),
    'article': Source(
        r'layer1\.0\.conv2\.0\.weight',
        article_rules,
        ('caffe',),
        'The weights belong to whoever trained them.',
    ),
    'detectron2': Source(
        r'(\w+\.)*res2\.0\.conv1\.norm\.weight',
        detectron2_rules,
        ('mmdet', 'official'),
        f'{_AUTHORS}, and Res2Net-detectron2 starts from those; its code is Apache-2.0.',
    ),
    'mmdet': Source(
        r'(backbone\.)?stem\.0\.weight',
        mmdet_rules,
        ('mmdet', 'official'),
        f"{_AUTHORS}, and MMDetection's start from those; its code is Apache-2.0.",
    ),
    'mmpretrain': Source(
        r'(backbone\.)?stem\.0\.conv\.weight|backbone\.layer1\.0\.convs\.0\.weight',
        mmpretrain_rules,
        ('official',),
        f"{_AUTHORS}, and MMPretrain's are those converted; its code is Apache-2.0.",
    ),
    'timm': Source(
        r'layer1\.0\.se\.fc1\.weight',
        official_rules,
        ('official', 'mmdet', 'paddle', 'caffe'),
        'The weights belong to whoever trained them.',
    ),
    'official': Source(
        r'layer1\.0\.convs\.0\.weight',
        official_rules,
        ('official', 'mmdet', 'paddle', 'caffe'),
        f'{_AUTHORS}; before, it named no licence.',
    ),
}
"""Every source by its name. The keys of `official` and `timm` tell no semantics: a model's name
does."""


def recognise(keys: Collection[str]) -> str:
    """The name of the source whose keys these are.

    Raises:
        ValueError: It is none of them.
    """
    if 'layer1.0.conv2.weight' in keys:
        raise ValueError("It is a ResNet's: its blocks have one 3x3 convolution")
    convolved = any(part in key for key in keys for part in ('.conv2.', '.convs.'))
    if 'layer1.0.conv1.weight' in keys and not convolved:
        raise ValueError(
            "Its blocks have no 3x3 convolution at all (the article's network at scales=1), and "
            'here a block has at least one'
        )
    for name, source in SOURCES.items():
        mark = re.compile(source.mark)
        if any(mark.fullmatch(key) for key in keys):
            return name
    raise ValueError(
        f"None of its keys is a Res2Net's of {', '.join(SOURCES)} ({list_some(keys)}). If it is "
        'one inside a larger model, save the state dict of that part alone.'
    )
