"""Networks of other projects, written from a reading of their code, with their names of parameters.

They share no code with the package, not even the table of semantics. Each returns its four levels.
The published ones have 64 planes and width 26.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

PLANES, WIDTH, SCALE = 16, 6, 4


def conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, dilation: int = 1) -> Any:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2 * dilation, dilation, bias=False)


def deep_stem() -> list[nn.Module]:
    """Three convolutions, the last without its BatchNorm."""
    half = PLANES // 2
    return [
        conv(3, half, 3, 2), nn.BatchNorm2d(half), nn.ReLU(),
        conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU(), conv(half, PLANES, 3),
    ]  # fmt: skip


def pooled(inside: int, outside: int, stride: int, *last: nn.Module) -> nn.Sequential:
    """A shortcut with an average pool in front of its convolution, if that is not in `last`."""
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, *(last or (conv(inside, outside), nn.BatchNorm2d(outside))))


def convolved(
    splits: Iterable[torch.Tensor], layers: Iterable[Callable[..., torch.Tensor]], adds: bool
) -> list[torch.Tensor]:
    """Outputs of the 3x3 convolutions, of a split each, to which the output before is added."""
    outs: list[torch.Tensor] = []
    for split, layer in zip(splits, layers, strict=False):
        outs.append(layer(split + outs[-1] if adds and outs else split).relu())
    return outs


class Network(nn.Module):
    """A stem, a max pool and four stages."""

    stage = 'layer{}'
    offset = 1

    def build(self, layers: Iterable[int], block: Callable[..., nn.Module]) -> None:
        """Make the stages. A block gets its stage from 0, its channels, its stride as published,
        and whether it is the first."""
        inside = PLANES
        for i, count in enumerate(layers):
            outside, blocks = 4 * PLANES << i, []
            for j in range(count):
                blocks.append(block(i, inside, outside, 2 if i and j == 0 else 1, j == 0))
                inside = outside
            setattr(self, self.stage.format(i + self.offset), nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(self.forward_stem(x), 3, 2, 1)
        levels = []
        for i in range(4):
            x = getattr(self, self.stage.format(i + self.offset))(x)
            levels.append(x)
        return levels


class Bottle2neck(nn.Module):
    """The block of three projects, which differ in strides, norms, and what two parts are.

    Args:
        strides: Of the first 1x1 convolution and of the 3x3 convolutions.
        last: What is done to the last split.
        shortcut: The shortcut's name and layers; None except in the first block of a stage.
        norm: Makes a BatchNorm.
        outer: Makes a 1x1 convolution that holds its BatchNorm, if they do.
    """

    def __init__(
        self, inside, outside, width, strides=(1, 1), dilation=1, last=None, shortcut=None,
        norm=nn.BatchNorm2d, outer=None,
    ):  # fmt: skip
        super().__init__()
        self.is_first, self.last = shortcut is not None, last or nn.Identity()
        self.name, layers = shortcut or ('downsample', nn.Identity())
        setattr(self, self.name, layers)
        middle, splits = width * SCALE, range(SCALE - 1)
        self.conv1 = (outer or conv)(inside, middle, 1, strides[0])
        self.bn1 = nn.Identity() if outer else norm(middle)
        self.convs = nn.ModuleList(conv(width, width, 3, strides[1], dilation) for _ in splits)
        self.bns = nn.ModuleList(norm(width) for _ in splits)
        self.conv3 = (outer or conv)(middle, outside)
        self.bn3 = nn.Identity() if outer else norm(outside)

    def forward(self, x):
        splits = self.bn1(self.conv1(x)).relu().chunk(SCALE, 1)
        outs = convolved(splits, map(nn.Sequential, self.convs, self.bns), not self.is_first)
        y = self.bn3(self.conv3(torch.cat([*outs, self.last(splits[-1])], 1)))
        return (y + getattr(self, self.name)(x)).relu()


class ConvNorm(nn.Conv2d):
    """detectron2's 1x1 convolution, which holds its BatchNorm."""

    def __init__(self, inside, outside, kernel=1, stride=1):
        super().__init__(inside, outside, kernel, stride, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x):
        return self.norm(super().forward(x))


class Detectron2(Network):
    """Res2Net-detectron2's backbone with its configs' STRIDE_IN_1X1: True, stages res2 to res5.

    The last split passes, because no 3x3 convolution strides.
    """

    stage, offset = 'res{}', 2

    def __init__(self, layers, res5_dilation=1):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = nn.Sequential(*deep_stem())
        self.stem.bn1 = nn.BatchNorm2d(PLANES)

        def block(i, inside, outside, stride, is_first):
            dilation = res5_dilation if i == 3 else 1
            stride = 1 if dilation == 2 else stride
            shortcut = pooled(inside, outside, stride, ConvNorm(inside, outside))
            return Bottle2neck(
                inside, outside, WIDTH << i, (stride, 1), dilation, outer=ConvNorm,
                shortcut=('shortcut', shortcut) if is_first else None,
            )  # fmt: skip

        self.build(layers, block)

    def forward_stem(self, x):
        return self.stem.bn1(self.stem.conv1(x)).relu()


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


