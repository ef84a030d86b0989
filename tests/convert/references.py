"""Other projects, from a reading of their code: their names, and the article's network.

They share no code with the package.
"""

import re
from collections.abc import Callable

from tests.common import Reference

_PADDLE = {
    r'(\.\d\.)conv1': r'\1branch2a.conv', r'(\.\d\.)bn1': r'\1branch2a.norm',
    'conv3': 'branch2c.conv', 'bn3': 'branch2c.norm',
    r'convs\.(\d)': r'branch2b.\1.conv', r'bns\.(\d)': r'branch2b.\1.norm',
    r'downsample\.0': 'branch1.conv', r'downsample\.1': 'branch1.norm',
    **{f'layer{i}': f'res{i + 1}.blocks' for i in range(1, 5)},
    'running_mean': '_mean', 'running_var': '_variance',
}  # fmt: skip
NAMES: dict[str, dict[str, str]] = {
    'mmdet': {'^conv1': 'stem', '^bn1': 'stem.7'},
    'detectron2': {
        r'(\.\d\.)bn([13])': r'\1conv\2.norm', r'downsample\.1': 'shortcut.1',
        r'downsample\.2': 'shortcut.1.norm', '^(conv1|bn1)': r'stem.\1',
        **{f'layer{i}': f'res{i + 1}' for i in range(1, 5)},
    },
    'maskrcnn': {'^(conv1|bn1)': r'stem.\1'},
    'mmpretrain': {},  # style='caffe', under the authors' names
    'paddle, d': {
        **_PADDLE,
        r'^conv1\.0': 'res1.conv1_1.conv', r'^conv1\.1': 'res1.conv1_1.norm',
        r'^conv1\.3': 'res1.conv1_2.conv', r'^conv1\.4': 'res1.conv1_2.norm',
        r'^conv1\.6': 'res1.conv1_3.conv', '^bn1': 'res1.conv1_3.norm',
    },
    'paddle, b': {**_PADDLE, '^conv1': 'res1.conv1.conv', '^bn1': 'res1.conv1.norm'},
}  # fmt: skip
"""A project's names by patterns of timm's. PaddleDetection has a deep stem (d) or a 7x7 one (b)."""


def spelled(project: str) -> Callable[[str], str]:
    """Return a function from timm's key to the project's."""

    def spell(key: str) -> str:
        for pattern, name in NAMES[project].items():
            key = re.sub(pattern, name, key)
        return key

    return spell


class Article(Reference):
    """The article's network, whose convolutions have biases, or 4uiiurz1's without."""

    def cascade(self, x, name, *_):
        """The first split passes, and the others are convolved."""
        first, *others = x.chunk(self.scale, 1)
        outs = [first]
        for i, split in enumerate(others):
            y = split + outs[-1] if i else split
            y = self.conv_bn(y, f'{name}.conv2.{i}', f'{name}.bn2.{i}', groups=self.groups)
            outs.append(y.relu())
        return outs
