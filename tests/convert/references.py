"""Networks of other projects, written from a reading of their code.

They share no code with the package, not even the table of semantics. The published ones have 64
planes and width 26.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

PLANES, WIDTH, SCALE = 16, 6, 4


def conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, dilation: int = 1) -> Any:
    padding = kernel // 2 * dilation
    return nn.Conv2d(inside, outside, kernel, stride, padding, dilation, bias=False)


def convolved(
    splits: Iterable[torch.Tensor], convs: Any, norms: Any, adds: bool
) -> list[torch.Tensor]:
    """Outputs of the 3x3 convolutions, of a split each, to which the output before is added."""
    outs: list[torch.Tensor] = []
    for split, layer, norm in zip(splits, convs, norms, strict=False):
        outs.append(norm(layer(split + outs[-1] if adds and outs else split)).relu())
    return outs


class FrozenBatchNorm(nn.Module):
    """maskrcnn-benchmark's BatchNorm: constants, and no eps."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (('weight', 1), ('bias', 0), ('running_mean', 0), ('running_var', 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def forward(self, x):
        scale = self.weight / self.running_var.sqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Block(nn.Module):
    """A block.

    Args:
        strides: Of the first 1x1 convolution and of the 3x3 convolutions.
        adds: Whether the output before is added to a split.
        last: What is done to the last split; None if it passes.
        pools: Whether the shortcut strides by an average pool, not in its convolution.
    """

    def __init__(
        self, inside, outside, width, is_first, norm, strides, adds, last=None, pools=False,
        dilation=1,
    ):  # fmt: skip
        super().__init__()
        self.adds, self.last, self.downsample = adds, last or nn.Identity(), nn.Identity()
        middle, splits, stride = width * SCALE, range(SCALE - 1), max(strides)
        if is_first and pools:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(pool, conv(inside, outside), norm(outside))
        elif is_first:
            self.downsample = nn.Sequential(conv(inside, outside, 1, stride), norm(outside))
        self.conv1, self.bn1 = conv(inside, middle, 1, strides[0]), norm(middle)
        self.convs = nn.ModuleList(conv(width, width, 3, strides[1], dilation) for _ in splits)
        self.bns = nn.ModuleList(norm(width) for _ in splits)
        self.conv3, self.bn3 = conv(middle, outside), norm(outside)

    def forward(self, x):
        splits = self.bn1(self.conv1(x)).relu().chunk(SCALE, 1)
        outs = convolved(splits, self.convs, self.bns, self.adds)
        y = self.bn3(self.conv3(torch.cat([*outs, self.last(splits[-1])], 1)))
        return (y + self.downsample(x)).relu()


class Network(nn.Module):
    """A stem, a max pool and four stages, which returns the four levels.

    Args:
        layers: Blocks of each stage.
        deep: Whether the stem has three 3x3 convolutions or one of 7x7.
        block: Return the arguments of a block for its stage from 0, the stride as published, and
            whether it is the stage's first.
        norm: Makes a BatchNorm.
    """

    def __init__(self, layers, deep, block, norm=nn.BatchNorm2d):
        super().__init__()
        inside, half = PLANES, PLANES // 2
        self.conv1 = conv(3, PLANES, 7, 2)
        if deep:
            self.conv1 = nn.Sequential(
                conv(3, half, 3, 2), norm(half), nn.ReLU(), conv(half, half, 3), norm(half),
                nn.ReLU(), conv(half, PLANES, 3),
            )  # fmt: skip
        self.bn1 = norm(PLANES)
        for i, count in enumerate(layers):
            blocks, outside = [], 4 * PLANES << i
            for j in range(count):
                arguments = block(i, 2 if i and j == 0 else 1, j == 0)
                blocks.append(Block(inside, outside, WIDTH << i, j == 0, norm, **arguments))
                inside = outside
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))

    def forward(self, x):
        levels = [F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            levels.append(stage(levels[-1]))
        return levels[1:]


def mmdet(layers, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)) -> Network:
    """MMDetection's: the 3x3 convolutions stride, and the last split is pooled if they do."""

    def block(i, stride, is_first):
        stride = strides[i] if is_first else 1
        last = nn.AvgPool2d(3, stride, 1) if stride > 1 else None
        return dict(
            strides=(1, stride), adds=not is_first, last=last, pools=True, dilation=dilations[i]
        )

    return Network(layers, True, block)


