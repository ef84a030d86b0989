"""Parameters, multiply-accumulates and published accuracies of every registered model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..convert.published import COUNTS, FILES, PUBLISHERS


class Pin(NamedTuple):
    """Weights that a registered tag must load. `timm_res2net.check` compares them.

    Attributes:
        revision: Commit of the repository, 40 hexadecimal digits; '' for any.
        sha256: sha256 of the weights, 64 hexadecimal digits; '' for any.
    """

    revision: str = ''
    sha256: str = ''


class Figures(NamedTuple):
    """Figures of a registered model.

    Attributes:
        params: Number of parameters.
        gmacs: Multiply-accumulates in 1e9 for one image of the cfg's `input_size` (64 px for the
            test model, 224 px for all others), half of what `torch.utils.flop_counter` counts.
        top1: ImageNet-1k top-1 accuracy in percent and its publisher, by tag.
        pins: Weights by tag.
    """

    params: int
    gmacs: float
    top1: Mapping[str, tuple[float, str]] = MappingProxyType({})
    pins: Mapping[str, Pin] = MappingProxyType({})


_DIGITS = '1903a1eee39486312648af5f9f1a60ee0f8b059040e41859911c6d806d0267de'


def _figures(name: str) -> Figures:
    top1 = {
        tag.partition('.')[2]: (file.top1, PUBLISHERS[file.by].figures)
        for file in FILES
        for tag in file.tags
        if tag.partition('.')[0] == name and file.top1 is not None
    }
    pins = {'digits': Pin(sha256=_DIGITS)} if name == 'test_res2net_se' else {}
    return Figures(*COUNTS[name], top1, pins)


FIGURES = {name: _figures(name) for name in COUNTS}
"""Figures of every registered model by name."""
