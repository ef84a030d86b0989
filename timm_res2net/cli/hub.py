"""`push`, `pull`, `check`: the Hugging Face Hub."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..hub import (
    Finding,
    Push,
    check,
    pull,
    push_to_hub,
)
from ..layers.text import table
from .frame import EXIT_ERROR, Verbs, columns
from .options import (
    add_checkpoint,
    add_json,
    add_license_and_labels,
    add_remote_code,
    add_revision,
    read_label_names,
)

_DATA = ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')


# --- push -----------------------------------------------------------------------------------------


def _pairs(words: Sequence[str]) -> dict[str, float]:
    """Parse METRIC=NUMBER words."""
    found = {}
    for word in words:
        key, _, value = word.partition('=')
        if key in found:
            raise ValueError(f"'{key}' is given twice. Give it once.")
        try:
            found[key] = float(value)
        except ValueError:
            key = ''
        if not key:
            raise ValueError(f"'{word}' is not METRIC=NUMBER. Write it like top1=78.3.")
    return found


def _push(args: argparse.Namespace) -> int:
    done = push_to_hub(
        args.source,
        args.repo,
        license=args.license,
        results=_pairs(args.eval),
        dataset=args.dataset,
        label_names=read_label_names(args.label_names),
        remote_code=args.remote_code,
        data={key: value for key in _DATA if (value := getattr(args, key)) is not None},
        architecture=args.model,
        semantics=args.semantics,
        entry=args.entry,
        prefix=args.prefix,
        revision=args.revision,
        private=args.private or None,
        commit_message=args.message,
        card=args.card,
        dry_run=args.dry_run,
    )
    if args.json:
        print(json.dumps(_known(done), indent=2))
    else:
        _print_push(done, args)
    return 0


def _known(done: Push) -> dict[str, Any]:
    config = done.config
    return {
        'repo': done.repo,
        'revision': done.revision,
        'commit': done.commit,
        'url': done.url,
        'architecture': config.architecture,
        'semantics': config.semantics,
        'num_classes': config.num_classes,
        'license': config.license,
        'files': {name: asdict(file) for name, file in done.files.items()},
        'notes': list(done.notes),
    }


def _print_push(done: Push, args: argparse.Namespace) -> None:
    rows = [
        (name, f'{file.bytes:,}', f'{file.sha256[:12]}...', 'yes' if file.changed else 'no')
        for name, file in done.files.items()
    ]
    print(table(('file', 'bytes', 'sha256', 'changed'), rows, columns()))
    config = done.config
    print(
        f'{config.architecture}, block semantics {config.semantics}, {config.num_classes} classes, '
        f'license {config.license}'
    )
    for note in done.notes:
        print(note)
    if args.dry_run:
        print(f'\n{done.card}\nNothing was sent.')
        return
    if done.changed:
        print(f'Pushed to {done.url}, branch {done.revision}, commit {done.commit}')
    else:
        print(f'{done.url}, branch {done.revision}, already has it (commit {done.commit}).')
    at = '' if args.revision is None else f'@{args.revision}'
    print(f"timm.create_model('hf-hub:{done.repo}{at}', pretrained=True)")


def _add_push(verbs: Verbs) -> None:
    parser = verbs.add(
        'push',
        _push,
        'push a checkpoint or folder to the Hugging Face Hub, with config and card',
        'timm-res2net push output/train/model_best.pth.tar me/my_res2net --license apache-2.0',
        'timm-res2net push my_res2net me/my_res2net --eval top1=78.3 --dataset imagenet-1k',
    )
    add_checkpoint(parser)
    parser.add_argument('repo', metavar='REPO', help='OWNER/NAME; created if it does not exist')
    add_license_and_labels(parser)
    add_remote_code(parser)
    parser.add_argument(
        '--eval',
        metavar='METRIC=NUMBER',
        nargs='+',
        action='extend',
        default=[],
        help='measured accuracies; top1, top5 and accuracy in percent',
    )
    parser.add_argument('--dataset', metavar='NAME', help='data set that --eval was measured on')
    parser.add_argument('--img-size', type=int, metavar='PX', help='side of the image')
    parser.add_argument(
        '--mean', type=float, nargs='+', metavar='M', help='mean of each image channel'
    )
    parser.add_argument(
        '--std', type=float, nargs='+', metavar='S', help='standard deviation of each image channel'
    )
    parser.add_argument(
        '--crop-pct', type=float, metavar='SHARE', help='share of the image that the crop keeps'
    )
    parser.add_argument(
        '--interpolation', metavar='KIND', help='how images are resized: bilinear, bicubic, ...'
    )
    parser.add_argument('--revision', metavar='BRANCH', help='branch; created if it does not exist')
    parser.add_argument('--private', action='store_true', help='create a private repository')
    parser.add_argument('--message', metavar='TEXT', help='message of the commit')
    parser.add_argument(
        '--card',
        choices=('folder', 'hub'),
        help="which author's text stays if the cards of the folder and of the Hub differ",
    )
    parser.add_argument('--dry-run', action='store_true', help='show what would be pushed')
    add_json(parser)


# --- pull and check -------------------------------------------------------------------------------


def _report(findings: Sequence[Finding], as_json: bool) -> int:
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print('\n'.join(map(str, findings)))
    return EXIT_ERROR if any(finding.state == 'error' for finding in findings) else 0


def _pull(args: argparse.Namespace) -> int:
    code = _report(pull(args.repo, args.out, args.revision), args.json)
    if not args.json:
        print(f"Written: timm.create_model('local-dir:{args.out}', pretrained=True)")
    return code


def _check(args: argparse.Namespace) -> int:
    return _report(check(args.target, args.revision), args.json)


def add(verbs: Verbs) -> None:
    """Add the verbs `push`, `pull` and `check`."""
    _add_push(verbs)
    parser = verbs.add(
        'pull',
        _pull,
        'download a model from the Hub into a folder, checked',
        'timm-res2net pull me/my_res2net --out my_res2net',
    )
    parser.add_argument('repo', metavar='REPO', help='OWNER/NAME, with or without @REVISION')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write')
    add_revision(parser)
    add_json(parser)
    parser = verbs.add(
        'check',
        _check,
        'check whether a model is in order: complete, loadable, finite, with a license',
        'timm-res2net check me/my_res2net',
        'timm-res2net check my_res2net --json',
    )
    parser.add_argument(
        'target', metavar='MODEL', help='OWNER/NAME, a folder, or a registered name'
    )
    add_revision(parser)
    add_json(parser)
