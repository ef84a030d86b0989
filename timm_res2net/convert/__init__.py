"""Checkpoints of other projects: state dict in, state dict out. Nothing here knows a model.

`files` reads a file, `find` finds the Res2Net in it and reads the network's arguments off its
shapes, and `engine` applies the key rules of `sources` and undoes them. See README.md.

This file has the published files of weights: who published them where, with which accuracy and
license. The table is published.json. The accuracies are those of the publishers and were not
measured here. Parameters and multiply-accumulates of the registered models are counted, and a test
counts them again.
"""

import json
from pathlib import Path
from typing import NamedTuple


class PublishedFile(NamedTuple):
    """A file of weights, or a repository of the Hub, with what is known of its publisher.

    Attributes:
        file: Name of the file, or a description in words if it has none.
        source: Source of its keys, one of `timm_res2net.convert.sources.SOURCES`.
        by: The project that published it.
        license: Identifier of the license.
        license_source: What names this license.
        figures: Where the project published the accuracies; '' without.
        figures_url: Address of that page; '' if unknown.
        origin_url: Address of the project whose weights they are, for a `pretrained_cfg`.
        url: Address.
        top1: ImageNet-1k top-1 accuracy in percent, or None.
        box_ap: Box AP on COCO, or None.
        mask_ap: Mask AP on COCO, or None.
        pq: Panoptic quality on COCO, or None.
        hash: First digits of its sha256, if the file's name has them; otherwise ''.
        tags: Registered names with tags that load it; empty if it has to be converted first.
    """

    file: str
    source: str
    by: str
    license: str
    license_source: str
    figures: str = ''
    figures_url: str = ''
    origin_url: str = ''
    url: str = ''
    top1: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    pq: float | None = None
    hash: str = ''
    tags: tuple[str, ...] = ()

    @property
    def accuracy(self) -> str:
        """The published accuracy in words, '' without one."""
        figures = {
            '% top-1': self.top1, 'box AP': self.box_ap, 'mask AP': self.mask_ap, 'PQ': self.pq
        }  # fmt: skip
        return ', '.join(f'{value:g} {unit}' for unit, value in figures.items() if value)


class Counted(NamedTuple):
    """Counts of a registered model.

    Attributes:
        params: Number of parameters.
        gmacs: Multiply-accumulates in 1e9 for one image of the cfg's `input_size` (64 px for the
            test model, 224 px for all others), half of what `torch.utils.flop_counter` counts.
    """

    params: int
    gmacs: float


_TABLE = json.loads(Path(__file__).with_name('published.json').read_text(encoding='utf-8'))
FILES = tuple(
    PublishedFile(**{**_TABLE['publishers'][row['by']], **row, 'tags': tuple(row.get('tags', ()))})
    for row in _TABLE['files']
)
"""Every published file. If several have tags of one name, the first is the default."""
COUNTS = {name: Counted(**row) for name, row in _TABLE['models'].items()}
"""Counts of every registered model by name."""


def file_of(tag: str) -> PublishedFile | None:
    """Return the file that a registered name with its tag loads from elsewhere, None without one.

    >>> from timm_res2net.convert import file_of
    >>> file_of('res2net50_vd_26w_4s.ssld_in1k').by
    'PaddleClas'
    """
    return next((file for file in FILES if tag in file.tags), None)
