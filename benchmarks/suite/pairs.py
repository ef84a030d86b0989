"""Pairs of a baseline and a subject, read from pairs.json or written as BASELINE:SUBJECT."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm

from timm_res2net.text import close_names

from .modes import Mode, Modes

ARTICLE = 'article'
"""Name of the article's network, which is not in timm."""


class Spec(NamedTuple):
    """A model of a pair.

    Attributes:
        name: A name of timm's registry, or `ARTICLE`.
        arguments: Keyword arguments for the model.
        mode: The mode in which the model runs; None for the cell's.
    """

    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    mode: Mode | None = None

    def __str__(self) -> str:
        inner = ', '.join(f'{k}={v!r}' for k, v in self.arguments.items())
        mode = f' [{self.mode}]' if self.mode else ''
        return f'{self.name}({inner}){mode}' if inner else f'{self.name}{mode}'


class Pair(NamedTuple):
    """Two models to compare. Either both have a mode of their own or neither has."""

    baseline: Spec
    subject: Spec

    def modes(self, mode: Mode) -> Modes:
        """Return the pair's own modes, or the given mode for both models if it has none."""
        if self.baseline.mode and self.subject.mode:
            return Modes(self.baseline.mode, self.subject.mode, of_pair=True)
        return Modes(mode, mode, of_pair=False)

    def labels(self) -> dict[str, str]:
        """Return the models as text, by role."""
        return {'baseline': str(self.baseline), 'subject': str(self.subject)}


def _spec(value: str | list[Any]) -> Spec:
    if isinstance(value, str):
        return Spec(value)
    name, arguments, *mode = value
    return Spec(name, arguments, *map(Mode.parse, mode))


@functools.cache
def load_pairs() -> Mapping[str, Pair]:
    """Return the pairs of pairs.json by name."""
    path = Path(__file__).with_name('pairs.json')
    try:
        found = json.loads(path.read_text())
        return {name: Pair(_spec(p['baseline']), _spec(p['subject'])) for name, p in found.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} cannot be read ({type(error).__name__}: {error}). Write a pair as "NAME": '
            '{"baseline": MODEL, "subject": MODEL}, with a comma after every pair but the last.'
        ) from error


def pairs_without_modes() -> list[str]:
    """Return the names of the pairs that run in a cell's mode; '*' stands for them."""
    return [name for name, pair in load_pairs().items() if pair.baseline.mode is None]


def find_pair(name: str) -> Pair:
    """Return a pair by its name or from a text BASELINE:SUBJECT.

    Raises:
        ValueError: There is no such pair or no such model.
    """
    pairs = load_pairs()
    if name in pairs:
        pair = pairs[name]
    elif name.count(':') == 1:
        pair = Pair(*map(Spec, name.split(':')))
    else:
        raise ValueError(
            f"Unknown pair '{name}'. Use one of {', '.join(pairs)}, or BASELINE:SUBJECT with two "
            'model names.'
        )
    for spec in pair:
        if spec.name != ARTICLE and not timm.is_model(spec.name):
            raise ValueError(
                f"Unknown model '{spec.name}' in pair '{name}'."
                f'{close_names(spec.name, timm.list_models())} `timm.list_models()` lists all '
                f"names; '{ARTICLE}' is the article's network."
            )
    return pair
