"""From a checkpoint file of any project to a folder that timm loads, and back."""

import copy
import functools
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.resnet import ResNet
from timm.utils import unwrap_model
from torch import nn

from ..convert.engine import Move, apply_rules, undo_rules
from ..convert.files import Checkpoint, read_checkpoint
from ..convert.find import convert_network, find_network, look_like_classifiers
from ..convert.infer import infer_arguments
from ..convert.keys import is_branch, without_counters
from ..convert.sources import SOURCES, recognise
from ..files import check_writable, new_file, new_folder
from ..layers.fused_block import FusedBottle2neck
from ..layers.semantics import SEMANTICS
from ..layers.text import list_some, printable, sentence
from ..models import hrnet_res2net
from ..models.hrnet_res2net import HighResolutionRes2Net
from ..models.loading import fill
from ..models.res2net_zoo import Res2Net, default_cfgs
from .card import ABOUT, is_generated, render_card
from .checks import check_values
from .folder import (
    DATA,
    Config,
    ModelFolder,
    check_arguments,
    check_license,
    in_chans_of,
    timm_names,
    without_origin,
)
from .golden import GOLDEN, compare_golden, compare_outputs
from .target import resolve_name

_logger = logging.getLogger(__name__)

# Name for networks that are not registered; their config has all arguments
_CUSTOM = 'res2net_custom'


@dataclass(frozen=True)
class FileRead:
    """The file that a model was read from.

    Attributes:
        file: Its name, or that of the folder.
        sha256: Its sha256.
        bytes: Its size.
        format: How it was read, such as 'torch' or 'safetensors'.
        entry: Entry of the file that held the weights; '' if the file itself did.
        widened: Number of tensors that were widened to float32.
    """

    file: str
    sha256: str
    bytes: int
    format: str
    entry: str
    widened: int


@dataclass(frozen=True)
class Conversion:
    """A model that was read, and its config.

    Attributes:
        source: The layout that was read, one of `timm_res2net.convert.sources.SOURCES`.
        config: Its config.
        model: The model with the checkpoint's tensors as parameters and buffers, in eval mode.
        moves: What became of the network's keys in the file.
        read_from: The file that was read; None for a model in memory.
        prefix: What the network's keys start with in the file, such as 'backbone.'; '' if the file
            holds nothing else.
        left_out: Keys in the file that are not the network's.
        other_entries: Further entries of the file that hold weights, such as 'ema.module'.
        classifiers: Keys in `left_out` that look like a classifier, if the model has none.
        differences: Relative differences by output from the original code's; empty if not compared.
    """

    source: str
    config: Config
    model: nn.Module
    moves: tuple[Move, ...] = ()
    read_from: FileRead | None = None
    prefix: str = ''
    left_out: tuple[str, ...] = ()
    other_entries: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = ()
    differences: Mapping[str, float] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Name for `timm.create_model`, of this package or timm's own."""
        return self.config.architecture

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments of `timm.create_model`, JSON values."""
        return self.config.model_args

    @property
    def semantics(self) -> str:
        """Block semantics."""
        return self.config.semantics

    @property
    def file(self) -> FileRead:
        """The file that was read."""
        assert self.read_from is not None  # `read` sets it
        return self.read_from

    def summary(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON values."""
        return {
            'source': self.source,
            'architecture': self.architecture,
            'arguments': self.arguments,
            'semantics': self.semantics,
            'num_classes': self.config.num_classes,
            'params': sum(p.numel() for p in self.model.parameters()),
            'file': asdict(self.file),
            'prefix': self.prefix,
            'left_out': {'tensors': len(self.left_out), 'some': sorted(self.left_out)[:10]},
            'other_entries': list(self.other_entries),
            'classifiers': list(self.classifiers),
            'differences': dict(self.differences),
            'moves': [
                {'from': move.source, 'to': move.target, 'how': move.rule.how or 'as it is'}
                for move in self.moves
            ],
        }


# --- which network it is --------------------------------------------------------------------------


