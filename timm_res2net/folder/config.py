"""The config of a model: what config.json holds, checked once, as timm and transformers read it."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import timm
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_input_data_config
from timm.models import filter_pretrained_cfg, get_model_args
from torch import nn

from ..convert import COUNTS
from ..files import read_text
from ..layers.text import brief, first_line, sentence

CONFIG = 'config.json'
MODULE = 'modeling_timm_res2net.py'
"""A module in a folder or repository, with which transformers loads its model."""
AUTO_MAP = {
    'AutoModel': 'modeling_timm_res2net.TimmWrapperModel',
    'AutoModelForImageClassification': 'modeling_timm_res2net.TimmWrapperForImageClassification',
}
"""The field `auto_map` of a config.json: the classes of the module."""
MODES = {1: 'L', 3: 'RGB'}
"""Pillow's image modes by number of channels."""

DATA = ('input_size', 'img_size', 'mean', 'std', 'crop_pct', 'interpolation')
"""How images are prepared, under the names of timm's train.py."""

PREPARATION = ('input_size', 'mean', 'std', 'crop_pct', 'interpolation')
"""The fields of a pretrained_cfg that they set."""
MULTI_LABEL = 'multi_label_classification'
"""The `problem_type` of transformers for classes that do not exclude each other."""

# Fields of a pretrained_cfg that say where weights were loaded from, not what they are
_NOT_SAVED = ('architecture', 'custom_load', 'label_offset', 'state_dict', 'fixed_input_size')


@functools.cache
def timm_names() -> tuple[str, ...]:
    """Return the names of timm's own Res2Nets, whose folders load without this package."""
    return tuple(timm.list_models(module='res2net'))


def is_res2net(name: str) -> bool:
    """Return whether a name without a tag is a Res2Net of this package or of timm."""
    return name in COUNTS or name in timm_names()


def _as_json(value: Any) -> Any:
    """Return a value as it is read from JSON, which has lists where Python has tuples."""
    return json.loads(json.dumps(value))


@functools.cache
def _own_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of a registered name, as JSON values."""
    return _as_json(getattr(timm.create_model(name, device='meta'), 'model_args', {}))


def in_chans_of(model: Any) -> int:
    """Return the number of image channels that a model takes."""
    first: Any = model.conv1[0] if isinstance(model.conv1, nn.Sequential) else model.conv1
    return int(first.weight.shape[1])


def without_origin(cfg: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a `pretrained_cfg` without the fields that describe the registered weights."""
    gone = ('url', 'file', 'hf_hub_id', 'notes', 'origin_url', 'license', 'label_names')
    return {**cfg, **dict.fromkeys(gone), 'label_descriptions': None, 'url': '', **changes}


def data_of(
    cfg: Mapping[str, Any], net: Any = None, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return how a `pretrained_cfg` prepares images, as `timm.data.resolve_data_config`.

    The transform is tried on a blank image.

    Args:
        cfg: The `pretrained_cfg`.
        net: The network, whose channels then count. As timm does, a mean or standard deviation of
            colors is averaged for other than 3 channels.
        given: Values for the network as timm's train.py takes them, in place of the cfg's.

    Raises:
        ValueError: Images cannot be prepared so.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        if not (given.get('img_size', 1) and 0 < given.get('crop_pct', 1) <= 1):
            raise ValueError('img_size must not be 0, and crop_pct above 0 and at most 1')
        if net is not None:
            data = resolve_input_data_config(net, given, dict(cfg))
        else:  # an empty cfg stands for timm's defaults
            size = {} if cfg else {'input_size': (3, 224, 224)}
            data = resolve_data_config(size, pretrained_cfg=dict(cfg))
        channels, *sides = data['input_size']
        if not all(isinstance(n, int) and 1 <= n <= 4096 for n in (channels, *sides)):
            raise ValueError('channels, height and width must be whole numbers from 1 to 4096')
        transform: Any = create_transform(**data)
        if channels in MODES:
            image = transform(Image.new(MODES[channels], (64, 64)))
            fits = image.shape == (channels, *sides) and bool(image.isfinite().all())
        else:
            fits = {len(data['mean']), len(data['std'])} <= {1, channels}
        if not fits:
            raise ValueError(f'mean and std do not suit {channels} channels')
    except Exception as error:  # values of any type fail anywhere inside timm and torchvision
        values = {key: cfg[key] for key in PREPARATION if key in cfg} | given
        text = ', '.join(f'{key}={brief(value)}' for key, value in values.items())
        remedy = ". Give values as timm's train.py takes them" if given else ''
        raise ValueError(
            f'images cannot be prepared with {text} ({type(error).__name__}: {first_line(error)})'
            f'{remedy}'
        ) from error
    return data


def check_labels(names: Sequence[str], classes: int) -> None:
    """Raise a ValueError unless there is one name for each class."""
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'label_names must be a list of names, got {names!r}.')
    if len(names) != classes:
        raise ValueError(
            f'There are {len(names)} label names for {classes} classes. Give one name for each '
            'class, in order.'
        )


