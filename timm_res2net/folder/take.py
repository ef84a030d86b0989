"""Take a model from wherever it is: a module in memory, a file of any project, or a folder."""

import copy
import functools
import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.resnet import ResNet
from torch import nn

from ..convert.engine import apply_rules
from ..convert.files import Checkpoint, read_checkpoint
from ..convert.find import (
    Network,
    convert_network,
    find_network,
    infer_arguments,
    look_like_classifiers,
)
from ..convert.sources import SOURCES, have_branches, recognise
from ..files import FILE_SUFFIXES
from ..layers.fused_block import FusedBottle2neck
from ..layers.semantics import SEMANTICS
from ..layers.text import list_some, printable, sentence
from ..models import hrnet_res2net
from ..models.deploy import unwrap
from ..models.hrnet_res2net import HighResolutionRes2Net
from ..models.loading import WEIGHT_FILES, fill
from ..models.res2net_zoo import Res2Net, default_cfgs
from .card import is_generated
from .config import (
    AUTO_MAP,
    CONFIG,
    DATA,
    PREPARATION,
    Config,
    in_chans_of,
    timm_names,
    without_origin,
)
from .folder import ModelFolder
from .model import Model, Notes
from .target import find_name

_logger = logging.getLogger(__name__)

# Name for networks that are not registered; their config has all arguments
_CUSTOM = 'res2net_custom'


def take(
    target: nn.Module | str | os.PathLike[str],
    *,
    source: str = 'auto',
    model: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Model:
    """Take a model in memory, which is not changed, or the path of a checkpoint file or a folder.

    The other arguments are those of `convert_checkpoint`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        TypeError: It is neither a module nor a path.
        ValueError: It is not a whole Res2Net, the file cannot be read safely, holds several
            Res2Nets or does not fit, or an argument is unknown or not for this kind of target.
    """
    if isinstance(target, nn.Module):
        if model or semantics or entry or prefix:
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
    if source not in ('auto', *SOURCES):
        raise ValueError(f"Unknown source '{source}'. Use auto, {', '.join(SOURCES)}.")
    if semantics not in (None, *SEMANTICS):
        raise ValueError(f"Unknown semantics '{semantics}'. Use one of {', '.join(SEMANTICS)}.")
    name = find_name(model).architecture if model else None
    path = Path(os.fspath(target).removeprefix('local-dir:')).expanduser()
    if not os.fspath(target) or not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder '{target}'. Give the path of a checkpoint, not a name."
        )
    if path.is_dir() and not (path / CONFIG).is_file():
        path = _only_checkpoint(path)
    try:
        if not path.is_dir():
            _logger.info(f'Reading {path}')
            checkpoint = read_checkpoint(path, entry)
            network = find_network(checkpoint.values, source, prefix, rename)
            return _take_network(path, checkpoint, network, name, semantics)
        if model or semantics or prefix or rename:
            raise ValueError(
                'it is a folder, and its config.json names the model. Leave model, semantics, '
                'prefix and rename out.'
            )
        return _take_folder(path, source, entry)
    except ValueError as error:
        raise ValueError(sentence(f'{path} does not convert: {error}')) from error


def _only_checkpoint(path: Path) -> Path:
    """Return the checkpoint in a folder without a config, such as train.py's or accelerate's."""
    for name in (*WEIGHT_FILES, '.metadata'):  # the last is of torch.distributed.checkpoint
        if (path / name).is_file():
            return path / name
    files = sorted(p for p in path.iterdir() if p.suffix in FILE_SUFFIXES and p.is_file())
    if len(files) == 1:
        return files[0]
    names = f'{len(files)} files: {", ".join(p.name for p in files[:10])}' if files else 'no file'
    raise ValueError(
        f'{path} has no {CONFIG}, and {names} that may be a checkpoint. Give the path of one.'
    )


# --- from a folder --------------------------------------------------------------------------------