def detectron2(layers, res5_dilation=1) -> Network:
    """Res2Net-detectron2's with its configs' STRIDE_IN_1X1: True: the last split always passes,
    because no 3x3 convolution strides."""

    def block(i, stride, is_first):
        dilation = res5_dilation if i == 3 else 1
        stride = 1 if dilation == 2 else stride
        return dict(strides=(stride, 1), adds=not is_first, pools=True, dilation=dilation)

    return Network(layers, True, block)


def maskrcnn(layers, norm=FrozenBatchNorm) -> Network:
    """Res2Net-maskrcnn's with its default STRIDE_IN_1X1: True: the last split is pooled in every
    first block, whatever its stride, with the 3x3 convolutions' stride of 1."""

    def block(i, stride, is_first):
        last = nn.AvgPool2d(3, 1, 1) if is_first else None
        return dict(strides=(stride, 1), adds=not is_first, last=last)

    return Network(layers, False, block, norm)


def paddle_detection(layers, variant) -> Network:
    """PaddleDetection's, to whose stages its backbone does not pass the variant, so that no
    shortcut pools: variant d has a deep stem, b a 7x7 one.

    Paddle's average pooling leaves the padding out of its averages.
    """

    def block(i, stride, is_first):
        last = nn.AvgPool2d(3, stride, 1, count_include_pad=False) if stride > 1 else None
        return dict(strides=(1, stride), adds=stride == 1, last=last)

    return Network(layers, variant == 'd', block)


_NAMES: dict[Callable[..., Network], dict[str, str]] = {
    mmdet: {'^conv1': 'stem', '^bn1': 'stem.7'},
    detectron2: {
        r'(\.\d\.)bn([13])': r'\1conv\2.norm', r'downsample\.1': 'shortcut.1',
        r'downsample\.2': 'shortcut.1.norm', '^(conv1|bn1)': r'stem.\1',
        **{f'layer{i}': f'res{i + 1}' for i in range(1, 5)},
    },
    maskrcnn: {'^(conv1|bn1)': r'stem.\1'},
    paddle_detection: {
        r'(\.\d\.)conv1': r'\1branch2a.conv', r'(\.\d\.)bn1': r'\1branch2a.norm',
        'conv3': 'branch2c.conv', 'bn3': 'branch2c.norm',
        r'convs\.(\d)': r'branch2b.\1.conv', r'bns\.(\d)': r'branch2b.\1.norm',
        r'downsample\.0': 'branch1.conv', r'downsample\.1': 'branch1.norm',
        r'^conv1\.0': 'res1.conv1_1.conv', r'^conv1\.1': 'res1.conv1_1.norm',
        r'^conv1\.3': 'res1.conv1_2.conv', r'^conv1\.4': 'res1.conv1_2.norm',
        r'^conv1\.6': 'res1.conv1_3.conv', '^conv1': 'res1.conv1.conv',
        **{f'layer{i}': f'res{i + 1}.blocks' for i in range(1, 5)},
        'running_mean': '_mean', 'running_var': '_variance',
    },
}  # fmt: skip


def spelled(make: Callable[..., Network], net: Network) -> dict[str, torch.Tensor]:
    """The state dict of a network under its project's own names."""
    names = dict(_NAMES[make])
    if make is paddle_detection:
        names['^bn1'] = f'res1.conv1{"_3" * isinstance(net.conv1, nn.Sequential)}.norm'
    theirs = {}
    for key, value in net.state_dict().items():
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        theirs[key] = value
    return theirs


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
        outs = [first, *convolved(others, self.conv2, self.bn2, adds=True)]
        y = self.se(self.bn3(self.conv3(torch.cat(outs, 1))))
        return (y + self.downsample(x)).relu()


class Article(Network):
    """The article's network, or 4uiiurz1's with bias=False. It returns logits."""

    def __init__(self, layers, classes, scales=4, groups=1, se=True, bias=True):
        super().__init__((), False, None)
        inside = PLANES
        for i, count in enumerate(layers):
            planes, blocks = PLANES << i, []
            for j in range(count):
                stride = 2 if i and j == 0 else 1
                blocks.append(ArticleBlock(inside, planes, stride, scales, groups, se, bias))
                inside = planes * 4
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x):
        return self.fc(super().forward(x)[-1].mean((2, 3)))
