"""`convert`, `push`, `pull`, `check`: checkpoints, folders and the Hugging Face Hub."""

from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset

from ..convert.files import read_checkpoint
from ..convert.sources import SOURCES
from ..export.formats import noise
from ..export.run import as_tuple, is_exported, load_exported
from ..files import read_text
from ..folder import convert_checkpoint
from ..folder.golden import in_words
from ..folder.model import Model
from ..hub import Finding, check, pull, push_to_hub
from ..layers.text import list_some, printable
from .frame import EXIT_ERROR, Done, add_command, add_options, fitting_table

_DATA = ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')
_DESCRIBING = (
    '--license', '--label-names', '--label-order', '--remote-code', '--img-size', '--mean', '--std',
    '--crop-pct', '--interpolation',
)  # fmt: skip


def read_label_names(path: Path | None, order: str | None, checkpoint: str) -> list[str] | None:
    """Read the value of --label-names, in the order of --label-order.

    Args:
        path: A text file with one name per line, or a folder with one folder per class; None if the
            option was not given.
        order: 'natural' (1, 2, 10) as timm numbers class folders, or 'sorted' (1, 10, 2) as
            torchvision does.
        checkpoint: The checkpoint, whose record of timm's train.py decides if `order` is None.
    """
    if path is None:
        return None
    if not path.is_dir():
        return [
            line.strip() for line in read_text(path, 'utf-8-sig', pipe=True).rstrip().splitlines()
        ]
    natural = list(ImageDataset(str(path)).reader.class_to_idx)
    if order is None and natural != sorted(natural) and Path(checkpoint).is_file():
        order = 'natural' if 'model' in read_checkpoint(checkpoint).training else None
    if order is None and natural != sorted(natural):
        raise ValueError(
            f'The classes in {path} have two orders: {natural[:3]}... in timm, and '
            f'{sorted(natural)[:3]}... in torchvision. Name the one of the training with '
            '--label-order natural or --label-order sorted.'
        )
    return sorted(natural) if order == 'sorted' else natural


