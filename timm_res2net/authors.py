"""The functions of the Res2Net authors' files, for code that carries a copy of one.

Replace the import of the copy, and leave the rest as it is:

    from timm_res2net.authors import res2net50_v1b_26w_4s

The models are those of timm and of this package, with the attributes, the modules' order and the
state dict of the authors' networks, so that whole-model checkpoints load with `strict=True`. They
can be deployed inside of a larger model (`timm_res2net.reparameterize_model`), and start from the
same distributions as the authors'. Images (B, in_chans, H, W) become logits (B, num_classes).

Every function takes `pretrained`: False, True for the weights of the Hub, or the path of a file of
the authors; and the arguments of `Res2Net`. It raises a ValueError if the Hub has no weights of the
network or an argument is refused, a FileNotFoundError if there is no such file, an OSError if the
Hub cannot be reached, and a RuntimeError if the file does not fit.
"""

import os
from pathlib import Path
from typing import Any, ClassVar

from timm.models import get_pretrained_cfg
from torch import nn

from .models.res2net_zoo import Res2Net, create_res2net

Pretrained = bool | str | os.PathLike[str]


class AuthorsRes2Net(Res2Net):
    """A Res2Net whose activation and pooling also have the names of the authors' network.

    The attributes are `conv1`, `bn1`, `relu`, `maxpool`, `layer1` to `layer4`, `avgpool` and `fc`.

    >>> import torch
    >>> from timm_res2net.authors import res2net50_v1b_26w_4s
    >>> net = res2net50_v1b_26w_4s()
    >>> x = net.maxpool(net.relu(net.bn1(net.conv1(torch.randn(1, 3, 64, 64)))))
    >>> net.layer2(net.layer1(x)).shape
    torch.Size([1, 512, 8, 8])
    """

    # properties, not modules: another module would add keys or be left behind by the deploy form
    __jit_unused_properties__: ClassVar[list[str]] = ['model_args', 'relu', 'avgpool']

    @property
    def relu(self) -> nn.Module:
        """The activation of the stem, timm's `act1`."""
        return self.act1

    @property
    def avgpool(self) -> nn.Module:
        """Pooling (B, C, H, W) -> (B, C, 1, 1), a part of timm's `global_pool`."""
        return self.global_pool.pool

    @avgpool.deleter
    def avgpool(self) -> None:
        self.global_pool.pool = nn.Identity()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'relu':
            self.act1 = value
        elif name == 'avgpool':
            self.global_pool.pool = value
        else:
            super().__setattr__(name, value)


_V1B: dict[str, Any] = dict(stem_type='deep', stem_width=32, avg_down=True)
_101 = (3, 4, 23, 3)


def _create(variant: str, pretrained: Pretrained, **arguments: Any) -> AuthorsRes2Net:
    """Build a network of the authors by its name in timm or in this package."""
    if not isinstance(pretrained, bool):
        arguments['pretrained_cfg_overlay'] = dict(file=str(Path(pretrained).expanduser()))
    elif pretrained and not getattr(get_pretrained_cfg(variant), 'has_weights', False):
        raise ValueError(
            f"The Hub has no weights of '{variant}'. Give the path of the authors' file, "
            "pretrained='path.pth'."
        )
    # the authors do not zero-initialize the last BatchNorm of a block
    model: Any = create_res2net(
        variant, pretrained is not False, arguments, AuthorsRes2Net, zero_init_last=False
    )
    return model


def res2net50_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-50 26w x 4s, timm's res2net50_26w_4s."""
    return _create('res2net50_26w_4s', pretrained, **kwargs)


def res2net50_26w_6s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-50 26w x 6s, timm's res2net50_26w_6s."""
    return _create('res2net50_26w_6s', pretrained, scale=6, **kwargs)


def res2net50_26w_8s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-50 26w x 8s, timm's res2net50_26w_8s."""
    return _create('res2net50_26w_8s', pretrained, scale=8, **kwargs)


def res2net50_48w_2s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-50 48w x 2s, timm's res2net50_48w_2s."""
    return _create('res2net50_48w_2s', pretrained, base_width=48, scale=2, **kwargs)


def res2net50_14w_8s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-50 14w x 8s, timm's res2net50_14w_8s."""
    return _create('res2net50_14w_8s', pretrained, base_width=14, scale=8, **kwargs)


def res2net101_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-101 26w x 4s, timm's res2net101_26w_4s."""
    return _create('res2net101_26w_4s', pretrained, layers=_101, **kwargs)


def res2next50(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2NeXt-50 4w x 4s x 8c, timm's res2next50."""
    return _create('res2next50', pretrained, base_width=4, cardinality=8, **kwargs)


def res2net50_v1b_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-50 v1b 26w x 4s, timm's res2net50d."""
    return _create('res2net50d', pretrained, **_V1B, **kwargs)


def res2net101_v1b_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-101 v1b 26w x 4s, timm's res2net101d."""
    return _create('res2net101d', pretrained, layers=_101, **_V1B, **kwargs)


def res2net152_v1b_26w_4s(pretrained: Pretrained = False, **kwargs: Any) -> AuthorsRes2Net:
    """Res2Net-152 v1b 26w x 4s, this package's res2net152d."""
    return _create('res2net152d', pretrained, layers=(3, 8, 36, 3), **_V1B, **kwargs)


# the short names of the authors' files
res2net50 = res2net50_26w_4s
res2net50_v1b = res2net50_v1b_26w_4s
res2net101_v1b = res2net101_v1b_26w_4s
