"""Sources and their key rules, and how the rules are applied and undone."""

import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import torch

from ..layers.text import list_some

# --- what a source says ---------------------------------------------------------------------------


class Rule(NamedTuple):
    """How one kind of key is converted.

    Attributes:
        source: Pattern of the source's key. `{name}` matches a number, `{name+1}` the number that
            is larger by 1 than `name` elsewhere in the rule, `*` any text without a dot, and `**`
            any text.
        target: The key in timm, with the same fields. It has as many stars as `source`, in the same
            order, or none.
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
        if self.into_mean:
            return 'subtracted from the running mean'
        if self.transpose:
            return 'transposed'
        if self.shift:
            return f'{self.shift:+g}'
        if self.linear:
            return 'made a 1x1 convolution'
        return 'first split moved to the end' if self.rotate else ''

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
        return value.reshape(*value.shape[:2], 1, 1) if self.linear and not back else value


def same(*keys: str) -> tuple[Rule, ...]:
    """Return rules for keys that keep their names."""
    return tuple(Rule(key, key) for key in keys)


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


def save_torch(content: Any, file: IO[bytes]) -> None:
    """Write an object with `torch.save`."""
    written = io.BytesIO()  # torch's own writer turns an error of `file` into another
    torch.save(content, written)
    file.write(written.getbuffer())


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
        limits: Return the reason why the project's code cannot express a network beyond its
            semantics and SE modules; '' if it can. The arguments are those of `refuse`.
    """

    name: str
    mark: str
    rules: Callable[[Collection[str]], tuple[Rule, ...]]
    semantics: tuple[str, ...]
    license: str
    has_se: bool = False
    first: str = r'layer1\.0\.convs\.0\.weight'
    counts_batches: bool = True
    save: Callable[[dict[str, torch.Tensor], IO[bytes]], None] = save_torch
    limits: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], str] = lambda *_: ''

    def refuse(self, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
        """Return the reason why the project's code cannot express a network, or ''.

        Args:
            arguments: Arguments of the network, as `infer_arguments` returns them, and its
                `semantics`.
            tensors: State dict of the network under timm's keys.
        """
        computes = self.semantics[0]
        if arguments['semantics'] != computes:
            return (
                f'its block semantics are {arguments["semantics"]}, and {self.name} computes '
                f'{computes}'
            )
        if arguments['attn_layer'] and not self.has_se:
            return f'it has SE modules, which the blocks of {self.name} do not have'
        return self.limits(arguments, tensors)


# --- applying rules -------------------------------------------------------------------------------


class Move(NamedTuple):
    """What became of a key.

    Attributes:
        source: The key in the source.
        target: The key in timm.
        rule: The rule that matched.
    """

    source: str
    target: str
    rule: Rule


_FIELD = re.compile(r'\{(\w+)([+-]\d+)?\}|(\*\*?)')


class _Pattern:
    """A pattern that matches keys and makes keys."""

    def __init__(self, pattern: str):
        self.fields = [(f[1], int(f[2] or 0), f[3]) for f in _FIELD.finditer(pattern)]
        self.texts = _FIELD.split(pattern)[:: _FIELD.groups + 1]
        regex = re.escape(self.texts[0])
        for (_, _, star), text in zip(self.fields, self.texts[1:], strict=True):
            part = {'*': '[^.]*', '**': '.*'}.get(star or '', '0|[1-9][0-9]*')
            regex += f'({part}){re.escape(text)}'
        self.regex = re.compile(regex)

    def match(self, key: str) -> tuple[dict[str, int], list[str]] | None:
        """Return the numbers by name and the texts of the stars, or None."""
        match = self.regex.fullmatch(key)
        if match is None:
            return None
        numbers: dict[str, int] = {}
        stars: list[str] = []
        for (name, shift, _), text in zip(self.fields, match.groups(), strict=True):
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
    """Return the keys that rules match, and the other keys of the same modules.

    A key is of the same module if it starts as a matched one, up to the first dot: 'layer1.0.odd'
    beside 'layer1.0.conv1.weight'. Such a key is an error in `apply_rules`.

    Args:
        keys: Keys, of which some belong to other parts of a model.
        rules: The rules of a source.
    """
    patterns = [_Pattern(rule.source) for rule in rules]
    matched = [key for key in keys if any(p.match(key) is not None for p in patterns)]
    starts = {key.partition('.')[0] for key in matched}
    return [key for key in keys if key.partition('.')[0] in starts]


def _rename(keys: Iterable[str], pairs: Iterable[tuple[str, str, Rule]], source: str) -> list[Move]:
    """Return the moves by the first of the (from, to, rule) that matches each key."""
    compiled = [(_Pattern(old), _Pattern(new), rule) for old, new, rule in pairs]
    moves, unknown = [], []
    for key in keys:
        for old, new, rule in compiled:
            match = old.match(key)
            if match is not None:
                moves.append(Move(key, new.fill(*match), rule))
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f'Keys that the {source} table has no rule for, {list_some(unknown)}')
    owners: dict[tuple[str, bool], str] = {}
    twice = [
        f'{key} (also {name})'
        for key, name, rule in moves
        if owners.setdefault((name, rule.into_mean), key) != key
    ]
    if twice:
        raise ValueError(
            f'Keys of the {source} checkpoint whose new name another key has, {list_some(twice)}'
        )
    return moves


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
        ValueError: No rule matches a key, two keys get the same name, the running mean for a bias
            is missing, or channels do not divide into splits.
    """
    moves = tuple(_rename(state_dict, ((r.source, r.target, r) for r in rules), source))
    out: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for key, name, rule in moves:
        (biases if rule.into_mean else out)[name] = rule.apply(state_dict[key])
    for _, name, rule in moves:
        if rule.linear:
            bias = f'{name.removesuffix("weight")}bias'
            out.setdefault(bias, torch.zeros_like(out[name][:, 0, 0, 0]))
    alone = biases.keys() - out.keys()
    if alone:
        raise ValueError(
            f'Running means that the {source} checkpoint lacks for its biases, {list_some(alone)}'
        )
    for name, value in biases.items():
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
    pairs = ((r.target, r.source, r) for r in rules if not r.into_mean)
    moves = _rename(state_dict, pairs, source)
    out = {name: rule.apply(state_dict[key], back=True) for key, name, rule in moves}
    for rule in rules:
        if rule.into_mean:
            mean, bias = _Pattern(rule.target), _Pattern(rule.source)
            for key, value in state_dict.items():
                match = mean.match(key)
                if match is not None:
                    out[bias.fill(*match)] = torch.zeros_like(value)
    return out
