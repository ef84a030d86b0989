"""The attributes of a timm model that this package reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn

__all__ = ['TimmModel', 'as_timm']


class Pool(Protocol):
    """timm's `SelectAdaptivePool2d`.

    Attributes:
        pool_type: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
    """

    pool_type: str


class TimmModel(Protocol):
    """A classifier of timm, as far as this package reads one.

    Attributes:
        pretrained_cfg: Where weights come from and how images are prepared.
        num_classes: Classes of the head; 0 for none.
        num_features: Channels of the last feature level.
        feature_info: `num_chs`, `reduction` and `module` of every feature level.
        global_pool: The pooling before the head.
    """

    pretrained_cfg: dict[str, Any]
    num_classes: int
    num_features: int
    feature_info: Sequence[dict[str, Any]]
    global_pool: Pool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, num_classes)."""
        ...

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]:
        """As in `nn.Module`."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """As in `nn.Module`."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """As in `nn.Module`."""
        ...

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = ..., assign: bool = ...
    ) -> Any:
        """As in `nn.Module`."""
        ...

    def eval(self) -> 'TimmModel':
        """As in `nn.Module`."""
        ...


def as_timm(model: nn.Module) -> TimmModel:
    """Tell the type checker that a module is a model of timm."""
    return cast(TimmModel, model)
