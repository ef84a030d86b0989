"""Command line: one function a verb; each imports what it needs."""

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__

__all__ = ['main']

# the names of `convert.SOURCES`, which is not imported for --help
_SOURCES = ('official', 'mmpretrain', 'mmdet', 'detectron2', 'paddle', 'article', 'timm')

# the names of `export.FORMATS`, likewise
_FORMATS = ('onnx', 'pt2', 'aoti', 'torchscript')


def _rows(pattern: str = '*') -> list[dict[str, Any]]:
    """A row for every model and tag of this package whose name, with or without tag, matches."""
    from timm.models import get_arch_pretrained_cfgs

    from ..models.figures import FIGURES

    rows = []
    for name, figures in FIGURES.items():
        for full_name, cfg in get_arch_pretrained_cfgs(name).items():
            if not any(fnmatch.fnmatch(n, pattern) for n in (name, full_name)):
                continue
            top1, source = figures.top1.get(cfg.tag or '') or (None, None)
            hub = f'hf-hub:{cfg.hf_hub_id}' if cfg.hf_hub_id else None
            rows.append(
                {
                    'model': full_name,
                    'params': figures.params,
                    'gmacs': figures.gmacs,
                    'image_size': cfg.input_size[-1],
                    'top1': top1,
                    'top1_source': source,
                    'license': cfg.license,
                    'weights': hub or (cfg.file and 'in the package') or cfg.url or None,
                }
            )
    return rows