@functools.cache
def _named_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of a Res2Net's name, without class count and input channels."""
    model: Any = timm.create_model(name, device='meta')
    arguments = _architecture(infer_arguments(model.state_dict()))
    ours = isinstance(model, Res2Net)
    return {**arguments, 'semantics': model.model_args['semantics'] if ours else 'official'}


def _architecture(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k not in ('num_classes', 'in_chans')}


def _find_name(arguments: Mapping[str, Any]) -> str | None:
    """Return the registered name of a network, timm's own first; None if it has none.

    Args:
        arguments: Its arguments, without class count and input channels.
    """
    depth = str(3 * sum(arguments['layers']) + 2)
    for name in (*timm_names(), *default_cfgs):
        match = re.match(r'res2ne\D*(\d+)', name)
        if (match is None or match[1] == depth) and _named_arguments(name) == arguments:
            return name if name != _CUSTOM else None
    return None


def _choose_semantics(
    tensors: Mapping[str, torch.Tensor], source: str, model: str | None, semantics: str | None
) -> str:
    """Return the semantics that a checkpoint means."""
    known = SOURCES[source].semantics
    if model is not None:
        computes = str(_named_arguments(model)['semantics'])
        if semantics not in (None, computes):
            raise ValueError(f'{model} computes {computes}, not {semantics}. Name one of the two')
        semantics = computes
    if semantics is None:
        # Classifiers were trained by the authors' code. A backbone without a classifier means what
        # its own project computes.
        return 'official' if 'fc.weight' in tensors and 'official' in known else known[0]
    if semantics not in known:
        raise ValueError(
            f'{source} checkpoints have block semantics {" or ".join(known)}, not {semantics}'
            + (f', which {model} computes. Leave the model out' if model else '')
        )
    return semantics


def _build(
    found: Mapping[str, Any],
    semantics: str,
    name: str | None,
    silent: Mapping[str, Any],
) -> tuple[str, dict[str, Any], nn.Module]:
    """Build the model on the meta device; return its name, its further arguments, and it.

    Args:
        found: Arguments that the shapes tell.
        semantics: Block semantics.
        name: The name that was asked for.
        silent: Arguments that shapes do not tell.
    """
    wanted = {**_architecture(found), 'semantics': semantics}
    fits = _find_name(wanted)
    if name is not None:
        named = _named_arguments(name)
        wrong = [
            f'{key}={value!r} and {name} has {named.get(key, "none")!r}'
            for key, value in wanted.items()
            if value != named.get(key)
        ]
        if wrong:
            remedy = f'Use {fits}' if fits else f'Name semantics={semantics!r} instead of a model'
            raise ValueError(f'it has {", ".join(wrong)}. {remedy}')
    further = dict(silent)
    name = name or fits
    if name is None:
        name = _CUSTOM
        further = {**wanted, **silent}
    model = timm.create_model(
        name,
        device='meta',
        num_classes=found['num_classes'],
        in_chans=found['in_chans'],
        **further,
    )
    if isinstance(model, Res2Net):
        arguments = model.model_args
    else:
        arguments = {'in_chans': found['in_chans']} if found['in_chans'] != 3 else {}
        arguments.update(silent)
    return name, arguments, model


def _build_hrnet(
    tensors: Mapping[str, torch.Tensor],
    semantics: str,
    name: str | None,
    given: Mapping[str, Any],
) -> tuple[str, dict[str, Any], nn.Module]:
    """Build an HRNet by its name as `_build` builds a Res2Net by its shapes.

    Args:
        tensors: Its state dict, which tells the numbers of classes and channels.
        semantics: Block semantics.
        name: The name that was asked for, or that training recorded.
        given: Further arguments.
    """
    if name is None or name not in hrnet_res2net.default_cfgs:
        known = ' or '.join(hrnet_res2net.default_cfgs)
        raise ValueError(f'It is an HRNet, whose name its keys do not tell. Name it: model={known}')
    classifier = tensors.get('classifier.weight')
    arguments = {
        **given,
        'semantics': semantics,
        'num_classes': 0 if classifier is None else classifier.shape[0],
        'in_chans': tensors['conv1.weight'].shape[1],
    }
    model: Any = timm.create_model(name, device='meta', **arguments)
    return name, model.model_args, model


