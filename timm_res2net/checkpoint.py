"""From a checkpoint file, whoever wrote it, to a folder that timm loads; and back."""

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from . import __version__
from .card import write_card
from .convert import (
    SOURCES,
    Move,
    Rule,
    apply_rules,
    dump_arrays,
    infer_arguments,
    read_checkpoint,
    recognise,
    undo_rules,
)
from .files import check_writable, sha256_of, write_file
from .folder import (
    CONFIG,
    DATA,
    open_folder,
    read_config,
    save_folder,
    set_data,
    timms_names,
)
from .layers.align import AlignedBatchNorm2d
from .layers.bottle2neck import SEMANTICS
from .models import hrnet_res2net
from .models.hrnet_res2net import HighResolutionRes2Net
from .models.res2net_zoo import Res2Net, default_cfgs
from .text import list_some, sentence, table

__all__ = ['Conversion', 'convert_checkpoint', 'fill', 'find_name', 'made_from', 'read']

# A model of each semantics, to carry the arguments of a network that has no name of its own
_BASE = {
    'official': 'res2net50_18w_4s',
    'mmdet': 'res2net50_v1d_26w_4s',
    'paddle': 'res2net50_vd_26w_4s',
    'caffe': 'res2net50_16w_4s_se',
}


class Conversion(NamedTuple):
    """A converted checkpoint, checked against the model that it makes.

    Attributes:
        source: The layout that was read, one of `SOURCES`.
        architecture: Name for `timm.create_model`, of this package or timm's own.
        arguments: What it has to be given besides, all JSON values.
        semantics: Block semantics.
        model: The model, with the checkpoint's tensors as its parameters and buffers.
        moves: What went where, a move for every key of the file.
        file: Name, whether it was a folder, size in bytes, sha256, format and entry of what was
            read, and how many tensors were widened to float32.
    """

    source: str
    architecture: str
    arguments: dict[str, Any]
    semantics: str
    model: nn.Module
    moves: tuple[Move, ...]
    file: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """All but the tensors, as JSON values."""
        model: Any = self.model
        return {
            'source': self.source,
            'architecture': self.architecture,
            'arguments': self.arguments,
            'semantics': self.semantics,
            'num_classes': model.num_classes,
            'params': sum(p.numel() for p in model.parameters()),
            'file': self.file,
            'moves': [
                {'from': move.source, 'to': move.target or None, 'how': move.rule.how or 'as it is'}
                for move in self.moves
            ],
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What went where, a row a rule: their keys, timm's, the number of tensors, and how."""
        counts: Counter[Rule] = Counter(move.rule for move in self.moves)
        return [
            (f'`{rule.source}`', f'`{rule.target}`' if rule.target else '', str(n), rule.how)
            for rule, n in counts.items()
        ]


@functools.cache
def _named_arguments(name: str) -> dict[str, Any]:
    """Arguments that a registered name stands for, the class count and input channels apart."""
    model: Any = timm.create_model(name, device='meta')
    arguments = infer_arguments(model.state_dict())
    semantics = model.model_args['semantics'] if isinstance(model, Res2Net) else 'official'
    return {**_architecture(arguments), 'semantics': semantics}


def _architecture(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k not in ('num_classes', 'in_chans')}


def find_name(found: Mapping[str, Any], semantics: str) -> str | None:
    """The registered name of a network, timm's own first; None if it has none.

    Args:
        found: Arguments that the shapes tell.
        semantics: Its block semantics.
    """
    arguments = {**_architecture(found), 'semantics': semantics}
    depth = str(3 * sum(arguments['layers']) + 2)
    for name in (*timms_names(), *default_cfgs):
        match = re.match(r'res2ne\D*(\d+)', name)
        if (match is None or match[1] == depth) and _named_arguments(name) == arguments:
            return name
    return None


def _choose(
    tensors: Mapping[str, torch.Tensor], source: str, model: str | None, semantics: str | None
) -> str:
    """The semantics that a checkpoint means."""
    known = SOURCES[source].semantics
    if model is not None:
        computes = str(_named_arguments(model)['semantics'])
        if semantics not in (None, computes):
            raise ValueError(f'{model} computes {computes}, not {semantics}. Name one of the two')
        semantics = computes
    if semantics is None:
        # only a classifier's training says so: a bare backbone means what its project runs
        return 'official' if 'fc.weight' in tensors and 'official' in known else known[0]
    if semantics not in known:
        raise ValueError(
            f'{source} checkpoints have block semantics {" or ".join(known)}, not {semantics}'
            + (f', which {model} computes. Leave the model out' if model else '')
        )
    return semantics


def _build(
    found: dict[str, Any],
    semantics: str,
    name: str | None,
    silent: Mapping[str, Any],
    noted: str | None,
) -> tuple[str, dict[str, Any], nn.Module]:
    """The model on the meta device, its name and the arguments beside it.

    Args:
        found: Arguments that the shapes tell.
        semantics: Its block semantics.
        name: The name that is asked for.
        silent: Arguments that shapes do not tell.
        noted: The name that the file notes, whose other arguments may have been changed.
    """
    wanted = {**_architecture(found), 'semantics': semantics}
    fits = find_name(found, semantics)
    if name is not None:
        named = _named_arguments(name)
        wrong = [
            f'{key}={value!r} where {name} has {named.get(key, "none")!r}'
            for key, value in wanted.items()
            if value != named.get(key)
        ]
        if wrong:
            remedy = f'Use {fits}' if fits else f'In its place say semantics={semantics!r}'
            raise ValueError(f'it has {", ".join(wrong)}. {remedy}')
    name = name or fits
    extra: dict[str, Any] = {}
    if name is None:
        name, extra = noted if noted and noted in default_cfgs else _BASE[semantics], wanted
    model: Any = timm.create_model(
        name,
        device='meta',
        num_classes=found['num_classes'],
        in_chans=found['in_chans'],
        **{**extra, **silent},
    )
    if isinstance(model, Res2Net):
        arguments = model.model_args
    else:
        arguments = {'in_chans': found['in_chans']} if found['in_chans'] != 3 else {}
        arguments.update(silent)
    return name, arguments, model


def fill(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Make a state dict's tensors the model's own.

    Raises:
        ValueError: Some are missing, are too many, or have other shapes.
    """
    own = model.state_dict()
    for key, value in own.items():
        if key.endswith('num_batches_tracked') and key not in tensors:
            tensors[key] = torch.zeros((), dtype=value.dtype)  # Paddle and detectron2 do not count
    missing = own.keys() - tensors.keys()
    if missing:
        raise ValueError(f'parameters are left without a value, {list_some(missing)}')
    surplus = tensors.keys() - own.keys()
    if surplus:
        raise ValueError(f'weights have no place in the model, {list_some(surplus)}')
    wrong = [
        f'{key} {tuple(tensors[key].shape)} for {tuple(value.shape)}'
        for key, value in own.items()
        if tensors[key].shape != value.shape
    ]
    if wrong:
        raise ValueError(f'shapes do not fit, {list_some(wrong)}')
    model.load_state_dict(tensors, strict=True, assign=True)


# Arguments of `timm.create_model` that change what is computed, and no shape
_SILENT = (
    'act_layer', 'aa_layer', 'global_pool', 'norm_layer', 'output_stride', 'replace_stem_pool',
    'width_multiple',
)  # fmt: skip


def _trained(training: Mapping[str, Any], source: str) -> tuple[str | None, dict[str, Any]]:
    """Semantics and other arguments that no shape tells, from what timm's train.py noted."""
    name = training.get('model')
    name = name.partition('.')[0] if isinstance(name, str) else None
    if source not in ('timm', 'official') or name not in (*default_cfgs, *timms_names()):
        return None, {}
    given = training.get('model_kwargs')
    given = given if isinstance(given, dict) else {}
    silent = {key: given[key] for key in _SILENT if given.get(key) is not None}
    if isinstance(training.get('gp'), str):
        silent['global_pool'] = training['gp']
    return str(given.get('semantics') or _named_arguments(name)['semantics']), silent


def _describe(
    model: Any, file: str, source: str, stem_type: str, training: Mapping[str, Any]
) -> None:
    """Make the model's cfg that of these weights, not of the name's published ones."""
    model.pretrained_cfg = dict(
        model.pretrained_cfg,
        url='', file=None, hf_hub_id=None, custom_load=False, tag='converted', license=None,
        origin_url=None, notes=None, label_names=None,
        description=f'Converted from {file} ({source}).',
        first_conv='conv1.0' if stem_type else 'conv1',
    )  # fmt: skip
    set_data(model, {key: training[key] for key in DATA if training.get(key)})


def read(
    path: Path,
    source: str = 'auto',
    model: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
) -> Conversion:
    """Read a checkpoint into the model that it belongs to. Arguments as `convert_checkpoint`."""
    if source not in ('auto', *SOURCES):
        raise ValueError(f'Unknown source {source!r}. Use auto, {", ".join(SOURCES)}.')
    if semantics not in (None, *SEMANTICS):
        raise ValueError(f'Unknown semantics {semantics!r}. Use one of {", ".join(SEMANTICS)}.')
    model = model and model.partition('.')[0]  # a tag, as `list` prints it, tells no network
    if model in hrnet_res2net.default_cfgs:
        raise ValueError(
            f'{model} is an HRNet, whose files hold no name and are not converted. Load yours into '
            'the model, and push that, or save it by `timm.models.save_for_hf`.'
        )
    if model and model not in (*default_cfgs, *timms_names()):
        raise ValueError(
            f'{model!r} is no Res2Net of timm_res2net or timm. `timm-res2net list` shows the first.'
        )
    built: Any = None
    weights = path
    if path.is_dir():
        if model or semantics:
            raise ValueError(
                f'{path} is a folder, whose config.json names the model. Leave model and semantics '
                'out.'
            )
        weights, built = open_folder(path)
    elif not path.is_file():
        raise FileNotFoundError(f'There is no file {path}.')
    checkpoint = read_checkpoint(weights, entry)
    try:
        if isinstance(built, HighResolutionRes2Net):  # under its own names, which no table has
            if source not in ('auto', 'timm'):
                raise ValueError(f'It is an HRNet of timm, not of {source}')
            source, tensors, moves = 'timm', checkpoint.tensors, tuple[Move, ...]()
        else:
            if source == 'auto':
                source = recognise(checkpoint.tensors)
            rules = SOURCES[source].rules(checkpoint.tensors.keys())
            tensors, moves = apply_rules(checkpoint.tensors, rules, source)
        if built is None:
            noted, silent = _trained(checkpoint.training, source)
            semantics = _choose(tensors, source, model, semantics or (None if model else noted))
            found = infer_arguments(tensors)
            name, arguments, built = _build(
                found, semantics, model, silent, checkpoint.training.get('model')
            )
            _describe(built, path.name, source, found['stem_type'], checkpoint.training)
        else:
            name = built.pretrained_cfg['architecture']
            arguments = dict(read_config(path / CONFIG).get('model_args', {}))
            if isinstance(built, Res2Net | HighResolutionRes2Net):
                arguments = built.model_args
            semantics = str(arguments.get('semantics', 'official'))
        fill(built, tensors)
    except ValueError as error:
        raise ValueError(sentence(f'{path} does not convert: {error}')) from error
    return Conversion(
        source,
        name,
        arguments,
        semantics,
        built.eval(),
        moves,
        {
            'name': path.resolve().name,
            'folder': path.is_dir(),
            'bytes': weights.stat().st_size,
            'sha256': sha256_of(weights),
            'format': checkpoint.format,
            'entry': checkpoint.entry,
            'widened': checkpoint.widened,
        },
    )


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    source: str = 'auto',
    to: str = 'timm',
    model: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Convert a Res2Net checkpoint of another project, or one of timm into another project's.

    The file is untrusted: nothing in it is run. Either all that it holds has found its place, or
    nothing is written.

    Args:
        path: A file (.pth, .pdparams, .pkl, .safetensors; the content decides) or a folder that
            this function or timm wrote.
        out: What to write; nothing if None. For `to='timm'` a new or empty folder, which gets
            `config.json`, `model.safetensors` and `README.md` and loads by
            `timm.create_model('local-dir:OUT', pretrained=True)`; else a new file.
        source: Whose layout the file has, one of `timm_res2net.convert.SOURCES`; 'auto' tells it by
            the keys.
        to: Whose layout to write.
        model: Name of the model, of this package or timm's own; by default the one whose
            arguments are those of the shapes.
        semantics: Block semantics. Only needed, this or a model that has it, where the keys do not
            tell: in a state dict under timm's names with other semantics than `official`.
        entry: Entry of the file that holds the weights; by default see
            `timm_res2net.convert.read_checkpoint`.
        dry_run: Check all, `out` included, and write nothing.

    Returns:
        What was read, with the model in eval mode.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `out` is there already.
        ValueError: The file cannot be read safely, is of no known source, or does not fit; a key
            without a rule, a parameter without a value or a shape that does not fit are listed. Or
            the layout asked for cannot express the network.
    """
    if to not in SOURCES:
        raise ValueError(f'Unknown layout {to!r} to write. Use one of {", ".join(SOURCES)}.')
    target = None if out is None else check_writable(Path(out), folder=to == 'timm')
    found = read(Path(path), source, model, semantics, entry)
    foreign = {} if to == 'timm' else _undo(found, to)
    if target is None or dry_run:
        return found
    if to == 'timm':
        save_folder(
            found.model, found.architecture, found.arguments, _readme(found, target), target
        )
    else:
        write_file(target, lambda file: _SAVE[to](foreign, file))
    return found


MOVED = ('their keys', "timm's", 'tensors', 'how')


def made_from(found: Conversion) -> str:
    """What a card says of the file that a model was made from."""
    facts = found.file
    name = facts['name'].translate({ord('`'): "'", ord('|'): '/'})  # what a table cannot hold
    entry = f", entry '{facts['entry']}'" if facts['entry'] else ''
    widened = f', {facts["widened"]} tensors widened to float32' if facts['widened'] else ''
    rows = [
        ('file', f'`{name}`'),
        ('sha256', f'`{facts["sha256"]}`'),
        ('size', f'{facts["bytes"]:,} bytes'),
        ('read as', f'{facts["format"]}{entry}{widened}'),
        ('layout', found.source),
    ]
    return f"""## Made from

{table(('made from', ''), rows)}

Every tensor of the file went where this table says, and no parameter was left without one.

{table(MOVED, found.rows())}"""


def _readme(found: Conversion, out: Path) -> str:
    name = found.file['name'].translate({ord('`'): "'"})
    licence = SOURCES[found.source].licence
    if found.file['folder']:
        licence = 'It was made from a folder: see what that says.'
    return write_card(
        out.name,
        f'A Res2Net converted from `{name}` by timm_res2net {__version__}.',
        f'local-dir:{out.name}',
        found.model,
        found.architecture,
        found.arguments,
        found.semantics,
        licence=None,
        licence_text=f'The converter cannot tell who published the file. {licence}',
        made_from=made_from(found),
    )


# --- the other way ------------------------------------------------------------------------------


def _undo(found: Conversion, to: str) -> dict[str, torch.Tensor]:
    """The model's tensors in another project's layout.

    Raises:
        ValueError: The project's code computes another network than this one.
    """
    tensors = found.model.state_dict()
    computes = SOURCES[to].semantics[0]
    what = f'{found.file["name"]} cannot be written as {to}:'
    if found.semantics != computes:
        raise ValueError(
            f'{what} its block semantics are {found.semantics}, and {to} computes {computes}.'
        )
    other = [name for name, plain in _differences(found.model).items() if not plain]
    if other:
        raise ValueError(f'{what} it has another {", ".join(other)} than {to} knows.')
    arguments = infer_arguments(tensors)
    if arguments['attn_layer'] and to != 'article':
        raise ValueError(f'{what} it has SE modules, which the blocks of {to} have not.')
    if to == 'article':
        planes = arguments['channels'][0] * arguments['cardinality']
        inside = tensors['layer1.0.conv1.weight'].shape[0]
        if arguments['scale'] < 2 or inside != planes:
            raise ValueError(
                f'{what} its first blocks have {inside} channels in {arguments["scale"]} splits, '
                f"and the article's {planes} in at least 2."
            )
    if to in _UNCOUNTED:
        tensors = {k: v for k, v in tensors.items() if not k.endswith('num_batches_tracked')}
    rules = SOURCES[to].rules(tensors.keys())
    try:
        return undo_rules(tensors, rules, to)
    except ValueError as error:
        raise ValueError(sentence(f'{what} {error}')) from error


def _differences(model: Any) -> dict[str, bool]:
    """Whether what keys and shapes do not tell is as everywhere else, by argument."""
    modules = list(model.modules())
    norms = [m for m in modules if 'norm' in type(m).__name__.lower()]
    return {
        'act_layer': type(model.act1) is nn.ReLU,
        'norm_layer': all(type(norm) in (nn.BatchNorm2d, AlignedBatchNorm2d) for norm in norms),
        'aa_layer or replace_stem_pool': type(model.maxpool) is nn.MaxPool2d,
        'global_pool': model.global_pool.pool_type == 'avg',
        'output_stride': model.feature_info[-1]['reduction'] == 32,
    }


_UNCOUNTED = ('paddle', 'detectron2')  # no num_batches_tracked there


def _save_mmlab(tensors: dict[str, torch.Tensor], file: Any) -> None:
    torch.save({'meta': {}, 'state_dict': tensors}, file)


def _save_detectron2(tensors: dict[str, torch.Tensor], file: Any) -> None:
    # with an author, detectron2 takes the names as its own
    torch.save({'model': tensors, '__author__': 'timm_res2net'}, file)


_SAVE: dict[str, Callable[[dict[str, torch.Tensor], Any], None]] = {
    'official': torch.save,
    'article': torch.save,
    'mmpretrain': _save_mmlab,
    'mmdet': _save_mmlab,
    'detectron2': _save_detectron2,
    'paddle': dump_arrays,
}
