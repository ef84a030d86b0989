"""What the arguments of a model must be: one table.

They may come from a config.json, which is data from the network. A row says in words what a value
must be, and returns it as it is used: scalars of numpy and torch as Python's numbers, lists as
tuples. Texts, booleans and NaN are not numbers. `checked` applies the table to a constructor,
`parse_arguments` to a dictionary. What torch checks itself, such as a device, has no row. The
ranges leave room for networks several times larger than any published one, and `ModelFolder.build`
counts the parameters of one that a config.json describes.
"""

import contextlib
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec

from timm.layers import get_act_layer, get_norm_layer
from torch import nn

from ..layers.bottle2neck import ATTN_LAYERS
from ..layers.semantics import SEMANTICS
from ..layers.text import brief


class Field(NamedTuple):
    """A row of the table.

    Attributes:
        kind: What a value must be, to follow the words "must be".
        parse: Returns a value as it is used, and raises any exception if it is of another kind.
    """

    kind: str
    parse: Callable[[Any], Any]


def _require(is_so: bool) -> None:
    if not is_so:
        raise ValueError


def as_it_is(kind: str, fits: Callable[[Any], bool]) -> Field:
    """A value that is used as it is."""

    def parse(value: Any) -> Any:
        _require(fits(value))
        return value

    return Field(kind, parse)


def _plain(value: Any) -> Any:
    """Return a scalar of numpy or torch as Python's, and anything else as it is."""
    return value.item() if getattr(value, 'ndim', 1) == 0 else value


def number(low: float, high: float, kind: type = numbers.Real) -> Field:
    """A number in a range."""

    def parse(value: Any) -> float:
        value = _plain(value)
        _require(isinstance(value, kind) and not isinstance(value, bool))
        _require(low <= value <= high)
        return value if isinstance(value, int) else float(value)

    return Field(f'a {"whole " if kind is int else ""}number from {low} to {high}', parse)


whole = functools.partial(number, kind=int)


def choice(*values: Any) -> Field:
    """One of some texts, numbers or booleans."""

    def parse(value: Any) -> Any:
        value = _plain(value)
        return next(known for known in values if type(known) is type(value) and known == value)

    listed = ', '.join(str(value) if value != '' else "''" for value in values)
    return Field(f'one of {listed}' if len(values) > 1 else listed, parse)


def several(item: Field, shortest: int, longest: int) -> Field:
    """A sequence of values of one kind."""

    def parse(value: Any) -> tuple[Any, ...]:
        _require(not isinstance(value, str | bytes | Mapping))
        _require(shortest <= len(value) <= longest)  # before any entry is read
        return tuple(item.parse(entry) for entry in value)

    count = str(shortest) if shortest == longest else f'{shortest} to {longest}'
    return Field(f'a list of {count} values, each {item.kind}', parse)


def either(*fields: Field) -> Field:
    """A value of one of several kinds, the first that fits."""

    def parse(value: Any) -> Any:
        for field in fields[:-1]:
            with contextlib.suppress(Exception):  # as `Field.parse` says
                return field.parse(value)
        return fields[-1].parse(value)

    return Field(', or '.join(field.kind for field in fields), parse)


def _name(kind: str, find: Callable[[str], Any]) -> Field:
    """A name for which timm has a layer."""
    return as_it_is(kind, lambda value: isinstance(value, str) and find(value) is not None)


def _levels(value: Any) -> tuple[int, ...]:
    """Return feature levels as sorted indices from 0.

    timm's list, dict, fx and getter classes return features in the order of the network, while
    `feature_info` keeps the order of `out_indices`. With sorted indices both agree.
    """
    value = _plain(value)
    if isinstance(value, int):
        value = range(-whole(1, 5).parse(value), 0)
    levels = sorted(level % 5 for level in several(whole(-5, 4), 1, 5).parse(value))
    _require(len(set(levels)) == len(levels))
    return tuple(levels)


# --- the table ------------------------------------------------------------------------------------

_FLAG = choice(True, False)
_NONE = as_it_is('None', lambda value: value is None)
_TABLE = as_it_is('a dictionary', lambda value: isinstance(value, Mapping))
_LAYER = as_it_is(
    'a module class or a function that builds a module',
    lambda value: callable(value) and not isinstance(value, nn.Module),
)
_ACT = either(_name("one of timm's activations, such as relu or silu", get_act_layer), _LAYER)
_NORM = either(_name("one of timm's norms, such as batchnorm2d", get_norm_layer), _LAYER)
_RATE = number(0, 1)
_CHANNELS = whole(1, 4096)

_NETWORK = {  # both networks
    'cardinality': whole(1, 1024),
    'base_width': number(0.1, 4096),
    'scale': whole(1, 16),
    'semantics': choice(*SEMANTICS),
    'attn_layer': either(choice(*ATTN_LAYERS, ''), _LAYER, _NONE),
    'num_classes': whole(0, 1_000_000),
    'in_chans': _CHANNELS,
    'global_pool': choice(
        'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax',
        'fastcatavgmax', '',
    ),
    'drop_rate': _RATE,
}  # fmt: skip
FEATURES = {
    'features_only': _FLAG,
    'out_indices': Field('different levels from 0 to 4 or -5 to -1, or a count of levels', _levels),
    'feature_cls': either(choice('list', 'dict', 'hook', 'fx', 'getter'), _LAYER),
}
"""Arguments of `timm.create_model` that no constructor has."""

RES2NET = {
    **_NETWORK,
    'layers': several(whole(1, 128), 4, 4),
    'output_stride': choice(8, 16, 32),
    'stem_width': whole(4, 4096),  # a tiered stem divides it by 4
    'stem_type': choice('', 'deep', 'deep_tiered'),
    'replace_stem_pool': _FLAG,
    'down_kernel_size': choice(1, 3, 5, 7),  # an even kernel gives another size than the block
    'avg_down': _FLAG,
    'channels': several(whole(1, 8192), 4, 4),
    'act_layer': _ACT,
    'norm_layer': _NORM,
    'aa_layer': either(choice('avg', 'blur'), _LAYER, _NONE),
    'drop_path_rate': _RATE,
    'drop_block_rate': _RATE,
    'zero_init_last': _FLAG,
}
"""Arguments of `Res2Net`."""

HRNET = {
    **_NETWORK,
    'output_stride': choice(32),
    'head': choice('classification', 'incre', ''),
    'feature_location': choice('incre', ''),
    'head_conv_bias': _FLAG,
    'stem_width': _CHANNELS,
    **{f'stage{i}': _TABLE for i in (1, 2, 3, 4)},
}
"""Arguments of `HighResolutionRes2Net`."""


def parse_arguments(fields: Mapping[str, Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that have a row as they are used, and the others as they are.

    Args:
        fields: A part of the table.
        given: Values by name.

    Raises:
        ValueError: A value is not what its row says.
    """
    parsed = {}
    for name, value in given.items():
        try:
            parsed[name] = fields[name].parse(value) if name in fields else value
        except Exception:  # as `Field.parse` says: an object of any class can fail anywhere
            raise ValueError(f'{name} must be {fields[name].kind}, got {brief(value)}.') from None
    return parsed


P = ParamSpec('P')


def checked(fields: Mapping[str, Field]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate a constructor to get its arguments as the table returns them."""

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        names = list(inspect.signature(init).parameters)

        @functools.wraps(init)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            positional = parse_arguments(fields, dict(zip(names, args, strict=False))).values()
            init(*positional, *args[len(names) :], **parse_arguments(fields, kwargs))

        return wrapper

    return decorate
