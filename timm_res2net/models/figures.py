"""Parameters, multiply-accumulates and published accuracies of every registered model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


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


_TIMM = 'timm results-imagenet.csv'
_PADDLE = 'PaddleClas model zoo'
_MINDCV = "MindCV's configs/res2net/README.md"
_DIGITS = '1903a1eee39486312648af5f9f1a60ee0f8b059040e41859911c6d806d0267de'

FIGURES = {
    'res2net50_se': Figures(
        28_230_112,
        4.26,
        {'se_identity_in1k': (77.950, _TIMM), 'se_identity_mindcv_in1k': (79.35, _MINDCV)},
    ),
    'res2net50_48w_2s_se': Figures(27_818_296, 4.16, {'se_identity_in1k': (77.514, _TIMM)}),
    'res2net50_14w_8s_se': Figures(27_590_808, 4.18, {'se_identity_in1k': (78.158, _TIMM)}),
    'res2net50_26w_6s_se': Figures(39_582_440, 6.30, {'se_identity_in1k': (78.568, _TIMM)}),
    'res2net50_26w_8s_se': Figures(50_934_768, 8.34, {'se_identity_in1k': (78.942, _TIMM)}),
    'res2net101_se': Figures(
        49_984_400,
        8.07,
        {'se_identity_in1k': (79.202, _TIMM), 'se_identity_mindcv_in1k': (79.56, _MINDCV)},
    ),
    'res2net50d_se': Figures(
        28_249_344,
        4.50,
        {'se_identity_in1k': (80.254, _TIMM), 'se_identity_mindcv_in1k': (80.32, _MINDCV)},
    ),
    'res2net101d_se': Figures(
        50_003_632,
        8.31,
        {'se_identity_in1k': (81.224, _TIMM), 'se_identity_mindcv_in1k': (81.14, _MINDCV)},
    ),
    'res2next50_se': Figures(27_202_456, 4.18, {'se_identity_in1k': (78.242, _TIMM)}),
    'res2net50_18w_4s': Figures(18_095_104, 2.90),
    'res2net152d': Figures(61_294_480, 12.12),
    'res2next101': Figures(43_502_568, 7.85),
    'res2net50_vd_26w_4s': Figures(
        25_718_352, 4.49, {'ssld_in1k': (83.1, _PADDLE), 'in1k': (79.75, _PADDLE)}
    ),
    'res2net101_vd_26w_4s': Figures(
        45_225_920, 8.31, {'ssld_in1k': (83.9, _PADDLE), 'in1k': (80.64, _PADDLE)}
    ),
    'res2net200_vd_26w_4s': Figures(
        76_215_536, 15.71, {'ssld_in1k': (85.13, _PADDLE), 'in1k': (81.21, _PADDLE)}
    ),
    'res2net50_pd_26w_4s': Figures(25_699_120, 4.26, {'in1k': (79.33, _PADDLE)}),
    'res2net50_pd_14w_8s': Figures(25_059_816, 4.18, {'in1k': (79.46, _PADDLE)}),
    'res2net50_ms_26w_4s': Figures(25_699_120, 4.26, {'in1k': (79.35, _MINDCV)}),
    'res2net101_ms_26w_4s': Figures(45_206_688, 8.07, {'in1k': (79.56, _MINDCV)}),
    'res2net50d_ms_26w_4s': Figures(25_718_352, 4.49, {'in1k': (80.32, _MINDCV)}),
    'res2net101d_ms_26w_4s': Figures(45_225_920, 8.31, {'in1k': (81.14, _MINDCV)}),
    'res2net50_v1d_26w_4s': Figures(25_718_352, 4.49),
    'res2net101_v1d_26w_4s': Figures(45_225_920, 8.31),
    'res2net50_16w_4s_se': Figures(18_890_872, 2.36),
    'res2net_custom': Figures(25_699_120, 4.26),  # with the default arguments
    'hrnet_w18_res2net': Figures(21_152_733, 4.26),
    'hrnet_w32_res2net': Figures(41_110_209, 8.90),
    'test_res2net_se': Figures(209_693, 0.01, pins={'digits': Pin(sha256=_DIGITS)}),
}
"""Figures of every registered model by name.

Parameters and GMACs are counted, and a test counts them again. The accuracies are those of the
publishers and were not measured here.
"""
