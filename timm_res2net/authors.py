"""The functions of the Res2Net authors' files, for code that carries a copy of one.

Replace the import of the copy, and leave the rest as it is:

    from timm_res2net.authors import res2net50_v1b_26w_4s

The models are those of timm and of this package, with the authors' modules and state dict, so that
whole-model checkpoints load with `strict=True`. They can be deployed inside of a larger model
(`timm_res2net.reparameterize_model`), and start from the same distributions as the authors'. Images
(B, in_chans, H, W) become logits (B, num_classes).

Every function takes `pretrained`: False, True for the weights of the Hub, or the path of a file of
the authors; and the arguments of `Res2Net`, which replace its own. It raises a ValueError if the
Hub has no weights of the network or an argument is refused, a FileNotFoundError if there is no such
file, an OSError if the Hub cannot be reached, and a RuntimeError if the file does not fit.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.models import checkpoint_seq, get_pretrained_cfg
from torch import nn
from torch.nn import functional as F

from .layers.bottle2neck import Bottle2neck
from .models import res2net_zoo

Pretrained = bool | str | os.PathLike[str]
V1B: dict[str, Any] = dict(stem_type='deep', stem_width=32, avg_down=True)
"""Arguments that turn the network of res2net.py into that of res2net_v1b.py."""


class Res2Net(res2net_zoo.Res2Net):
    """A Res2Net with the modules and the arguments of the authors' class.

    Shape:
        - Input: (B, in_chans, H, W)
        - Output: (B, num_classes) logits; of `avgpool` (B, C, 1, 1)

    >>> import torch
    >>> from timm_res2net.authors import Bottle2neck, Res2Net
    >>> net = Res2Net(Bottle2neck, [3, 4, 6, 3], baseWidth=26, scale=4)
    >>> x = net.maxpool(net.relu(net.bn1(net.conv1(torch.randn(1, 3, 64, 64)))))
    >>> net.layer2(net.layer1(x)).shape
    torch.Size([1, 512, 8, 8])
    """

    __jit_unused_properties__: ClassVar[list[str]] = ['model_args', 'act1']

    def __init__(
        self,
        block: type[nn.Module] = Bottle2neck,
        layers: Sequence[int] = (3, 4, 6, 3),
        baseWidth: float = 26,
        scale: int = 4,
        num_classes: int = 1000,
        **kwargs: Any,
    ):
        """
        Args:
            block: `Bottle2neck`.
            layers: Number of blocks in each of the four stages.
            baseWidth: Channels of a split in the first stage.
            scale: Number of splits of a block.
            num_classes: Classes of the head, 0 for no head.
            **kwargs: Further arguments of `timm_res2net.Res2Net`; `**V1B` for res2net_v1b.py.

        Raises:
            ValueError: Another block, or as `timm_res2net.Res2Net`.
            TypeError: An unknown argument.
        """
        if block is not Bottle2neck:
            raise ValueError(f'block must be Bottle2neck of timm_res2net, got {block!r}.')
        # the authors do not zero-initialize the last BatchNorm of a block
        own = {'base_width': baseWidth, 'scale': scale, 'zero_init_last': False}
        super().__init__(layers, num_classes, **{**own, **kwargs})
        self.act1.inplace = False  # type: ignore[assignment]  # as in res2net_v1b.py: code may keep what bn1 returned
        self.feature_info[0]['module'] = 'relu'
        # for `save_for_hf`, as `timm.create_model` sets them
        self._model_args = self._recorded_args

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'global_pool':  # timm's pooling and flattening; the pooling is the module here
            vars(self)[name], self.flattens = value, bool(value.pool_type)
            name, value = 'avgpool', value.pool
        super().__setattr__('relu' if name == 'act1' else name, value)

    @property
    def act1(self: Any) -> nn.Module:  # type: ignore[override]
        """The activation of the stem, as timm's ResNet calls it."""
        return self.relu

    def forward_features(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the last stage's map of images (B, in_chans, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            stages = [self.layer1, self.layer2, self.layer3, self.layer4]
            return checkpoint_seq(stages, x, flatten=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_head(self: Any, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the logits of a map (B, C, H, W), or what the classifier would get."""
        x = self.avgpool(x)
        if self.flattens:
            x = torch.flatten(x, 1)
        x = F.dropout(x, float(self.drop_rate), self.training)
        return x if pre_logits else self.fc(x)


_101 = (3, 4, 23, 3)


def _create(
    variant: str, pretrained: Pretrained, given: dict[str, Any], **arguments: Any
) -> Res2Net:
    """Build a network of the authors by its name in timm or in this package."""
    # a name that takes the arguments of `Res2Net`: timm's own have others
    overlay = {'architecture': 'res2net_custom', **(given.get('pretrained_cfg_overlay') or {})}
    if not isinstance(pretrained, bool):
        overlay['file'] = str(Path(pretrained).expanduser())
    elif pretrained and not getattr(get_pretrained_cfg(variant), 'has_weights', False):
        raise ValueError(
            f"The Hub has no weights of '{variant}'. Give the path of the authors' file, "
            "pretrained='path.pth'."
        )
    given = {**given, 'pretrained_cfg_overlay': overlay}
    model: Any = res2net_zoo.create_res2net(
        variant, pretrained is not False, given, Res2Net, **arguments
    )
    return model


def res2net50_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 4s, timm's res2net50_26w_4s."""
    return _create('res2net50_26w_4s', pretrained, kwargs)


def res2net50_26w_6s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 6s, timm's res2net50_26w_6s."""
    return _create('res2net50_26w_6s', pretrained, kwargs, scale=6)


def res2net50_26w_8s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 8s, timm's res2net50_26w_8s."""
    return _create('res2net50_26w_8s', pretrained, kwargs, scale=8)


def res2net50_48w_2s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 48w x 2s, timm's res2net50_48w_2s."""
    return _create('res2net50_48w_2s', pretrained, kwargs, baseWidth=48, scale=2)


def res2net50_14w_8s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 14w x 8s, timm's res2net50_14w_8s."""
    return _create('res2net50_14w_8s', pretrained, kwargs, baseWidth=14, scale=8)


def res2net101_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-101 26w x 4s, timm's res2net101_26w_4s."""
    return _create('res2net101_26w_4s', pretrained, kwargs, layers=_101)


def res2next50(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2NeXt-50 4w x 4s x 8c, timm's res2next50."""
    return _create('res2next50', pretrained, kwargs, baseWidth=4, cardinality=8)


def res2net50_v1b_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 v1b 26w x 4s, timm's res2net50d."""
    return _create('res2net50d', pretrained, kwargs, **V1B)


def res2net101_v1b_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-101 v1b 26w x 4s, timm's res2net101d."""
    return _create('res2net101d', pretrained, kwargs, layers=_101, **V1B)


def res2net152_v1b_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> Res2Net:
    """Res2Net-152 v1b 26w x 4s, this package's res2net152d."""
    return _create('res2net152d', pretrained, kwargs, layers=(3, 8, 36, 3), **V1B)


# the short names of the authors' files
res2net50 = res2net50_26w_4s
res2net50_v1b = res2net50_v1b_26w_4s
res2net101_v1b = res2net101_v1b_26w_4s
