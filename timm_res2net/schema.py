"""What every argument of a model and every field of a config.json must be: one table.

A config.json is data from the network, and so may be the arguments in a script. Everything that
timm or this package reads has a row here: `Field.kind` says in words what a value must be, and
`Field.read` returns it as it is used. The constructors apply the rows with `checked`, configs with
`check_config`, before timm sees the values.

Scalars of numpy and torch are accepted and become Python's numbers. Texts, booleans and NaN are not
numbers.

The bounds leave room for networks several times larger than any published one, so that what they
refuse is a mistake or an attack. The arguments are also checked together, because a block may be
wide or have many splits: a network of a million blocks is refused before the first is built.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, ParamSpec

import torch
from timm.layers import get_act_layer, get_norm_layer
from timm.models import PretrainedCfg
from torch import nn

from .compat import knows_attn
from .semantics import SEMANTICS
from .text import brief

# Names of `timm.layers.create_attn` that need only a channel count and take maps of any size. Left
# out: ge and bottleneck need more arguments, halo and bat need sizes divisible by their block size.
ATTN_LAYERS = tuple(
    name
    for name in (
        'se', 'ese', 'eca', 'ecam', 'ceca', 'gc', 'gca', 'cbam', 'lcbam', 'coord', 'scoord', 'ela',
        'strip', 'sk', 'splat', 'lambda', 'nl',
    )
    if knows_attn(name)
)  # fmt: skip
"""Names that `attn_layer` takes."""

# timm's names of normalizations of maps (B, C, H, W). Left out: those of sequences, and
# frozenbatchnorm2d, which takes no device (use `timm.layers.freeze_batch_norm_2d`).
NORM_LAYERS = (
    'batchnorm2d', 'batchnorm', 'groupnorm', 'groupnorm1', 'layernorm2d', 'layernorm2dfp32',
    'rmsnorm2d', 'rmsnorm2dfp32', 'simplenorm2d', 'simplenorm2dfp32',
)  # fmt: skip
"""Names that `norm_layer` takes."""

POOLS = (
    'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax',
    'fastcatavgmax', '',
)  # fmt: skip
"""Names that `global_pool` takes."""

HEADS = ('classification', 'incre', '')
"""What may follow the branches of an HRNet, the default first."""

MOST_PARAMETERS = 500_000_000
"""The most parameters of a network or block: 2 GB in float32, and 6 times the largest published."""

MOST_SPLITS = 2048
"""The most splits of all blocks, each of which is a convolution and a norm to build. The largest
published networks have 264."""


# --- kinds of values ------------------------------------------------------------------------------


class Field(NamedTuple):
    """A row of the table.

    Attributes:
        kind: What a value must be, to follow the words "must be".
        read: Returns a value as it is used, and raises any exception if it is of another kind.
    """

    kind: str
    read: Callable[[Any], Any]


def _require(is_so: bool) -> None:
    if not is_so:
        raise ValueError


def _plain(value: Any) -> Any:
    """Return a scalar of numpy or torch as Python's, and anything else as it is."""
    if hasattr(value, 'dtype') and hasattr(value, 'item') and getattr(value, 'ndim', 0) == 0:
        return value.item()
    return value


def _list(names: Iterable[Any]) -> str:
    return ', '.join(str(name) if name != '' else "''" for name in names)


def whole(low: int, high: int) -> Field:
    """A whole number in a range."""

    def read(value: Any) -> int:
        value = _plain(value)
        _require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)
        return int(value)

    return Field(f'a whole number from {low} to {high}', read)


def number(low: float, high: float, above: bool = False) -> Field:
    """A finite number in a range, which `above` leaves the lower end out of."""

    def read(value: Any) -> float:
        value = _plain(value)
        _require(isinstance(value, numbers.Real) and not isinstance(value, bool))
        value = value if isinstance(value, int) else float(value)
        _require(low <= value <= high and not (above and value == low))
        return value

    span = f'above {low:g} and at most' if above else f'from {low:g} to'
    return Field(f'a number {span} {high:g}', read)


def choice(*values: Any, others: str = '') -> Field:
    """One of some texts or numbers."""

    def read(value: Any) -> Any:
        value = _plain(value)
        return next(known for known in values if type(known) is type(value) and known == value)

    listed = f'one of {_list(values)}' if len(values) > 1 else _list(values)
    return Field(f'{listed}{others}', read)


