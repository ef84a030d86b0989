"""Apply the key rules of any source, in both directions."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..layers.text import list_some

_FIELD = re.compile(r'\{(\w+)([+-]\d+)?\}|(\*\*?)')


class Rule(NamedTuple):
    """How one kind of key is converted.

    Attributes:
        source: Pattern of the source's key. `{name}` matches a number, `{name+1}` the number that
            is larger by 1 than `name` elsewhere in the rule, `*` any text without a dot, and `**`
            any text.
        target: The key in timm, with the same fields. It has as many stars as `source`, in the same
            order, or none. '' drops the tensor.
        transpose: Whether the source stores the matrix transposed, as (in, out).
        rotate: (dimension, splits) if the split that passes comes first in the source. It becomes
            the last.
        into_mean: Whether the tensor is a bias before a BatchNorm. It is subtracted from the
            running mean that another rule brings to the target.
        shift: Number that is added to the tensor.
        linear: Whether the tensor is the matrix of a Linear layer, which becomes a 1x1 convolution.
            If the layer has no bias, the convolution's is zero.
    """

    source: str
    target: str
    transpose: bool = False
    rotate: tuple[int, int] | None = None
    into_mean: bool = False
    shift: float = 0.0
    linear: bool = False

    @property
    def how(self) -> str:
        """What happens to the tensor besides its renaming, in words."""
        if not self.target:
            return 'dropped'
        if self.into_mean:
            return 'subtracted from the running mean'
        if self.transpose:
            return 'transposed'
        if self.shift:
            return f'{self.shift:+g}'
        if self.linear:
            return 'made a 1x1 convolution'
        return 'first split moved to the end' if self.rotate else ''


class Move(NamedTuple):
    """What became of a key.

    Attributes:
        source: The key in the source.
        target: The key in timm; '' if the tensor was dropped.
        rule: The rule that matched.
    """

    source: str
    target: str
    rule: Rule


class Converted(NamedTuple):
    """Tensors by their new keys, and one move for each key of the source."""

    tensors: dict[str, torch.Tensor]
    moves: tuple[Move, ...]


def conv_bn(
    source: str, target: tuple[str, str], names: tuple[str, str, Sequence[str]]
) -> tuple[Rule, ...]:
    """Return the rules of a convolution and its BatchNorm.

    Args:
        source: Prefix of both in the source.
        target: Names of the convolution and of the BatchNorm in timm.
        names: The source's names of the convolution's weight, of the BatchNorm, and of the
            BatchNorm's weight, bias, running mean and running variance.
    """
    conv_weight, bn_prefix, bn_names = names
    torch_names = ('weight', 'bias', 'running_mean', 'running_var')
    return (
        Rule(f'{source}.{conv_weight}', f'{target[0]}.weight'),
        *(
            Rule(f'{source}.{bn_prefix}.{s}', f'{target[1]}.{t}')
            for s, t in zip(bn_names, torch_names, strict=True)
        ),
    )


class _Pattern:
    """A pattern that matches keys and makes keys."""

    def __init__(self, pattern: str):
        self.fields = [(f[1], int(f[2] or 0), f[3]) for f in _FIELD.finditer(pattern)]
        self.texts = _FIELD.split(pattern)[:: _FIELD.groups + 1]
        regex = re.escape(self.texts[0])
        seen: set[str] = set()
        for (name, _, star), text in zip(self.fields, self.texts[1:], strict=True):
            # match() checks that a number that occurs twice is the same
            part = {'*': '[^.]*', '**': '.*'}.get(star or '', '0|[1-9][0-9]*')
            group = f'(?P<{name}>{part})' if name and name not in seen else f'({part})'
            seen.add(name)
            regex += group + re.escape(text)
        self.regex = re.compile(regex)

    def match(self, key: str) -> tuple[dict[str, int], list[str]] | None:
        """Return the numbers by name and the texts of the stars, or None."""
        found = self.regex.fullmatch(key)
        if found is None:
            return None
        numbers: dict[str, int] = {}
        stars: list[str] = []
        for (name, shift, _), text in zip(self.fields, found.groups(), strict=True):
            if name is None:
                stars.append(text)
            elif numbers.setdefault(name, int(text) - shift) != int(text) - shift:
                return None
        return numbers, stars

    def fill(self, numbers: Mapping[str, int], stars: Iterable[str]) -> str:
        """Return the key with these numbers and texts in its fields."""
        texts = iter(stars)
        key = self.texts[0]
        for (name, shift, _), text in zip(self.fields, self.texts[1:], strict=True):
            key += (next(texts) if name is None else str(numbers[name] + shift)) + text
        return key


def keys_with_rules(keys: Collection[str], rules: Iterable[Rule]) -> list[str]:
    """Return the keys that rules match, and those that stand among them.

    A key stands among them if it starts as one of them, up to the first dot: 'layer1.0.odd' beside
    'layer1.0.conv1.weight'. Such a key is an error in `apply_rules`.

    Args:
        keys: Keys, of which some belong to other parts of a model.
        rules: The rules of a source.
    """
    patterns = [_Pattern(rule.source) for rule in rules]
    matched = [key for key in keys if any(p.match(key) is not None for p in patterns)]
    starts = {key.partition('.')[0] for key in matched}
    return [key for key in keys if key.partition('.')[0] in starts]


def _rename(
    keys: Iterable[str], pairs: Iterable[tuple[str, str, Rule]], source: str
) -> list[tuple[str, str, Rule]]:
    """Return (key, new key, rule) by the first of the (from, to, rule) that matches each key."""
    compiled = [(_Pattern(old), _Pattern(new), rule) for old, new, rule in pairs]
    renamed, unknown = [], []
    for key in keys:
        for old, new, rule in compiled:
            match = old.match(key)
            if match is not None:
                renamed.append((key, new.fill(*match), rule))
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f'Keys that the {source} table has no rule for, {list_some(unknown)}')
    taken: dict[tuple[str, bool], str] = {}
    twice = []
    for key, name, rule in renamed:
        if name and taken.setdefault((name, rule.into_mean), key) != key:
            twice.append(f'{key} (also {name})')
    if twice:
        raise ValueError(
            f'Keys of the {source} checkpoint whose new name another key has, {list_some(twice)}'
        )
    return renamed


def _roll(value: torch.Tensor, rotate: tuple[int, int], back: bool = False) -> torch.Tensor:
    dim, splits = rotate
    width, rest = divmod(value.shape[dim], splits)
    if rest:
        raise ValueError(f'{value.shape[dim]} channels do not divide into {splits} splits')
    return value.roll(width if back else -width, dim)


def _add(value: torch.Tensor, number: float) -> torch.Tensor:
    return (value.double() + number).to(value.dtype)


def apply_rules(
    state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule], source: str
) -> Converted:
    """Convert a state dict, each key by the first rule that matches it.

    Args:
        state_dict: Tensors by the source's keys; not modified.
        rules: The source's rules, in order.
        source: Name of the source, for errors.

    Returns:
        Tensors by timm's keys, and the moves.

    Raises:
        ValueError: No rule matches a key, two keys get the same name, the running mean for a bias
            is missing, or channels do not divide into splits.
    """
    moves = tuple(
        Move(*renamed)
        for renamed in _rename(state_dict, ((r.source, r.target, r) for r in rules), source)
    )
    out: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for key, name, rule in moves:
        if not name:
            continue
        value = state_dict[key]
        if rule.transpose:
            value = value.t().contiguous()
        if rule.rotate:
            value = _roll(value, rule.rotate)
        if rule.shift:
            value = _add(value, rule.shift)
        if rule.linear:
            value = value.reshape(*value.shape[:2], 1, 1)
        (biases if rule.into_mean else out)[name] = value
    for move in moves:
        if move.rule.linear:
            name = f'{move.target.removesuffix("weight")}bias'
            out.setdefault(name, torch.zeros_like(out[move.target][:, 0, 0, 0]))
    alone = biases.keys() - out.keys()
    if alone:
        raise ValueError(
            f'Running means that the {source} checkpoint lacks for its biases, {list_some(alone)}'
        )
    for name, bias in biases.items():
        out[name] = (out[name].double() - bias.double()).to(out[name].dtype)
    return Converted(out, moves)


def undo_rules(
    state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule], source: str
) -> dict[str, torch.Tensor]:
    """Convert a state dict from timm's keys to the source's.

    Biases that were subtracted from a running mean come back as zeros, which computes the same.

    Args:
        state_dict: Tensors by timm's keys; not modified.
        rules: The source's rules, in order.
        source: Name of the source, for errors.

    Returns:
        Tensors by the source's keys.

    Raises:
        ValueError: The source has no key for a tensor.
    """
    rules = [rule for rule in rules if rule.target]
    pairs = [(r.target, r.source, r) for r in rules if not r.into_mean]
    out: dict[str, torch.Tensor] = {}
    for key, name, rule in _rename(state_dict, pairs, source):
        value = state_dict[key]
        if rule.rotate:
            value = _roll(value, rule.rotate, back=True)
        if rule.shift:
            value = _add(value, -rule.shift)
        out[name] = value.t().contiguous() if rule.transpose else value
    for rule in rules:
        if rule.into_mean:
            mean, bias = _Pattern(rule.target), _Pattern(rule.source)
            for key, value in state_dict.items():
                match = mean.match(key)
                if match is not None:
                    out[bias.fill(*match)] = torch.zeros_like(value)
    return out
