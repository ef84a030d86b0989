"""Find the Res2Net among the keys of a checkpoint, which may be those of a larger model."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..layers.text import list_some
from .engine import (
    Converted,
    Rule,
    apply_rules,
    keys_with_rules,
)
from .files import WRAPPERS, Checkpoint
from .sources import SOURCES, recognise, refuse_others

_CLASSIFIER = 'head.fc.'  # MMPretrain's, which stands beside the backbone


@dataclass(frozen=True)
class Network:
    """A Res2Net among the keys of a checkpoint.

    Attributes:
        prefix: What its keys start with in the file, '' or a text with a dot at its end.
        source: Layout of its keys, one of `SOURCES`.
        keys: Its keys in the file by their names in the layout, that is, without the prefix.
        rules: The rules of the layout.
    """

    prefix: str
    source: str
    keys: Mapping[str, str]
    rules: tuple[Rule, ...]


def find_network(
    values: Mapping[str, Any], source: str = 'auto', prefix: str | None = None
) -> Network:
    """Find the keys under one prefix that make a Res2Net, whatever stands beside them.

    Args:
        values: Tensors, or anything with a `shape`, by key.
        source: Layout to look for, one of `SOURCES`; 'auto' for any.
        prefix: Prefix to look at, with or without the dot at its end. It may also be the start of
            a longer prefix, if only one Res2Net is there. None looks everywhere.

    Raises:
        ValueError: There is no Res2Net, there are several, or there is none under the prefix. Or
            it is a network that cannot be built.
    """
    sources = SOURCES.values() if source == 'auto' else [SOURCES[source]]
    pattern = re.compile(rf'(?:.*\.)?({"|".join(s.first for s in sources)})')
    firsts = {m[0][: m.start(1)]: m[0] for key in values if (m := pattern.fullmatch(key))}
    given = None if prefix is None else _as_prefix(prefix, firsts)
    found = [p for p in firsts if given is None or p == given]
    if not found and given is not None:
        found = [p for p in firsts if p.startswith(given)]
    if len(found) == 1:
        return _network(values, found[0], source)
    if found:
        raise ValueError(
            f'It holds {len(found)} Res2Nets, {_list_networks(values, found, source)}. Choose one '
            'by its prefix (--prefix)'
        )
    if firsts:
        raise ValueError(
            f'No Res2Net has the prefix {given!r}. Use one of '
            f'{_list_networks(values, firsts, source)}'
        )
    if source != 'auto':
        raise ValueError(
            f'None of its keys belongs to a Res2Net of {source} ({list_some(values.keys())}). Let '
            'the layout be recognised (auto)'
        )
    refuse_others(values)
    return _network(values, '', recognise(values.keys()))


def convert_network(checkpoint: Checkpoint, network: Network) -> Converted:
    """Return a network's tensors under timm's keys, and the moves of its keys in the layout.

    Args:
        checkpoint: The file.
        network: The network that `find_network` found in its values.

    Raises:
        ValueError: A key has no rule, or a tensor cannot be used.
    """
    tensors = checkpoint.take(network.keys.values())
    named = {name: tensors[key] for name, key in network.keys.items()}
    return apply_rules(named, network.rules, network.source)


def _as_prefix(text: str, known: Collection[str]) -> str:
    """Return a prefix with its dot, without the prefixes of wrappers that the keys have lost."""
    prefix = f'{text.removesuffix(".")}.' if text else ''
    for wrapper in WRAPPERS:
        if prefix.startswith(wrapper) and not any(p.startswith(wrapper) for p in known):
            prefix = prefix.removeprefix(wrapper)
    return prefix


def _network(values: Mapping[str, Any], prefix: str, source: str) -> Network:
    under = {key.removeprefix(prefix): key for key in values if key.startswith(prefix)}
    beside = prefix.removesuffix('backbone.')
    if beside != prefix and _classifies(values, prefix, beside):
        for key in values:
            if key.startswith(beside + _CLASSIFIER):
                under[key.removeprefix(beside)] = key
    source = recognise(under.keys()) if source == 'auto' else source
    rules = SOURCES[source].rules(under.keys())
    keys = {key: under[key] for key in keys_with_rules(under, rules)}
    refuse_others(keys.values())
    return Network(prefix, source, keys, rules)


def _classifies(values: Mapping[str, Any], prefix: str, beside: str) -> bool:
    """Return whether the matrix beside a backbone takes as many channels as the backbone has."""
    matrix = _shape(values.get(f'{beside}{_CLASSIFIER}weight'))
    last = _shape(values.get(f'{prefix}layer4.0.conv3.weight'))
    return len(matrix) == 2 and matrix[1:] == last[:1]


def _shape(value: Any) -> tuple[int, ...]:
    shape = getattr(value, 'shape', ())
    return tuple(shape) if isinstance(shape, tuple) else ()


def _list_networks(values: Mapping[str, Any], prefixes: Iterable[str], source: str) -> str:
    """Return the prefixes with the sizes of their networks."""
    texts = []
    for prefix in prefixes:
        keys = _network(values, prefix, source).keys.values()
        size = sum(math.prod(_shape(values[key])) for key in keys)
        texts.append(f'{prefix!r} with {size:,} numbers')
    return ', '.join(texts)


def explain_missing_stem(
    values: Mapping[str, Any], network: Network, targets: Collection[str]
) -> str:
    """Return a sentence on where the stem of a network may be, '' if it has one.

    Args:
        values: Tensors by key, as for `find_network`.
        network: The network.
        targets: Its keys under timm's names.
    """
    if any(key in targets for key in ('conv1.weight', 'conv1.0.weight')):
        return ''
    parent = network.prefix.rpartition('.')[0].rpartition('.')[0]
    stems = [
        f'{key!r} {shape}'
        for key, shape in ((key, _shape(value)) for key, value in values.items())
        if len(shape) == 4
        and (shape[2:] == (7, 7) or (shape[2:] == (3, 3) and shape[1] <= 4))
        and key.startswith(f'{parent}.' if parent else '')
    ]
    what = f"It has no stem '{network.prefix}conv1'"
    if not stems:
        return f'{what}, and no other convolution looks like one'
    return (
        f'{what}. The stem may be {list_some(stems)}. Save the state dict with the stem under the '
        f"names '{network.prefix}conv1' and '{network.prefix}bn1'"
    )


def look_like_classifiers(
    values: Mapping[str, Any], keys: Collection[str], features: int
) -> list[str]:
    """Return the keys of matrices that take as many features as a network gives.

    Args:
        values: Tensors by key, as for `find_network`.
        keys: The keys to look at.
        features: Channels of the network's last level.
    """
    return sorted(
        key for key in keys if len(shape := _shape(values.get(key))) == 2 and shape[1] == features
    )
