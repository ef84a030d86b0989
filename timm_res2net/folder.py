"""A model's folder: config.json, weights and card, as timm, transformers and the Hub read them."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import PretrainedCfg, filter_pretrained_cfg, get_arch_pretrained_cfgs
from torch import nn

from .files import new_folder
from .models.figures import FIGURES

__all__ = [
    'CARD',
    'CONFIG',
    'DATA',
    'WEIGHTS',
    'build',
    'in_chans_of',
    'load_model',
    'model_config',
    'open_folder',
    'read_config',
    'save_folder',
    'set_data',
    'timms_names',
]

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
CARD = 'README.md'
DATA = ('input_size', 'img_size', 'mean', 'std', 'crop_pct', 'interpolation')
# what describes where weights came from, not what they are
_NOT_SAVED = ('architecture', 'custom_load', 'label_offset', 'state_dict', 'fixed_input_size')


@functools.cache
def timms_names() -> tuple[str, ...]:
    """timm's own Res2Nets, whose folders load without this package."""
    return tuple(timm.list_models(module='res2net'))


# --- writing ------------------------------------------------------------------------------------


def in_chans_of(model: Any) -> int:
    """Channels of the image that a model takes."""
    first: Any = model.conv1[0] if isinstance(model.conv1, nn.Sequential) else model.conv1
    return int(first.weight.shape[1])


def set_data(model: Any, given: Mapping[str, Any]) -> None:
    """Note in a model's cfg how images are prepared, for as many channels as it takes.

    Args:
        model: Its `pretrained_cfg` is replaced.
        given: Some of `input_size`, `img_size`, `mean`, `std`, `crop_pct` and `interpolation`, as
            timm's train.py takes them; the rest stays.

    Raises:
        ValueError: An unknown name, or values that timm refuses.
    """
    before, in_chans = model.pretrained_cfg, in_chans_of(model)
    unknown = sorted(set(given) - set(DATA))
    if unknown:
        raise ValueError(f'Unknown {", ".join(unknown)} of images. Use {", ".join(DATA)}.')
    try:
        data = resolve_data_config({'in_chans': in_chans, **given}, pretrained_cfg=before)
        create_transform(**data)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'Images cannot be prepared with {dict(given)} ({type(error).__name__}: {error}). Give '
            "values as timm's train.py takes them."
        ) from error
    size = data['input_size'][1:]
    bad = {
        'a size that is not from 1 to 4096': not all(1 <= n <= 4096 for n in size),
        'a std of 0': 0 in data['std'],
        'a crop_pct that is not above 0 and up to 1': not 0 < data['crop_pct'] <= 1,
    }
    if any(bad.values()):
        text = ', '.join(what for what, is_so in bad.items() if is_so)
        raise ValueError(f'Images cannot be prepared with {dict(given)}: that is {text}.')
    data['input_size'] = [in_chans, *size]
    for key in ('mean', 'std'):
        values = list(data[key])
        if len(values) != in_chans:  # of colours, for another number of channels
            values = [sum(values) / len(values)] * in_chans
        data[key] = values
    if data['input_size'][1:] != list(before['input_size'][1:]):
        data['pool_size'] = None
    model.pretrained_cfg = dict(before, **data)


