"""The Res2Net bottleneck block.

Paper:
* `Res2Net: A New Multi-scale Backbone Architecture` - https://arxiv.org/abs/1904.01169

One implementation serves every published variant. The variants share their parameters, names and
shapes and differ only in what the first block of a stage does; `SEMANTICS` says how, one row a
source.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import SEModule, get_attn
from torch import nn

from .fused_block import FusedBottle2neck

__all__ = ['ATTN_LAYERS', 'SEMANTICS', 'Bottle2neck', 'Semantics']


class Semantics(NamedTuple):
    """What the first block of a stage does; every later block adds each split to the one before and
    passes the last.

    A first block is one of three kinds: stride 1 (stage 1), strided (stages 2 to 4), or dilated (a
    stage whose stride was traded for dilation by `output_stride` 8 or 16).

    Attributes:
        first_adds: A stride-1 first block adds the previous split's output to the next split, as
            later blocks do.
        first_pools: A stride-1 first block average-pools its last split (3x3, stride 1) instead of
            passing it.
        strided_adds: A strided or dilated first block adds as well.
        strided_pools: A strided first block pools its last split with its stride; without, the
            split passes, which needs `stride_in_conv1`.
        dilated_pools: A dilated first block pools its last split with stride 1.
        stride_in_conv1: The stride sits in the 1x1 conv1 rather than in the 3x3 convolutions.
        count_pads: The average counts the padding's zeros (torch `count_include_pad=True`, Paddle
            `exclusive=False`).
    """

    first_adds: bool
    first_pools: bool
    strided_adds: bool
    strided_pools: bool
    dilated_pools: bool
    stride_in_conv1: bool
    count_pads: bool


# fmt: off
SEMANTICS = {
    #                     first_   first_   strided_  strided_  dilated_  stride_in_  count_
    #                     adds     pools    adds      pools     pools     conv1       pads
    'official': Semantics(False,   True,    False,    True,     True,     False,      True),
    'mmdet':    Semantics(False,   False,   False,    True,     False,    False,      True),
    'paddle':   Semantics(True,    False,   False,    True,     True,     False,      False),
    'caffe':    Semantics(True,    False,   True,     False,    False,    True,       True),
}
"""Semantics by name: `official` is gasvn/Res2Net, timm and MMPretrain; `mmdet` is MMDetection and
Res2Net-detectron2; `paddle` is PaddleClas and PaddleDetection; `caffe` (stride in the 1x1
convolution, as Caffe's ResNet had it) is 4uiiurz1/pytorch-res2net and the article's network."""
# fmt: on


def _has_attn(name: str) -> bool:
    try:
        return get_attn(name) is not None
    except AssertionError:  # how an older timm says that it does not know the name
        return False


# What `timm.layers.create_attn` builds from a channel count alone, for feature maps of any size.
# Left out: ge and bottleneck (cannot be built so), halo and bat (sizes must divide by their block).
ATTN_LAYERS = tuple(
    name
    for name in (
        'se', 'ese', 'eca', 'ecam', 'ceca', 'gc', 'gca', 'cbam', 'lcbam', 'coord', 'scoord', 'ela',
        'strip', 'sk', 'splat', 'lambda', 'nl',
    )
    if _has_attn(name)
)  # fmt: skip
"""Names that `attn_layer` takes, those of them that the installed timm knows."""

AttnLayer = str | Callable[..., nn.Module] | None


def _build_attn(attn_layer: AttnLayer, channels: int, **dd: Any) -> nn.Module | None:
    if attn_layer is None or attn_layer == '':
        return None
    if attn_layer == 'se':
        # channels // 16 as in the article; timm's default rounds it to a multiple of 8
        return SEModule(channels, rd_channels=max(channels // 16, 1), **dd)
    layer = get_attn(attn_layer) if attn_layer in ATTN_LAYERS else attn_layer
    if isinstance(layer, str | nn.Module) or not callable(layer):
        raise ValueError(
            f'Unknown attn_layer {attn_layer!r}. Use one of {", ".join(ATTN_LAYERS)}, '
            "a module class, or '' for none."
        )
    return layer(channels, **dd)


class Bottle2neck(nn.Module):
    """Res2Net bottleneck: a residual block whose 3x3 convolution is a cascade of small ones.

    Idea: conv1's output is cut into `scale` splits. The first goes through its own 3x3 convolution,
    every next one is first added to the result before it, and the last passes as it is.

    Reason: a split that has crossed k convolutions sees (2k + 1) x (2k + 1) pixels, so one block
    holds `scale` receptive fields side by side, where a ResNet bottleneck holds one.

    Consequence: the first block of a stage cannot simply do this, since its last split must shrink
    with the others. The published implementations settle that differently while their checkpoints
    look alike, so a checkpoint needs the `semantics` it was trained with: loaded under another it
    fits every key and is wrong by percents.

    The constructor takes what timm's `ResNet` passes to a block, and names parameters as timm and
    the official code do: conv1, bn1, convs.i, bns.i, conv3, bn3, se, downsample.

    Shape:
        - Input: (B, inplanes, H, W)
        - Output: (B, planes * 4, ceil(H / stride), ceil(W / stride))
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        cardinality: int = 1,
        base_width: float = 26,
        scale: int = 4,
        reduce_first: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        act_layer: Callable[..., nn.Module] = nn.ReLU,
        norm_layer: Callable[..., nn.Module] | None = None,
        attn_layer: AttnLayer = None,
        aa_layer: Callable[..., nn.Module] | None = None,
        drop_block: Callable[..., nn.Module] | None = None,
        drop_path: nn.Module | None = None,
        semantics: str = 'official',
        device: Any = None,
        dtype: Any = None,
    ):
        """
        Args:
            inplanes: Input channels.
            planes: A quarter of the output channels; with `base_width` it sets the width of a
                split.
            stride: Stride of the block, in pixels of its input.
            downsample: Module for the shortcut, where the block changes resolution or channels.
            cardinality: Groups of the 3x3 convolutions.
            base_width: Channels of a split, per group, at planes = 64:
                width = floor(planes * base_width / 64) * cardinality.
            scale: Number of splits. 1 gives a plain bottleneck with one 3x3 convolution.
            reduce_first: Accepted because timm's `ResNet` passes it to every block; without effect,
                as in timm.
            dilation: Dilation of the 3x3 convolutions of the stage's later blocks.
            first_dilation: Dilation in this block, where it differs (the first block of a dilated
                stage).
            act_layer: Activation layer class.
            norm_layer: Normalization layer class, BatchNorm2d when None.
            attn_layer: Attention after bn3 and before the residual add (paper, 3.2.2): one of
                `ATTN_LAYERS`, or a class called with the channel count. 'se' is SEModule with
                channels // 16 reduced channels.
            aa_layer: Accepted because timm's `ResNet` passes it to every block; it reaches the stem
                only, as in timm.
            drop_block: DropBlock class, applied to the concatenated splits.
            drop_path: DropPath module, applied to the residual branch.
            semantics: One of `SEMANTICS`.
            device: Device of the parameters, 'meta' included.
            dtype: Data type of the parameters.

        Raises:
            ValueError: `scale` or `cardinality` below 1, a split narrower than one channel, unknown
                `semantics` or `attn_layer`.
        """
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if semantics not in SEMANTICS:
            raise ValueError(f'Unknown semantics {semantics!r}. Use one of {", ".join(SEMANTICS)}.')
        for name, value in (('scale', scale), ('cardinality', cardinality)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}.')
        width = math.floor(planes * (base_width / 64.0)) * cardinality
        if width < 1:
            raise ValueError(
                f'base_width={base_width!r} with planes={planes} gives splits of {width} channels. '
                f'Use a base_width of at least {64 / planes:g}.'
            )
        sem = SEMANTICS[semantics]
        norm_layer = norm_layer or nn.BatchNorm2d
        first_dilation = first_dilation or dilation
        is_first = stride > 1 or downsample is not None
        is_dilated = stride == 1 and first_dilation != dilation
        is_strided = stride > 1 or is_dilated
        self.width = width
        self.scale = scale
        self.adds = not is_first or (sem.strided_adds if is_strided else sem.first_adds)
        pools = is_first and (
            sem.dilated_pools
            if is_dilated
            else sem.strided_pools
            if is_strided
            else sem.first_pools
        )
        conv1_stride, conv_stride = (stride, 1) if sem.stride_in_conv1 else (1, stride)

        # The order in which modules are built and registered is timm's: the same seed gives the
        # same weights.
        self.conv1 = nn.Conv2d(inplanes, width * scale, 1, stride=conv1_stride, bias=False, **dd)
        self.bn1 = norm_layer(width * scale, **dd)
        convs, bns = [], []
        for _ in range(max(1, scale - 1)):
            convs.append(
                nn.Conv2d(
                    width, width, 3, stride=conv_stride, padding=first_dilation,
                    dilation=first_dilation, groups=cardinality, bias=False, **dd,
                )
            )  # fmt: skip
            bns.append(norm_layer(width, **dd))
        self.convs = nn.ModuleList(convs)
        self.bns = nn.ModuleList(bns)
        self.drop_block = drop_block() if drop_block is not None else nn.Identity()
        self.pool = (
            nn.AvgPool2d(3, stride=conv_stride, padding=1, count_include_pad=sem.count_pads)
            if pools and scale > 1
            else None
        )
        self.conv3 = nn.Conv2d(width * scale, planes * self.expansion, 1, bias=False, **dd)
        self.bn3 = norm_layer(planes * self.expansion, **dd)
        self.se = _build_attn(attn_layer, planes * self.expansion, **dd)
        self.relu = act_layer(inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path

    def zero_init_last(self) -> None:
        """Set bn3's weight to 0: the block starts as its shortcut, as in timm and the article."""
        if getattr(self.bn3, 'weight', None) is not None:
            nn.init.zeros_(self.bn3.weight)  # type: ignore[arg-type]

    def _convolve_splits(self, x: torch.Tensor) -> torch.Tensor:
        """The cascade over x of shape (B, scale * width, H, W). A method of its own, so that in
        inference the splits are gone when conv3 runs."""
        splits = torch.split(x, self.width, 1)  # scale x [B, width, H, W]
        outs = []
        y = splits[0]  # torch.jit.script wants it defined before the loop
        # torch.jit.script knows no zip(strict=True)
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns)):  # noqa: B905
            if i > 0:
                y = y + splits[i] if self.adds else splits[i]
            y = self.relu(bn(conv(y)))
            outs.append(y)
        if self.scale > 1:
            outs.append(splits[-1] if self.pool is None else self.pool(splits[-1]))
        return torch.cat(outs, 1)  # [B, scale * width, H', W']

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on x of shape (B, inplanes, H, W)."""
        shortcut = x

        # a statement a layer: nested calls would hold a layer's input until the next is done
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self._convolve_splits(x)
        x = self.drop_block(x)
        x = self.conv3(x)
        x = self.bn3(x)
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.relu(x)

    def fuse(self) -> 'FusedBottle2neck':
        """The deploy form, a new module; `timm.utils.reparameterize_model` calls this."""
        with torch.inference_mode(False):  # weights born in inference mode could not be packed
            return FusedBottle2neck(self)
