"""The deploy forms of a Res2Net block and of a stage of blocks."""

import copy
from typing import Any

import torch
from torch import nn

from .fold import merge_convs
from .fused_conv import FusedConv2d, fuse, fuse_sequential
from .rules import hides, is_watched, merges, overwrites, plain, writes_slices


def adds_splits(block: Any) -> bool:
    """Return whether a block adds to each split the output of the split before it.

    Args:
        block: Res2Net block of this package or of timm. timm's adds in all blocks but the first.
    """
    return block.adds if hasattr(block, 'adds') else not block.is_first


def activations(block: Any) -> list[nn.Module]:
    """Return the activations of a block in the order of their uses: conv1, the splits, the end.

    Args:
        block: Res2Net block of this package or of timm. timm's has one module for all uses.
    """
    if getattr(block, 'shares_act', True):
        return [block.relu] * (len(block.convs) + 2)
    return [block.act1, *block.acts, block.relu]


class FusedBottle2neck(nn.Module):
    """Deploy form of a `Bottle2neck`: the same function in inference, but faster.

    Every convolution includes its BatchNorm (with the running statistics in either mode), its
    activation and, unless attention comes between, the residual add. In a first block that does not
    add, one grouped convolution runs the parallel convolutions of the splits. DropBlock and
    DropPath, which are identities in inference, are left out. layers/rules.py says which form of a
    layer runs when.

    Shape:
        - Input: (B, inplanes, H, W)
        - Output: (B, planes * 4, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, block: nn.Module):
        """
        Args:
            block: `Bottle2neck` of this package or of `timm.models.res2net`. It is not changed.
        """
        super().__init__()
        source: Any = block
        self.width, self.scale = source.width, source.scale
        self.convolved = self.width * max(1, self.scale - 1)  # channels
        self.adds = adds_splits(block)
        act1, *acts, relu = activations(block)
        self.conv1 = fuse(source.conv1, source.bn1, act1)
        layers = zip(source.convs, source.bns, acts, strict=True)
        convs: list[Any] = [fuse(*triple) for triple in layers]
        self.merged = not self.adds and len(convs) > 1 and merges(convs)
        if self.merged:
            convs = [merge_convs(convs)]
        self.convs = nn.ModuleList(convs)
        self.pool = copy.deepcopy(source.pool) if self.scale > 1 else None
        self.conv3 = fuse(source.conv3, source.bn3, relu if source.se is None else None)
        self.se = copy.deepcopy(source.se)
        self.relu = copy.deepcopy(relu) if source.se is not None else nn.Identity()
        down = source.downsample
        self.downsample = (
            fuse_sequential(down) if isinstance(down, nn.Sequential) else copy.deepcopy(down)
        )
        # a convolution makes the shortcut a new tensor; pooling and identities do not
        self.makes_shortcut = isinstance(self.downsample, nn.Sequential) and any(
            isinstance(layer, FusedConv2d) for layer in self.downsample
        )
        self.train(block.training)

    def fuse(self) -> 'FusedBottle2neck':
        """Return the block itself, which is already deployed."""
        return self

    @torch.jit.unused
    def _writes_slices(self, x: torch.Tensor) -> bool:
        return self.adds and writes_slices(self, x)

    @torch.jit.unused
    def _write_slices(self, x: torch.Tensor) -> torch.Tensor:
        """Run the cascade on x of shape (B, scale * width, H, W) and write its outputs over x.

        This works for blocks that add, because they keep the resolution and pass the last split.
        """
        y = x
        for i, conv in enumerate(self.convs):
            split = x.narrow(1, i * self.width, self.width)
            y = conv(y + split if i > 0 else split)
            split.copy_(y)
        return x

    def _concatenate(self, x: torch.Tensor) -> torch.Tensor:
        """Run the cascade on x of shape (B, scale * width, H, W) and concatenate its outputs."""
        step = self.convolved if self.merged else self.width
        outs = []
        y = x  # torch.jit.script needs y defined before the loop
        for i, conv in enumerate(self.convs):
            split = x.narrow(1, i * step, step)
            y = conv(y + split if self.adds and i > 0 else split)
            outs.append(y)
        if self.scale > 1:
            last = x.narrow(1, self.convolved, self.width)
            outs.append(last if self.pool is None else self.pool(last))
        return torch.cat(outs, 1)  # [B, scale * width, H', W']

    @torch.jit.unused
    def _owns_shortcut(self) -> bool:
        """Return whether the shortcut that conv3 gets is a new tensor that nothing else holds."""
        return self.makes_shortcut and not is_watched((*self.downsample.modules(), self.conv3))

    def run(self, x: torch.Tensor, overwrite: bool) -> torch.Tensor:
        """Run the block.

        Args:
            x: Input of shape (B, inplanes, H, W).
            overwrite: The output may be written over x, which no one else may use.
        """
        shortcut = x
        x = self.conv1(x)
        if not torch.jit.is_scripting() and self._writes_slices(x):
            x = self._write_slices(x)
        else:
            x = self._concatenate(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
            overwrite = not torch.jit.is_scripting() and self._owns_shortcut()
        if self.se is None:
            return self.conv3(x, shortcut, overwrite)
        x = self.conv3(x)
        x = self.se(x)
        x += shortcut
        return self.relu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on x of shape (B, inplanes, H, W), in the plain form if x is not finite."""
        if not torch.jit.is_scripting():  # noqa: SIM102 torch.jit.script skips this one only
            if hides(x):
                with plain():
                    return self.run(x, False)
        return self.run(x, False)


class FusedStage(nn.Sequential):
    """Deploy form of a stage, whose blocks may overwrite the output of the block before them.

    Shape:
        - Input: (B, C, H, W)
        - Output: (B, C', H', W')
    """

    @torch.jit.unused
    def _overwrites(self, x: torch.Tensor) -> bool:
        # run() would bypass a forward that was replaced or compiled
        return overwrites(self, x) and all(
            type(block) is FusedBottle2neck
            and 'forward' not in vars(block)
            and block._compiled_call_impl is None
            for block in self
        )

    @torch.jit.unused
    def _run_overwriting(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self):
            x = block.run(x, i > 0)  # type: ignore[operator]
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks on x of shape (B, C, H, W), in the plain form if x is not finite."""
        if not torch.jit.is_scripting():  # noqa: SIM102 torch.jit.script skips this one only
            if hides(x):
                with plain():
                    return super().forward(x)
        if not torch.jit.is_scripting() and self._overwrites(x):
            return self._run_overwriting(x)
        for block in self:
            x = block(x)
        return x
