"""`convert`: checkpoints of other projects."""

import argparse
import json
from collections import Counter
from pathlib import Path

from ..convert.sources import SOURCES
from ..folder.conversion import convert_checkpoint
from ..folder.golden import describe
from ..folder.model import Model
from ..layers.text import list_some, printable, table
from .frame import Verbs, columns
from .options import (
    add_checkpoint,
    add_json,
    add_license_and_labels,
    add_remote_code,
    read_label_names,
)


def _convert(args: argparse.Namespace) -> int:
    if args.out is None and not args.dry_run:
        raise ValueError('Name what to write with --out, or only look with --dry-run.')
    model = convert_checkpoint(
        args.source,
        args.out,
        source=args.layout,
        to=args.to,
        model=args.model,
        semantics=args.semantics,
        entry=args.entry,
        prefix=args.prefix,
        license=args.license,
        label_names=read_label_names(args.label_names),
        remote_code=args.remote_code,
        dry_run=args.dry_run,
        compare=args.compare,
    )
    if args.json:
        print(json.dumps(_as_json(model, args), indent=2))
        return 0
    notes, config = model.notes, model.config
    entry = f", entry '{notes.entry}'" if notes.entry else ''
    prefix = f", prefix '{notes.prefix}'" if notes.prefix else ''
    print(printable(f'{args.source}: {notes.format}{entry}{prefix}, source {notes.source}'))
    print(
        f'{config.network}, block semantics {config.semantics}, {_count(model):,} parameters, '
        f'{config.num_classes or "no"} classes'
    )
    print(_moved(model))
    print(f'Mapped all {len(notes.moved)} tensors; no parameter is missing.')
    if notes.left_out:
        print(f'Left out, because they are not of the Res2Net, {list_some(notes.left_out)}')
    if not config.num_classes:
        print(f'The model has no classifier, and gives features.{_lost(model)}')
    if notes.others:
        print(f'Other entries with weights (--entry): {", ".join(notes.others)}')
    if notes.differences:
        print(f'Relative differences from the outputs given: {describe(dict(notes.differences))}')
    if args.dry_run:
        print('Nothing was written.')
    elif args.to == 'timm':
        print(f"Written: timm.create_model('local-dir:{args.out}', pretrained=True)")
    else:
        print(f'Written to {args.out}')
    return 0


def _count(model: Model) -> int:
    return sum(p.numel() for p in model.net.parameters())


def _as_json(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Return everything but the tensors, as JSON values."""
    notes, config = model.notes, model.config
    fields = ('file', 'sha256', 'bytes', 'format', 'entry', 'widened')
    return {
        'source': notes.source,
        'architecture': config.architecture,
        'arguments': config.model_args,
        'semantics': config.semantics,
        'num_classes': config.num_classes,
        'params': _count(model),
        'file': {key: getattr(notes, key) for key in fields},
        'prefix': notes.prefix,
        'left_out': {'tensors': len(notes.left_out), 'some': sorted(notes.left_out)[:10]},
        'other_entries': list(notes.others),
        'classifiers': list(notes.classifiers),
        'differences': dict(notes.differences),
        'moves': [
            {'from': move.source, 'to': move.target, 'how': move.rule.how or 'as it is'}
            for move in notes.moved
        ],
        'out': None if args.dry_run else str(args.out),
    }


def _moved(model: Model) -> str:
    """Return a table of what became of the keys of the file: a row for each rule."""
    notes, rows = model.notes, []
    for rule, count in Counter(move.rule for move in notes.moved).items():
        prefix = notes.prefix
        if rule.source.startswith('head.'):  # MMPretrain's classifier is beside its backbone
            prefix = prefix.removesuffix('backbone.')
        rows.append((f'`{prefix}{rule.source}`', f'`{rule.target}`', str(count), rule.how))
    left_out = notes.left_out
    if left_out:
        rows.append((f'others, such as `{min(left_out)}`', '', str(len(left_out)), 'left out'))
    return table(('their keys', "timm's keys", 'tensors', 'how'), rows, columns())


def _lost(model: Model) -> str:
    """Return a sentence on keys that were left out and look like a classifier, '' without any."""
    notes = model.notes
    if not notes.classifiers:
        return ''
    text = f' These keys look like one, {list_some(notes.classifiers)}.'
    if notes.source not in ('timm', 'official'):
        return text
    fc = f'{notes.prefix}fc'
    return f"{text} To keep it, save the state dict with '{fc}.weight' and '{fc}.bias' instead."


def add(verbs: Verbs) -> None:
    """Add the verb `convert`."""
    parser = verbs.add(
        'convert',
        _convert,
        'convert a checkpoint of another project to a folder that timm loads, or back',
        'timm-res2net convert res2net50_26w_4s-06e79181.pth --out my_res2net',
        'timm-res2net convert theirs.pth --dry-run --json',
        'timm-res2net convert distilled.pth --prefix student --out my_res2net',
        'timm-res2net convert model_best.pth.tar --out flowers --label-names DATA/train '
        '--license mit',
        'timm-res2net convert my_res2net --to mmpretrain --out my_res2net.pth',
    )
    add_checkpoint(parser)
    parser.add_argument(
        '--out', type=Path, metavar='PATH', help='folder to write; with --to, file to write'
    )
    parser.add_argument(
        '--from',
        dest='layout',
        choices=('auto', *SOURCES),
        default='auto',
        help='project whose keys the checkpoint has (default: recognised by them)',
    )
    parser.add_argument(
        '--to',
        choices=SOURCES,
        default='timm',
        help='project whose keys are written (default: %(default)s)',
    )
    add_license_and_labels(parser)
    add_remote_code(parser)
    parser.add_argument('--dry-run', action='store_true', help='check everything, write nothing')
    parser.add_argument(
        '--compare',
        nargs=2,
        type=Path,
        metavar=('IMAGES', 'OUTPUTS'),
        help='files of a batch and of what the original code gave for it (torch.save, .npy or '
        '.safetensors); if the converted model gives something else, nothing is written',
    )
    add_json(parser)
