"""Aligned widths: splits padded with zero channels to a multiple that the hardware prefers.

Tensor cores work on multiples of 8 channels, and splits of 26 or 52 channels miss them. Padding
does not change the result: a zero row of weights and a zero BatchNorm affine give a zero channel,
and the next convolution has zero columns for it. The padding is added in forward, so parameters
keep their logical shapes and the gradients of the padding never reach them.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.models import register_notrace_module
from torch import nn
from torch.nn import functional as F

from ..compat import drop_block_of
from ..schema import read, whole
from .fold import pad_splits, recast

PADDED = ('conv1', 'bn1', 'convs', 'bns', 'conv3')
"""Layers of a block whose channels are padded."""


def aligned_width(width: int, groups: int, multiple: int) -> int:
    """Return the channels of a padded split.

    Args:
        width: Channels of the split, a multiple of `groups`.
        groups: Groups of the convolution of the split.
        multiple: The result is a multiple of this.

    Returns:
        The smallest multiple of both `multiple` and `groups` that is at least `width`.
    """
    step = math.lcm(groups, multiple)
    return math.ceil(width / step) * step


@register_notrace_module  # torch.fx would record the padding and the mode as constants
class AlignedConv2d(nn.Conv2d):
    """Convolution over padded splits, with parameters of the logical shapes.

    Shape:
        - Input: (B, in_splits[0] * in_splits[2], H, W) with padded splits
        - Output: (B, out_splits[0] * out_splits[2], H', W') with padded splits
    """

    def __init__(
        self,
        *args: Any,
        in_splits: tuple[int, int, int] | None = None,
        out_splits: tuple[int, int, int] | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            *args: Arguments of `nn.Conv2d`.
            in_splits: As in `of`.
            out_splits: As in `of`.
            **kwargs: Arguments of `nn.Conv2d`.

        Raises:
            ValueError: `in_splits` or `out_splits` is missing. LoRA creates layers of the class
                that it finds.
        """
        if in_splits is None or out_splits is None:
            raise ValueError(
                'A convolution with aligned widths takes no adapter. Add it to a model with '
                'width_multiple=1, and align the widths after merge_and_unload().'
            )
        super().__init__(*args, **kwargs)
        self.in_splits, self.out_splits = in_splits, out_splits

    @classmethod
    def of(
        cls, conv: Any, in_splits: tuple[int, int, int], out_splits: tuple[int, int, int]
    ) -> 'AlignedConv2d':
        """Return the aligned form of a plain convolution.

        Args:
            conv: `nn.Conv2d`. The new layer shares its parameters.
            in_splits: Number, width and padded width of the splits in the input channels of the
                weight, that is, per group of the convolution.
            out_splits: Number, width and padded width of the splits in the output channels.
        """
        return recast(conv, cls, in_splits=in_splits, out_splits=out_splits)

    def _padded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = pad_splits(pad_splits(self.weight, 0, self.out_splits), 1, self.in_splits)
        # torch's older ONNX exporter needs a shape that does not depend on the padding
        (outs, _, out_width), (ins, _, in_width) = self.out_splits, self.in_splits
        weight = weight.view(outs * out_width, ins * in_width, *self.kernel_size)
        bias: torch.Tensor | None = self.bias
        return weight, bias if bias is None else pad_splits(bias, 0, self.out_splits)

    def bake(self) -> nn.Conv2d:
        """Return a plain convolution with the padding in its parameters."""
        with torch.no_grad():
            weight, bias = self._padded()
        baked = nn.Conv2d(
            weight.shape[1] * self.groups, weight.shape[0], self.kernel_size, self.stride,  # type: ignore[arg-type]
            self.padding, self.dilation, self.groups, bias=bias is not None, device='meta',  # type: ignore[arg-type]
        )  # fmt: skip
        baked.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        if bias is not None:
            baked.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)
        return baked.train(self.training)

    def extra_repr(self) -> str:
        """Return the text that `print` shows for the layer."""
        return f'{super().extra_repr()}, in_splits={self.in_splits}, out_splits={self.out_splits}'

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve x with the padded weight."""
        weight, bias = self._padded()
        return self._conv_forward(x, weight, bias)


@register_notrace_module
class AlignedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over padded splits, with parameters and statistics of the logical shapes.

    Shape:
        - Input: (B, splits[0] * splits[2], H, W) with padded splits
        - Output: (B, splits[0] * splits[2], H, W) with padded splits, the padding zero
    """

    # torch.jit.script reads these attributes; num_features is left out
    __constants__: ClassVar = ['eps', 'momentum', 'affine', 'track_running_stats']  # type: ignore[misc]

    def __init__(self, norm: Any, splits: tuple[int, int, int]):
        """
        Args:
            norm: `nn.BatchNorm2d`. The new layer shares its parameters and buffers.
            splits: Number, width and padded width of the splits.
        """
        nn.Module.__init__(self)  # the constructor of nn.BatchNorm2d would set num_features
        self.splits = splits
        self.eps, self.momentum = norm.eps, norm.momentum
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        for name in ('weight', 'bias'):
            self.register_parameter(name, getattr(norm, name))
        for name in ('running_mean', 'running_var', 'num_batches_tracked'):
            self.register_buffer(name, getattr(norm, name))
        self.train(norm.training)

    def __getattr__(self, name: str) -> Any:
        """Return a parameter or buffer, and say why there is no `num_features`.

        Every function that converts BatchNorms (to SyncBatchNorm, FrozenBatchNorm2d or timm's split
        BatchNorm) reads `num_features` first, and would build a layer without the padding.
        """
        if name == 'num_features':
            raise RuntimeError(
                'A BatchNorm with aligned widths cannot be converted into another layer, such as '
                'SyncBatchNorm or FrozenBatchNorm2d. Convert a model with width_multiple=1.'
            )
        return super().__getattr__(name)

    def bake(self) -> nn.BatchNorm2d:
        """Return a plain BatchNorm2d with the padding in its parameters and statistics."""
        number, _, padded = self.splits
        baked = nn.BatchNorm2d(
            number * padded, self.eps, self.momentum, self.affine, self.track_running_stats,
            device='meta',
        )  # fmt: skip
        with torch.no_grad():
            for name, value in self.named_parameters():
                padded_value = pad_splits(value, 0, self.splits)
                setattr(baked, name, nn.Parameter(padded_value, value.requires_grad))
            for name, statistic in self.named_buffers():
                if statistic.ndim:
                    pad = 1.0 if name == 'running_var' else 0.0
                    statistic = pad_splits(statistic, 0, self.splits, pad)
                setattr(baked, name, statistic.clone())
        return baked.train(self.training)

    def extra_repr(self) -> str:
        """Return the text that `print` shows for the layer."""
        return f'splits={self.splits}, eps={self.eps}, momentum={self.momentum}'

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x, in training with the batch statistics, which update the running ones."""
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average
                factor = 1.0 / float(self.num_batches_tracked)
        weight: torch.Tensor | None = self.weight
        bias: torch.Tensor | None = self.bias
        if weight is not None and bias is not None:
            weight, bias = pad_splits(weight, 0, self.splits), pad_splits(bias, 0, self.splits)
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None or (self.training and not self.track_running_stats):
            return F.batch_norm(x, None, None, weight, bias, True, factor, self.eps)
        padded_mean = pad_splits(mean, 0, self.splits)
        padded_var = pad_splits(var, 0, self.splits, 1.0)
        x = F.batch_norm(x, padded_mean, padded_var, weight, bias, self.training, factor, self.eps)
        if self.training:
            number, width, padded = self.splits
            mean.copy_(padded_mean.view(number, padded)[:, :width].flatten())
            var.copy_(padded_var.view(number, padded)[:, :width].flatten())
        return x


def _check(block: Any) -> None:
    """Raise a ValueError if the splits of a block cannot be padded."""
    if isinstance(block.conv1, AlignedConv2d):
        raise ValueError(
            'The widths of this model are already aligned. Create the model again with another '
            'width_multiple.'
        )
    for conv in (block.conv1, *block.convs, block.conv3):
        if type(conv) is not nn.Conv2d or conv.padding_mode != 'zeros':
            cls = type(conv)
            got = conv if cls is nn.Conv2d else f'a {cls.__module__}.{cls.__qualname__}'
            raise ValueError(
                f'Aligned widths need plain Conv2d layers with zero padding, got {got}. Leave '
                'width_multiple at 1.'
            )
    for norm in (block.bn1, *block.bns):
        if type(norm) is not nn.BatchNorm2d:
            raise ValueError(
                f'Aligned widths need BatchNorm2d, and the norm layer is {type(norm).__name__}. '
                'Leave width_multiple at 1.'
            )
    if not isinstance(block.drop_block, nn.Identity):
        raise ValueError(
            'Aligned widths cannot be combined with DropBlock, which would count the padding. '
            'Leave width_multiple at 1 or drop_block_rate at 0.'
        )


def _align(block: Any, multiple: int) -> None:
    """Pad the splits of a block in place. `_check` must have passed."""
    groups = block.convs[0].groups
    width, padded = block.width, aligned_width(block.width, groups, multiple)
    if padded == width:
        return
    narrow = (width // groups, padded // groups)
    split, all_splits = (groups, *narrow), (groups * block.scale, *narrow)
    plain_in, plain_out = block.conv1.in_channels, block.conv3.out_channels
    block.conv1 = AlignedConv2d.of(block.conv1, (1, plain_in, plain_in), all_splits)
    block.bn1 = AlignedBatchNorm2d(block.bn1, all_splits)
    for i, (conv, norm) in enumerate(zip(block.convs, block.bns, strict=True)):
        block.convs[i] = AlignedConv2d.of(conv, (1, *narrow), split)
        block.bns[i] = AlignedBatchNorm2d(norm, split)
    block.conv3 = AlignedConv2d.of(block.conv3, all_splits, (1, plain_out, plain_out))
    block.width = padded


def align_blocks(blocks: Sequence[Any], multiple: int) -> None:
    """Pad the splits of Res2Net blocks to a multiple of channels, in place.

    Parameters and buffers stay the same objects. If one block cannot be padded, none is.

    Args:
        blocks: Res2Net blocks of this package or of timm.
        multiple: Channels of a split become a multiple of this.

    Raises:
        ValueError: `multiple` is not a whole number of at least 1, or a block is already aligned,
            has another norm than BatchNorm2d, another convolution than a plain Conv2d, or
            DropBlock.
    """
    multiple = read({'width_multiple': whole(1, 256)}, {'width_multiple': multiple})[
        'width_multiple'
    ]
    if multiple > 1:
        for block in blocks:
            _check(block)
        for block in blocks:
            _align(block, multiple)
