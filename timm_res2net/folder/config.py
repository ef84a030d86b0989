"""The config of a model: what config.json holds, checked once, as timm and transformers read it."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.data import create_transform, resolve_data_config
from timm.models import filter_pretrained_cfg, get_pretrained_cfg
from torch import nn

from ..convert import COUNTS
from ..files import read_text
from ..layers.arguments import (
    FEATURES,
    HRNET,
    RES2NET,
    TIMM,
    Field,
    as_it_is,
    choice,
    number,
    parse_arguments,
    several,
    whole,
)
from ..layers.text import brief
from ..models import hrnet_res2net
from .remote_code import AUTO_MAP

CONFIG = 'config.json'
MODES = {1: 'L', 3: 'RGB'}
"""Pillow's image modes by number of channels."""

DATA = ('input_size', 'img_size', 'mean', 'std', 'crop_pct', 'interpolation')
"""How images are prepared, under the names of timm's train.py."""

# Fields of a pretrained_cfg that say where weights were loaded from, not what they are
_NOT_SAVED = ('architecture', 'custom_load', 'label_offset', 'state_dict', 'fixed_input_size')


@functools.cache
def timm_names() -> tuple[str, ...]:
    """Return the names of timm's own Res2Nets, whose folders load without this package."""
    return tuple(timm.list_models(module='res2net'))


def is_res2net(name: str) -> bool:
    """Return whether a name without a tag is a Res2Net of this package or of timm."""
    return name in COUNTS or name in timm_names()


@functools.cache
def _own_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of a registered name, as JSON values."""
    model = timm.create_model(name, device='meta')
    return json.loads(json.dumps(getattr(model, 'model_args', {})))


def in_chans_of(model: Any) -> int:
    """Return the number of image channels that a model takes."""
    first: Any = model.conv1[0] if isinstance(model.conv1, nn.Sequential) else model.conv1
    return int(first.weight.shape[1])


def check_license(license: str | None) -> None:
    """Raise a ValueError if a text is not the identifier of a license. None is none."""
    if license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise ValueError(
            f"'{license}' is not the identifier of a license. Use one of the Hub's, such as "
            'apache-2.0, mit, cc-by-nc-sa-4.0 or other.'
        )


def without_origin(cfg: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a `pretrained_cfg` without the fields that describe the registered weights."""
    gone = ('url', 'file', 'hf_hub_id', 'notes', 'origin_url', 'license', 'label_names')
    return {**cfg, **dict.fromkeys(gone), 'label_descriptions': None, 'url': '', **changes}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and not re.search(r'[\0-\x1f\x7f]', value)


def _are_names(value: Any) -> bool:
    names = value.values() if isinstance(value, dict) else value
    return value is None or (isinstance(value, list | dict) and all(map(_is_text, names)))


_TEXT = as_it_is('a text of at most 1000 characters in one line', _is_text)
_NAMES = as_it_is(f'a list or a dictionary, of which each value is {_TEXT.kind}', _are_names)
_OBJECT = as_it_is('a dictionary', lambda value: isinstance(value, dict))

# The fields with which something is computed; the others are left alone.
_REQUIRED = ('architecture', 'num_classes', 'pretrained_cfg')
_FIELDS = {
    'architecture': _TEXT,
    'num_classes': RES2NET['num_classes'],
    'label_names': _NAMES,
    'model_args': _OBJECT,
    'pretrained_cfg': _OBJECT,
}
_CFG = {
    'input_size': several(RES2NET['in_chans'], 3, 3),
    'interpolation': choice(
        'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos', 'random'
    ),
    'crop_pct': number(0.01, 1),
    'crop_mode': choice('center', 'squash', 'border'),
    'mean': several(number(-1_000_000, 1_000_000), 1, 4096),
    'std': several(number(1e-6, 1_000_000), 1, 4096),
    'first_conv': choice('conv1', 'conv1.0'),
    'classifier': choice('fc', 'classifier'),
    # with another offset, timm drops rows of the classifier that the weights beside it do not have
    'label_offset': choice(0),
    'label_names': _NAMES,
    'license': _TEXT,
}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not None, which stands for timm's default."""
    return {name: value for name, value in values.items() if value is not None}


def check_arguments(given: Mapping[str, Any], name: str) -> None:
    """Check recorded arguments of a network.

    Args:
        given: The arguments. As in `timm.create_model`, None stands for the default.
        name: The architecture, one of this package or a Res2Net of timm.

    Raises:
        ValueError: There is an unknown argument, or a value that the table does not allow.
    """
    table: Mapping[str, Field] = TIMM if name in timm_names() else RES2NET
    if name in hrnet_res2net.default_cfgs:
        table = HRNET
    table = {**table, **FEATURES}
    unknown = sorted(given.keys() - table.keys())
    if unknown:
        raise ValueError(
            f'model_args has {brief(unknown[0])}, which is not an argument of {name} that a config '
            'can set. Remove it.'
        )
    parse_arguments(table, _given(given), 'model_args.')