def _list(args: argparse.Namespace) -> int:
    rows = _rows(args.filter)
    if not rows:
        raise ValueError(
            f"No model matches '{args.filter}'. `timm-res2net list` shows all of them."
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    from ..text import table

    cells = [
        (
            row['model'],
            f'{row["params"] / 1e6:.2f}',
            f'{row["gmacs"]:.2f}',
            '' if row['top1'] is None else f'{row["top1"]:.2f}',
            row['top1_source'] or '',
            row['license'] or '',
            (row['weights'] or 'none to fetch').rpartition('/dygraph/')[2],
        )
        for row in rows
    ]
    print(table(('model', 'M', 'GMACs', 'top-1', 'published by', 'licence', 'weights'), cells))
    return 0


def _describe(model_name: str) -> dict[str, Any]:
    """All that is known of a model, of its default tag when none is named."""
    import difflib

    import timm
    from timm.models import get_pretrained_cfg

    name, _, tag = model_name.partition('.')
    everything = _rows()
    of_name = [row for row in everything if row['model'].partition('.')[0] == name]
    rows = [row for row in of_name if model_name in (name, row['model'])]
    if not rows:
        if of_name:
            tags = ', '.join(row['model'].partition('.')[2] for row in of_name)
            raise ValueError(f"Model '{name}' has no tag '{tag}'. Use one of {tags}, or none.")
        known = {n for row in everything for n in (row['model'], row['model'].partition('.')[0])}
        close = difflib.get_close_matches(model_name.lower(), known, n=3, cutoff=0.4)
        remedy = f' Did you mean {", ".join(close)}?' if close else ''
        if timm.is_model(name):
            remedy = " It is timm's own: `timm.create_model` makes it."
        raise ValueError(
            f"'{model_name}' is not a model of timm_res2net.{remedy} `timm-res2net list` shows all "
            'of them.'
        )
    cfg: Any = get_pretrained_cfg(model_name)
    model: Any = timm.create_model(name, device='meta')
    return {
        **rows[0],
        'tags': [row['model'].partition('.')[2] for row in of_name],
        'description': cfg.description,
        'notes': list(cfg.notes or ()),
        'input_size': list(cfg.input_size),
        'num_classes': cfg.num_classes,
        'feature_channels': [level['num_chs'] for level in model.feature_info],
        'feature_strides': [level['reduction'] for level in model.feature_info],
        'arguments': model.model_args,
        'paper': f'{cfg.paper_name}, {", ".join(_several(cfg.paper_ids))}',
        'origin': cfg.origin_url,
    }


def _several(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _info(args: argparse.Namespace) -> int:
    known = _describe(args.model)
    if args.json:
        print(json.dumps(known, indent=2))
        return 0
    pretrained = ', pretrained=True' if known['weights'] else ''
    create = f"timm.create_model('{args.model}'{pretrained}"
    size = f'{known["params"] / 1e6:.2f} M parameters, {known["gmacs"]:.2f} GMACs at '
    lines = {
        'model': f'{known["model"]} (tags: {", ".join(known["tags"])})',
        'what': known['description'],
        'size': f'{size}{known["image_size"]} px, {known["num_classes"]} classes',
        'ImageNet top-1': known['top1'] and f'{known["top1"]} %, by {known["top1_source"]}',
        'weights': known['weights'] or 'none to fetch',
        'licence': known['license'],
        'notes': '\n'.join(known['notes']),
        'feature channels': known['feature_channels'],
        'feature strides': known['feature_strides'],
        'arguments': '\n'.join(f'{k}={v!r}' for k, v in known['arguments'].items()),
        'paper': known['paper'],
        'origin': known['origin'],
        'load': 'import timm, timm_res2net\n'
        f'model = {create})\n'
        f'neck = {create}, features_only=True, out_indices=(1, 2, 3, 4))',
    }
    for key, value in lines.items():
        if value:
            print(f'{key:<18}' + str(value).replace('\n', '\n' + ' ' * 18))
    return 0


def _demo(args: argparse.Namespace) -> int:
    import importlib.util

    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    _check_out(args.out)
    name = 'test_res2net_se'
    model = timm.create_model(name, pretrained=True).eval()
    strip = Image.open(Path(__file__).parents[1] / 'weights' / 'digits.png')
    size = strip.height
    images = [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width, size)]
    labels = [i % 10 for i in range(len(images))]
    transform = create_transform(**resolve_data_config({}, model=model))
    x = torch.stack([transform(image.convert('RGB')) for image in images])
    with torch.inference_mode():
        confidence, predicted = model(x).softmax(1).max(1)
    print(f'{name}, {sum(p.numel() for p in model.parameters()):,} parameters, offline')
    print('label      ' + ' '.join(f'{label:3d}' for label in labels))
    print('predicted  ' + ' '.join(f'{int(p):3d}' for p in predicted))
    print('sure of, % ' + ' '.join(f'{100 * float(c):3.0f}' for c in confidence))
    right = sum(int(p) == label for p, label in zip(predicted, labels, strict=True))
    print(f'{right} of {len(labels)} right')

    neck: Any = timm.create_model(name, pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        features = neck(x[:1])
    print(f'features_only=True on an image of {tuple(x[:1].shape)}:')
    for name, stride, feature in zip(
        neck.feature_info.module_name(), neck.feature_info.reduction(), features, strict=True
    ):
        print(f'  {name:<7} stride {stride:2d}  {tuple(feature.shape)}')

    if importlib.util.find_spec('matplotlib') is None:
        print('For a picture as well: pip install "timm-res2net[plots]"')
        return 0
    _draw_demo(args.out, images, labels, predicted.tolist(), [f[0].mean(0) for f in features])
    print(f'Picture written to {args.out}')
    return 0


def _draw_demo(
    out: Path, images: list[Any], labels: list[int], predicted: list[int], maps: list[Any]
) -> None:
    """Draw the predictions above the first image's feature maps, each the mean over channels."""
    from matplotlib.figure import Figure

    from ..files import write_file

    figure = Figure(figsize=(12, 5), layout='constrained')
    subfigures: Any = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    above, below = subfigures
    above.suptitle('test_res2net_se on held-out digits: predicted (label)')
    cells = above.subplots(2, len(images) // 2).flat
    for cell, image, label, guess in zip(cells, images, labels, predicted, strict=True):
        cell.imshow(image, cmap='gray')
        cell.set_title(f'{guess} ({label})', fontsize=9, color='k' if guess == label else 'r')
        cell.axis('off')
    below.suptitle('feature pyramid of the first one, mean over channels')
    for i, (cell, feature) in enumerate(zip(below.subplots(1, len(maps)), maps, strict=True)):
        height, width = feature.shape
        cell.imshow(feature.numpy())
        cell.set_title(f'stride {2 << i}: {height} x {width}', fontsize=9)
        cell.axis('off')
    write_file(out, lambda file: figure.savefig(file, format='png', dpi=110))


def _check_out(path: Path) -> None:
    from ..files import check_writable

    check_writable(path, replace=True)


def _run(args: argparse.Namespace) -> int:
    import runpy

    if not Path(args.script).is_file():
        text = f"There is no script '{args.script}'. Give the path of a Python file."
        print(f'timm-res2net run: {text}', file=sys.stderr)
        return 1
    # what `python SCRIPT ...` would set
    sys.argv = [args.script, *args.arguments]
    sys.path[0] = str(Path(args.script).resolve().parent)
    runpy.run_path(args.script, run_name='__main__')
    return 0


def _convert(args: argparse.Namespace) -> int:
    from ..checkpoint import MOVED, convert_checkpoint
    from ..text import table

    if args.out is None and not args.dry_run:
        raise ValueError('Name what to write with --out, or look only with --dry-run.')
    found = convert_checkpoint(
        args.source,
        args.out,
        source=args.layout,
        to=args.to,
        model=args.model,
        semantics=args.semantics,
        entry=args.entry,
        dry_run=args.dry_run,
    )
    known = {**found.summary(), 'out': None if args.dry_run else str(args.out)}
    if args.json:
        print(json.dumps(known, indent=2))
        return 0
    entry = f", entry '{known['file']['entry']}'" if known['file']['entry'] else ''
    print(f'{args.source}: {known["file"]["format"]}{entry}, layout {found.source}')
    print(
        f'{found.architecture}, block semantics {found.semantics}, {known["params"]:,} parameters, '
        f'{known["num_classes"] or "no"} classes'
    )
    print(table(MOVED, found.rows()))
    print(f'{len(found.moves)} tensors, none left over, no parameter without one.')
    if args.dry_run:
        print('Nothing was written.')
    elif args.to == 'timm':
        print(f"Written: timm.create_model('local-dir:{args.out}', pretrained=True)")
    else:
        print(f'Written to {args.out}')
    return 0


def _pairs(words: Sequence[str]) -> dict[str, float]:
    """`top1=78.3` and the like."""
    found = {}
    for word in words:
        key, _, value = word.partition('=')
        if not key:
            raise ValueError(f"'{word}' is no METRIC=NUMBER, such as top1=78.3.")
        if key in found:
            raise ValueError(f"'{key}' is given twice.")
        try:
            found[key] = float(value)
        except ValueError:
            raise ValueError(f"'{word}' is no METRIC=NUMBER, such as top1=78.3.") from None
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file of names."""
    try:
        lines = path.expanduser().read_text(encoding='utf-8-sig').rstrip().splitlines()
    except OSError as error:
        raise ValueError(
            f'Cannot read {path} ({error.strerror}). Give a text file with one class a line.'
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f'Cannot read {path} as UTF-8 ({error}). Save it as such.') from error
    names = [line.strip() for line in lines]
    if '' in names:
        raise ValueError(f'Line {names.index("") + 1} of {path} is empty. Give one class a line.')
    return names


def _push(args: argparse.Namespace) -> int:
    from ..hub import push_to_hub
    from ..text import table

    data = {
        key: getattr(args, key)
        for key in ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')
        if getattr(args, key) is not None
    }
    done = push_to_hub(
        args.source,
        args.repo,
        license=args.license,
        results=_pairs(args.eval),
        dataset=args.dataset,
        label_names=_lines(args.label_names) if args.label_names else None,
        data=data,
        architecture=args.model,
        semantics=args.semantics,
        entry=args.entry,
        revision=args.revision,
        private=args.private or None,
        commit_message=args.message,
        card=args.card,
        verify=args.verify,
        dry_run=args.dry_run,
    )
    rows = [
        (name, f'{size:,}', sha256, 'yes' if name in done.changed else 'no')
        for name, (size, sha256) in done.files.items()
    ]
    print(table(('file', 'bytes', 'sha256', 'changed'), rows))
    cfg, given = done.config['pretrained_cfg'], done.config.get('model_args', {})
    print(
        f'{done.config["architecture"]}, block semantics {given.get("semantics", "official")}, '
        f'{done.config["num_classes"]} classes, licence {cfg["license"]}'
    )
    for note in done.notes:
        print(note)
    if args.dry_run:
        print(f'\n{done.card}\nNothing was sent.')
        return 0
    if done.changed:
        print(f'Pushed to {done.url}, branch {done.revision}, commit {done.commit}')
    else:
        print(f'{done.url}, branch {done.revision}, has all of it already (commit {done.commit}).')
    if done.verified:
        print('Downloaded again: the same files.')
    at = '' if args.revision is None else f'@{args.revision}'
    print(f"timm.create_model('hf-hub:{done.repo}{at}', pretrained=True)")
    return 0


def _report(findings: Sequence[Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print('\n'.join(map(str, findings)))
    return int(any(finding.state == 'error' for finding in findings))


def _pull(args: argparse.Namespace) -> int:
    from ..hub import pull

    code = _report(pull(args.repo, args.out, args.revision), args.json)
    if not args.json:
        print(f"Written: timm.create_model('local-dir:{args.out}', pretrained=True)")
    return code


def _check(args: argparse.Namespace) -> int:
    from ..hub import check

    return _report(check(args.target, args.revision), args.json)


def _export(args: argparse.Namespace) -> int:
    from ..export import export_model

    done = export_model(
        args.model,
        args.out,
        args.format,
        features=args.features,
        deploy=args.deploy,
        static=args.static,
        img_size=args.img_size,
        batch_size=args.batch_size,
        pretrained=not args.random,
    )
    print(
        f'Written to {done.path}: image -> {", ".join(done.outputs)}; takes {done.sizes}.\n'
        f"Run and compared: at most {done.error:.1e} of the largest output off the model's."
    )
    return 0


def _show(args: argparse.Namespace) -> int:
    from ..show import show

    done = show(args.model, args.image, args.out, pretrained=not args.random)
    if args.random:
        print('With random weights:')
    for label, share in done.top:
        print(f'{100 * share:5.1f} %  {label}')
    for name, channels, height, width in done.levels:
        print(f'{name:<7} {channels} x {height} x {width}')
    print(f'Picture written to {done.path}')
    return 0


def _hub_configs(args: argparse.Namespace) -> int:
    from ..hub import write_hub_configs

    for folder in write_hub_configs(args.out):
        print(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='timm-res2net', description='Every public Res2Net for timm.'
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)

    def verb(
        name: str, handler: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=f'{text[0].upper()}{text[1:]}.',
            epilog=f'example:\n  {example}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        return sub

    sub = verb('list', _list, 'list the models and their weights', "timm-res2net list '*_se'")
    sub.add_argument('filter', nargs='?', default='*', help='glob for the names, such as *_vd_*')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = verb('info', _info, 'show all that is known of a model', 'timm-res2net info res2net50_se')
    sub.add_argument('model', help='name, with or without a tag')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = verb(
        'demo',
        _demo,
        'classify the bundled digits and show a feature pyramid, offline',
        'timm-res2net demo --out demo.png',
    )
    sub.add_argument(
        '--out',
        type=Path,
        default=Path('timm_res2net_demo.png'),
        help='picture to write, if matplotlib is installed (default: %(default)s)',
    )

    sub = verb(
        'convert',
        _convert,
        'make a checkpoint of another project a folder that timm loads, or the other way',
        'timm-res2net convert res2net50_26w_4s-06e79181.pth --out my_res2net\n'
        '  timm-res2net convert theirs.pth --dry-run --json\n'
        '  timm-res2net convert my_res2net --to mmpretrain --out my_res2net.pth',
    )
    sub.add_argument('source', metavar='SOURCE', help='checkpoint file, or folder of timm')
    sub.add_argument('--out', type=Path, metavar='DIR', help='folder to make (with --to, a file)')
    sub.add_argument('--model', metavar='NAME', help='its name, where shapes do not tell it')
    sub.add_argument('--semantics', metavar='NAME', help='its block semantics, likewise')
    sub.add_argument(
        '--from', dest='layout', choices=('auto', *_SOURCES), default='auto', help='whose layout'
    )
    sub.add_argument('--to', choices=_SOURCES, default='timm', help='layout to write')
    sub.add_argument('--entry', metavar='KEY', help='entry of the file that holds the weights')
    sub.add_argument('--dry-run', action='store_true', help='look and check, write nothing')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = verb(
        'push',
        _push,
        'push a checkpoint or folder to the Hugging Face Hub, with config and card',
        'timm-res2net push output/train/model_best.pth.tar me/my_res2net --license apache-2.0\n'
        '  timm-res2net push my_res2net me/my_res2net --eval top1=78.3 --dataset imagenet-1k',
    )
    sub.add_argument('source', metavar='SOURCE', help='checkpoint file, or folder of timm')
    sub.add_argument('repo', metavar='REPO', help='OWNER/NAME; made if there is none')
    sub.add_argument('--model', metavar='NAME', help='its name, where shapes do not tell it')
    sub.add_argument('--semantics', metavar='NAME', help='its block semantics, likewise')
    sub.add_argument('--entry', metavar='KEY', help='entry of the file that holds the weights')
    sub.add_argument('--license', metavar='ID', help='such as apache-2.0 or cc-by-nc-sa-4.0')
    sub.add_argument(
        '--eval',
        metavar='METRIC=NUMBER',
        nargs='+',
        action='extend',
        default=[],
        help='top1, top5 in percent, ...',
    )
    sub.add_argument('--dataset', metavar='NAME', help='what --eval was measured on')
    sub.add_argument(
        '--label-names', type=Path, metavar='FILE', help='names of the classes, one a line'
    )
    sub.add_argument('--img-size', type=int, metavar='PX', help='size of the image')
    sub.add_argument('--mean', type=float, nargs='+', metavar='M', help='mean of the channels')
    sub.add_argument('--std', type=float, nargs='+', metavar='S', help='their deviation')
    sub.add_argument('--crop-pct', type=float, metavar='SHARE', help='share of the center crop')
    sub.add_argument('--interpolation', metavar='KIND', help='bilinear, bicubic, ...')
    sub.add_argument('--revision', metavar='BRANCH', help='branch; made if there is none')
    sub.add_argument('--private', action='store_true', help='make the repository private')
    sub.add_argument('--message', metavar='TEXT', help='message of the commit')
    sub.add_argument(
        '--card', choices=('folder', 'hub'), help='whose words on the card stay where they differ'
    )
    sub.add_argument('--verify', action='store_true', help='download it again and compare')
    sub.add_argument('--dry-run', action='store_true', help='show what would be pushed')

    sub = verb(
        'pull',
        _pull,
        'fetch a model from the Hub into a folder, checked',
        'timm-res2net pull me/my_res2net --out my_res2net',
    )
    sub.add_argument('repo', metavar='REPO', help='OWNER/NAME, @REVISION may follow')
    sub.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to make')
    sub.add_argument('--revision', metavar='NAME', help='branch, tag or commit')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = verb(
        'check',
        _check,
        'look whether a model is whole: loadable, complete, safetensors, with a licence',
        'timm-res2net check me/my_res2net\n  timm-res2net check my_res2net --json',
    )
    sub.add_argument('target', metavar='REPO_OR_DIR', help='or a registered name')
    sub.add_argument('--revision', metavar='NAME', help='branch, tag or commit')
    sub.add_argument('--json', action='store_true', help='print JSON')

    sub = verb(
        'export',
        _export,
        'write a model for another runtime, and check the file by running it',
        'timm-res2net export res2net50_se --format onnx --out res2net50_se.onnx\n'
        '  timm-res2net export my_res2net --format onnx --features --out features.onnx\n'
        '  timm-res2net export me/my_res2net --format pt2 --deploy --out my_res2net.pt2',
    )
    sub.add_argument('model', metavar='MODEL', help='registered name, folder, or OWNER/NAME')
    sub.add_argument(
        '--format',
        choices=_FORMATS,
        default='onnx',
        help='onnx (ONNX Runtime, OpenVINO, ...), pt2 (torch.export), aoti (compiled by '
        'AOTInductor for this kind of machine), torchscript (a trace); default: %(default)s',
    )
    sub.add_argument('--out', type=Path, required=True, metavar='FILE', help='file to write')
    sub.add_argument(
        '--features', action='store_true', help='the levels of strides 4 to 32 in place of logits'
    )
    sub.add_argument(
        '--deploy',
        action='store_true',
        help='its deploy form: BatchNorms folded (of an HRNet those of its bottlenecks)',
    )
    sub.add_argument('--static', action='store_true', help='fix batch and size')
    sub.add_argument('--img-size', type=int, metavar='PX', help="side of the image; the model's")
    sub.add_argument('--batch-size', type=int, default=1, metavar='N', help='default: %(default)s')
    sub.add_argument('--random', action='store_true', help='with random weights')

    sub = verb(
        'show',
        _show,
        'draw what a model sees in an image: its levels, a block, the likeliest classes',
        'timm-res2net show test_res2net_se --out digit.png\n'
        '  timm-res2net show res2net50_se photo.jpg --out seen.png',
    )
    sub.add_argument('model', metavar='MODEL', help='registered name, folder, or OWNER/NAME')
    sub.add_argument(
        'image', metavar='IMAGE', nargs='?', type=Path, help='without: a digit of the package'
    )
    sub.add_argument('--out', type=Path, required=True, metavar='PNG', help='picture to write')
    sub.add_argument('--random', action='store_true', help='with random weights')

    sub = verb(
        'hub-configs',
        _hub_configs,
        'write config.json and card of every registered tag with weights',
        'timm-res2net hub-configs --out hub_configs',
    )
    sub.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to fill')

    sub = verb(
        'run',
        _run,
        "register the models, then run a script unchanged, such as timm's train.py",
        'timm-res2net run train.py DATA --model res2net50_se --pretrained\n'
        '  torchrun --nproc-per-node 4 -m timm_res2net run train.py DATA --model res2net50_se',
    )
    sub.add_argument('script', metavar='SCRIPT', help='Python file to run')
    sub.add_argument('arguments', metavar='...', nargs='*', help='passed on to the script')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments after the program's name; those of the process when None.

    Returns:
        The exit code: 0, or 1 after an error that was printed. Usage errors exit with 2, as
        argparse has it. What a script does under `run`, exceptions and exit codes included, is
        passed on.
    """
    argv = sys.argv[1:] if argv is None else argv
    rest = list(argv[2:] if tuple(argv[:2]) == ('run', '--') else argv[1:])
    if argv and argv[0] == 'run' and rest and not rest[0].startswith('-'):
        # past argparse, which would take some of the script's arguments for its own, and past the
        # error handling below: the script's errors are its own
        return _run(argparse.Namespace(script=rest[0], arguments=rest[1:]))
    args = _parser().parse_args(argv)
    try:
        code = args.handler(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # timm-res2net list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f'timm-res2net {args.verb}: interrupted. Run it again.', file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f'timm-res2net {args.verb}: {error}', file=sys.stderr)
        return 1