# Arguments of `timm.create_model` that change what is computed, but no shape
_SILENT = (
    'act_layer', 'aa_layer', 'global_pool', 'norm_layer', 'output_stride', 'replace_stem_pool'
)  # fmt: skip


class _Training(NamedTuple):
    """What timm's train.py recorded of a network.

    Attributes:
        name: Name of the model, without a tag.
        semantics: Block semantics.
        silent: Arguments that no shape tells; of an HRNet all.
    """

    name: str | None = None
    semantics: str | None = None
    silent: Mapping[str, Any] = MappingProxyType({})


def _trained(training: Mapping[str, Any], source: str) -> _Training:
    name = training.get('model')
    name = name.partition('.')[0] if isinstance(name, str) else ''
    known = (*default_cfgs, *hrnet_res2net.default_cfgs, *timm_names())
    if source not in ('timm', 'official') or name not in known:
        return _Training()
    given = training.get('model_kwargs')
    given = given if isinstance(given, dict) else {}
    is_hrnet = name in hrnet_res2net.default_cfgs
    wanted = given if is_hrnet else _SILENT
    silent = {key: given[key] for key in wanted if given.get(key) is not None}
    if isinstance(training.get('gp'), str):
        silent['global_pool'] = training['gp']
    check_arguments(silent, name)
    semantics = given.get('semantics') or (
        'official' if is_hrnet else _named_arguments(name)['semantics']
    )
    return _Training(name, str(semantics), silent)


# --- reading --------------------------------------------------------------------------------------


def _file_read(path: Path, checkpoint: Checkpoint, left_out: Collection[str] = ()) -> FileRead:
    used = checkpoint.values.keys() - set(left_out)
    return FileRead(
        path.resolve().name, checkpoint.sha256, checkpoint.bytes, checkpoint.format,
        checkpoint.entry, checkpoint.narrow(used),
    )  # fmt: skip


def _origin(file: FileRead, source: str, left_out: Collection[str]) -> str:
    """Return where a model comes from, and what was left out, for its card."""
    name = printable(file.file).replace('`', "'")
    entry = f", entry '{printable(file.entry)}'" if file.entry else ''
    text = f'from `{name}` ({source}{entry}, sha256 {file.sha256}).'
    if left_out:
        text += f' Left out, because they are not of the Res2Net, {list_some(left_out, 3)}.'
    return text


def _read_folder(path: Path, source: str, entry: str | None) -> Conversion:
    folder = ModelFolder(path)
    config, weights, model = folder.config, folder.weights, folder.build()
    checkpoint = read_checkpoint(weights, entry)
    tensors = checkpoint.tensors
    source = recognise(tensors) if source == 'auto' else source
    tensors, moves = apply_rules(tensors, SOURCES[source].rules(tensors.keys()), source)
    fill(model, tensors)
    if (path / GOLDEN).is_file():
        compare_golden(model.eval(), path / GOLDEN)
    # timm 1.0.31 records the class count too, which has a field of its own
    arguments = {k: v for k, v in config.model_args.items() if k != 'num_classes'}
    if isinstance(model, Res2Net | HighResolutionRes2Net):
        arguments = model.model_args
    labels = {'label_names': config.label_names, 'label_descriptions': config.label_descriptions}
    cfg = {**config.pretrained_cfg, 'input_size': config.input_size, **labels}
    name = config.architecture.partition('.')[0]
    if not is_generated(folder.card):
        # timm writes no card, and describes the weights that a training started from
        described = f'{name} with {config.num_classes:,} classes.'
        cfg |= {'description': described, 'tag': 'converted', 'notes': None, 'origin_url': None}
    new = Config.of(model, name, arguments, cfg).with_remote_code(config.remote_code)
    file = _file_read(path, checkpoint)
    return Conversion(source, new, model.eval(), moves, file)