def _check(config: Any) -> None:
    """Raise a ValueError for what timm would ignore or answer with a traceback."""
    if not isinstance(config, dict):
        raise ValueError(f'config.json must contain a JSON object, not a {type(config).__name__}.')
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise ValueError(f'it lacks {", ".join(missing)}. Write it again from the model.')
    parse_arguments(_FIELDS, config)
    parse_arguments(_CFG, _given(config['pretrained_cfg']), 'pretrained_cfg.')
    name = config['architecture'].partition('.')[0]
    if not is_res2net(name):
        raise ValueError(
            f"'{name}' is not a Res2Net of timm_res2net or timm. `timm-res2net list` shows the "
            'models.'
        )
    check_arguments(config.get('model_args', {}), name)
    labels = config.get('label_names')
    if isinstance(labels, list) and len(labels) != config['num_classes']:
        raise ValueError(
            f'it has {len(labels)} label_names for {config["num_classes"]} classes. Correct them, '
            'or remove label_names.'
        )


@dataclass(frozen=True)
class Config:
    """The content of a config.json.

    Attributes:
        architecture: Name for `timm.create_model`.
        num_classes: Classes of the head; 0 for none.
        num_features: Channels of the last feature level.
        global_pool: Pooling before the head.
        pretrained_cfg: timm's description of the weights and of how images are prepared.
        label_names: Names of the classes in order.
        label_descriptions: Longer names by label name.
        model_args: Further arguments of `timm.create_model`, JSON values.
        auto_map: The code that transformers runs with `trust_remote_code=True`; None without any.
    """

    architecture: str
    num_classes: int
    num_features: int
    global_pool: str
    pretrained_cfg: dict[str, Any]
    label_names: Sequence[str] | None = None
    label_descriptions: Mapping[str, str] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    auto_map: Any = None

    @classmethod
    def of(
        cls,
        model: Any,
        architecture: str,
        arguments: Mapping[str, Any],
        cfg: Mapping[str, Any],
    ) -> 'Config':
        """Describe a model so that timm and transformers rebuild it.

        timm's own `save_for_hf` writes the same fields with two differences. The class count is
        not among `model_args`, because transformers would pass it twice. Label names stand at the
        top level, because both libraries look for them there.

        Args:
            model: A Res2Net or HRNet.
            architecture: Its name for `timm.create_model`.
            arguments: Further arguments of `timm.create_model`, JSON values.
            cfg: Its `pretrained_cfg`.
        """
        kept = filter_pretrained_cfg(dict(cfg), remove_source=True)
        for key in _NOT_SAVED:
            kept.pop(key, None)
        names, descriptions = kept.pop('label_names', None), kept.pop('label_descriptions', None)
        if len(names or ()) != model.num_classes:  # names of other classes
            names = descriptions = None
        in_chans = in_chans_of(model)
        kept.update(num_classes=model.num_classes, input_size=[in_chans, *kept['input_size'][1:]])
        pool = getattr(model.global_pool, 'pool_type', '')  # an HRNet's backbone has none
        return cls(
            architecture, model.num_classes, model.num_features, pool,
            kept, names, descriptions, dict(arguments),
        )  # fmt: skip

    @classmethod
    def of_tag(cls, full: str) -> 'Config':
        """Describe a registered tag of this package.

        Args:
            full: Name with its tag, such as 'res2net50_se.se_identity_in1k'.
        """
        cfg: Any = get_pretrained_cfg(full)
        model: Any = timm.create_model(full, device='meta', num_classes=cfg.num_classes)
        name = full.partition('.')[0]
        return cls.of(model, name, model.model_args, model.pretrained_cfg)

    @classmethod
    def read(cls, path: Path) -> 'Config':
        """Read a config.json and check what timm would not check.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not JSON, lacks a field, has a field of another type or one that
                timm does not know, or does not name a Res2Net.
        """
        what = f'{path} does not describe a model'
        if not path.is_file():
            raise FileNotFoundError(
                f'There is no {path}. `timm-res2net convert` writes one from a checkpoint file.'
            )
        try:
            found = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:  # JSON or UTF-8
            raise ValueError(
                f'{what}: {type(error).__name__}: {error}. Write it again from the model.'
            ) from error
        try:
            _check(found)
        except ValueError as error:
            raise ValueError(f'{what}: {error}') from None
        name, classes, labels = (
            found.get(key) for key in ('architecture', 'num_classes', 'label_names')
        )
        return cls(
            name, classes, found.get('num_features', 0), found.get('global_pool', ''),
            found['pretrained_cfg'], labels, found.get('label_descriptions'),
            found.get('model_args', {}), found.get('auto_map'),
        )  # fmt: skip

    def to_json(self) -> str:
        """Return the text of the file. The same config gives the same text."""
        found = dataclasses.asdict(self)
        optional = ('label_names', 'label_descriptions', 'model_args', 'auto_map')
        kept = {key: found[key] for key in found if found[key] or key not in optional}
        kept['pretrained_cfg'] = kept.pop('pretrained_cfg')  # last, because it is the longest
        return json.dumps(kept, indent=2) + '\n'

    @property
    def input_size(self) -> list[int]:
        """Channels, height and width of the image, by default timm's."""
        return list(self.pretrained_cfg.get('input_size') or (3, 224, 224))

    @property
    def license(self) -> str | None:
        """Identifier of the license of the weights."""
        return self.pretrained_cfg.get('license')

    @property
    def semantics(self) -> str:
        """Block semantics."""
        return str(self.model_args.get('semantics', 'official'))

    @property
    def remote_code(self) -> bool:
        """Whether it names this package's module for transformers, see `remote_code`."""
        return bool(self.auto_map == AUTO_MAP)

    @property
    def network(self) -> str:
        """The architecture with the arguments that are not its name's own.

        For example `res2net_custom(layers=[3, 4, 23, 3])`.
        """
        own = _own_arguments(self.architecture)
        # a config that was read has lists where others have tuples
        given = json.loads(json.dumps(self.model_args))
        other = {key: value for key, value in given.items() if value != own.get(key)}
        arguments = ', '.join(f'{key}={value!r}' for key, value in other.items())
        return f'{self.architecture}({arguments})' if other else self.architecture

    def with_cfg(self, **changes: Any) -> 'Config':
        """Return the config with other values in its `pretrained_cfg`; None removes a field."""
        cfg = filter_pretrained_cfg({**self.pretrained_cfg, **changes})
        return dataclasses.replace(self, pretrained_cfg=cfg)

    def as_asked(
        self,
        license: str | None = None,
        label_names: Sequence[str] | None = None,
        remote_code: bool | None = None,
    ) -> 'Config':
        """Return the config with what its owner says of the model; None changes nothing.

        Args:
            license: Identifier of the license.
            label_names: Names of the classes, in order.
            remote_code: Whether it names this package's module for transformers.

        Raises:
            ValueError: The license is no identifier, or there is another number of names.
        """
        check_license(license)
        config = self if label_names is None else self.with_labels(label_names)
        if remote_code is not None:
            auto_map = AUTO_MAP if remote_code else None
            config = dataclasses.replace(config, auto_map=auto_map)
        return config if license is None else config.with_cfg(license=license)

    def with_labels(self, names: Sequence[str]) -> 'Config':
        """Return the config with names for the classes.

        Raises:
            ValueError: `names` is not a list of as many names as there are classes.
        """
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f'label_names must be a list of names, got {names!r}.')
        if len(names) != self.num_classes:
            raise ValueError(
                f'There are {len(names)} label names for {self.num_classes} classes. Give one name '
                'for each class, in order.'
            )
        return dataclasses.replace(self, label_names=list(names), label_descriptions=None)

    def with_data(self, given: Mapping[str, Any]) -> 'Config':
        """Return the config with another preparation of images, for its number of channels.

        Args:
            given: Some of `DATA` as timm's train.py takes them. The rest stays as it is.

        Raises:
            ValueError: An unknown name, or a value that timm refuses.
        """
        unknown = sorted(set(given) - set(DATA))
        if unknown:
            raise ValueError(
                f'Unknown image preparation {", ".join(unknown)}. Use {", ".join(DATA)}.'
            )
        given, before = _given(given), self.pretrained_cfg
        in_chans = self.input_size[0]
        what = f'Images cannot be prepared with {dict(given)}'
        try:
            parse_arguments({**_CFG, 'img_size': whole(1, 4096)}, given)
            data = resolve_data_config({'in_chans': in_chans, **given}, pretrained_cfg=before)
            create_transform(**data)
        except ValueError as error:
            raise ValueError(f'{what}: {error}') from None
        except (AssertionError, KeyError, TypeError) as error:
            raise ValueError(
                f"{what} ({type(error).__name__}: {error}). Give values as timm's train.py takes "
                'them.'
            ) from error
        size = data['input_size'][1:]
        data['input_size'] = [in_chans, *size]
        for key in ('mean', 'std'):
            values = list(data[key])
            if len(values) != in_chans:  # statistics of colors, for another number of channels
                values = [sum(values) / len(values)] * in_chans
            data[key] = values
        if data['input_size'][1:] != self.input_size[1:]:
            data['pool_size'] = None
        return self.with_cfg(**data)