def _check(config: Any) -> None:
    """Raise a ValueError for what timm would ignore or answer with a traceback."""
    if not isinstance(config, dict):
        raise ValueError(f'it must contain a JSON object, not a {type(config).__name__}')
    kinds = {'architecture': str, 'num_classes': int, 'pretrained_cfg': dict, 'model_args': dict}
    for key, kind in kinds.items():
        value = config.get(key, kind() if key == 'model_args' else None)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f'{key} must be of type {kind.__name__}, got {brief(value)}')
    name, classes = config['architecture'].partition('.')[0], config['num_classes']
    if not is_res2net(name):
        raise ValueError(
            f"'{name}' is not a Res2Net of timm_res2net or timm, see `timm-res2net list`"
        )
    labels = config.get('label_names')
    if labels is not None:
        names = list(labels.values()) if isinstance(labels, dict) else labels
        are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not are_texts or len(names) != classes:
            raise ValueError(f'label_names must be {classes} texts, got {brief(labels)}')
    cfg = config['pretrained_cfg']
    if cfg.get('label_offset') not in (None, 0):  # timm would cut the classifier
        raise ValueError(f'label_offset must be 0 or left out, got {brief(cfg["label_offset"])}')
    for key in ('first_conv', 'classifier'):
        layers = cfg.get(key, [])
        layers = layers if isinstance(layers, list) else [layers]
        if not all(isinstance(name, str | None) for name in layers):
            raise ValueError(f'{key} must name layers, got {brief(cfg[key])}')
    data_of(cfg)


