"""`push`, `pull`, `check`: the Hugging Face Hub."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hub import Finding, check, pull, push_to_hub
from .frame import EXIT_ERROR, add_command, print_json, print_table
from .options import add_options, read_label_names

_DATA = ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')


def _metric(word: str) -> tuple[str, float]:
    name, _, number = word.partition('=')
    try:
        if name:
            return name, float(number)
    except ValueError:
        pass
    raise ArgumentTypeError(f"'{word}' is not METRIC=NUMBER, such as top1=78.3")


def _push(
    checkpoint: str,
    repo: str,
    results: Sequence[tuple[str, float]] = (),
    label_names: Path | None = None,
    dry_run: bool = False,
    json: bool = False,
    **options: Any,
) -> int:
    """Push a checkpoint or folder to the Hugging Face Hub, with config and card.

    timm-res2net push output/train/model_best.pth.tar me/my_res2net --license apache-2.0
    timm-res2net push my_res2net me/my_res2net --eval top1=78.3 --dataset imagenet-1k
    """
    data = {key: options.pop(key) for key in _DATA if key in options}
    names = read_label_names(label_names)
    options |= {'results': dict(results), 'label_names': names, 'data': data}
    done = push_to_hub(checkpoint, repo, dry_run=dry_run, **options)
    if json:
        print_json(done)
        return 0
    rows = [
        (name, f'{file.bytes:,}', f'{file.sha256[:12]}...', 'yes' if file.changed else 'no')
        for name, file in done.files.items()
    ]
    print_table(('file', 'bytes', 'sha256', 'changed'), rows)
    config = done.config
    print(
        f'{config.architecture}, block semantics {config.semantics}, {config.num_classes} classes, '
        f'license {config.license}'
    )
    for note in done.notes:
        print(note)
    if dry_run:
        print(f'\n{done.card}\nNothing was sent.')
        return 0
    what = 'Pushed to' if done.changed else 'Nothing to change at'
    print(f'{what} {done.url}, branch {done.revision}, commit {done.commit}')
    at = '' if done.revision == 'main' else f'@{done.revision}'
    print(f"timm.create_model('hf-hub:{done.repo}{at}', pretrained=True)")
    return 0


def _report(findings: Sequence[Finding], json: bool) -> int:
    if json:
        print_json(findings)
    else:
        print('\n'.join(map(str, findings)))
    return EXIT_ERROR if any(finding.state == 'error' for finding in findings) else 0


def _pull(repo: str, out: Path, revision: str | None = None, json: bool = False) -> int:
    """Download a model from the Hub into a folder, checked.

    timm-res2net pull me/my_res2net --out my_res2net
    """
    code = _report(pull(repo, out, revision), json)
    if not json:
        print(f"Written: timm.create_model('local-dir:{out}', pretrained=True)")
    return code


def _check(target: str, revision: str | None = None, json: bool = False) -> int:
    """Check whether a model is in order: complete, loadable, finite, with a license.

    timm-res2net check me/my_res2net
    timm-res2net check my_res2net --json
    """
    return _report(check(target, revision), json)


def add(commands: Any) -> None:
    """Add the commands `push`, `pull` and `check`."""
    parser = add_command(commands, _push)
    add_options(parser, 'checkpoint')
    parser.add_argument('repo', help='OWNER/NAME on the Hub; created if it does not exist')
    add_options(parser, '--model', dest='architecture')
    add_options(parser, '--semantics', '--entry', '--prefix')
    add_options(parser, '--license', '--label-names', '--remote-code')
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
    add_options(parser, '--img-size')
    parser.add_argument('--mean', type=float, nargs='+', help='mean of each image channel')
    parser.add_argument('--std', type=float, nargs='+', help='standard deviation of each channel')
    parser.add_argument('--crop-pct', type=float, help='share of the image that the crop keeps')
    parser.add_argument('--interpolation', help='how images are resized: bilinear, bicubic, ...')
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
    add_options(parser, 'target', '--revision', '--json', '--debug')
