"""Find the Res2Net among the keys of a checkpoint, and read its arguments off its shapes."""

import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .engine import Move, apply_rules, matches
from .files import Checkpoint
from .sources import SOURCES, have_branches, recognise, refuse_others, unknown_source

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


# --- which keys are the network's -----------------------------------------------------------------


def find_network(
    values: Mapping[str, Any],
    source: str = 'auto',
    prefix: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Network:
    """Find the keys under one prefix that make a Res2Net, whatever is beside them.

    Args:
        values: Tensors, or anything with a `shape`, by key.
        source: Source to look for, one of `SOURCES`; 'auto' for any.
        prefix: Prefix to look at, with or without the dot at its end. It may also be a part of a
            longer prefix, if only one Res2Net has it. None looks everywhere.
        rename: Timm's names by those in the file, up to a dot: {'encoder1': 'layer1'} takes
            'encoder1.0.conv1.weight' for 'layer1.0.conv1.weight'.

    Raises:
        ValueError: There is no Res2Net, there are several, or there is none under the prefix. Or
            it is a network that cannot be built, or two keys get the same name.
    """
    if rename:
        for old in rename:
            if not any(f'{key}.'.startswith(f'{old}.') for key in values):
                raise ValueError(
                    f"No key starts with '{old}.', so nothing is renamed to '{rename[old]}'. Its "
                    f'blocks are in {_blocks(values) or "other parts"}'
                )
        theirs = {_renamed(key, rename): key for key in values}
        if len(theirs) < len(values):
            raise ValueError(f'Two keys get the same name. Its blocks are in {_blocks(values)}')
        network = find_network({key: values[theirs[key]] for key in theirs}, source, prefix)
        return replace(network, keys={name: theirs[key] for name, key in network.keys.items()})
    sources = list(SOURCES) if source == 'auto' else [source]
    pattern = re.compile(rf'(.*\.)?({"|".join(SOURCES[name].first for name in sources)})')
    prefixes = list(dict.fromkeys(m[1] or '' for key in values if (m := pattern.fullmatch(key))))
    if not prefixes:
        refuse_others(values)
        if source == 'auto' and _blocks(values):
            raise _moved(values, 'layer1')
        raise unknown_source(values.keys(), sources)
    chosen = prefixes
    if prefix is not None:
        wanted = f'{prefix.removesuffix(".")}.' if prefix else ''
        exact = [name for name in prefixes if name == wanted]
        chosen = exact or [name for name in prefixes if f'.{wanted}' in f'.{name}']
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
    stages = () if have_branches(converted) else ('layer2', 'layer3', 'layer4')
    for part in ('conv1', 'bn1', *stages):
        if not any(key.startswith(f'{part}.') for key in converted):
            raise _moved(checkpoint.values, part)
    return converted, tuple(move._replace(theirs=network.keys[move.theirs]) for move in moves)


def look_like_classifiers(
    values: Mapping[str, Any], keys: Collection[str], features: int
) -> list[str]:
    """Return the keys of matrices whose inputs may be a network's outputs, flattened or not.

    Args:
        values: Tensors by key, as for `find_network`.
        keys: The keys to look at.
        features: Channels of the network's last level.
    """
    shapes = {key: _shape(values.get(key)) for key in sorted(keys)}
    return [key for key, shape in shapes.items() if len(shape) == 2 and shape[1] % features == 0]


def _network(values: Mapping[str, Any], prefix: str, source: str) -> Network:
    under = {key.removeprefix(prefix): key for key in values if key.startswith(prefix)}
    beside = prefix.removesuffix('backbone.')
    matrix = _shape(values.get(f'{beside}{_CLASSIFIER}weight'))
    last = _shape(values.get(f'{prefix}layer4.0.conv3.weight'))
    if beside != prefix and len(matrix) == 2 and matrix[1:] == last[:1]:
        classifier = [key for key in values if key.startswith(beside + _CLASSIFIER)]
        under.update({key.removeprefix(beside): key for key in classifier})
    source = recognise(under.keys()) if source == 'auto' else source
    named = {
        key: name for key, (name, _) in matches(under, SOURCES[source].rules(under.keys())).items()
    }
    head = _head(named, {key: _shape(values[under[key]]) for key in under})
    # a key that no rule knows is an error if it is in a module of the network
    modules = {key.partition('.')[0] for key in named.keys() - head.keys()}
    keys = {
        key: full for key, full in under.items() if head.get(key, key.partition('.')[0] in modules)
    }
    refuse_others(keys.values())
    return Network(prefix, source, keys)


def _head(named: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, bool]:
    """Return the keys of the classifier, and whether it is the Linear layer that timm has.

    Another one, such as with a scale, without a bias or of a flattened map, is left out.

    Args:
        named: Timm's keys by those of the source.
        shapes: Shapes by the source's keys, of the classifier's further tensors too.
    """
    own = {name: key for key, name in named.items()}
    leaf = next((key for name, key in own.items() if name.startswith('fc.')), '')
    start = leaf.removesuffix(leaf.rpartition('.')[2])
    keys = [key for key in shapes if start and key.startswith(start)]
    matrix, bias = (shapes.get(own.get(f'fc.{leaf}', ''), ()) for leaf in ('weight', 'bias'))
    features = shapes.get(own.get('layer4.0.conv3.weight', ''), ())[:1]
    fits = len(keys) == 2 and sorted(matrix) == sorted(bias + features)
    return dict.fromkeys(keys, fits)


def _renamed(key: str, rename: Mapping[str, str]) -> str:
    """Return a key with its start renamed, the longest that fits."""
    old = max((old for old in rename if f'{key}.'.startswith(f'{old}.')), key=len, default='')
    return f'{rename[old]}{key[len(old) :]}' if old else key


def _blocks(keys: Iterable[str]) -> str:
    """Return what the keys of Res2Net blocks start with, in their order, as in 'layer1, layer2'."""
    starts = (re.match(r'(.+)\.\d+\.convs\.0\.weight', key) for key in keys)
    return ', '.join(dict.fromkeys(start[1] for start in starts if start))


def _moved(keys: Iterable[str], part: str) -> ValueError:
    """Return the error for a stage or a stem that a model has under another name."""
    return ValueError(
        f"It has no '{part}', and its blocks are in {_blocks(keys) or 'other parts'}. If a model "
        f'has its stages or its stem under other names, rename each: --rename NAME={part}'
    )


def _shape(value: Any) -> tuple[int, ...]:
    shape = getattr(value, 'shape', ())
    return tuple(shape) if isinstance(shape, tuple) else ()


# --- which arguments the network has --------------------------------------------------------------


def infer_arguments(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the arguments of `Res2Net` that give these shapes, except `semantics`.

    Args:
        state_dict: Tensors by timm's keys. Only their shapes are read.

    Returns:
        layers, num_classes (0 without `fc`), in_chans, cardinality, base_width, scale, attn_layer
        ('' or 'se'), channels, stem_type, stem_width (if the stem is deep), replace_stem_pool,
        avg_down and down_kernel_size.

    Raises:
        ValueError: A tensor that every Res2Net of four stages has is missing, or the attention is
            not an SE module.
    """
    shape = functools.partial(_shape_of, state_dict)
    blocks = {m.groups() for key in state_dict if (m := re.match(r'layer(\d+)\.(\d+)\.', key))}
    stages = range(1, 5)
    planes = [shape(f'layer{stage}.0.conv3.weight')[0] // 4 for stage in stages]
    in_groups = [shape(f'layer{stage}.0.convs.0.weight')[1] for stage in stages]
    width = shape('layer1.0.convs.0.weight')[0]
    pooled = 'layer2.0.downsample.2.weight' in state_dict
    has_gates = any('.se.' in key for key in state_dict)
    if has_gates and 'layer1.0.se.fc1.weight' not in state_dict:
        raise ValueError('Its attention is not SE, and its kind cannot be inferred from shapes')
    arguments = {
        'layers': tuple(sum(number == str(stage) for number, _ in blocks) for stage in stages),
        'num_classes': shape('fc.weight')[0] if 'fc.weight' in state_dict else 0,
        'channels': tuple(planes),
        'cardinality': width // in_groups[0],
        'base_width': _base_width(list(zip(planes, in_groups, strict=True))),
        'scale': shape('layer1.0.conv1.weight')[0] // width,
        'attn_layer': 'se' if has_gates else '',
        'avg_down': pooled,
        # read in stage 2: stage 1 may have no shortcut convolution
        'down_kernel_size': shape(f'layer2.0.downsample.{int(pooled)}.weight')[-1],
        'replace_stem_pool': 'maxpool.0.weight' in state_dict,
    }
    if 'conv1.0.weight' not in state_dict:
        return {**arguments, 'stem_type': '', 'in_chans': shape('conv1.weight')[1]}
    stem_width, in_chans, *_ = shape('conv1.0.weight')
    tiered = shape('conv1.3.weight')[0] != stem_width
    return {
        **arguments,
        'stem_type': 'deep_tiered' if tiered else 'deep',
        'in_chans': in_chans,
        'stem_width': shape('conv1.6.weight')[0] // 2,
    }


def _shape_of(state_dict: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...]:
    """Return the shape of a tensor that every Res2Net has."""
    if key not in state_dict:
        raise ValueError(f"It has no '{key}', which every Res2Net of four stages has")
    return tuple(state_dict[key].shape)


def _base_width(widths: list[tuple[int, int]]) -> float:
    """Return a base width that gives every stage its width, a whole number if one does.

    A split of a block with p planes has floor(p * base_width / 64) channels in each group.

    Args:
        widths: Planes, and channels of a split in a group, of every stage.
    """
    low = max(64 * w / p for p, w in widths)
    high = min(64 * (w + 1) / p for p, w in widths)
    whole = math.ceil(low)
    return whole if whole < high else (low + high) / 2
