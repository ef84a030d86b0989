"""Take a model from wherever it is: a module in memory, a file of any project, or a folder."""

import copy
import functools
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.resnet import ResNet
from timm.utils import unwrap_model
from torch import nn

from ..convert.engine import apply_rules
from ..convert.files import Checkpoint, read_checkpoint
from ..convert.find import (
    convert_network,
    find_network,
    infer_arguments,
    look_like_classifiers,
)
from ..convert.sources import SOURCES, have_branches, recognise
from ..layers.fused_block import FusedBottle2neck
from ..layers.semantics import SEMANTICS
from ..layers.text import list_some, printable, sentence
from ..models import hrnet_res2net
from ..models.hrnet_res2net import HighResolutionRes2Net
from ..models.loading import fill
from ..models.res2net_zoo import Res2Net, default_cfgs
from .card import is_generated
from .config import DATA, Config, check_arguments, in_chans_of, timm_names, without_origin
from .folder import ModelFolder
from .golden import GOLDEN, compare_golden
from .model import Model, Notes
from .target import find_name

_logger = logging.getLogger(__name__)

# Name for networks that are not registered; their config has all arguments
_CUSTOM = 'res2net_custom'


class Hints(NamedTuple):
    """What the keys and shapes of a checkpoint may not say.

    Attributes:
        source: Project whose keys the file has, one of `timm_res2net.convert.sources.SOURCES`;
            'auto' recognises it.
        model: Name of the model; None for the model whose arguments the shapes give.
        semantics: Block semantics; None for those of the source or the model.
        entry: Entry of the file that holds the weights; None for the usual one.
        prefix: What the network's keys start with; None looks everywhere.
    """

    source: str = 'auto'
    model: str | None = None
    semantics: str | None = None
    entry: str | None = None
    prefix: str | None = None


_NO_HINTS = Hints()


def take(target: nn.Module | str | os.PathLike[str], hints: Hints = _NO_HINTS) -> Model:
    """Take a model in memory, a checkpoint file or a folder.

    Args:
        target: Module, which is not changed, or path.
        hints: What the keys and shapes of a file may not say.

    Raises:
        FileNotFoundError: There is nothing at the path.
        TypeError: It is neither a module nor a path.
        ValueError: It is not a whole Res2Net, the file cannot be read safely, holds several
            Res2Nets or does not fit, or a hint is unknown or not for this kind of target.
    """
    if isinstance(target, nn.Module):
        if hints != _NO_HINTS:
            raise ValueError(
                'A model in memory knows its architecture and semantics. Leave architecture, '
                'semantics, entry and prefix out.'
            )
        return _take_module(target)
    if not isinstance(target, str | os.PathLike):
        raise TypeError(
            f'model must be a model or the path of a checkpoint or folder, not a '
            f'{type(target).__name__}.'
        )
    _check_hints(hints)
    path = _existing(os.fspath(target))
    try:
        return _take_folder(path, hints) if path.is_dir() else _take_file(path, hints)
    except ValueError as error:
        raise ValueError(sentence(f'{path} does not convert: {error}')) from error


def _check_hints(hints: Hints) -> None:
    if hints.source not in ('auto', *SOURCES):
        raise ValueError(f"Unknown source '{hints.source}'. Use auto, {', '.join(SOURCES)}.")
    if hints.semantics not in (None, *SEMANTICS):
        known = ', '.join(SEMANTICS)
        raise ValueError(f"Unknown semantics '{hints.semantics}'. Use one of {known}.")
    if hints.model:
        find_name(hints.model)


def _existing(text: str) -> Path:
    """Return the path of a checkpoint, which exists."""
    if not text:  # as a path, it would be the current folder
        raise ValueError('The path of the checkpoint is empty. Give a file or a folder.')
    if re.match('https?:/', text):
        raise ValueError(f'{text} is an address. Download the file, and give its path.')
    path = Path(text.removeprefix('local-dir:')).expanduser()
    if not path.exists():
        remedy = 'Check the path.'
        if timm.is_model(text.partition('.')[0]):
            remedy = 'It is the name of a model; give the path of a checkpoint.'
        raise FileNotFoundError(f'There is no file or folder {text}. {remedy}')
    return path


# --- from a file or a folder ----------------------------------------------------------------------