def _take_folder(path: Path, source: str, entry: str | None) -> Model:
    folder = ModelFolder(path)
    config, net = folder.config, folder.build()
    checkpoint = read_checkpoint(folder.weights, entry)
    tensors = checkpoint.tensors
    source = recognise(tensors) if source == 'auto' else source
    tensors, moved = apply_rules(tensors, SOURCES[source].rules(tensors.keys()), source)
    fill(net, tensors)
    folder.compare_golden(net.eval())
    labels = {'label_names': config.label_names, 'label_descriptions': config.label_descriptions}
    cfg = {**config.pretrained_cfg, 'input_size': config.input_size, **labels}
    name = config.architecture.partition('.')[0]
    if not is_generated(folder.card):
        # timm writes no card, and describes the weights that a training started from
        description = f'{name} with {config.num_classes:,} classes.'
        cfg |= {'description': description, 'tag': 'converted', 'notes': None, 'origin_url': None}
    config = replace(
        Config.of(net, name, cfg),
        auto_map=AUTO_MAP if config.remote_code else None,
        problem_type=config.problem_type,
        assumed=config.assumed,
    )
    notes = _notes(path, checkpoint, source=source, moved=moved)
    return Model(net.eval(), config, folder.card, notes)


# --- from a file ----------------------------------------------------------------------------------


def _take_network(
    path: Path, checkpoint: Checkpoint, network: Network, name: str | None, semantics: str | None
) -> Model:
    tensors, moved = convert_network(checkpoint, network)
    left_out = checkpoint.values.keys() - set(network.keys.values())
    recorded = _recorded(checkpoint.training, network.source)
    name, net = _build(tensors, network.source, name, semantics, recorded)
    fill(net, tensors)
    lost = left_out if net.num_classes == 0 else ()
    notes = _notes(
        path, checkpoint, left_out, source=network.source, prefix=network.prefix, moved=moved,
        others=checkpoint.others,
        classifiers=tuple(look_like_classifiers(checkpoint.values, lost, net.num_features)),
    )  # fmt: skip
    cfg: Any = net.pretrained_cfg
    if name == _CUSTOM and 'model' in recorded:  # the images were prepared as that model's
        cfg = get_pretrained_cfg(recorded['model'])
        cfg = cfg.to_dict()
    cfg = without_origin(
        cfg,
        tag='converted',
        description=f'{name} with {net.num_classes:,} classes, {_origin(notes)}',
        first_conv='conv1.0' if 'conv1.0.weight' in tensors else 'conv1',
    )
    data = {key: checkpoint.training[key] for key in DATA if checkpoint.training.get(key)}
    config = Config.of(net, name, cfg)
    if 'model' not in recorded:
        config = replace(config, assumed=PREPARATION)
    return Model(net.eval(), config.as_asked(net, data=data), notes=notes)


