"""Other projects, from a reading of their code: their names, and the article's network.

They share no code with the package.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

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


# --- the article's network ------------------------------------------------------------------------

PLANES = 16


class ArticleSE(nn.Module):
    """The gates of the article's network and of 4uiiurz1's, with their names."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x):
        gate = self.fc1(F.adaptive_avg_pool2d(x, 1)).relu()
        return x * self.fc2(gate).sigmoid()


class ArticleBlock(nn.Module):
    """A block of the article's network (with biases) or of 4uiiurz1's (without)."""

    def __init__(self, inside, planes, stride, scales, groups, se, bias):
        super().__init__()
        self.scales, middle = scales, planes * groups
        split, splits = middle // scales, range(scales - 1)
        self.conv1 = nn.Conv2d(inside, middle, 1, stride, bias=bias)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.ModuleList(
            nn.Conv2d(split, split, 3, padding=1, groups=groups, bias=bias) for _ in splits
        )
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(split) for _ in splits)
        self.conv3 = nn.Conv2d(middle, planes * 4, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.se = ArticleSE(planes * 4) if se else nn.Identity()
        self.downsample = nn.Identity()
        if inside != planes * 4:
            shortcut = nn.Conv2d(inside, planes * 4, 1, stride, bias=bias)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes * 4))

    def forward(self, x):
        first, *others = self.bn1(self.conv1(x)).relu().chunk(self.scales, 1)
        outs = [first]
        for i, (conv, bn) in enumerate(zip(self.conv2, self.bn2, strict=True)):
            outs.append(bn(conv(others[i] + outs[-1] if i else others[i])).relu())
        y = self.se(self.bn3(self.conv3(torch.cat(outs, 1))))
        return (y + self.downsample(x)).relu()


class Article(nn.Module):
    """The article's network, or 4uiiurz1's with bias=False."""

    def __init__(self, layers, classes, scales=4, groups=1, se=True, bias=True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, PLANES, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(PLANES)
        inside = PLANES
        for i, count in enumerate(layers):
            planes, blocks = PLANES << i, []
            for j in range(count):
                stride = 2 if i and j == 0 else 1
                blocks.append(ArticleBlock(inside, planes, stride, scales, groups, se, bias))
                inside = planes * 4
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, classes)

    def forward(self: Any, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))