def _read_file(
    path: Path,
    source: str,
    name: str | None,
    semantics: str | None,
    entry: str | None,
    prefix: str | None,
) -> Conversion:
    _logger.info(f'Reading {path}')
    checkpoint = read_checkpoint(path, entry)
    _logger.info('Converting the tensors')
    training = checkpoint.training
    network = find_network(checkpoint.values, source, prefix)
    source, prefix = network.source, network.prefix
    tensors, moves = convert_network(checkpoint, network)
    left_out = tuple(checkpoint.values.keys() - set(network.keys.values()))
    recorded = _trained(training, source)
    is_hrnet = name in hrnet_res2net.default_cfgs or any(map(is_branch, tensors))
    if semantics is None and (name is None or is_hrnet):
        semantics = recorded.semantics
    semantics = _choose_semantics(tensors, source, None if is_hrnet else name, semantics)
    if is_hrnet:
        name = name or recorded.name
        built = _build_hrnet(tensors, semantics, name, recorded.silent)
    else:
        built = _build(infer_arguments(tensors), semantics, name, recorded.silent)
    architecture, arguments, model = built
    fill(model, tensors)
    cfg: Any = model.pretrained_cfg
    if architecture == _CUSTOM and recorded.name:  # the images were prepared as that model's
        cfg = get_pretrained_cfg(recorded.name)
        cfg = cfg.to_dict()
    file = _file_read(path, checkpoint, left_out)
    cfg = without_origin(
        cfg,
        tag='converted',
        description=f'{architecture} with {model.num_classes:,} classes, '
        + _origin(file, source, left_out),
        first_conv='conv1.0' if 'conv1.0.weight' in tensors else 'conv1',
    )
    config = Config.of(model, architecture, arguments, cfg)
    config = config.with_data({key: training[key] for key in DATA if training.get(key)})
    lost = () if config.num_classes else left_out
    return Conversion(
        source, config, model.eval(), moves, file, prefix, left_out, checkpoint.others,
        tuple(look_like_classifiers(checkpoint.values, lost, config.num_features)),
    )  # fmt: skip


def read(
    path: str | os.PathLike[str],
    source: str = 'auto',
    model: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    prefix: str | None = None,
) -> Conversion:
    """Read a checkpoint into the model that it belongs to. Arguments as in `convert_checkpoint`."""
    if not os.fspath(path):  # as a path, it would be the current folder
        raise ValueError('The path of the checkpoint is empty. Give a file or a folder.')
    path = Path(path)
    if source not in ('auto', *SOURCES):
        raise ValueError(f"Unknown source '{source}'. Use auto, {', '.join(SOURCES)}.")
    if semantics not in (None, *SEMANTICS):
        raise ValueError(f"Unknown semantics '{semantics}'. Use one of {', '.join(SEMANTICS)}.")
    name = resolve_name(model).architecture if model else None
    if path.is_dir() and (model or semantics or prefix):
        raise ValueError(
            f'{path} is a folder, and its config.json names the model. Leave model, semantics and '
            'prefix out.'
        )
    if re.match('https?:/', str(path)):
        raise ValueError(f'{path} is an address. Download the file, and give its path.')
    if not path.exists():
        remedy = 'Check the path.'
        if timm.is_model(str(path).partition('.')[0]):
            remedy = 'It is the name of a model; give the path of a checkpoint.'
        raise FileNotFoundError(f'There is no file or folder {path}. {remedy}')
    try:
        if path.is_dir():
            return _read_folder(path, source, entry)
        return _read_file(path, source, name, semantics, entry, prefix)
    except ValueError as error:
        raise ValueError(sentence(f'{path} does not convert: {error}')) from error