@dataclass(frozen=True)
class Config:
    """The content of a config.json.

    Attributes:
        architecture: Name for `timm.create_model`.
        num_classes: Classes of the head; 0 for none.
        pretrained_cfg: timm's description of the weights and of how images are prepared.
        num_features: Channels of the last feature level.
        global_pool: Pooling before the head.
        label_names: Names of the classes in order.
        label_descriptions: Longer names by label name.
        model_args: Further arguments of `timm.create_model`, JSON values.
        auto_map: The code that transformers runs with `trust_remote_code=True`; None without any.
        problem_type: `MULTI_LABEL`, or None for classes that exclude each other.
        assumed: Those of `PREPARATION` that nothing recorded. They have the values of the
            architecture's registered weights.
    """

    architecture: str
    num_classes: int
    pretrained_cfg: dict[str, Any]
    num_features: int = 0
    global_pool: str = ''
    label_names: Sequence[str] | None = None
    label_descriptions: Mapping[str, str] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    auto_map: Any = None
    problem_type: str | None = None
    assumed: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        model: Any,
        architecture: str,
        cfg: Mapping[str, Any],
    ) -> 'Config':
        """Describe a model so that timm and transformers rebuild it.

        timm's own `save_for_hf` writes the same fields with two differences. The class count is
        not among `model_args`, because transformers would pass it twice. Label names stand at the
        top level, because both libraries look for them there.

        Args:
            model: A Res2Net or HRNet.
            architecture: Its name for `timm.create_model`.
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
        own = getattr(model, 'model_args', None)  # timm's models have none, but a record of timm's
        arguments = {**(get_model_args(model) if own is None else own), 'in_chans': in_chans}
        arguments.pop('num_classes', None)
        return cls(
            architecture, model.num_classes, kept, model.num_features, pool,
            names, descriptions, arguments, problem_type=kept.pop('problem_type', None),
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> 'Config':
        """Read a config.json and check what timm would not check.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not JSON, lacks a field, has a field of another type or one that
                timm does not know, or does not name a Res2Net.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f'There is no {path}. `timm-res2net convert` writes one from a checkpoint file.'
            )
        try:
            values = json.loads(read_text(path))
            _check(values)
        except (ValueError, RecursionError) as error:  # also of JSON and UTF-8
            raise ValueError(
                f'{path} does not describe a model: {sentence(str(error))} Correct it, or write it '
                'again from the model.'
            ) from error
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})

    def to_json(self) -> str:
        """Return the text of the file. The same config gives the same text."""
        values = asdict(self)
        needed = ('architecture', 'num_classes', 'num_features', 'global_pool', 'pretrained_cfg')
        kept = {key: value for key, value in values.items() if value or key in needed}
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
        given = _as_json(self.model_args)
        other = {key: value for key, value in given.items() if value != own.get(key)}
        arguments = ', '.join(f'{key}={value!r}' for key, value in other.items())
        return f'{self.architecture}({arguments})' if other else self.architecture

    def as_asked(
        self,
        net: nn.Module,
        license: str | None = None,
        label_names: Sequence[str] | None = None,
        remote_code: bool | None = None,
        multi_label: bool | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> 'Config':
        """Return the config with what its owner says of the model; None changes nothing.

        Args:
            net: Its network.
            license: Identifier of the license.
            label_names: Names of the classes, in order.
            remote_code: Whether it names this package's module for transformers.
            multi_label: Whether an image may be of several classes.
            data: Some of `DATA` as timm's train.py takes them. The rest stays as it is.

        Raises:
            ValueError: The license is no identifier, there is not one name for each class, `data`
                has an unknown name, or timm refuses a value of it.
        """
        config = self
        if license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
            raise ValueError(
                f"'{license}' is not the identifier of a license. Use one of the Hub's, such as "
                'apache-2.0, mit, cc-by-nc-sa-4.0 or other.'
            )
        if label_names is not None:
            check_labels(label_names, self.num_classes)
            config = replace(config, label_names=list(label_names), label_descriptions=None)
        if remote_code is not None:
            config = replace(config, auto_map=AUTO_MAP if remote_code else None)
        if multi_label is not None:
            config = replace(config, problem_type=MULTI_LABEL if multi_label else None)
        unknown = sorted(set(data or ()) - set(DATA))
        if unknown:
            raise ValueError(
                f'Unknown image preparation {", ".join(unknown)}. Use {", ".join(DATA)}.'
            )
        try:
            prepared = data_of(self.pretrained_cfg, net, data)
        except ValueError as error:
            raise ValueError(sentence(f'This does not work: {error}')) from error
        if prepared['input_size'][1:] != tuple(self.input_size[1:]):
            prepared['pool_size'] = None
        if license is not None:
            prepared['license'] = license
        given = {key for key, value in (data or {}).items() if value is not None}
        known = {'input_size' if key == 'img_size' else key for key in given}
        return replace(
            config,
            pretrained_cfg=filter_pretrained_cfg(self.pretrained_cfg | _as_json(prepared)),
            assumed=tuple(name for name in self.assumed if name not in known),
        )