def _notes(
    path: Path, checkpoint: Checkpoint, left_out: Collection[str] = (), **more: Any
) -> Notes:
    used = checkpoint.values.keys() - set(left_out)
    return Notes(
        path.resolve().name, checkpoint.sha256, checkpoint.bytes, checkpoint.format,
        checkpoint.entry, checkpoint.narrow(used), left_out=tuple(left_out), **more,
    )  # fmt: skip


def _origin(notes: Notes) -> str:
    """Return where a model comes from, and what was left out, for its card."""
    name = printable(notes.file).replace('`', "'")
    where = f", entry '{printable(notes.entry)}'" if notes.entry else ''
    where += f", prefix '{printable(notes.prefix)}'" if notes.prefix else ''
    text = f'from `{name}` ({notes.source}{where}, sha256 {notes.sha256}).'
    if notes.left_out:
        text += f' Left out, because they are not of the Res2Net, {list_some(notes.left_out, 3)}.'
    return text


def _take_folder(path: Path, hints: Hints) -> Model:
    if hints.model or hints.semantics or hints.prefix:
        raise ValueError(
            'it is a folder, and its config.json names the model. Leave model, semantics and '
            'prefix out.'
        )
    folder = ModelFolder(path)
    config, net = folder.config, folder.build()
    checkpoint = read_checkpoint(folder.weights, hints.entry)
    tensors = checkpoint.tensors
    source = recognise(tensors) if hints.source == 'auto' else hints.source
    tensors, moved = apply_rules(tensors, SOURCES[source].rules(tensors.keys()), source)
    fill(net, tensors)
    if (path / GOLDEN).is_file():
        compare_golden(net.eval(), path / GOLDEN)
    # timm 1.0.31 records the class count too, which has a field of its own
    arguments = {k: v for k, v in config.model_args.items() if k != 'num_classes'}
    if isinstance(net, Res2Net | HighResolutionRes2Net):
        arguments = net.model_args
    labels = {'label_names': config.label_names, 'label_descriptions': config.label_descriptions}
    cfg = {**config.pretrained_cfg, 'input_size': config.input_size, **labels}
    name = config.architecture.partition('.')[0]
    if not is_generated(folder.card):
        # timm writes no card, and describes the weights that a training started from
        description = f'{name} with {config.num_classes:,} classes.'
        cfg |= {'description': description, 'tag': 'converted', 'notes': None, 'origin_url': None}
    config = Config.of(net, name, arguments, cfg).as_asked(remote_code=config.remote_code)
    notes = _notes(path, checkpoint, source=source, moved=moved)
    return Model(net.eval(), config, folder.card, notes)


def _take_file(path: Path, hints: Hints) -> Model:
    _logger.info(f'Reading {path}')
    checkpoint = read_checkpoint(path, hints.entry)
    _logger.info('Converting the tensors')
    network = find_network(checkpoint.values, hints.source, hints.prefix)
    tensors, moved = convert_network(checkpoint, network)
    left_out = checkpoint.values.keys() - set(network.keys.values())
    training = _training(checkpoint.training, network.source)
    name, arguments, net = _identify(tensors, network.source, hints, training)
    fill(net, tensors)
    lost = left_out if net.num_classes == 0 else ()
    notes = _notes(
        path, checkpoint, left_out, source=network.source, prefix=network.prefix, moved=moved,
        others=checkpoint.others,
        classifiers=tuple(look_like_classifiers(checkpoint.values, lost, net.num_features)),
    )  # fmt: skip
    cfg: Any = net.pretrained_cfg
    if name == _CUSTOM and training.name:  # the images were prepared as that model's
        cfg = get_pretrained_cfg(training.name)
        cfg = cfg.to_dict()
    cfg = without_origin(
        cfg,
        tag='converted',
        description=f'{name} with {net.num_classes:,} classes, {_origin(notes)}',
        first_conv='conv1.0' if 'conv1.0.weight' in tensors else 'conv1',
    )
    data = {key: checkpoint.training[key] for key in DATA if checkpoint.training.get(key)}
    config = Config.of(net, name, arguments, cfg).with_data(data)
    return Model(net.eval(), config, notes=notes)


# --- from memory ----------------------------------------------------------------------------------