def _notes(
    path: Path, checkpoint: Checkpoint, left_out: Collection[str] = (), **more: Any
) -> Notes:
    return Notes(
        path.resolve().name, checkpoint.sha256, checkpoint.format, checkpoint.entry,
        left_out=tuple(left_out),
        has_steps=checkpoint.training.get('has_steps', True), **more,
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


# --- from memory ----------------------------------------------------------------------------------


def _take_module(module: nn.Module) -> Model:
    """Take a copy of a model in memory, as if it had been read.

    The numbers of classes and channels are those of its layers, which may have been replaced.
    """
    plain = unwrap(module, 'push')
    kind = type(plain).__name__
    if any(isinstance(layer, FusedBottle2neck) for layer in plain.modules()):
        raise ValueError(
            f'{kind} is deployed, and no config rebuilds a deployed model. Give the model that it '
            'was made from.'
        )
    cfg = dict(getattr(plain, 'pretrained_cfg', None) or {})
    name: str = cfg.get('architecture') or ''
    is_hrnet = type(plain) is HighResolutionRes2Net and hasattr(plain.global_pool, 'pool_type')
    is_timms = isinstance(plain, ResNet) and name in timm_names()
    if not (isinstance(plain, Res2Net) or (is_hrnet and name) or is_timms):
        raise ValueError(
            f'{kind} is not a whole Res2Net of timm_res2net or timm. Give the model that '
            '`timm.create_model` made without features_only; for other models there is '
            '`timm.models.push_to_hf_hub`.'
        )
    net = copy.deepcopy(plain).cpu().float().eval()
    if isinstance(plain, Res2Net) and name in ('', _CUSTOM, *timm_names()):
        # made by its class, or by a function of the authors; timm's names do not take its arguments
        inferred = _body(infer_arguments(net.state_dict()))
        semantics = plain.model_args['semantics']
        own = _name_of({**inferred, 'semantics': semantics})
        name = own if own and own not in timm_names() else _CUSTOM
    head = net.get_classifier()
    if isinstance(head, nn.Linear | nn.Identity):  # replaced, as in `model.fc = nn.Linear(...)`
        net.num_classes = head.out_features if isinstance(head, nn.Linear) else 0
    net.in_chans = in_chans_of(net)
    registered: Any = get_pretrained_cfg(name)
    cfg = without_origin(
        {**registered.to_dict(), **cfg},
        tag='pushed',
        description=f'{name} with {net.num_classes:,} classes.',
    )
    return Model(net, Config.of(net, name, cfg))


# --- which network it is --------------------------------------------------------------------------

# Arguments of `timm.create_model` that change what is computed, but no shape
_SILENT = (
    'act_layer', 'aa_layer', 'global_pool', 'norm_layer', 'output_stride', 'replace_stem_pool'
)  # fmt: skip


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
    """Return the registered name of the network with these arguments, timm's own first, or None."""
    depth = str(3 * sum(arguments['layers']) + 2)
    for name in (*timm_names(), *default_cfgs):
        match = re.match(r'res2ne\D*(\d+)', name)
        if (match is None or match[1] == depth) and _arguments_of(name) == arguments:
            return name if name != _CUSTOM else None
    return None


def _recorded(training: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what timm's train.py recorded of a network: arguments that shapes do not give.

    They are 'model', 'semantics' and arguments of `timm.create_model`; of an HRNet all of these.
    """
    name = training.get('model')
    name = name.partition('.')[0] if isinstance(name, str) else ''
    is_hrnet = name in hrnet_res2net.default_cfgs
    is_known = is_hrnet or name in default_cfgs or name in timm_names()
    if source not in ('timm', 'official') or not is_known:
        return {}
    kwargs = training.get('model_kwargs')
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    names = kwargs if is_hrnet else _SILENT
    kept = {key: kwargs[key] for key in names if kwargs.get(key) is not None}
    if isinstance(training.get('gp'), str):
        kept['global_pool'] = training['gp']
    own = 'official' if is_hrnet else _arguments_of(name)['semantics']
    return {**kept, 'model': name, 'semantics': str(kwargs.get('semantics') or own)}


def _semantics(
    tensors: Mapping[str, torch.Tensor], source: str, name: str | None, semantics: str | None
) -> str:
    """Return the semantics of a checkpoint, of the name or those that were asked for."""
    possible = SOURCES[source].semantics
    if name is not None and name not in hrnet_res2net.default_cfgs:
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
    tensors: Mapping[str, torch.Tensor],
    source: str,
    name: str | None,
    semantics: str | None,
    recorded: Mapping[str, Any],
) -> tuple[str, Any]:
    """Build the network of a state dict on the meta device, and return its name and the network.

    The name is the one that was asked for, or else that of the shapes; of an HRNet, only classes
    and channels have shapes.
    """
    if name is None:
        semantics = semantics or recorded.get('semantics')
    semantics = _semantics(tensors, source, name, semantics)
    further = {k: v for k, v in recorded.items() if k not in ('model', 'semantics')}
    if have_branches(tensors) or name in hrnet_res2net.default_cfgs:
        name = name or str(recorded.get('model'))
        if name not in hrnet_res2net.default_cfgs:
            names = ' or '.join(hrnet_res2net.default_cfgs)
            raise ValueError(
                f'It is an HRNet, whose name cannot be read from its keys. Name it: model={names}'
            )
        inferred = {
            'num_classes': len(tensors.get('classifier.weight', ())),
            'in_chans': tensors['conv1.weight'].shape[1],
        }
        further['semantics'] = semantics
    else:
        inferred = infer_arguments(tensors)
        wanted = {**_body(inferred), 'semantics': semantics}
        fits = _name_of(wanted)
        own = _arguments_of(name) if name else wanted
        wrong = [
            f'{key}={value!r} and {name} has {own.get(key, "none")!r}'
            for key, value in wanted.items()
            if value != own.get(key)
        ]
        if wrong:
            remedy = f'Use {fits}' if fits else f'Name semantics={semantics!r} instead of a model'
            raise ValueError(f'it has {", ".join(wrong)}. {remedy}')
        name = name or fits or _CUSTOM
        further = {**(wanted if name == _CUSTOM else {}), **further}
    further |= {key: inferred[key] for key in ('num_classes', 'in_chans')}
    return name, timm.create_model(name, device='meta', **further)
