"""Networks of other projects, written from a reading of their code, with their names of parameters.

They share no code with the package, not even the table of semantics. Each returns its four levels.
The published ones have 64 planes and width 26.
"""

import torch
from torch import nn
from torch.nn import functional as F


class ConvNorm(nn.Conv2d):
    """detectron2's convolution, which holds its BatchNorm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, bias=False, **kwargs)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class Detectron2Block(nn.Module):
    """BottleneckBlock of Res2Net-detectron2 with its configs' STRIDE_IN_1X1: True."""

    def __init__(self, inside, outside, width, scale, stride, dilation):
        super().__init__()
        self.scale, self.changes = scale, inside != outside
        self.shortcut = None
        if self.changes:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, ConvNorm(inside, outside, 1))
        self.conv1 = ConvNorm(inside, width * scale, 1, stride=stride)
        splits = range(max(1, scale - 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
            for _ in splits
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in splits)
        self.conv3 = ConvNorm(width * scale, outside, 1)

    def forward(self, x):
        splits = self.conv1(x).relu().chunk(self.scale, 1)
        outs = []
        for i in range(len(self.convs)):
            y = splits[i] if i == 0 or self.changes else splits[i] + outs[-1]
            outs.append(self.bns[i](self.convs[i](y)).relu())
        if self.scale > 1:
            outs.append(splits[-1])  # passes, because no 3x3 convolution strides
        y = self.conv3(torch.cat(outs, 1))
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


class Detectron2(nn.Module):
    """Res2Net-detectron2's backbone: deep stem, stages res2 to res5."""

    def __init__(self, layers, planes=16, width=6, scale=4, res5_dilation=1):
        super().__init__()
        half = planes // 2

        def conv(inside, outside, stride):
            return nn.Conv2d(inside, outside, 3, stride, 1, bias=False)

        self.stem = nn.Module()
        self.stem.conv1 = nn.Sequential(
            conv(3, half, 2), nn.BatchNorm2d(half), nn.ReLU(),
            conv(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(), conv(half, planes, 1),
        )  # fmt: skip
        self.stem.bn1 = nn.BatchNorm2d(planes)
        inside = planes
        for i, count in enumerate(layers):
            outside, dilation = 4 * planes << i, res5_dilation if i == 3 else 1
            stride = 1 if i == 0 or dilation == 2 else 2
            blocks = []
            for j in range(count):
                strides = stride if j == 0 else 1
                blocks.append(
                    Detectron2Block(inside, outside, width << i, scale, strides, dilation)
                )
                inside = outside
            setattr(self, f'res{i + 2}', nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(self.stem.bn1(self.stem.conv1(x)).relu(), 3, 2, 1)
        levels = []
        for i in range(4):
            x = getattr(self, f'res{i + 2}')(x)
            levels.append(x)
        return levels


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


class MaskRCNNBlock(nn.Module):
    """Bottle2neck of Res2Net-maskrcnn with its default STRIDE_IN_1X1: True."""

    def __init__(self, inside, outside, width, scale, stride, norm):
        super().__init__()
        self.scale, self.downsample = scale, None
        if inside != outside:
            conv = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, norm(outside))
        self.conv1 = nn.Conv2d(inside, width * scale, 1, stride, bias=False)
        self.bn1 = norm(width * scale)
        splits = range(max(1, scale - 1))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in splits)
        self.bns = nn.ModuleList(norm(width) for _ in splits)
        self.conv3 = nn.Conv2d(width * scale, outside, 1, bias=False)
        self.bn3 = norm(outside)

    def forward(self, x):
        is_first = self.downsample is not None
        splits = self.bn1(self.conv1(x)).relu().chunk(self.scale, 1)
        outs = []
        for i in range(len(self.convs)):
            y = splits[i] if i == 0 or is_first else splits[i] + outs[-1]
            outs.append(self.bns[i](self.convs[i](y)).relu())
        if self.scale > 1:
            # pooled in every first block, whatever its stride, with the 3x3 convolutions' stride 1
            outs.append(F.avg_pool2d(splits[-1], 3, 1, 1) if is_first else splits[-1])
        y = self.bn3(self.conv3(torch.cat(outs, 1)))
        return (y + (self.downsample(x) if is_first else x)).relu()


class MaskRCNN(nn.Module):
    """Res2Net-maskrcnn's backbone: 7x7 stem, stages layer1 to layer4."""

    def __init__(self, layers, planes=16, width=6, scale=4, norm=FrozenBatchNorm):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = nn.Conv2d(3, planes, 7, 2, 3, bias=False)
        self.stem.bn1 = norm(planes)
        inside = planes
        for i, count in enumerate(layers):
            outside, blocks = 4 * planes << i, []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(MaskRCNNBlock(inside, outside, width << i, scale, stride, norm))
                inside = outside
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(self.stem.bn1(self.stem.conv1(x)).relu(), 3, 2, 1)
        levels = []
        for i in range(4):
            x = getattr(self, f'layer{i + 1}')(x)
            levels.append(x)
        return levels


class MMDetBlock(nn.Module):
    """Bottle2neck of MMDetection, whose stage always strides in the 3x3 convolutions."""

    def __init__(self, inside, outside, width, scale, stride, dilation, is_first):
        super().__init__()
        self.scale, self.stride, self.is_first = scale, stride, is_first
        self.conv1 = nn.Conv2d(inside, width * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scale)
        splits = range(scale - 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False) for _ in splits
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in splits)
        self.conv3 = nn.Conv2d(width * scale, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.downsample = None
        if is_first:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            conv = nn.Conv2d(inside, outside, 1, bias=False)
            self.downsample = nn.Sequential(pool, conv, nn.BatchNorm2d(outside))

    def forward(self, x):
        splits = self.bn1(self.conv1(x)).relu().chunk(self.scale, 1)
        outs = []
        for i in range(len(self.convs)):
            y = splits[i] if i == 0 or self.is_first else splits[i] + outs[-1]
            outs.append(self.bns[i](self.convs[i](y)).relu())
        last = splits[-1]
        outs.append(F.avg_pool2d(last, 3, self.stride, 1) if self.stride > 1 else last)
        y = self.bn3(self.conv3(torch.cat(outs, 1)))
        return (y + (self.downsample(x) if self.is_first else x)).relu()


class MMDet(nn.Module):
    """MMDetection's Res2Net, which always has a deep stem and pools in the shortcut."""

    def __init__(self, layers, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)):
        super().__init__()
        planes, half, width, scale = 16, 8, 6, 4

        def conv(inside, outside, stride):
            return nn.Conv2d(inside, outside, 3, stride, 1, bias=False)

        self.stem = nn.Sequential(
            conv(3, half, 2), nn.BatchNorm2d(half), nn.ReLU(), conv(half, half, 1),
            nn.BatchNorm2d(half), nn.ReLU(), conv(half, planes, 1), nn.BatchNorm2d(planes),
            nn.ReLU(),
        )  # fmt: skip
        inside = planes
        for i, count in enumerate(layers):
            outside, blocks = 4 * planes << i, []
            for j in range(count):
                stride = strides[i] if j == 0 else 1
                blocks.append(
                    MMDetBlock(inside, outside, width << i, scale, stride, dilations[i], j == 0)
                )
                inside = outside
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        levels = []
        for i in range(4):
            x = getattr(self, f'layer{i + 1}')(x)
            levels.append(x)
        return levels


