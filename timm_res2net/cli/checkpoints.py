"""`convert`: checkpoints of other projects."""

from collections import Counter
from pathlib import Path
from typing import Any

from ..convert.sources import SOURCES
from ..folder import convert_checkpoint
from ..folder.golden import in_words
from ..folder.model import Model
from ..layers.text import list_some, printable
from .frame import add_command, print_json, print_table
from .options import add_options, read_label_names


def _convert(
    checkpoint: str,
    out: Path | None = None,
    to: str = 'timm',
    label_names: Path | None = None,
    dry_run: bool = False,
    json: bool = False,
    **options: Any,
) -> int:
    """Convert a checkpoint of another project to a folder that timm loads, or back.

    timm-res2net convert res2net50_26w_4s-06e79181.pth --out my_res2net
    timm-res2net convert theirs.pth --dry-run --json
    timm-res2net convert distilled.pth --prefix student --out my_res2net
    timm-res2net convert model_best.pth.tar --out flowers --label-names DATA/train --license mit
    timm-res2net convert my_res2net --to mmpretrain --out my_res2net.pth
    """
    if out is None and not dry_run:
        raise ValueError('Name what to write with --out, or only look with --dry-run.')
    names = read_label_names(label_names)
    model = convert_checkpoint(
        checkpoint, out, to=to, label_names=names, dry_run=dry_run, **options
    )
    params = sum(p.numel() for p in model.net.parameters())
    if json:
        moved = [
            {'from': move.theirs, 'to': move.ours, 'how': move.rule.how or 'as it is'}
            for move in model.notes.moved
        ]
        notes = {**vars(model.notes), 'moved': moved}
        written = None if dry_run else out
        print_json({'config': model.config, 'params': params, 'notes': notes, 'out': written})
        return 0
    _print_model(model, checkpoint, params)
    if dry_run:
        print('Nothing was written.')
    elif to == 'timm':
        print(f"Written: timm.create_model('local-dir:{out}', pretrained=True)")
    else:
        print(f'Written to {out}')
    return 0


def _print_model(model: Model, path: str, params: int) -> None:
    """Print which network was read, what became of the keys, and what was left out."""
    config, notes = model.config, model.notes
    entry = f", entry '{notes.entry}'" if notes.entry else ''
    prefix = f", prefix '{notes.prefix}'" if notes.prefix else ''
    print(printable(f'{path}: {notes.format}{entry}{prefix}, source {notes.source}'))
    print(
        f'{config.network}, block semantics {config.semantics}, {params:,} parameters, '
        f'{config.num_classes or "no"} classes'
    )
    rows = []
    for rule, count in Counter(move.rule for move in notes.moved).items():
        at = notes.prefix
        if rule.theirs.startswith('head.'):  # MMPretrain's classifier is beside its backbone
            at = at.removesuffix('backbone.')
        rows.append((f'`{at}{rule.theirs}`', f'`{rule.ours}`', str(count), rule.how))
    print_table(('their keys', "timm's keys", 'tensors', 'how'), rows)
    print(f'Mapped all {len(notes.moved)} tensors; no parameter is missing.')
    if notes.left_out:
        print(f'Left out, because they are not of the Res2Net, {list_some(notes.left_out)}')
    if not config.num_classes:
        print('The model has no classifier and returns features.')
    if notes.classifiers:
        print(f'These keys look like a classifier, {list_some(notes.classifiers)}')
        if notes.source in ('timm', 'official'):
            fc = f'{notes.prefix}fc'
            print(f"To keep it, save the state dict with '{fc}.weight' and '{fc}.bias' instead.")
    if notes.others:
        print(f'Other entries with weights (--entry): {", ".join(notes.others)}')
    if notes.differences:
        print(f'Relative differences from the outputs given: {in_words(dict(notes.differences))}')


def add(commands: Any) -> None:
    """Add the command `convert`."""
    parser = add_command(commands, _convert)
    add_options(parser, 'checkpoint', '--model', '--semantics', '--entry', '--prefix')
    add_options(parser, '--out', required=False, help='folder to write, or file for another --to')
    parser.add_argument(
        '--from',
        dest='source',
        choices=('auto', *SOURCES),
        help='source of the checkpoint (default: recognised by its keys)',
    )
    parser.add_argument('--to', choices=SOURCES, help='source to write for (default: timm)')
    add_options(parser, '--license', '--label-names', '--remote-code', '--dry-run')
    parser.add_argument(
        '--compare',
        nargs=2,
        type=Path,
        metavar=('IMAGES', 'OUTPUTS'),
        help='files of a batch and of the outputs of the original code for it (torch.save, .npy or '
        '.safetensors); if the outputs of the converted model differ, nothing is written',
    )
    add_options(parser, '--json', '--debug')
