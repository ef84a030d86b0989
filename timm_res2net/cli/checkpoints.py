"""`convert`: checkpoints of other projects."""

import argparse
import json
from collections import Counter
from pathlib import Path

from ..convert.sources import SOURCES
from ..folder.golden import describe
from ..folder.take import Conversion, convert_checkpoint
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
    found = convert_checkpoint(
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
    known = {**found.summary(), 'out': None if args.dry_run else str(args.out)}
    if args.json:
        print(json.dumps(known, indent=2))
        return 0
    entry = f", entry '{found.file.entry}'" if found.file.entry else ''
    prefix = f", prefix '{found.prefix}'" if found.prefix else ''
    where = f'{args.source}: {found.file.format}{entry}{prefix}, layout {found.source}'
    print(printable(where))
    print(
        f'{found.config.network}, block semantics {found.semantics}, '
        f'{known["params"]:,} parameters, {known["num_classes"] or "no"} classes'
    )
    print(_moves(found))
    print(f'{len(found.moves)} tensors: each has its place, and every parameter has a value.')
    if found.left_out:
        print(f'Left out, because they are not of the Res2Net, {list_some(found.left_out)}')
    if not known['num_classes']:
        print(f'The model has no classifier, and gives features.{_lost(found)}')
    if found.other_entries:
        print(f'Other entries with weights (--entry): {", ".join(found.other_entries)}')
    if found.differences:
        print(f'Relative differences from the outputs given: {describe(dict(found.differences))}')
    if args.dry_run:
        print('Nothing was written.')
    elif args.to == 'timm':
        print(f"Written: timm.create_model('local-dir:{args.out}', pretrained=True)")
    else:
        print(f'Written to {args.out}')
    return 0


def _moves(found: Conversion) -> str:
    """Return a table of what became of the keys of the file: a row for each rule."""
    rows = []
    for rule, count in Counter(move.rule for move in found.moves).items():
        prefix = found.prefix
        if rule.source.startswith('head.'):  # MMPretrain's classifier is beside its backbone
            prefix = prefix.removesuffix('backbone.')
        rows.append((f'`{prefix}{rule.source}`', f'`{rule.target}`', str(count), rule.how))
    if found.left_out:
        rows.append(
            (f'others, such as `{min(found.left_out)}`', '', str(len(found.left_out)), 'left out')
        )
    return table(('their keys', "timm's keys", 'tensors', 'how'), rows, columns())


def _lost(found: Conversion) -> str:
    """Return a sentence on keys that were left out and look like a classifier, '' without any."""
    if not found.classifiers:
        return ''
    text = f' These keys look like one, {list_some(found.classifiers)}.'
    if found.source not in ('timm', 'official'):
        return text
    fc = f'{found.prefix}fc'
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
        help='layout of the checkpoint (default: recognised by its keys)',
    )
    parser.add_argument(
        '--to', choices=SOURCES, default='timm', help='layout to write (default: %(default)s)'
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