def _described(options: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """Return the options of a command with those that describe images and labels read."""
    data = {key: options.pop(key) for key in _DATA if key in options}
    names, order = options.pop('label_names', None), options.pop('label_order', None)
    options |= {'data': data or None, 'label_names': read_label_names(names, order, checkpoint)}
    return options


def _convert(
    checkpoint: str,
    out: Path | None = None,
    to: str = 'timm',
    rename: Sequence[tuple[str, str]] = (),
    dry_run: bool = False,
    **options: Any,
) -> Done:
    """Convert a checkpoint of another project to a folder that timm loads, or back.

    timm-res2net convert res2net50_26w_4s-06e79181.pth --out my_res2net
    timm-res2net convert theirs.pth --dry-run --json
    timm-res2net convert distilled.pth --prefix student --out my_res2net
    timm-res2net convert unet.pth --rename encoder1=layer1 --rename encoder2=layer2 --out encoder
    timm-res2net convert model_best.pth.tar --out flowers --label-names DATA/train --license mit
    timm-res2net convert my_res2net --to mmpretrain --out my_res2net.pth
    """
    if out is None and not dry_run:
        raise ValueError('Name what to write with --out, or only look with --dry-run.')
    options = _described(options, checkpoint)
    model = convert_checkpoint(
        checkpoint, out, to=to, dry_run=dry_run, rename=dict(rename), **options
    )
    params = sum(p.numel() for p in model.net.parameters())
    moved = [
        {'from': move.theirs, 'to': move.ours, 'how': move.rule.how or 'as it is'}
        for move in model.notes.moved
    ]
    value = {
        'config': model.config,
        'params': params,
        'notes': {**vars(model.notes), 'moved': moved},
        'out': None if dry_run else out,
    }
    is_inside = Path(checkpoint).resolve().name != model.notes.file  # the only one in a folder
    path = f'{checkpoint}/{model.notes.file}' if is_inside else checkpoint
    end = f'Written to {out}'
    if dry_run:
        end = 'Nothing was written.'
    elif to == 'timm':
        end = f"Written: timm.create_model('local-dir:{out}', pretrained=True)"
    return Done(value, '\n'.join([*_lines_of(model, path, params), end]))


def _lines_of(model: Model, path: str, params: int) -> Iterator[str]:
    """Say which network was read, what became of the keys, and what was left out."""
    config, notes = model.config, model.notes
    entry = f", entry '{notes.entry}'" if notes.entry else ''
    prefix = f", prefix '{notes.prefix}'" if notes.prefix else ''
    yield printable(f'{path}: {notes.format}{entry}{prefix}, source {notes.source}')
    yield (
        f'{config.network}, block semantics {config.semantics}, {params:,} parameters, '
        f'{config.num_classes or "no"} classes'
    )
    rows = []
    for rule, count in Counter(move.rule for move in notes.moved).items():
        at = notes.prefix
        if rule.theirs.startswith('head.'):  # MMPretrain's classifier is beside its backbone
            at = at.removesuffix('backbone.')
        rows.append((f'`{at}{rule.theirs}`', f'`{rule.ours}`', str(count), rule.how))
    yield fitting_table(('their keys', "timm's keys", 'tensors', 'how'), rows)
    yield f'Mapped all {len(notes.moved)} tensors; no parameter is missing.'
    if notes.left_out:
        yield f'Left out, because they are not of the Res2Net, {list_some(notes.left_out)}'
    if not config.num_classes:
        yield 'The model has no classifier and returns features.'
    if notes.classifiers:
        yield f'These keys look like a classifier, {list_some(notes.classifiers)}'
        if notes.source in ('timm', 'official'):
            fc = f'{notes.prefix}fc'
            yield f"To keep it, save the state dict with '{fc}.weight' and '{fc}.bias' instead."
    if config.assumed:
        data = {key: config.pretrained_cfg.get(key) for key in config.assumed}
        told = ', '.join(f'{key} {value}' for key, value in data.items())
        yield f'Assumed, because the file does not record it: {told}'
    if not notes.has_steps:
        yield (
            "Not trained: train.py's record has no step of the optimizer. Its batch was larger "
            'than the training folder; train again with a smaller --batch-size.'
        )
    if notes.others:
        yield f'Other entries with weights (--entry): {", ".join(notes.others)}'
    if notes.differences:
        yield f'Relative differences from the outputs given: {in_words(dict(notes.differences))}'


def _push(
    checkpoint: str,
    repo: str,
    results: Sequence[tuple[str, float]] = (),
    dry_run: bool = False,
    **options: Any,
) -> Done:
    """Push a checkpoint or folder to the Hugging Face Hub, with config and card.

    timm-res2net push output/train/model_best.pth.tar me/my_res2net --license apache-2.0
    timm-res2net push my_res2net me/my_res2net --eval top1=78.3 --dataset imagenet-1k
    """
    options = _described(options, checkpoint)
    done = push_to_hub(checkpoint, repo, results=dict(results), dry_run=dry_run, **options)
    rows = [
        (name, f'{file.bytes:,}', f'{file.sha256[:12]}...', 'yes' if file.changed else 'no')
        for name, file in done.files.items()
    ]
    config = done.config
    lines = [
        fitting_table(('file', 'bytes', 'sha256', 'changed'), rows),
        f'{config.architecture}, block semantics {config.semantics}, {config.num_classes} classes, '
        f'license {config.license}',
        *done.notes,
    ]
    if dry_run:
        lines.append(f'\n{done.card}\nNothing was sent.')
    else:
        what = 'Pushed to' if done.changed else 'Nothing to change at'
        at = '' if done.revision == 'main' else f'@{done.revision}'
        lines += [
            f'{what} {done.url}, branch {done.revision}, commit {done.commit}',
            f"timm.create_model('hf-hub:{done.repo}{at}', pretrained=True)",
        ]
    return Done(done, '\n'.join(lines))


def _pull(repo: str, out: Path, revision: str | None = None) -> Done:
    """Download a model from the Hub into a folder, checked.

    timm-res2net pull me/my_res2net --out my_res2net
    """
    findings = pull(repo, out, revision)
    written = f"Written: timm.create_model('local-dir:{out}', pretrained=True)"
    return Done(findings, '\n'.join([*map(str, findings), written]))


def _check(target: str, revision: str | None = None) -> Done:
    """Check whether a model is in order: complete, loadable, finite, with a license.

    timm-res2net check me/my_res2net
    timm-res2net check my_res2net --json
    timm-res2net check flowers.xml
    """
    path = Path(target)
    findings = [_check_exported(path)] if is_exported(path) else check(target, revision)
    code = EXIT_ERROR if any(finding.state == 'error' for finding in findings) else 0
    return Done(findings, '\n'.join(map(str, findings)), code)


def _check_exported(path: Path) -> Finding:
    """Load an exported file, and look at its outputs for an image of noise."""
    model: Any = load_exported(path)
    channels, height, width = model.pretrained_cfg['input_size']
    shape = (1, height, width, channels) if model.takes_pixels else (1, channels, height, width)
    image = noise(*model.pretrained_cfg.get('shape', shape))
    outputs = as_tuple(model(image.mul(64).to(torch.uint8) if model.takes_pixels else image))
    if all(bool(output.isfinite().all()) for output in outputs):
        return Finding('outputs', 'ok', f'{", ".join(model.outputs)} of one image are finite')
    return Finding('outputs', 'error', 'the outputs of an image of noise are not finite')


def _metric(word: str) -> tuple[str, float]:
    name, _, number = word.partition('=')
    try:
        return name, float(number)
    except ValueError:
        raise ArgumentTypeError(f"'{word}' is not METRIC=NUMBER, such as top1=78.3") from None


def _renamed(word: str) -> tuple[str, str]:
    theirs, _, timms = word.partition('=')
    if not (theirs and timms):
        raise ArgumentTypeError(f"'{word}' is not THEIRS=TIMMS, such as encoder1=layer1")
    return theirs, timms


def add(commands: Any) -> None:
    """Add the commands `convert`, `push`, `pull` and `check`."""
    parser = add_command(commands, _convert)
    add_options(parser, 'checkpoint', '--model', '--semantics', '--entry', '--prefix')
    add_options(parser, '--out', required=False, help='folder to write, or file for another --to')
    parser.add_argument(
        '--from',
        dest='source',
        choices=('auto', *SOURCES),
        help='source of the checkpoint (default: recognised by its keys)',
    )
    parser.add_argument(
        '--rename',
        type=_renamed,
        action='append',
        metavar='THEIRS=TIMMS',
        help="start of the keys of a stage or the stem, and timm's name of it, such as "
        'encoder1=layer1; may be repeated',
    )
    parser.add_argument('--to', choices=SOURCES, help='source to write for (default: timm)')
    add_options(parser, *_DESCRIBING, '--multi-label', '--dry-run')
    parser.add_argument(
        '--compare',
        nargs=2,
        type=Path,
        metavar=('IMAGES', 'OUTPUTS'),
        help='files of a batch and of the outputs of the original code for it (torch.save, .npy or '
        '.safetensors); if the outputs of the converted model differ, nothing is written',
    )
    add_options(parser, '--json', '--debug')
    parser = add_command(commands, _push)
    add_options(parser, 'checkpoint')
    parser.add_argument('repo', help='OWNER/NAME on the Hub; created if it does not exist')
    add_options(parser, '--model', dest='architecture')
    add_options(parser, '--semantics', '--entry', '--prefix')
    add_options(parser, *_DESCRIBING)
    parser.add_argument(
        '--eval',
        dest='results',
        type=_metric,
        metavar='METRIC=NUMBER',
        nargs='+',
        action='extend',
        help='measured accuracies; top1, top5 and accuracy in percent',
    )
    parser.add_argument('--dataset', help='data set that --eval was measured on')
    add_options(parser, '--revision', help='branch; created if it does not exist')
    parser.add_argument('--private', action='store_true', help='create a private repository')
    parser.add_argument('--message', dest='commit_message', help='message of the commit')
    parser.add_argument(
        '--card',
        choices=('folder', 'hub'),
        help="which author's text stays if the cards of the folder and of the Hub differ",
    )
    add_options(parser, '--dry-run', '--json', '--debug')
    parser = add_command(commands, _pull)
    parser.add_argument('repo', help='OWNER/NAME on the Hub, with or without @REVISION')
    add_options(parser, '--out', help='folder to write')
    add_options(parser, '--revision', '--json', '--debug')
    parser = add_command(commands, _check)
    text = 'registered name, folder, OWNER/NAME on the Hub, or a file that `export` wrote'
    add_options(parser, 'target', help=text)
    add_options(parser, '--revision', '--json', '--debug')
