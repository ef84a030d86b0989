"""One engine for every table of key rules."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

__all__ = ['Rule', 'apply_rules', 'conv_bn', 'require_keys']

_FIELD = re.compile(r'\{(\w+)([+-]\d+)?\}')


class Rule(NamedTuple):
    """One line of a source's table.

    Attributes:
        source: Key of the source. `{name}` stands for a number, `{name+1}` for one that is larger
            by 1 than what `name` means elsewhere in the rule, `*` for any text without a dot.
        target: The key under timm's names, with the same fields; '' drops the entry, knowingly.
        transpose: The matrix is stored the other way round, as (in, out).
    """

    source: str
    target: str
    transpose: bool = False


def conv_bn(
    source: str, target: tuple[str, str], names: tuple[str, str, Sequence[str]]
) -> tuple[Rule, ...]:
    """Rules of a convolution and its BatchNorm.

    Args:
        source: Prefix of the pair in the source.
        target: Names of the convolution and of the BatchNorm in timm.
        names: How the source spells the weight of the convolution, the prefix of the BatchNorm, and
            the BatchNorm's weight, bias, running mean and running variance.
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


def _compile(pattern: str) -> tuple[re.Pattern[str], dict[str, int]]:
    shifts: dict[str, int] = {}
    regex, end = '', 0
    for field in _FIELD.finditer(pattern):
        regex += re.escape(pattern[end : field.start()]) + rf'(?P<{field[1]}>\d+)'
        shifts[field[1]] = int(field[2] or 0)
        end = field.end()
    regex += re.escape(pattern[end:])
    return re.compile(regex.replace(r'\*', r'[^.]*')), shifts


def _fill(pattern: str, values: Mapping[str, int]) -> str:
    return _FIELD.sub(lambda field: str(values[field[1]] + int(field[2] or 0)), pattern)


def list_some(keys: Collection[str], limit: int = 10) -> str:
    """The count of keys and the first ten of them, for an error's text."""
    some = ', '.join(sorted(keys)[:limit])
    return f'{len(keys)}: {some}' + (', ...' if len(keys) > limit else '')


def apply_rules(
    state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule], source: str
) -> dict[str, torch.Tensor]:
    """Rename a state dict's keys by the first rule that takes each.

    Args:
        state_dict: Tensors by the source's names.
        rules: The source's table, in order.
        source: Name of the source, for errors.

    Returns:
        Tensors by timm's names.

    Raises:
        ValueError: A key that no rule takes, or two keys that arrive at one name.
    """
    compiled = [(*_compile(rule.source), rule) for rule in rules]
    out: dict[str, torch.Tensor] = {}
    unknown, twice = [], []
    for key, value in state_dict.items():
        for regex, shifts, rule in compiled:
            match = regex.fullmatch(key)
            if match is None:
                continue
            if rule.target:
                name = _fill(
                    rule.target, {n: int(v) - shifts[n] for n, v in match.groupdict().items()}
                )
                if name in out:
                    twice.append(f'{key} (also {name})')
                out[name] = value.t().contiguous() if rule.transpose else value
            break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f'Keys that the {source} table has no rule for, {list_some(unknown)}')
    if twice:
        raise ValueError(
            f'Keys of the {source} checkpoint whose name is taken already, {list_some(twice)}'
        )
    return out


def require_keys(state_dict: Mapping[str, torch.Tensor], keys: Iterable[str], source: str) -> None:
    """Check that a converted state dict fills every key that a model expects.

    Raises:
        ValueError: Keys without a value, named.
    """
    missing = [
        key for key in keys if key not in state_dict and not key.endswith('num_batches_tracked')
    ]
    if missing:
        raise ValueError(
            f'Parameters that the {source} checkpoint leaves without a value, {list_some(missing)}'
        )