def model_config(model: Any, architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a model, so that timm and transformers rebuild it.

    timm's own `save_for_hf` writes the same, but for this: the class count is not among
    `model_args`, where transformers would be given it twice; label names stand where both look for
    them; and all versions of timm write the same.

    Args:
        model: A Res2Net with a `pretrained_cfg`.
        architecture: Its name for `timm.create_model`.
        arguments: What that has to be given besides, JSON values.
    """
    cfg = filter_pretrained_cfg(dict(model.pretrained_cfg), remove_source=True)
    for key in _NOT_SAVED:
        cfg.pop(key, None)
    labels = {key: cfg.pop(key, None) for key in ('label_names', 'label_descriptions')}
    # timm 1.0.22 saves the names of other classes, with the count of these
    if len(labels['label_names'] or ()) != model.num_classes:
        labels = {}
    in_chans = in_chans_of(model)
    cfg.update(num_classes=model.num_classes, input_size=(in_chans, *cfg['input_size'][1:]))
    if in_chans != 3:
        # timm 1.0.22 takes a first convolution that is named for one of 3 channels, and makes its
        # weights anew
        cfg.pop('first_conv', None)
    return {
        'architecture': architecture,
        'num_classes': model.num_classes,
        'num_features': model.num_features,
        'global_pool': model.global_pool.pool_type,
        **{key: value for key, value in labels.items() if value},
        **({'model_args': dict(arguments)} if arguments else {}),
        'pretrained_cfg': cfg,
    }


def save_folder(
    model: Any, architecture: str, arguments: Mapping[str, Any], card: str, out: Path
) -> None:
    """Write a model's config, weights and card into a new folder.

    The same model gives the same bytes.
    """
    with new_folder(out) as made:
        config = json.dumps(model_config(model, architecture, arguments), indent=2)
        (made / CONFIG).write_text(config + '\n', encoding='utf-8')
        (made / CARD).write_text(card, encoding='utf-8')
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        # transformers wants to be told that they are torch's
        save_file(tensors, made / WEIGHTS, metadata={'format': 'pt'})
        (made / WEIGHTS).chmod(0o644)  # safetensors makes it its owner's alone


# --- reading ------------------------------------------------------------------------------------


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)
    )


_STRING = ('a string', lambda value: isinstance(value, str))
_COUNT = ('a whole number', _is_count)
_OBJECT = ('an object', lambda value: isinstance(value, dict))
_NUMBERS = ('a list of numbers', _are_numbers)
_SIZE = (
    'channels, height and width, each from 1 to 4096',
    lambda value: (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_count(n) and 0 < n <= 4096 for n in value)
    ),
)
_LABELS = ('a list of names', lambda value: isinstance(value, list | dict))
# Fields that are read, with what they must be; the rest of a config is for its writer.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'architecture': _STRING,
    'num_classes': _COUNT,
    'model_args': _OBJECT,
    'label_names': _LABELS,
    'pretrained_cfg': _OBJECT,
    'pretrained_cfg.num_classes': _COUNT,
    'pretrained_cfg.input_size': _SIZE,
    'pretrained_cfg.mean': _NUMBERS,
    'pretrained_cfg.std': _NUMBERS,
    'pretrained_cfg.crop_pct': ('a number', lambda value: _are_numbers([value])),
    'pretrained_cfg.interpolation': _STRING,
    'pretrained_cfg.license': _STRING,
}
_REQUIRED = ('architecture', 'num_classes', 'pretrained_cfg')
_KNOWN_CFG = {field.name for field in dataclasses.fields(PretrainedCfg)}


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json and check what timm would not, or only with a traceback.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no JSON, lacks a field, has one of another type or one that timm does not
            know, or names no Res2Net; the text says which.
    """
    what = f'{path} makes no model'
    if not path.is_file():
        raise FileNotFoundError(f'There is no {path}. `timm-res2net push` and `convert` write one.')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:  # JSON and UTF-8
        raise ValueError(f'{what}: {type(error).__name__}: {error}.') from error
    if not isinstance(config, dict):
        raise ValueError(f'{what}: it is {type(config).__name__}, not an object.')
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise ValueError(f'{what}: it lacks {", ".join(missing)}. Write it anew from the model.')
    for key, (kind, fits) in _FIELDS.items():
        where, _, name = key.rpartition('.')
        values = config.get(where) if where else config
        value = values.get(name) if isinstance(values, dict) else None
        # timm takes null for no value where a cfg has it, not elsewhere
        given = isinstance(values, dict) and name in values
        if given and not fits(value) and (value is not None or not where):
            raise ValueError(f'{what}: {key} is {value!r}, not {kind}.')
    unknown = sorted(config['pretrained_cfg'].keys() - _KNOWN_CFG)
    if unknown:
        raise ValueError(
            f'{what}: timm knows no {", ".join(unknown)} in pretrained_cfg. Remove it.'
        )
    name = config['architecture']
    if name.partition('.')[0] not in (*FIGURES, *timms_names()):
        raise ValueError(
            f'{what}: {name!r} is no Res2Net of timm_res2net or timm. `timm-res2net list` shows '
            'the first.'
        )
    labels = config.get('label_names')
    if isinstance(labels, list) and len(labels) != config['num_classes']:
        raise ValueError(
            f'{what}: it has {len(labels)} label_names for {config["num_classes"]} classes.'
        )
    return config


def open_folder(path: Path) -> tuple[Path, nn.Module]:
    """The file with the weights of a model's folder, and its model on the meta device.

    Raises:
        ValueError: It is no such folder, or its config makes no model.
    """
    weights = next((p for p in (path / WEIGHTS, path / 'pytorch_model.bin') if p.is_file()), None)
    if weights is None or not (path / CONFIG).is_file():
        raise ValueError(
            f'{path} is a folder without a {CONFIG} and a {WEIGHTS}. Give a checkpoint file, or '
            'a folder that `convert` or timm wrote.'
        )
    read_config(path / CONFIG)
    return weights, build(path)


def build(path: Path) -> nn.Module:
    """The model of a folder's config on the meta device.

    Raises:
        ValueError: The config makes none.
    """
    try:
        return timm.create_model(f'local-dir:{path}', device='meta')
    except Exception as error:  # what others wrote fails anywhere inside timm
        text = f'{path / CONFIG} makes no model: {type(error).__name__}: {error}'
        raise ValueError(text if text.endswith('.') else f'{text}.') from error


def load_model(target: str | os.PathLike[str], pretrained: bool = True, **kwargs: Any) -> Any:
    """The model that a name, a folder or a repository stands for, on every timm and torch.

    Args:
        target: Registered name of this package or timm's, with or without a tag; a folder; or a
            repository, OWNER/NAME or hf-hub:OWNER/NAME.
        pretrained: Load its weights.
        **kwargs: Further arguments of `timm.create_model`.

    Raises:
        ValueError: There is no such model, or it has no weights; the text says which.
    """
    text = os.fspath(target)
    is_name = timm.is_model(text)
    if Path(text).is_dir() and ((Path(text) / CONFIG).is_file() or not is_name):
        weights, _ = open_folder(Path(text))
        # `local-dir:` alone reads safetensors from timm 1.0.26 on
        overlay = {'source': 'file', 'file': str(weights)}
        return timm.create_model(
            f'local-dir:{text}', pretrained=pretrained, pretrained_cfg_overlay=overlay, **kwargs
        )
    if text.startswith(('.', '/', '~')) or text.count('/') > 1:
        raise ValueError(f'There is no folder {text}.')
    if '/' in text:
        name = text if text.startswith('hf-hub:') else f'hf-hub:{text}'
    elif not is_name:
        raise ValueError(
            f"'{text}' is no folder, no repository (OWNER/NAME) and no registered name. "
            '`timm-res2net list` shows these.'
        )
    else:
        name = text
        known, tag = get_arch_pretrained_cfgs(text.partition('.')[0]), text.partition('.')[2]
        if tag and text not in known:
            raise ValueError(f"'{text}' is no tag. Use one of {', '.join(known)}.")
        cfg = timm.get_pretrained_cfg(name)
        if pretrained and not (cfg and cfg.has_weights):
            raise ValueError(
                f"There are no weights to fetch for '{text}'. Give a folder that `timm-res2net "
                'convert` wrote, or take random ones (--random, pretrained=False).'
            )
    return timm.create_model(name, pretrained=pretrained, **kwargs)