def take_model(model: nn.Module) -> Conversion:
    """Take a model in memory as if it had been read. The model is not changed.

    The numbers of classes and channels are those of its layers, which may have been replaced.

    Raises:
        ValueError: It is not a whole Res2Net of this package or timm, or it is deployed.
    """
    plain: Any = unwrap_model(model)
    kind = type(plain).__name__
    if any(isinstance(module, FusedBottle2neck) for module in plain.modules()):
        raise ValueError(
            f'{kind} is deployed, and no config rebuilds a deployed model. Give the model that it '
            'was made from.'
        )
    cfg = dict(getattr(plain, 'pretrained_cfg', None) or {})
    name = cfg.get('architecture')
    is_hrnet = type(plain) is HighResolutionRes2Net and hasattr(plain.global_pool, 'pool_type')
    if isinstance(plain, Res2Net) or (is_hrnet and name):
        arguments = plain.model_args
    elif isinstance(plain, ResNet) and name in timm_names():
        arguments = {
            'in_chans': in_chans_of(plain),
            'global_pool': plain.global_pool.pool_type,
            'output_stride': plain.feature_info[-1]['reduction'],
        }
    else:
        raise ValueError(
            f'{kind} is not a whole Res2Net of timm_res2net or timm. Give the model that '
            '`timm.create_model` made without features_only; for other models there is '
            '`timm.models.push_to_hf_hub`.'
        )
    original = copy.deepcopy(plain).cpu().float().eval()
    if name is None:  # made by its class
        found = _architecture(infer_arguments(original.state_dict()))
        name = _find_name({**found, 'semantics': arguments['semantics']}) or _CUSTOM
    arguments = {**arguments, 'in_chans': in_chans_of(original)}
    head = original.get_classifier()
    if isinstance(head, nn.Linear | nn.Identity):  # replaced, as in `model.fc = nn.Linear(...)`
        original.num_classes = head.out_features if isinstance(head, nn.Linear) else 0
    classes = original.num_classes
    registered: Any = get_pretrained_cfg(name)
    cfg = without_origin(
        {**registered.to_dict(), **cfg},
        tag='pushed',
        description=f'{name} with {classes:,} classes.',
    )
    config = Config.of(original, name, arguments, cfg)
    return Conversion('timm', config, original)


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    source: str = 'auto',
    to: str = 'timm',
    model: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    license: str | None = None,
    label_names: Sequence[str] | None = None,
    remote_code: bool | None = None,
    dry_run: bool = False,
    compare: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> Conversion:
    """Convert a Res2Net checkpoint of another project to timm, or one of timm to another project.

    The file is not trusted: no code in it is run. It may hold a larger model: the Res2Net is the
    keys under one prefix, and the other keys are left out and reported. Either every tensor of the
    Res2Net finds its place and every parameter gets a value, or nothing is written.

    Args:
        path: A file (.pth, .pdparams, .pkl, .safetensors; the content decides) or a folder that
            this function or timm wrote.
        out: What to write; nothing if None. For `to='timm'` a new or empty folder, which gets
            `config.json`, `model.safetensors` and `README.md` and loads with
            `timm.create_model('local-dir:OUT', pretrained=True)`; otherwise a new file.
        source: Project of the file, one of `timm_res2net.convert.sources.SOURCES`; 'auto'
            recognises it by its keys.
        to: Layout to write.
        model: Name of the model, of this package or timm's own. By default it is the model whose
            arguments the shapes tell.
        semantics: Block semantics. This or `model` is needed if the keys do not tell them: for a
            state dict under timm's names with other semantics than `official`.
        entry: Entry of the file that holds the weights, such as 'state_dict' or 'ema.module'; for
            the default see `timm_res2net.convert.files.read_checkpoint`.
        prefix: What the Res2Net's keys start with in the file, such as 'backbone.'. It is needed if
            the file holds several Res2Nets, such as a student and its teacher.
        license: Identifier of the license of the weights, such as 'apache-2.0', for the config and
            the card. Only for `to='timm'`.
        label_names: Names of the classes, in order, for the config. Only for `to='timm'`.
        remote_code: Write the module with which transformers loads the folder, as in
            `push_to_hub`; None for what a folder that is read has. Only for `to='timm'`.
        dry_run: Check everything, `out` included, and write nothing.
        compare: Files with a batch and with the outputs that the original code gave for it, see
            `timm_res2net.folder.golden.compare_outputs`. If the model gives others, nothing is
            written.

    Returns:
        What was read, with the model in eval mode.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `out` already exists.
        ValueError: The file cannot be read safely, changes meanwhile, is of no known source, holds
            several Res2Nets, or does not fit; keys without a rule, parameters without a value and
            shapes that do not fit are listed. Weights are not finite, a variance is negative, or
            outputs differ from those of `compare` or of a folder's golden tensors. Or the layout to
            write cannot express the network, or the license or the label names.

    Example:
        >>> import tempfile, timm, torch, timm_res2net
        >>> folder = tempfile.mkdtemp()
        >>> model = timm.create_model('test_res2net_se', num_classes=5)
        >>> torch.save(model.state_dict(), f'{folder}/theirs.pth')
        >>> found = timm_res2net.convert_checkpoint(f'{folder}/theirs.pth', f'{folder}/mine')
        >>> found.architecture, found.semantics, found.config.num_classes
        ('test_res2net_se', 'official', 5)
        >>> model = timm.create_model(f'local-dir:{folder}/mine', pretrained=True)
    """
    if to not in SOURCES:
        raise ValueError(f"Unknown layout '{to}' to write. Use one of {', '.join(SOURCES)}.")
    if to != 'timm' and (license is not None or label_names is not None or remote_code):
        raise ValueError(
            f'A file of {to} has no place for license, label names and code. Leave them out, or '
            "write a folder (to='timm')."
        )
    check_license(license)
    target = None if out is None else check_writable(Path(out), folder=to == 'timm')
    found = read(path, source, model, semantics, entry, prefix)
    check_values(found.model, f'{path} was not converted')
    if compare:
        images, outputs = compare
        found = replace(found, differences=compare_outputs(found.model, images, outputs))
    foreign = {} if to == 'timm' else _undo(found, to)
    config = found.config if license is None else found.config.with_cfg(license=license)
    config = config if label_names is None else config.with_labels(label_names)
    config = config if remote_code is None else config.with_remote_code(remote_code)
    found = replace(found, config=config)
    if target is None or dry_run:
        return found
    if to == 'timm':
        card = _card(found, Path(path).is_dir(), target.name, license)
        with new_folder(target) as made:
            ModelFolder.write(made, found.config, found.model, card)
    else:
        with new_file(target) as made, open(made, 'wb') as file:
            SOURCES[to].save(foreign, file)
    return found


