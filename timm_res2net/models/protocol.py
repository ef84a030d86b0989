"""The attributes of a timm model that this package reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn


class Pool(Protocol):
    """timm's `SelectAdaptivePool2d`.

    Attributes:
        pool_type: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
    """

    pool_type: str


class TimmModel(Protocol):
    """A classifier of timm, as far as this package reads one.

    Attributes:
        pretrained_cfg: Source of the weights and preparation of images.
        num_classes: Classes of the head, 0 for no head.
        num_features: Channels of the last feature level.
        in_chans: Channels of the images.
        feature_info: `num_chs`, `reduction` and `module` of every feature level.
        global_pool: Pooling before the head.
    """

    pretrained_cfg: dict[str, Any]
    num_classes: int
    num_features: int
    in_chans: int
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

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As in `nn.Module`."""
        ...

    def forward_intermediates(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last feature map and all feature levels."""
        ...

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits for a last feature map."""
        ...

    def eval(self) -> 'TimmModel':
        """As in `nn.Module`."""
        ...


def as_timm(model: nn.Module) -> TimmModel:
    """Tell the type checker that a module is a model of timm."""
    return cast(TimmModel, model)


class FeatureInfo(Protocol):
    """timm's description of the feature levels that a `features_only` model returns."""

    def channels(self) -> list[int]:
        """Return the channels of each level."""
        ...


class TimmFeatures(Protocol):
    """A `features_only` model of timm.

    Attributes:
        feature_info: Description of the feature levels.
    """

    feature_info: FeatureInfo


def as_features(model: nn.Module) -> TimmFeatures:
    """Tell the type checker that a module is a `features_only` model of timm."""
    return cast(TimmFeatures, model)