def text(longest: int, lines: bool = False) -> Field:
    """A text, of one line unless `lines`."""

    def read(value: Any) -> str:
        _require(isinstance(value, str) and len(value) <= longest)
        _require(lines or not re.search(r'[\x00-\x1f\x7f]', value))
        return value

    return Field(f'a text of at most {longest} characters{"" if lines else " in one line"}', read)


def several(item: Field, shortest: int, longest: int | None = None) -> Field:
    """A sequence of values of one kind."""
    longest = longest or shortest

    def read(value: Any) -> tuple[Any, ...]:
        _require(not isinstance(value, str | bytes | bytearray | Mapping | set | frozenset))
        _require(shortest <= len(value) <= longest)  # before anything is read of it
        return tuple(item.read(entry) for entry in value)

    count = str(shortest) if shortest == longest else f'{shortest} to {longest}'
    return Field(f'a list of {count} values, each {item.kind}', read)


def either(*fields: Field) -> Field:
    """A value of one of several kinds, the first that fits."""

    def read(value: Any) -> Any:
        for field in fields[:-1]:
            try:
                return field.read(value)
            except Exception:  # as `Field.read` says
                continue
        return fields[-1].read(value)

    return Field(', or '.join(field.kind for field in fields), read)


def mapping(item: Field) -> Field:
    """A dictionary with texts as keys."""

    def read(value: Any) -> dict[str, Any]:
        _require(isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
        return {key: item.read(entry) for key, entry in value.items()}

    return Field(f'a dictionary of texts, each with {item.kind}', read)


def of(fields: Mapping[str, Field]) -> Field:
    """A dictionary with the given keys."""

    def read(value: Any) -> dict[str, Any]:
        _require(value.keys() == fields.keys())
        return {key: field.read(value[key]) for key, field in fields.items()}

    listed = '; '.join(f'{key}: {field.kind}' for key, field in fields.items())
    return Field(f'a dictionary ({listed})', read)


def _is_builder(value: Any) -> bool:
    """Return whether calling a value can give a module."""
    if isinstance(value, functools.partial):
        return _is_builder(value.func)
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return callable(value) and not isinstance(value, nn.Module | types.BuiltinFunctionType)


def builder(named: str, find: Callable[[Any], Any]) -> Field:
    """A class of modules, or another value that `find` returns one for."""

    def read(value: Any) -> Any:
        _require(_is_builder(find(value)))
        return value

    return Field(named, read)


def _find_attn(value: Any) -> Any:
    return nn.Identity if value in ('', *ATTN_LAYERS) else value


def _find_norm(value: Any) -> Any:
    if isinstance(value, str):
        _require(value.replace('_', '').lower() in NORM_LAYERS)
    return get_norm_layer(value)


def _find_class(value: Any) -> Any:
    _require(isinstance(value, type))
    return value


def _flag(value: Any) -> bool:
    value = _plain(value)
    _require(isinstance(value, bool))
    return value


def _module(value: Any) -> nn.Module:
    _require(isinstance(value, nn.Module))
    return value


def _dict(value: Any) -> dict[str, Any]:
    _require(isinstance(value, dict))
    return value


def _device(value: Any) -> Any:
    _require(not isinstance(value, bool))
    torch.empty(0, device=value)  # torch parses the names of devices that it does not have
    return value


def _dtype(value: Any) -> torch.dtype:
    _require(isinstance(value, torch.dtype) and value.is_floating_point and value.itemsize > 1)
    return value


def _state_dict(value: Any) -> Any:
    _require(all(isinstance(tensor, torch.Tensor) for tensor in value.values()))
    return value


def _path(value: Any) -> Any:
    os.fspath(value)
    return value


def levels(number: int) -> Field:
    """Feature levels, as sorted indices from 0.

    timm's list, dict, fx and getter classes return features in the order of the network, while
    `feature_info` keeps the order of `out_indices`. With sorted indices both agree.
    """
    last, index = whole(1, number), several(whole(-number, number - 1), 1, number)

    def read(value: Any) -> tuple[int, ...]:
        value = _plain(value)
        asked = range(-last.read(value), 0) if isinstance(value, int) else index.read(value)
        found = sorted(level % number for level in asked)
        _require(len(set(found)) == len(found))
        return tuple(found)

    return Field(
        f'different levels from 0 to {number - 1} (or -{number} to -1), or the number of last '
        f'levels, 1 to {number}',
        read,
    )


# --- the table ------------------------------------------------------------------------------------

_NONE = Field('None', lambda value: _require(value is None))
_FLAG = Field('True or False', _flag)
_RATE = number(0, 1)
_CLASSES = whole(0, 1_000_000)
_PIXELS = whole(1, 4096)
_STRINGS = either(text(10_000, lines=True), several(text(10_000, lines=True), 0, 100))
_LAYER = 'a class of modules, or a function that builds one'

# of the block and of both networks
_COMMON = {
    'cardinality': whole(1, 1024),
    'base_width': number(0, 4096, above=True),
    'scale': whole(1, 64),
    'semantics': choice(*SEMANTICS),
    'attn_layer': either(
        builder(f"one of {_list(ATTN_LAYERS)}, a module class, or '' for none", _find_attn), _NONE
    ),
    'device': either(Field('a device that torch has here', _device), _NONE),
    'dtype': either(Field('a floating-point type of torch, of at least 16 bits', _dtype), _NONE),
}
_ACT = builder(f"one of timm's activations, such as relu or silu, {_LAYER}", get_act_layer)
_NORM = builder(f'one of {_list(NORM_LAYERS)}, {_LAYER}', _find_norm)

BLOCK = {
    **_COMMON,
    'inplanes': whole(1, 32768),
    'planes': whole(1, 8192),
    'stride': whole(1, 8),
    'downsample': either(Field('a module', _module), _NONE),
    'reduce_first': whole(1, 64),
    'dilation': whole(1, 64),
    'first_dilation': either(whole(1, 64), _NONE),
    'act_layer': _ACT,
    'norm_layer': either(_NORM, _NONE),
    'aa_layer': either(builder(_LAYER, lambda value: value), _NONE),
    'drop_block': either(builder(_LAYER, lambda value: value), _NONE),
    'drop_path': either(Field('a module', _module), _NONE),
}
"""Arguments of `Bottle2neck`."""

_NETWORK = {
    **_COMMON,
    'num_classes': _CLASSES,
    'in_chans': _PIXELS,
    'global_pool': choice(*POOLS),
    'drop_rate': _RATE,
    # what `timm.create_model` takes for every network
    'features_only': _FLAG,
    'out_indices': levels(5),
}

RES2NET = {
    **_NETWORK,
    'layers': several(whole(1, 512), 4),
    'output_stride': choice(8, 16, 32),
    'stem_width': whole(1, 4096),
    'stem_type': choice('', 'deep', 'deep_tiered'),
    'replace_stem_pool': _FLAG,
    'down_kernel_size': choice(1, 3, 5, 7),  # an even kernel gives another size than the block
    'avg_down': _FLAG,
    'channels': several(whole(1, 8192), 4),
    'act_layer': _ACT,
    'norm_layer': _NORM,
    'aa_layer': either(choice('avg', 'blur'), builder('a module class', _find_class), _NONE),
    'drop_path_rate': _RATE,
    'drop_block_rate': _RATE,
    'zero_init_last': _FLAG,
    'feature_cls': either(
        choice('list', 'dict', 'hook', 'fx', 'getter'), builder('a module class', _find_class)
    ),
}
"""Arguments of `Res2Net` and of `timm.create_model` for one."""

# arguments of the same name and meaning of timm's own Res2Nets
_TIMMS = (
    'layers', 'num_classes', 'in_chans', 'output_stride', 'global_pool', 'cardinality',
    'base_width', 'stem_width', 'stem_type', 'replace_stem_pool', 'down_kernel_size', 'avg_down',
    'channels', 'act_layer', 'norm_layer', 'drop_rate', 'drop_path_rate', 'drop_block_rate',
    'zero_init_last', 'features_only', 'out_indices', 'feature_cls',
)  # fmt: skip
TIMM = {
    **{name: RES2NET[name] for name in _TIMMS},
    'block_reduce_first': BLOCK['reduce_first'],
    'block_args': of({'scale': _COMMON['scale']}),
}
"""Arguments of timm's own Res2Nets."""


def _stage(branches: int) -> Field:
    return of({
        'num_modules': whole(1, 16),
        'num_branches': choice(branches),
        'block_type': choice('BASIC', 'BOTTLENECK'),
        'num_blocks': several(whole(1, 16), branches),
        'num_channels': several(whole(1, 1024), branches),
        'fuse_method': choice('SUM'),
    })  # fmt: skip


HRNET = {
    **_NETWORK,
    'output_stride': choice(32),
    'head': choice(*HEADS),
    'feature_location': choice(*HEADS[1:]),
    'head_conv_bias': _FLAG,
    'stem_width': whole(1, 4096),
    **{f'stage{branches}': _stage(branches) for branches in (1, 2, 3, 4)},
    'feature_cls': RES2NET['feature_cls'],
}
"""Arguments of `HighResolutionRes2Net` and of `timm.create_model` for one."""

_NAME = text(1000)
CFG = {
    name: Field(field.kind, either(field, _NONE).read)  # None stands for timm's default
    for name, field in {
        'url': either(_NAME, several(_NAME, 2)),
        'file': Field('a path', _path),
        'state_dict': Field('a dictionary of tensors', _state_dict),
        'hf_hub_id': _NAME,
        'hf_hub_filename': _NAME,
        'source': _NAME,
        'architecture': _NAME,
        'tag': _NAME,
        'custom_load': either(_FLAG, choice('hf')),
        'input_size': several(_PIXELS, 3),
        'test_input_size': several(_PIXELS, 3),
        'min_input_size': several(_PIXELS, 3),
        'fixed_input_size': choice(False),  # these networks take images of any size
        'interpolation': choice(
            'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos', 'random'
        ),
        'crop_pct': number(0, 1, above=True),
        'test_crop_pct': number(0, 1, above=True),
        'crop_mode': choice('center', 'squash', 'border'),
        'mean': several(number(-1e6, 1e6), 1, 4096),
        'std': several(number(0, 1e6, above=True), 1, 4096),
        'num_classes': _CLASSES,
        'label_offset': _CLASSES,
        'label_names': either(several(_NAME, 0, 1_000_000), mapping(_NAME)),
        'label_descriptions': mapping(_STRINGS),
        'pool_size': several(_PIXELS, 1, 2),
        'test_pool_size': several(_PIXELS, 1, 2),
        'first_conv': choice('conv1', 'conv1.0'),
        'classifier': choice('fc', 'classifier'),
        'license': _NAME,
        'description': _STRINGS,
        'origin_url': _STRINGS,
        'paper_name': _STRINGS,
        'paper_ids': _STRINGS,
        'notes': _STRINGS,
    }.items()
}
"""Fields of a `pretrained_cfg`."""

_OBJECT = Field('a dictionary', _dict)


def _move(value: Any) -> tuple[Any, ...]:
    fields = (_NAME, _NAME, whole(0, 1_000_000), _NAME)
    return tuple(field.read(entry) for field, entry in zip(fields, value, strict=True))


MADE_FROM = {
    'file': _NAME,
    'sha256': _NAME,
    'bytes': whole(0, 1 << 60),
    'format': _NAME,
    'entry': _NAME,
    'widened': whole(0, 1_000_000),
    'source': _NAME,
    'moves': several(Field('a list of two texts, a whole number and a text', _move), 0, 10_000),
}
"""Fields of the `made_from` of a config.json."""

CONFIG_FIELDS = {
    'architecture': _NAME,
    'num_classes': _CLASSES,
    'num_features': whole(0, 1_000_000),
    'global_pool': choice(*POOLS),
    'label_names': CFG['label_names'],
    'label_descriptions': CFG['label_descriptions'],
    'model_args': _OBJECT,
    'described_by': _NAME,
    'made_from': either(_OBJECT, _NONE),
    'auto_map': either(_OBJECT, _NONE),
    'pretrained_cfg': _OBJECT,
}
"""Fields of a config.json. Others are left alone."""


# --- how it is applied ----------------------------------------------------------------------------


def read(fields: Mapping[str, Field], name: str, value: Any, where: str = '') -> Any:
    """Return a value as it is used.

    Args:
        fields: A part of the table.
        name: A row of it.
        value: The value.
        where: What stands before the name in the error, such as 'model_args.'.

    Raises:
        ValueError: The value is not what the row says.
    """
    field = fields[name]
    try:
        return field.read(value)
    except Exception:  # as `Field.read` says: an object of any class can fail anywhere
        raise ValueError(f'{where}{name} must be {field.kind}, got {brief(value)}.') from None


P = ParamSpec('P')


def checked(fields: Mapping[str, Field]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Let a constructor get its arguments as the table reads them.

    Unknown arguments are Python's matter: a TypeError.
    """

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        names = list(inspect.signature(init).parameters)

        @functools.wraps(init)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            def value_of(name: str, value: Any) -> Any:
                return read(fields, name, value) if name in fields else value

            positional: Any = [*map(value_of, names, args), *args[len(names) :]]
            named: Any = {name: value_of(name, value) for name, value in kwargs.items()}
            init(*positional, **named)

        return wrapper

    return decorate


def read_all(
    fields: Mapping[str, Field], given: Mapping[str, Any], where: str = ''
) -> dict[str, Any]:
    """Return the values that have a row as they are used, and the others as they are.

    Raises:
        ValueError: A value is not what its row says.
    """
    return {
        name: read(fields, name, value, where) if name in fields else value
        for name, value in given.items()
    }


def check_cfg(cfg: Mapping[str, Any]) -> None:
    """Check a `pretrained_cfg`, or some of its fields.

    Raises:
        ValueError: A value is not what the table says, or timm does not know a field.
    """
    unknown = sorted(map(str, cfg.keys() - {f.name for f in dataclasses.fields(PretrainedCfg)}))
    if unknown:
        raise ValueError(
            f'timm does not know {brief(", ".join(unknown))} in pretrained_cfg. Remove it.'
        )
    read_all(CFG, cfg, 'pretrained_cfg.')


def check_config(config: Mapping[str, Any], arguments: Mapping[str, Field]) -> None:
    """Check the content of a config.json.

    Args:
        config: The content, with a `pretrained_cfg`.
        arguments: The table of the arguments of its architecture.

    Raises:
        ValueError: A value is not what the table says, or there is an unknown field in
            `pretrained_cfg` or `model_args`.
    """
    read_all(CONFIG_FIELDS, config)
    check_cfg(config['pretrained_cfg'])
    # with another offset, timm drops rows of the classifier that the weights beside it do not have
    offset = {'label_offset': either(choice(0), _NONE)}
    read_all(offset, config['pretrained_cfg'], 'pretrained_cfg.')
    made_from = config.get('made_from')
    if made_from is not None:
        if made_from.keys() != MADE_FROM.keys():
            raise ValueError(
                f'made_from has the fields {brief(sorted(made_from))}, not {_list(MADE_FROM)}. '
                'Remove it.'
            )
        read_all(MADE_FROM, made_from, 'made_from.')
    check_arguments(config.get('model_args', {}), arguments, config['architecture'])


def check_arguments(given: Mapping[str, Any], arguments: Mapping[str, Field], name: str) -> None:
    """Check the recorded arguments of a network.

    Args:
        given: The arguments. As in `timm.create_model`, None stands for the default.
        arguments: The table of the arguments of its architecture.
        name: The architecture.

    Raises:
        ValueError: A value is not what the table says, or there is an unknown argument.
    """
    # where and in which precision to build is the reader's matter
    never = {'device', 'dtype'}
    if not given.get('features_only'):
        never.add('out_indices')  # which levels to return, and there are none
    unknown = sorted(given.keys() - arguments.keys() | given.keys() & never)
    if unknown:
        raise ValueError(
            f'model_args has {brief(unknown[0])}, which is not an argument of {name} that a config '
            'can set. Remove it.'
        )
    read_all(arguments, {k: v for k, v in given.items() if v is not None}, 'model_args.')


# --- bounds on several values together ------------------------------------------------------------


def split_width(planes: int, base_width: float, cardinality: int) -> int:
    """Return the channels of a split."""
    return math.floor(planes * (base_width / 64.0)) * cardinality


def check_size(parameters: int, splits: int, **given: Any) -> None:
    """Refuse a network or a block that is too large.

    Args:
        parameters: Number of parameters, without those of norms.
        splits: Splits of all blocks.
        **given: The arguments that determine the size, for the error.

    Raises:
        ValueError: There are more than `MOST_PARAMETERS` or `MOST_SPLITS`.
    """
    for count, most, what in (
        (parameters, MOST_PARAMETERS, 'parameters'),
        (splits, MOST_SPLITS, 'splits in all blocks'),
    ):
        if count > most:
            told = ', '.join(f'{name}={brief(value)}' for name, value in given.items())
            raise ValueError(
                f'{told} give {count:,} {what}. At most {most:,} are built: use smaller values.'
            )


def block_parameters(
    inplanes: int, planes: int, base_width: float, scale: int, cardinality: int, attn_layer: Any
) -> int:
    """Return the number of parameters of a block, without its norms and shortcut."""
    width, out = split_width(planes, base_width, cardinality), 4 * planes
    convs = max(1, scale - 1) * 9 * width * width // cardinality
    # counted, over the square of the channels: sk 9.2, splat 10.5, the others up to 1
    attention = 11 if attn_layer in ('sk', 'splat') else bool(attn_layer)
    return (inplanes + out) * width * scale + convs + attention * out * out


def check_head(num_classes: int, global_pool: str) -> None:
    """Refuse a classifier without pooling.

    Raises:
        ValueError: There is one.
    """
    if num_classes and not global_pool:
        raise ValueError(
            f"global_pool='' leaves maps, which a classifier for num_classes={num_classes} cannot "
            f'take. Use num_classes=0, or one of {_list(POOLS[:4])}.'
        )


def check_res2net(given: Mapping[str, Any]) -> None:
    """Refuse arguments of a Res2Net that are impossible together.

    Args:
        given: All that determine the size, as the table reads them.

    Raises:
        ValueError: The network is too large, has a classifier without pooling, or a tiered stem
            without channels.
    """
    num_classes, pool, layers = given['num_classes'], given['global_pool'], given['layers']
    channels, scale, stem = given['channels'], given['scale'], given['stem_width']
    check_head(num_classes, pool)
    if given['stem_type'] == 'deep_tiered' and stem < 4:
        raise ValueError(f"stem_width={stem} must be at least 4 with stem_type='deep_tiered'.")
    inplanes = 2 * stem if given['stem_type'] else channels[0]
    parameters = 49 * given['in_chans'] * inplanes + 27 * stem * stem * bool(given['stem_type'])
    parameters += 9 * inplanes * inplanes * given['replace_stem_pool']
    block = [given[name] for name in ('base_width', 'scale', 'cardinality', 'attn_layer')]
    for planes, blocks in zip(channels, layers, strict=True):
        out = 4 * planes
        parameters += inplanes * out * given['down_kernel_size'] ** 2
        parameters += block_parameters(inplanes, planes, *block)
        parameters += (blocks - 1) * block_parameters(out, planes, *block)
        inplanes = out
    parameters += inplanes * num_classes * (2 if 'cat' in pool else 1)
    names = (
        'layers', 'channels', 'base_width', 'scale', 'cardinality', 'attn_layer', 'in_chans',
        'num_classes', 'stem_width',
    )  # fmt: skip
    check_size(parameters, sum(layers) * scale, **{name: given[name] for name in names})


def check_hrnet(given: Mapping[str, Any], scale: int) -> None:
    """Refuse arguments of an HRNet that are impossible together.

    Args:
        given: timm's table of its stages with the arguments, as the table reads them.
        scale: Number of splits of a bottleneck.

    Raises:
        ValueError: The stages are too large, a branch changes its channels from stage 2 on, which
            timm's layers between stages cannot do, or there is a classifier without pooling.
    """
    if given.get('head', HEADS[0]) == HEADS[0]:
        check_head(given.get('num_classes', 1000), given.get('global_pool', POOLS[0]))
    parameters = blocks = 0
    before: list[int] = []
    stages = {name: dict(given[name]) for name in ('stage1', 'stage2', 'stage3', 'stage4')}
    for name, stage in stages.items():
        expansion = 4 if stage['block_type'] == 'BOTTLENECK' else 1
        channels = [expansion * n for n in stage['num_channels']]
        if name in ('stage3', 'stage4') and channels[: len(before)] != before:
            raise ValueError(
                f'The branches of {name} must begin with the channels of the stage before, '
                f'{before}, got {channels}.'
            )
        before = channels
        inner = sum(18 * n * c * c for n, c in zip(stage['num_blocks'], channels, strict=True))
        parameters += stage['num_modules'] * (inner + 9 * sum(channels) ** 2)
        blocks += stage['num_modules'] * sum(stage['num_blocks'])
    check_size(parameters, blocks * max(scale, 2), **stages, scale=scale)
