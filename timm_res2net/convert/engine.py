"""Sources and their key rules, and how the rules are applied and undone."""

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import torch

from ..layers.text import list_some

COUNTER = 'num_batches_tracked'
"""How the key of a BatchNorm's counter ends.

A state dict may lack these integers: a BatchNorm with a momentum does not read them, and Paddle
and detectron2 do not have them.
"""

# --- what a source says ---------------------------------------------------------------------------


class Rule(NamedTuple):
    """How one kind of key is converted.

    Attributes:
        theirs: Pattern of the source's key. `{name}` matches a number, `{name+1}` the number that
            is larger by 1 than `name` in the other key, `*` any text without a dot, and `**` any
            text.
        ours: The key in timm, with the same fields. It has as many stars as `theirs`, in the same
            order, or none.
        transpose: Whether the source stores the matrix transposed, as (in, out).
        rotate: (dimension, splits) if the split that passes comes first in the source. It becomes
            the last.
        into_mean: Whether the tensor is a bias before a BatchNorm. It is subtracted from the
            running mean that another rule brings to `ours`.
        shift: Number that is added to the tensor.
        linear: Whether the tensor is the matrix of a Linear layer, which becomes a 1x1 convolution.
            If the layer has no bias, the convolution's is zero. It is not undone.
        stars: The source's texts for a star and timm's, if they differ.
    """

    theirs: str
    ours: str
    transpose: bool = False
    rotate: tuple[int, int] | None = None
    into_mean: bool = False
    shift: float = 0.0
    linear: bool = False
    stars: tuple[tuple[str, str], ...] = ()

    @property
    def how(self) -> str:
        """What happens to the tensor besides its renaming, in words."""
        words = {
            'subtracted from the running mean': self.into_mean,
            'transposed': self.transpose,
            f'{self.shift:+g}': self.shift,
            'made a 1x1 convolution': self.linear,
            'first split moved to the end': self.rotate,
        }
        return next((text for text, applies in words.items() if applies), '')

    def apply(self, value: torch.Tensor, back: bool = False) -> torch.Tensor:
        """Return timm's tensor for the source's, or the source's for timm's."""
        if self.transpose:
            value = value.t().contiguous()
        if self.rotate:
            dim, splits = self.rotate
            width, rest = divmod(value.shape[dim], splits)
            if rest:
                raise ValueError(f'{value.shape[dim]} channels do not divide into {splits} splits')
            value = value.roll(width if back else -width, dim)
        if self.shift:
            shift = -self.shift if back else self.shift
            value = (value.double() + shift).to(value.dtype)
        return value[:, :, None, None] if self.linear else value