class PaddleConvNorm(nn.Module):
    """PaddleDetection's ConvNormLayer."""

    def __init__(self, inside, outside, kernel, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x):
        return self.norm(self.conv(x))


class PaddleDetectionBlock(nn.Module):
    """BottleNeck of PaddleDetection, to whose stages its backbone does not pass the variant."""

    def __init__(self, inside, outside, width, scale, stride, is_first):
        super().__init__()
        self.scale, self.stride = scale, stride
        self.branch1 = PaddleConvNorm(inside, outside, 1, stride) if is_first else nn.Identity()
        self.branch2a = PaddleConvNorm(inside, width * scale, 1)
        self.branch2b = nn.ModuleList(
            PaddleConvNorm(width, width, 3, stride) for _ in range(scale - 1)
        )
        self.branch2c = PaddleConvNorm(width * scale, outside, 1)

    def forward(self, x):
        splits = self.branch2a(x).relu().chunk(self.scale, 1)
        outs = []
        for i, layer in enumerate(self.branch2b):
            y = splits[i] if i == 0 or self.stride == 2 else splits[i] + outs[-1]
            outs.append(layer(y).relu())
        # Paddle's average pooling leaves the padding out of its averages
        pooled = F.avg_pool2d(splits[-1], 3, self.stride, 1, count_include_pad=False)
        outs.append(splits[-1] if self.stride == 1 else pooled)
        return (self.branch2c(torch.cat(outs, 1)) + self.branch1(x)).relu()


class PaddleDetection(nn.Module):
    """PaddleDetection's Res2Net: variant d has a deep stem, b a 7x7 one."""

    def __init__(self, layers, variant, planes=16, width=6, scale=4):
        super().__init__()
        half = planes // 2
        deep = {'conv1_1': (3, half, 3, 2), 'conv1_2': (half, half, 3, 1)}
        deep['conv1_3'] = half, planes, 3, 1
        stem = deep if variant == 'd' else {'conv1': (3, planes, 7, 2)}
        self.res1 = nn.ModuleDict({name: PaddleConvNorm(*sizes) for name, sizes in stem.items()})
        inside = planes
        for i, count in enumerate(layers):
            outside, blocks = 4 * planes << i, []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(
                    PaddleDetectionBlock(inside, outside, width << i, scale, stride, j == 0)
                )
                inside = outside
            stage = nn.Module()
            stage.blocks = nn.Sequential(*blocks)
            setattr(self, f'res{i + 2}', stage)

    def forward(self, x):
        for layer in self.res1.values():
            x = layer(x).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        levels = []
        for i in range(4):
            x = getattr(self, f'res{i + 2}').blocks(x)
            levels.append(x)
        return levels


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
        self.se = ArticleSE(planes * 4) if se else None
        self.downsample = None
        if inside != planes * 4:
            shortcut = nn.Conv2d(inside, planes * 4, 1, stride, bias=bias)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes * 4))

    def forward(self, x):
        first, *others = self.bn1(self.conv1(x)).relu().chunk(self.scales, 1)
        outs = [first]
        for i, split in enumerate(others):
            y = split + outs[-1] if i else split
            outs.append(self.bn2[i](self.conv2[i](y)).relu())
        y = self.bn3(self.conv3(torch.cat(outs, 1)))
        y = y if self.se is None else self.se(y)
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Article(nn.Module):
    """The article's network, or 4uiiurz1's with bias=False. It returns logits."""

    def __init__(self, layers, classes, width=16, scales=4, groups=1, se=True, bias=True):
        super().__init__()
        inside = width * scales
        self.conv1 = nn.Conv2d(3, inside, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        for stage, depth in enumerate(layers):
            planes, blocks = width * scales << stage, []
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                blocks.append(ArticleBlock(inside, planes, stride, scales, groups, se, bias))
                inside = planes * 4
            setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))
