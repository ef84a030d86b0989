"""The network of the article that makes the claim, written from its description.

The article is "使用pytorch搭建自己的网络之Res2Net". A block has planes = 64 * 2**stage
channels inside, cut into `scales` splits: the first passes, the others are convolved. Convolutions
have biases, the stride is in the first 1x1 convolution, SE with reduction 16 follows the last
BatchNorm, and the network ends in a softmax. This package's `res2net50_16w_4s_se` computes the same
function without the biases that BatchNorm cancels.
"""

from collections.abc import Sequence

import torch
from torch import nn


class SE(nn.Module):
    """Squeeze and excitation over (B, channels, H, W)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gated map, (B, C, H, W) like the input."""
        gate = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(gate))


class Block(nn.Module):
    """The article's block, (B, inplanes, H, W) to (B, planes * 4, H / stride, W / stride).

    Raises:
        ValueError: `planes` is not a multiple of `scales`.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, scales: int, groups: int, se: bool):
        super().__init__()
        if planes % scales:
            raise ValueError(f'planes={planes} must be a multiple of scales={scales}.')
        inside = groups * planes
        width = inside // scales
        self.scales = scales
        self.conv1 = nn.Conv2d(inplanes, inside, 1, stride)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=groups) for _ in range(scales - 1)
        )
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scales - 1))
        self.conv3 = nn.Conv2d(inside, planes * 4, 1)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        nn.init.zeros_(self.bn3.weight)
        self.relu = nn.ReLU(inplace=True)
        self.se = SE(planes * 4) if se else None
        self.downsample = None
        if stride > 1 or inplanes != planes * 4:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes * 4, 1, stride), nn.BatchNorm2d(planes * 4)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for a map (B, C, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        splits = self.relu(self.bn1(self.conv1(x))).chunk(self.scales, 1)
        outs = [splits[0]]
        for i, (conv, bn) in enumerate(zip(self.conv2, self.bn2, strict=True)):
            y = splits[i + 1] if i == 0 else splits[i + 1] + outs[-1]
            outs.append(self.relu(bn(conv(y))))
        x = self.bn3(self.conv3(torch.cat(outs, 1)))
        if self.se is not None:
            x = self.se(x)
        return self.relu(x + shortcut)


class Res2Net(nn.Module):
    """The whole network.

    Args:
        layers: Number of blocks in each of the four stages.
        num_classes: Number of classes.
        width: Channels of a split in stage 1.
        scales: Number of splits.
        groups: Groups of the 3x3 convolutions.
        se: Whether every block has SE.

    Shape:
        - Input: (B, 3, H, W)
        - Output: (B, num_classes), probabilities
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 1000,
        width: int = 16,
        scales: int = 4,
        groups: int = 1,
        se: bool = True,
    ):
        super().__init__()
        channels = width * scales
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        stages, inplanes = [], channels
        for stage, depth in enumerate(layers):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(inplanes, channels << stage, stride, scales, groups, se))
                inplanes = (channels << stage) * 4
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inplanes, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return probabilities; for shapes see the class."""
        x = self.pool(self.layers(self.stem(x)))
        return self.fc(x.flatten(1)).softmax(1)