def _take_module(module: nn.Module) -> Model:
    """Take a copy of a model in memory, as if it had been read.

    The numbers of classes and channels are those of its layers, which may have been replaced.
    """
    plain: Any = unwrap_model(module)
    kind = type(plain).__name__
    if any(isinstance(layer, FusedBottle2neck) for layer in plain.modules()):
        raise ValueError(
            f'{kind} is deployed, and no config rebuilds a deployed model. Give the model that it '
            'was made from.'
        )
    cfg = dict(getattr(plain, 'pretrained_cfg', None) or {})
    name: str = cfg.get('architecture') or ''
    is_hrnet = type(plain) is HighResolutionRes2Net and hasattr(plain.global_pool, 'pool_type')
    if isinstance(plain, Res2Net) or (is_hrnet and name):
        arguments = plain.model_args
    elif isinstance(plain, ResNet) and name in timm_names():
        arguments = {
            'global_pool': plain.global_pool.pool_type,
            'output_stride': plain.feature_info[-1]['reduction'],
        }
    else:
        raise ValueError(
            f'{kind} is not a whole Res2Net of timm_res2net or timm. Give the model that '
            '`timm.create_model` made without features_only; for other models there is '
            '`timm.models.push_to_hf_hub`.'
        )
    net = copy.deepcopy(plain).cpu().float().eval()
    if isinstance(plain, Res2Net) and (not name or name in timm_names()):
        # made by its class, or by a function of the authors: timm's names do not take `arguments`
        inferred = _body(infer_arguments(net.state_dict()))
        own = _name_of({**inferred, 'semantics': arguments['semantics']})
        name = own if own and own not in timm_names() else _CUSTOM
    head = net.get_classifier()
    if isinstance(head, nn.Linear | nn.Identity):  # replaced, as in `model.fc = nn.Linear(...)`
        net.num_classes = head.out_features if isinstance(head, nn.Linear) else 0
    registered: Any = get_pretrained_cfg(name)
    cfg = without_origin(
        {**registered.to_dict(), **cfg},
        tag='pushed',
        description=f'{name} with {net.num_classes:,} classes.',
    )
    arguments = {**arguments, 'in_chans': in_chans_of(net)}
    return Model(net, Config.of(net, name, arguments, cfg))


# --- which network it is --------------------------------------------------------------------------


@functools.cache
def _arguments_of(name: str) -> dict[str, Any]:
    """Return the arguments of a Res2Net's name, without class count and input channels."""
    model: Any = timm.create_model(name, device='meta')
    ours = isinstance(model, Res2Net)
    semantics = model.model_args['semantics'] if ours else 'official'
    return {**_body(infer_arguments(model.state_dict())), 'semantics': semantics}


def _body(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k not in ('num_classes', 'in_chans')}


