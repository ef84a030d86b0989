"""Every source, a file each, and how a checkpoint's source is recognised."""

import re
from collections.abc import Collection, Iterable

from ...layers.text import list_some
from ..engine import Source
from ..files import SHARDED
from .article import ARTICLE, PYTORCH_RES2NET
from .detectron2 import SOURCE as DETECTRON2
from .maskrcnn import SOURCE as MASKRCNN
from .mindcv import SOURCE as MINDCV
from .mmdet import SOURCE as MMDET
from .mmpretrain import SOURCE as MMPRETRAIN
from .official import SOURCE as OFFICIAL
from .paddle import SOURCE as PADDLE
from .timm import SOURCE as TIMM
from .timm import have_branches as have_branches

# The first source whose mark fits is recognised. An earlier mark may also fit a later source.
SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        PADDLE, MINDCV, ARTICLE, PYTORCH_RES2NET, DETECTRON2, MASKRCNN, MMDET, MMPRETRAIN, TIMM,
        OFFICIAL,
    )
}  # fmt: skip
"""Every source by its name."""

# Networks that cannot be built, by a regular expression of their keys
_OTHERS = {
    r'(.*\.)?layer1\.0\.conv2\.weight': 'It is a ResNet or a plain HRNet: its blocks have one 3x3 '
    'convolution',
    r'(.*\.)?level\d\.tree[12]\..*convs\.\d+\.weight': 'It is a DLA with Res2Net blocks, which '
    'timm has as dla60_res2net and dla60_res2next. Load it with '
    "`timm.create_model('dla60_res2net', checkpoint_path=...)`",
    r'.*\bcb_(modules|linears)\..*': 'It is a cascade of two backbones (CBNet), where one network '
    'feeds the other at every stage. No single Res2Net computes that, so it cannot be built',
    r'(.*\.)?_?flat_param(_\d+)?': SHARDED[:1].upper() + SHARDED[1:],
    r'.*\.(convs?\.\d+\.conv_offset|conv2_offsets?\b).*': 'Its blocks have deformable '
    'convolutions, which cannot be built here',
}


def refuse_others(keys: Iterable[str]) -> None:
    """Raise a ValueError if a key belongs to a network that cannot be built.

    Args:
        keys: The keys with the prefix of a larger model.
    """
    keys = tuple(keys)
    for pattern, text in _OTHERS.items():
        if any(re.fullmatch(pattern, key) for key in keys):
            raise ValueError(text)


def recognise(keys: Collection[str]) -> str:
    """Return the name of the source that a network's keys belong to.

    Args:
        keys: The keys without the prefix of a larger model.

    Raises:
        ValueError: The keys belong to no known source.
    """
    for name, source in SOURCES.items():
        if any(re.fullmatch(source.mark, key) for key in keys):
            return name
    raise unknown_source(keys, SOURCES)


def unknown_source(keys: Collection[str], sources: Iterable[str]) -> ValueError:
    """Return the error for keys that belong to none of some sources."""
    return ValueError(
        f'None of its keys belongs to a Res2Net of {", ".join(sources)} ({list_some(keys)}). Give '
        'the checkpoint of a Res2Net, or of a model with one in it, and let the source be '
        'recognised (auto)'
    )
