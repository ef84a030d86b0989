"""Key rules for the authors' checkpoints (v1, v1b, Res2NeXt) and timm's, which share their names;
also the common part of whoever kept those names inside a block."""

from collections.abc import Collection

from ..engine import Rule

__all__ = ['block_rules', 'official_rules', 'same']


def same(*keys: str) -> tuple[Rule, ...]:
    """Rules for keys that keep their names."""
    return tuple(Rule(key, key) for key in keys)


def block_rules(prefix: str = '') -> tuple[Rule, ...]:
    """The blocks, where only a prefix stands before timm's names."""
    block = 'layer{stage}.{block}'
    parts = (
        'conv1.weight', 'bn1.*', 'convs.{i}.weight', 'bns.{i}.*', 'conv3.weight', 'bn3.*',
        'se.*.*', 'downsample.{i}.*',
    )  # fmt: skip
    return tuple(Rule(f'{prefix}{block}.{part}', f'{block}.{part}') for part in parts)


def official_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """The table: the names are timm's own. A deep stem is v1b's and timm's d models'."""
    stem = same('conv1.weight', 'conv1.{i}.*', 'bn1.*', 'maxpool.{i}.*')
    return (*stem, *block_rules(), *same('fc.*'))