def _name_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the registered name of a network, timm's own first; None if it has none.

    Args:
        arguments: Its arguments, without class count and input channels.
    """
    depth = str(3 * sum(arguments['layers']) + 2)
    for name in (*timm_names(), *default_cfgs):
        match = re.match(r'res2ne\D*(\d+)', name)
        if (match is None or match[1] == depth) and _arguments_of(name) == arguments:
            return name if name != _CUSTOM else None
    return None


# Arguments of `timm.create_model` that change what is computed, but no shape
_SILENT = (
    'act_layer', 'aa_layer', 'global_pool', 'norm_layer', 'output_stride', 'replace_stem_pool'
)  # fmt: skip


class _Training(NamedTuple):
    """What timm's train.py recorded of a network.

    Attributes:
        name: Name of the model, without a tag.
        semantics: Block semantics.
        silent: Arguments that shapes do not give; of an HRNet all.
    """

    name: str | None = None
    semantics: str | None = None
    silent: Mapping[str, Any] = MappingProxyType({})


def _training(record: Mapping[str, Any], source: str) -> _Training:
    name = record.get('model')
    name = name.partition('.')[0] if isinstance(name, str) else ''
    is_hrnet = name in hrnet_res2net.default_cfgs
    is_known = is_hrnet or name in default_cfgs or name in timm_names()
    if source not in ('timm', 'official') or not is_known:
        return _Training()
    kwargs = record.get('model_kwargs')
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    kept = kwargs if is_hrnet else _SILENT
    silent = {key: kwargs[key] for key in kept if kwargs.get(key) is not None}
    if isinstance(record.get('gp'), str):
        silent['global_pool'] = record['gp']
    check_arguments(silent, name)
    own = 'official' if is_hrnet else _arguments_of(name)['semantics']
    return _Training(name, str(kwargs.get('semantics') or own), silent)


def _identify(
    tensors: Mapping[str, torch.Tensor], source: str, hints: Hints, training: _Training
) -> tuple[str, dict[str, Any], Any]:
    """Build the network of a state dict on the meta device.

    Args:
        tensors: The state dict, under timm's keys.
        source: The project that it comes from.
        hints: The name and the semantics that were asked for.
        training: What the file says of both.

    Returns:
        Its name, its further arguments, and the network.
    """
    name = find_name(hints.model).architecture if hints.model else None
    if name in hrnet_res2net.default_cfgs or have_branches(tensors):
        semantics = hints.semantics or training.semantics
        semantics = _semantics(tensors, source, None, semantics)
        return _build_hrnet(tensors, semantics, name or training.name, training.silent)
    semantics = hints.semantics or (training.semantics if name is None else None)
    semantics = _semantics(tensors, source, name, semantics)
    return _build(infer_arguments(tensors), semantics, name, training.silent)


def _semantics(
    tensors: Mapping[str, torch.Tensor], source: str, name: str | None, semantics: str | None
) -> str:
    """Return the semantics that a checkpoint means."""
    possible = SOURCES[source].semantics
    if name is not None:
        computes = str(_arguments_of(name)['semantics'])
        if semantics not in (None, computes):
            raise ValueError(f'{name} computes {computes}, not {semantics}. Name one of the two')
        semantics = computes
    if semantics is None:
        # Classifiers were trained by the authors' code. A backbone without a classifier means what
        # its own project computes.
        return 'official' if 'fc.weight' in tensors and 'official' in possible else possible[0]
    if semantics not in possible:
        raise ValueError(
            f'{source} checkpoints have block semantics {" or ".join(possible)}, not {semantics}'
            + (f', which {name} computes. Leave the model out' if name else '')
        )
    return semantics


def _build(
    inferred: Mapping[str, Any], semantics: str, name: str | None, silent: Mapping[str, Any]
) -> tuple[str, dict[str, Any], Any]:
    """Build a Res2Net as `_identify` does, from the arguments that its shapes give."""
    wanted = {**_body(inferred), 'semantics': semantics}
    fits = _name_of(wanted)
    if name is not None:
        own = _arguments_of(name)
        wrong = [
            f'{key}={value!r} and {name} has {own.get(key, "none")!r}'
            for key, value in wanted.items()
            if value != own.get(key)
        ]
        if wrong:
            remedy = f'Use {fits}' if fits else f'Name semantics={semantics!r} instead of a model'
            raise ValueError(f'it has {", ".join(wrong)}. {remedy}')
    name = name or fits or _CUSTOM
    further = {**wanted, **silent} if name == _CUSTOM else dict(silent)
    classes, in_chans = inferred['num_classes'], inferred['in_chans']
    net = timm.create_model(name, device='meta', num_classes=classes, in_chans=in_chans, **further)
    if isinstance(net, Res2Net):
        return name, net.model_args, net
    return name, ({'in_chans': in_chans} if in_chans != 3 else {}) | dict(silent), net


def _build_hrnet(
    tensors: Mapping[str, torch.Tensor],
    semantics: str,
    name: str | None,
    further: Mapping[str, Any],
) -> tuple[str, dict[str, Any], Any]:
    """Build an HRNet as `_identify` does, by its name; only classes and channels have shapes."""
    if name is None or name not in hrnet_res2net.default_cfgs:
        names = ' or '.join(hrnet_res2net.default_cfgs)
        raise ValueError(
            f'It is an HRNet, whose name cannot be read from its keys. Name it: model={names}'
        )
    classifier = tensors.get('classifier.weight')
    arguments = {
        **further,
        'semantics': semantics,
        'num_classes': 0 if classifier is None else classifier.shape[0],
        'in_chans': tensors['conv1.weight'].shape[1],
    }
    net: Any = timm.create_model(name, device='meta', **arguments)
    return name, net.model_args, net
