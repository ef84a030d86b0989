"""The Res2Net bottleneck block.

Paper:
* `Res2Net: A New Multi-scale Backbone Architecture` - https://arxiv.org/abs/1904.01169

One class implements every published variant. The variants have the same parameters, names and
shapes. They differ in what the first block of a stage computes (see `SEMANTICS`).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import SEModule, get_attn
from torch import nn

from .fold import check_fusible
from .fused_block import fuse_block
from .semantics import SEMANTICS

AttnLayer = str | Callable[..., nn.Module] | None

# Names of `timm.layers.create_attn` that need only a channel count and take maps of any size. Left
# out: ge and bottleneck need more arguments, halo and bat need sizes divisible by their block size.
ATTN_LAYERS = (
    'se', 'ese', 'eca', 'ecam', 'ceca', 'gc', 'gca', 'cbam', 'lcbam', 'coord', 'scoord', 'ela',
    'strip', 'sk', 'splat', 'lambda', 'nl',
)  # fmt: skip


def _build_attn(attn_layer: AttnLayer, channels: int, **dd: Any) -> nn.Module | None:
    """Build the attention of a block, None without attention."""
    if attn_layer is None or attn_layer == '':
        return None
    if attn_layer == 'se':
        # channels // 16 as in the article; timm's default rounds to a multiple of 8
        return SEModule(channels, rd_channels=max(channels // 16, 1), **dd)
    if isinstance(attn_layer, str) and attn_layer not in ATTN_LAYERS:
        names = ', '.join(ATTN_LAYERS)
        raise ValueError(f"attn_layer must be one of {names}, a class or '', got {attn_layer!r}.")
    layer: Any = get_attn(attn_layer)  # a class stays as it is
    return layer(channels, **dd)


class Bottle2neck(nn.Module):
    """Res2Net bottleneck, a residual block that replaces one 3x3 convolution by a cascade.

    Idea: the output of conv1 is cut into `scale` splits. The first split goes through a 3x3
    convolution. Every next split is added to the output of the previous one before its own 3x3
    convolution. The last split passes unchanged.

    Reason: a split that has crossed k convolutions sees (2k + 1) x (2k + 1) pixels. One block thus
    has `scale` receptive fields side by side, and a ResNet bottleneck has one.

    Consequence: the first block of a stage needs another rule, because its last split must shrink
    with the others. The published implementations chose different rules, and their checkpoints have
    the same keys and shapes. Load a checkpoint with the `semantics` that it was trained with: under
    other semantics every key fits and the outputs are wrong by several percent.

    The arguments are those that timm's `ResNet` passes to a block. The parameters have the names of
    timm and of the official code: conv1, bn1, convs.i, bns.i, conv3, bn3, se, downsample.

    Every use of the activation has a module of its own: act1, acts.i and, at the end, relu. Tools
    that keep one record for each module need that, such as quantizers and DeepLift. To replace the
    activation of a block, replace them all.

    Shape:
        - Input: (B, inplanes, H, W)
        - Output: (B, planes * 4, ceil(H / stride), ceil(W / stride))

    >>> import torch
    >>> from timm_res2net import Bottle2neck
    >>> block = Bottle2neck(256, 64, base_width=26, scale=4, attn_layer='se')
    >>> block(torch.randn(1, 256, 56, 56)).shape
    torch.Size([1, 256, 56, 56])
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
            planes: A quarter of the output channels. With `base_width` it sets the channels of a
                split.
            stride: Stride of the block.
            downsample: Module of the shortcut. It is needed if the block changes the resolution or
                the channels.
            cardinality: Groups of the 3x3 convolutions.
            base_width: Channels of a split, per group, at planes = 64. A split has
                floor(planes * base_width / 64) * cardinality channels.
            scale: Number of splits. 1 gives a plain bottleneck with one 3x3 convolution.
            reduce_first: No effect, as in timm's block. timm's `ResNet` passes it to every block.
            dilation: Dilation of the 3x3 convolutions in the later blocks of the stage.
            first_dilation: Dilation of the 3x3 convolutions in this block, `dilation` if None. It
                differs in the first block of a dilated stage.
            act_layer: Activation layer class.
            norm_layer: Normalization layer class, BatchNorm2d if None.
            attn_layer: Attention after bn3 and before the residual add (section 3.2.2 of the
                paper): one of `ATTN_LAYERS`, a class that takes a channel count, or '' for none.
                'se' is SEModule with channels // 16 reduced channels.
            aa_layer: No effect, as in timm's block. timm's `ResNet` passes it to every block, and
                anti-aliases its stem only.
            drop_block: DropBlock class. The layer is applied to the concatenated splits.
            drop_path: DropPath module. It is applied to the residual branch.
            semantics: Computation of the first block of a stage, one of `SEMANTICS`.
            device: Device of the parameters. 'meta' is supported.
            dtype: Data type of the parameters.

        Raises:
            ValueError: The semantics or the attention is unknown, or a split would have no channel.
        """
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        width = math.floor(planes * (base_width / 64.0)) * cardinality
        if width < 1:
            raise ValueError(
                f'base_width={base_width!r} with planes={planes} gives splits of {width} channels. '
                f'Use a base_width of at least {64 / planes:g}.'
            )
        if semantics not in SEMANTICS:
            raise ValueError(f'semantics must be one of {", ".join(SEMANTICS)}, got {semantics!r}.')
        sem = SEMANTICS[semantics]
        norm_layer = norm_layer or nn.BatchNorm2d
        first_dilation = first_dilation or dilation
        is_first = stride > 1 or downsample is not None
        if not is_first:
            adds, pools = True, False
        elif stride > 1:
            adds, pools = sem.strided_adds, sem.strided_pools
        elif first_dilation != dilation:
            adds, pools = sem.strided_adds, sem.dilated_pools
        else:
            adds, pools = sem.first_adds, sem.first_pools
        if first_dilation != dilation and sem.dilates_first:
            first_dilation = dilation
            if isinstance(downsample, nn.Sequential) and isinstance(downsample[0], nn.AvgPool2d):
                downsample[0] = nn.Identity()  # keys stay
        self.width = width
        self.scale = scale
        self.adds = adds
        conv1_stride, conv_stride = (stride, 1) if sem.stride_in_conv1 else (1, stride)

        # Build and register the modules in timm's order, so that a seed gives the same weights.
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
        self.act1 = copy.deepcopy(self.relu)
        self.acts = nn.ModuleList(copy.deepcopy(self.relu) for _ in convs)
        self.downsample = downsample
        self.drop_path = drop_path

    def zero_init_last(self) -> None:
        """Set the weight of bn3 to 0, so that the block starts as its shortcut.

        timm's `ResNet` calls it. The article's network does the same.
        """
        if getattr(self.bn3, 'weight', None) is not None:
            nn.init.zeros_(self.bn3.weight)  # type: ignore[arg-type]

    def _convolve_splits(self, x: torch.Tensor) -> torch.Tensor:
        """Run the cascade on x of shape (B, scale * width, H, W).

        It is a separate method so that the splits are freed before conv3 runs in inference.
        """
        splits = torch.split(x, self.width, 1)  # scale x [B, width, H, W]
        outs = []
        y = splits[0]  # torch.jit.script needs y defined before the loop
        # torch.jit.script does not support zip(strict=True)
        for i, (conv, bn, act) in enumerate(zip(self.convs, self.bns, self.acts)):  # noqa: B905
            if i > 0:
                y = y + splits[i] if self.adds else splits[i]
            y = bn(conv(y))
            y = act(y)
            outs.append(y)
        if self.scale > 1:
            outs.append(splits[-1] if self.pool is None else self.pool(splits[-1]))
        return torch.cat(outs, 1)  # [B, scale * width, H', W']

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on x of shape (B, inplanes, H, W)."""
        shortcut = x

        # one layer per statement: nested calls would keep an input alive until the next layer ends
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.act1(x)
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

    def fuse(self) -> nn.Module:
        """Return the deploy form as a new module, see `fuse_block`.

        `timm.utils.reparameterize_model` calls this method.

        Raises:
            ValueError: A weight is not finite, or a layer does more than its parameters say. It is
                named with the remedy.
        """
        with torch.inference_mode(False):  # weights created in inference mode cannot be packed
            check_fusible(self, f'Cannot reparameterize {type(self).__name__}')
            return fuse_block(self)
