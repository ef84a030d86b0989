"""Find the Res2Net among the keys of a checkpoint, which may be those of a larger model."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..layers.text import list_some
from .engine import Move, apply_rules, keys_with_rules
from .files import WRAPPERS, Checkpoint
from .sources import SOURCES, recognise, refuse_others

_CLASSIFIER = 'head.fc.'  # MMPretrain's, which is beside the backbone


@dataclass(frozen=True)
class Network:
    """A Res2Net among the keys of a checkpoint.

    Attributes:
        prefix: What its keys start with in the file, '' or a text with a dot at its end.
        source: Source of its keys, one of `SOURCES`.
        keys: Its keys in the file by their names in the source, that is, without the prefix.
    """

    prefix: str
    source: str
    keys: Mapping[str, str]


def find_network(
    values: Mapping[str, Any], source: str = 'auto', prefix: str | None = None
) -> Network:
    """Find the keys under one prefix that make a Res2Net, whatever is beside them.

    Args:
        values: Tensors, or anything with a `shape`, by key.
        source: Source to look for, one of `SOURCES`; 'auto' for any.
        prefix: Prefix to look at, with or without the dot at its end. It may also be the start of
            a longer prefix, if only one Res2Net has it. None looks everywhere.

    Raises:
        ValueError: There is no Res2Net, there are several, or there is none under the prefix. Or
            it is a network that cannot be built.
    """
    sources = SOURCES.values() if source == 'auto' else [SOURCES[source]]
    pattern = re.compile(rf'(.*\.)?({"|".join(s.first for s in sources)})')
    prefixes = list(dict.fromkeys(m[1] or '' for key in values if (m := pattern.fullmatch(key))))
    if not prefixes:
        if source == 'auto':
            refuse_others(values)
            return _network(values, '', recognise(values.keys()))
        raise ValueError(
            f'None of its keys belongs to a Res2Net of {source} ({list_some(values.keys())}). Let '
            'the source be recognised (auto)'
        )
    chosen = prefixes if prefix is None else _choose(prefixes, prefix)
    if len(chosen) == 1:
        return _network(values, chosen[0], source)
    texts = []
    for name in chosen or prefixes:
        keys = _network(values, name, source).keys.values()
        size = sum(math.prod(_shape(values[key])) for key in keys)
        texts.append(f'{name!r} with {size:,} numbers')
    listed = ', '.join(texts)
    if chosen:
        raise ValueError(
            f'It holds {len(chosen)} Res2Nets, {listed}. Choose one by its prefix (--prefix)'
        )
    raise ValueError(f'No Res2Net has the prefix {prefix!r}. Use one of {listed}')


def convert_network(
    checkpoint: Checkpoint, network: Network
) -> tuple[dict[str, torch.Tensor], tuple[Move, ...]]:
    """Return a network's tensors under timm's keys, and the moves of its keys in the file.

    Args:
        checkpoint: The file.
        network: The network that `find_network` found in its values.

    Raises:
        ValueError: A key has no rule, a tensor cannot be used, or there is no stem.
    """
    tensors = checkpoint.take(network.keys.values())
    named = {name: tensors[key] for name, key in network.keys.items()}
    rules = SOURCES[network.source].rules(network.keys)
    converted, moves = apply_rules(named, rules, network.source)
    if converted.keys().isdisjoint(('conv1.weight', 'conv1.0.weight')):
        raise ValueError(_explain_missing_stem(checkpoint.values, network.prefix))
    return converted, tuple(move._replace(source=network.keys[move.source]) for move in moves)


def look_like_classifiers(
    values: Mapping[str, Any], keys: Collection[str], features: int
) -> list[str]:
    """Return the keys of matrices with as many inputs as a network has output channels.

    Args:
        values: Tensors by key, as for `find_network`.
        keys: The keys to look at.
        features: Channels of the network's last level.
    """
    return sorted(key for key in keys if _shape(values.get(key))[1:] == (features,))


def _choose(prefixes: Iterable[str], wanted: str) -> list[str]:
    """Return the prefix that is wanted, or those that start with it.

    Keys may have lost the prefix of a wrapper, which then may be a part of what is wanted.
    """
    wanted = f'{wanted.removesuffix(".")}.' if wanted else ''
    for wrapper in WRAPPERS:
        if not any(prefix.startswith(wrapper) for prefix in prefixes):
            wanted = wanted.removeprefix(wrapper)
    if wanted in prefixes:
        return [wanted]
    return [prefix for prefix in prefixes if prefix.startswith(wanted)]


def _network(values: Mapping[str, Any], prefix: str, source: str) -> Network:
    under = {key.removeprefix(prefix): key for key in values if key.startswith(prefix)}
    beside = prefix.removesuffix('backbone.')
    matrix = _shape(values.get(f'{beside}{_CLASSIFIER}weight'))
    last = _shape(values.get(f'{prefix}layer4.0.conv3.weight'))
    if beside != prefix and len(matrix) == 2 and matrix[1:] == last[:1]:
        classifier = [key for key in values if key.startswith(beside + _CLASSIFIER)]
        under.update({key.removeprefix(beside): key for key in classifier})
    source = recognise(under.keys()) if source == 'auto' else source
    rules = SOURCES[source].rules(under.keys())
    keys = {key: under[key] for key in keys_with_rules(under, rules)}
    refuse_others(keys.values())
    return Network(prefix, source, keys)


def _shape(value: Any) -> tuple[int, ...]:
    shape = getattr(value, 'shape', ())
    return tuple(shape) if isinstance(shape, tuple) else ()


def _explain_missing_stem(values: Mapping[str, Any], prefix: str) -> str:
    """Return a sentence on which keys may be those of a stem."""
    parent = prefix.rpartition('.')[0].rpartition('.')[0]
    stems = [
        f'{key!r} {shape}'
        for key, shape in ((key, _shape(value)) for key, value in values.items())
        if len(shape) == 4
        and (shape[2:] == (7, 7) or (shape[2:] == (3, 3) and shape[1] <= 4))
        and key.startswith(f'{parent}.' if parent else '')
    ]
    if not stems:
        return f"It has no stem '{prefix}conv1', and no other convolution looks like one"
    return (
        f"It has no stem '{prefix}conv1'. The stem may be {list_some(stems)}. Save the state dict "
        f"with the stem under the names '{prefix}conv1' and '{prefix}bn1'"
    )