def _card(found: Conversion, from_folder: bool, name: str, license: str | None) -> str:
    license_text = SOURCES[found.source].license
    if from_folder:
        license_text = 'The model was converted from a folder, whose card may name a license.'
    unknown = f'The converter does not know who published the file. {license_text}'
    return render_card(
        found.config,
        name,
        f'local-dir:{name}',
        f'{found.config.pretrained_cfg["description"]} {ABOUT}',
        license=license,
        license_text='' if license else unknown,
    )


# --- the other way --------------------------------------------------------------------------------


def _undo(found: Conversion, to: str) -> dict[str, torch.Tensor]:
    """Return the model's tensors in another project's layout.

    Raises:
        ValueError: The other project's code computes another network.
    """
    target = SOURCES[to]
    tensors = found.model.state_dict()
    what = f'{found.file.file} cannot be written as {to}'
    if isinstance(found.model, HighResolutionRes2Net):
        raise ValueError(f"{what}: it is an HRNet, and only timm's layout has HRNets.")
    other = _unusual(found.model)
    if other:
        raise ValueError(f'{what}: {to} cannot express its {", ".join(other)}.')
    arguments = {**infer_arguments(tensors), 'semantics': found.semantics}
    reason = target.refuse(arguments, tensors)
    if reason:
        raise ValueError(sentence(f'{what}: {reason}'))
    if not target.counts_batches:
        tensors = without_counters(tensors)
    try:
        return undo_rules(tensors, target.rules(tensors.keys()), to)
    except ValueError as error:
        raise ValueError(sentence(f'{what}: {error}')) from error


def _unusual(model: Any) -> list[str]:
    """Return the arguments that no key or shape tells and that are not what every project has."""
    norms = [m for m in model.modules() if 'norm' in type(m).__name__.lower()]
    usual = {
        'act_layer': type(model.act1) is nn.ReLU,
        'norm_layer': all(type(norm) is nn.BatchNorm2d for norm in norms),
        'aa_layer or replace_stem_pool': type(model.maxpool) is nn.MaxPool2d,
        'global_pool': model.global_pool.pool_type == 'avg',
        'output_stride': model.feature_info[-1]['reduction'] == 32,
    }
    return [name for name, is_usual in usual.items() if not is_usual]