class MaskRCNN(Network):
    """Res2Net-maskrcnn's backbone with its default STRIDE_IN_1X1: True, and a 7x7 stem.

    The last split is pooled in every first block, whatever its stride, with the 3x3 convolutions'
    stride of 1.
    """

    def __init__(self, layers, norm=FrozenBatchNorm):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = conv(3, PLANES, 7, 2)
        self.stem.bn1 = norm(PLANES)

        def block(i, inside, outside, stride, is_first):
            shortcut = nn.Sequential(conv(inside, outside, 1, stride), norm(outside))
            return Bottle2neck(
                inside, outside, WIDTH << i, (stride, 1), norm=norm,
                last=nn.AvgPool2d(3, 1, 1) if is_first else None,
                shortcut=('downsample', shortcut) if is_first else None,
            )  # fmt: skip

        self.build(layers, block)

    def forward_stem(self, x):
        return self.stem.bn1(self.stem.conv1(x)).relu()


class MMDet(Network):
    """MMDetection's Res2Net, which always has a deep stem and pools in the shortcut.

    The 3x3 convolutions stride, and the last split is pooled if they do.
    """

    def __init__(self, layers, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)):
        super().__init__()
        self.stem = nn.Sequential(*deep_stem(), nn.BatchNorm2d(PLANES), nn.ReLU())

        def block(i, inside, outside, stride, is_first):
            stride = strides[i] if is_first else 1
            return Bottle2neck(
                inside, outside, WIDTH << i, (1, stride), dilations[i],
                last=nn.AvgPool2d(3, stride, 1) if stride > 1 else None,
                shortcut=('downsample', pooled(inside, outside, stride)) if is_first else None,
            )  # fmt: skip

        self.build(layers, block)

    def forward_stem(self, x):
        return self.stem(x)


class PaddleConvNorm(nn.Module):
    """PaddleDetection's ConvNormLayer."""

    def __init__(self, inside, outside, kernel, stride=1):
        super().__init__()
        self.conv = conv(inside, outside, kernel, stride)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x):
        return self.norm(self.conv(x))


class PaddleDetectionBlock(nn.Module):
    """BottleNeck of PaddleDetection, to whose stages its backbone does not pass the variant."""

    def __init__(self, inside, outside, width, stride, is_first):
        super().__init__()
        self.stride = stride
        self.branch1 = PaddleConvNorm(inside, outside, 1, stride) if is_first else nn.Identity()
        self.branch2a = PaddleConvNorm(inside, width * SCALE, 1)
        self.branch2b = nn.ModuleList(
            PaddleConvNorm(width, width, 3, stride) for _ in range(SCALE - 1)
        )
        self.branch2c = PaddleConvNorm(width * SCALE, outside, 1)

    def forward(self, x):
        splits = self.branch2a(x).relu().chunk(SCALE, 1)
        outs = convolved(splits, self.branch2b, self.stride == 1)
        # Paddle's average pooling leaves the padding out of its averages
        average = F.avg_pool2d(splits[-1], 3, self.stride, 1, count_include_pad=False)
        outs.append(splits[-1] if self.stride == 1 else average)
        return (self.branch2c(torch.cat(outs, 1)) + self.branch1(x)).relu()


class PaddleDetection(Network):
    """PaddleDetection's Res2Net: variant d has a deep stem, b a 7x7 one."""

    stage, offset = 'res{}', 2

    def __init__(self, layers, variant):
        super().__init__()
        half = PLANES // 2
        deep = {'conv1_1': (3, half, 3, 2), 'conv1_2': (half, half, 3, 1)}
        deep['conv1_3'] = half, PLANES, 3, 1
        stem = deep if variant == 'd' else {'conv1': (3, PLANES, 7, 2)}
        self.res1 = nn.ModuleDict({name: PaddleConvNorm(*sizes) for name, sizes in stem.items()})

        def block(i, inside, outside, stride, is_first):
            return PaddleDetectionBlock(inside, outside, WIDTH << i, stride, is_first)

        self.build(layers, block)
        for i in range(2, 6):
            setattr(self, f'res{i}', nn.Sequential(OrderedDict(blocks=getattr(self, f'res{i}'))))

    def forward_stem(self, x):
        for layer in self.res1.values():
            x = layer(x).relu()
        return x


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
        self.downsample = None
        if inside != planes * 4:
            shortcut = nn.Conv2d(inside, planes * 4, 1, stride, bias=bias)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes * 4))

    def forward(self, x):
        first, *others = self.bn1(self.conv1(x)).relu().chunk(self.scales, 1)
        outs = [first, *convolved(others, map(nn.Sequential, self.conv2, self.bn2), adds=True)]
        y = self.se(self.bn3(self.conv3(torch.cat(outs, 1))))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Article(Network):
    """The article's network, or 4uiiurz1's with bias=False. It returns logits.

    Its stem is as wide as the splits of a block together, which are 16 channels here.
    """

    def __init__(self, layers, classes, scales=4, groups=1, se=True, bias=True):
        super().__init__()
        self.conv1, self.bn1 = conv(3, PLANES, 7, 2), nn.BatchNorm2d(PLANES)

        def block(i, inside, outside, stride, is_first):
            return ArticleBlock(inside, outside // 4, stride, scales, groups, se, bias)

        self.build(layers, block)
        self.fc = nn.Linear(32 * PLANES, classes)

    def forward_stem(self, x):
        return self.bn1(self.conv1(x)).relu()

    def forward(self, x):
        return self.fc(super().forward(x)[-1].mean((2, 3)))
