"""The deploy forms of a Res2Net block and of a stage of blocks."""

import copy
from typing import Any

import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from torch import nn

from .fused_conv import FusedConv2d, fuse, fuse_sequential, fuses, may_pack, run_checked


def adds_splits(block: Any) -> bool:
    """Return whether a block adds to each split the output of the split before it.

    Args:
        block: Res2Net block of this package or of timm. timm's adds in all blocks but the first.
    """
    return not block.is_first if isinstance(block, TimmBottle2neck) else block.adds


def fuse_block(block: Any) -> nn.Module:
    """Return the deploy form of a block, or a copy if one of its layers does not fuse.

    Args:
        block: Res2Net block of this package or of timm. It is not changed.
    """
    convs = (block.conv1, *block.convs, block.conv3)
    norms = (block.bn1, *block.bns, block.bn3)
    are_fused = all(map(fuses, convs, norms))
    return FusedBottle2neck(block) if are_fused else copy.deepcopy(block)


class FusedBottle2neck(nn.Module):
    """Deploy form of a `Bottle2neck`: the same function in inference, but faster.

    Every convolution includes its BatchNorm (with the running statistics in either mode), its
    activation and, unless attention comes between, the residual add. DropBlock and DropPath, which
    are identities in inference, are left out.

    Shape:
        - Input: (B, inplanes, H, W)
        - Output: (B, planes * 4, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, block: Any):
        """
        Args:
            block: `Bottle2neck` of this package or of `timm.models.res2net`. It is not changed.
        """
        super().__init__()
        self.width, self.scale = block.width, block.scale
        self.adds = adds_splits(block)
        relu, is_timms = block.relu, isinstance(block, TimmBottle2neck)
        acts = [relu] * len(block.convs) if is_timms else block.acts
        self.conv1 = fuse(block.conv1, block.bn1, relu if is_timms else block.act1)
        layers = zip(block.convs, block.bns, acts, strict=True)
        self.convs = nn.ModuleList(fuse(*triple) for triple in layers)
        self.pool = copy.deepcopy(block.pool) if self.scale > 1 else None
        self.conv3 = fuse(block.conv3, block.bn3, relu if block.se is None else None)
        self.se = copy.deepcopy(block.se)
        self.relu = copy.deepcopy(relu) if block.se is not None else nn.Identity()
        down = block.downsample
        self.downsample = (
            fuse_sequential(down) if isinstance(down, nn.Sequential) else copy.deepcopy(down)
        )
        # a convolution makes the shortcut a new tensor; pooling and identities do not
        self.makes_shortcut = isinstance(self.downsample, nn.Sequential) and any(
            isinstance(layer, FusedConv2d) for layer in self.downsample
        )
        self.train(block.training)

    def _convolve_splits(self, x: torch.Tensor) -> torch.Tensor:
        """Run the cascade on x of shape (B, scale * width, H, W)."""
        splits = torch.split(x, self.width, 1)  # scale x [B, width, H, W]
        outs = []
        y = splits[0]  # torch.jit.script needs y defined before the loop
        for i, conv in enumerate(self.convs):
            y = conv(y + splits[i] if self.adds and i > 0 else splits[i])
            outs.append(y)
        if self.scale > 1:
            outs.append(splits[-1] if self.pool is None else self.pool(splits[-1]))
        return torch.cat(outs, 1)  # [B, scale * width, H', W']

    def run(
        self, x: torch.Tensor, owns_input: bool = False, unwatched: bool = False
    ) -> torch.Tensor:
        """Run the block.

        Args:
            x: Input of shape (B, inplanes, H, W).
            owns_input: No one else uses x.
            unwatched: No one sees what the layers of the block get and return, so that the output
                may be written over a shortcut that no one else uses.
        """
        shortcut = x
        x = self.conv1(x)
        x = self._convolve_splits(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
            owns_input = self.makes_shortcut
        if self.se is None:
            return self.conv3(x, shortcut, owns_input and unwatched)
        x = self.conv3(x)
        x = self.se(x)
        x += shortcut
        return self.relu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on x of shape (B, inplanes, H, W), in the plain form if x is not finite."""
        if not torch.jit.is_scripting():
            return run_checked(self.run, x)
        return self.run(x)


class FusedStage(nn.Sequential):
    """Deploy form of a stage, whose blocks may overwrite the output of the block before them.

    At large batch sizes, reusing memory saves time. A stage does not do it if one of its layers has
    a hook or a forward that was replaced.

    Shape:
        - Input: (B, C, H, W)
        - Output: (B, C', H', W')
    """

    def _overwrites(self) -> bool:
        hooks = torch.nn.modules.module
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return False
        return all(type(block) is FusedBottle2neck for block in self) and not any(
            module._forward_hooks or module._forward_pre_hooks or 'forward' in vars(module)
            for block in self
            for module in block.modules()
        )

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        overwrites = may_pack(x) and self._overwrites()
        for i, block in enumerate(self):
            # run() would bypass hooks and a forward that was replaced
            x = block.run(x, i > 0, True) if overwrites else block(x)  # type: ignore[operator]
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks on x of shape (B, C, H, W), in the plain form if x is not finite."""
        if not torch.jit.is_scripting():
            return run_checked(self._run, x)
        for block in self:
            x = block(x)
        return x