def same(*keys: str) -> tuple[Rule, ...]:
    """Return rules for keys that keep their names."""
    return tuple(Rule(key, key) for key in keys)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A project whose checkpoints can be read and written.

    Attributes:
        name: Name of the source.
        mark: Regular expression that fully matches a key of this source, and no key of the sources
            that come after it in `SOURCES`.
        first: Regular expression that fully matches one key of every network of this source, the
            first 3x3 convolution of the first block.
        rules: Return the key rules for a network with the given keys. The keys are the source's,
            without the prefix of a larger model, or timm's if a checkpoint is to be written.
        semantics: Block semantics that a checkpoint may have. The first is what the project's own
            code computes.
        license: What is known of the license of the published files, in full sentences.
        has_se: Whether the project's blocks have SE modules.
        counts_batches: Whether its state dicts have `num_batches_tracked`.
        save: Write tensors under the source's keys to an open file.
        builds: Return the arguments of the network that the project's code builds instead of the
            one with the given arguments, if the two differ in more than semantics and SE modules.
    """

    name: str
    mark: str
    rules: Callable[[Collection[str]], tuple[Rule, ...]]
    semantics: tuple[str, ...]
    license: str
    has_se: bool = False
    first: str = r'layer1\.0\.convs\.0\.weight'
    counts_batches: bool = True
    save: Callable[[dict[str, torch.Tensor], IO[bytes]], None] = torch.save
    builds: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda arguments: {}

    def refuse(self, arguments: Mapping[str, Any]) -> str:
        """Return the reason why the project's code cannot express a network, or ''.

        Args:
            arguments: Arguments of the network, as `infer_arguments` returns them, and its
                `semantics`.
        """
        attention = arguments['attn_layer'] if self.has_se else ''
        built = {'semantics': self.semantics[0], 'attn_layer': attention, **self.builds(arguments)}
        differences = [
            f'its {name} is {arguments.get(name)!r}, and {self.name} builds {value!r}'
            for name, value in built.items()
            if arguments.get(name) != value
        ]
        return '; '.join(differences)


# --- applying rules -------------------------------------------------------------------------------


class Move(NamedTuple):
    """What became of a key.

    Attributes:
        theirs: The key in the source.
        ours: The key in timm.
        rule: The rule that matched.
    """

    theirs: str
    ours: str
    rule: Rule


_FIELD = re.compile(r'\{(\w+)([+-]\d+)?\}|(\*\*?)')
_PARTS = {'': '(0|[1-9][0-9]*)', '*': '([^.]*)', '**': '(.*)'}


class _Pattern:
    """A pattern that matches keys and makes keys."""

    def __init__(self, pattern: str, stars: Iterable[tuple[str, str]] = ()):
        self.stars = dict(stars)
        self.texts = _FIELD.split(pattern)[:: _FIELD.groups + 1]
        fields = _FIELD.findall(pattern)
        order = itertools.count()
        # names and what is added to numbers; stars are named by their order
        self.fields = [(name or next(order), int(shift or 0)) for name, shift, _ in fields]
        parts = (_PARTS[star] for _, _, star in fields)
        self.regex = re.compile(self._join(map(re.escape, self.texts), parts))

    @staticmethod
    def _join(texts: Iterable[str], parts: Iterable[str]) -> str:
        return ''.join(map(''.join, itertools.zip_longest(texts, parts, fillvalue='')))

    def match(self, key: str) -> dict[str | int, Any] | None:
        """Return the numbers by name and the texts of the stars by position, or None."""
        match = self.regex.fullmatch(key)
        return match and {
            name: int(text) - shift if isinstance(name, str) else self.stars.get(text, text)
            for (name, shift), text in zip(self.fields, match.groups(), strict=True)
        }

    def fill(self, values: Mapping[str | int, Any]) -> str:
        """Return the key with these numbers and texts in its fields."""
        parts = (
            str(values[name] + shift) if isinstance(name, str) else values[name]
            for name, shift in self.fields
        )
        return self._join(self.texts, parts)


_pattern = functools.cache(_Pattern)


def matches(
    keys: Iterable[str], rules: Iterable[Rule], back: bool = False
) -> dict[str, tuple[str, Rule]]:
    """Return new names of the keys that rules match, each with the first rule that does.

    Args:
        keys: The source's keys, of which some may belong to other parts of a model.
        rules: The rules of a source.
        back: Whether the keys are timm's.
    """
    compiled = []
    for rule in rules:
        theirs = _pattern(rule.theirs, rule.stars)
        ours = _pattern(rule.ours, tuple((b, a) for a, b in rule.stars))
        compiled.append((ours, theirs, rule) if back else (theirs, ours, rule))
    matched = {}
    for key in keys:
        for old, new, rule in compiled:
            values = old.match(key)
            if values is not None:
                matched[key] = new.fill(values), rule
                break
    return matched


def _rename(
    keys: Collection[str], rules: Iterable[Rule], source: str, back: bool = False
) -> dict[str, tuple[str, Rule]]:
    """Return new names as `matches` does, if every key has one of its own."""
    matched = matches(keys, rules, back)
    unknown = [key for key in keys if key not in matched]
    if unknown:
        raise ValueError(f'Keys that the {source} table has no rule for, {list_some(unknown)}')
    owners: dict[tuple[str, bool], str] = {}
    twice = [
        f'{key} (also {name})'
        for key, (name, rule) in matched.items()
        if owners.setdefault((name, rule.into_mean), key) != key
    ]
    if twice:
        raise ValueError(
            f'Keys of the {source} checkpoint whose new name another key has, {list_some(twice)}'
        )
    return matched


def apply_rules(
    state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule], source: str
) -> tuple[dict[str, torch.Tensor], tuple[Move, ...]]:
    """Convert a state dict, each key by the first rule that matches it.

    Args:
        state_dict: Tensors by the source's keys; not modified.
        rules: The source's rules, in order.
        source: Name of the source, for errors.

    Returns:
        Tensors by timm's keys, and one move for each key of the source.

    Raises:
        ValueError: No rule matches a key, two keys get the same name, or channels do not divide
            into splits.
    """
    renamed = _rename(state_dict, rules, source)
    moves = tuple(Move(key, name, rule) for key, (name, rule) in renamed.items())
    out: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for key, name, rule in moves:
        (biases if rule.into_mean else out)[name] = rule.apply(state_dict[key])
    for _, name, rule in moves:
        if rule.linear:
            bias = f'{name.removesuffix("weight")}bias'
            out.setdefault(bias, torch.zeros_like(out[name][:, 0, 0, 0]))
    for name in biases.keys() & out.keys():  # a running mean that is missing is an error later
        value = biases[name]
        out[name] = (out[name].double() - value.double()).to(out[name].dtype)
    return out, moves


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
    rules = tuple(rules)
    renamed = _rename(state_dict, (r for r in rules if not r.into_mean), source, back=True)
    out = {name: rule.apply(state_dict[key], back=True) for key, (name, rule) in renamed.items()}
    for rule in rules:
        for key, value in state_dict.items() if rule.into_mean else ():
            values = _pattern(rule.ours).match(key)
            if values is not None:
                out[_pattern(rule.theirs).fill(values)] = torch.zeros_like(value)
    return out
