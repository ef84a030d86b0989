"""`list`, `info`: the registered models."""

import argparse
import fnmatch
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
from timm.models import get_arch_pretrained_cfgs

from ..convert.published import COUNTS, PUBLISHERS, file_of
from ..folder.target import find_name
from ..layers.text import table
from .frame import Verbs, columns
from .options import add_json


class Row(NamedTuple):
    """A registered tag.

    Attributes:
        model: Name with its tag.
        params: Parameters.
        gmacs: Multiply-accumulates at the image size, in 1e9.
        image_size: Side of the image in px.
        top1: Published ImageNet-1k top-1 accuracy in percent; None if there is none.
        top1_source: Who published it.
        license: License of the weights.
        weights: Where they come from; None if no weights are published.
    """

    model: str
    params: int
    gmacs: float
    image_size: int
    top1: float | None
    top1_source: str | None
    license: str | None
    weights: str | None


def rows(pattern: str = '*') -> list[Row]:
    """Return a row for every tag whose name, with or without the tag, matches a glob."""
    found = []
    for name, counted in COUNTS.items():
        for full, cfg in get_arch_pretrained_cfgs(name).items():
            if not any(fnmatch.fnmatch(n, pattern) for n in (name, full)):
                continue
            file = file_of(full)
            top1 = file.top1 if file else None
            source = PUBLISHERS[file.by].figures if file else None
            hub = f'hf-hub:{cfg.hf_hub_id}' if cfg.hf_hub_id else None
            weights = hub or ('in the package' if cfg.file else str(cfg.url or '')) or None
            side = cfg.input_size[-1]
            found.append(Row(full, *counted, side, top1, source, cfg.license, weights))
    return found


def _short(weights: str) -> str:
    return weights.rpartition('/')[2] if weights.startswith('https:') else weights


HEADER = ('model', 'M', 'GMACs', 'top-1', 'license', 'published by', 'weights')
"""Columns of the table in hub_configs/README.md; `list` prints the first five."""
_IN_A_TERMINAL = 5
"""How many columns `timm-res2net list` prints: they fit 80 characters."""
_ORDERS: dict[str, Callable[[Row], Any]] = {
    'name': lambda row: row.model,
    'params': lambda row: row.params,
    'gmacs': lambda row: row.gmacs,
    'top1': lambda row: -(row.top1 or 0),  # the best first, those without at the end
}
"""What `--sort` sorts by."""


def cells_of(row: Row) -> tuple[str, ...]:
    """Return the cells of a row under `HEADER`."""
    return (
        row.model,
        f'{row.params / 1e6:.2f}',
        f'{row.gmacs:.2f}',
        '' if row.top1 is None else f'{row.top1:.2f}',
        row.license or '',
        row.top1_source or '',
        _short(row.weights or 'none published'),
    )


def _list(args: argparse.Namespace) -> int:
    licenses = {row.license for row in rows() if row.license}
    license = args.license and args.license.lower()  # identifiers are lower case
    if license is not None and license not in licenses:
        raise ValueError(
            f"No weights have license '{args.license}'. Use one of {', '.join(sorted(licenses))}."
        )
    is_glob = any(sign in args.filter for sign in '*?[')
    found = [
        row
        for row in rows(args.filter if is_glob else f'*{args.filter}*')
        if license in (None, row.license)
    ]
    if not found:
        licensed = f' with license {args.license}' if args.license else ''
        raise ValueError(
            f"No model matches '{args.filter}'{licensed}. `timm-res2net list` shows all models."
        )
    if args.sort:
        found.sort(key=_ORDERS[args.sort])
    if args.json:
        print(json.dumps([row._asdict() for row in found], indent=2))
    else:
        cells = [cells_of(row)[:_IN_A_TERMINAL] for row in found]
        print(table(HEADER[:_IN_A_TERMINAL], cells, columns()))
    return 0


def _describe(text: str) -> dict[str, Any]:
    """Return what is known of a model, of its default tag if none is named."""
    found = find_name(text)
    if found.architecture not in COUNTS:
        raise ValueError(
            f"'{text}' is a model of timm, not of timm_res2net. `timm.create_model` makes it."
        )
    of_name = rows(found.architecture)
    row = next(row for row in of_name if text in (found.architecture, row.model))
    cfg = found.cfg
    model: Any = timm.create_model(found.architecture, device='meta')
    paper_ids = (cfg.paper_ids,) if isinstance(cfg.paper_ids, str) else cfg.paper_ids
    return {
        **row._asdict(),
        'tags': [row.model.partition('.')[2] for row in of_name],
        'description': cfg.description,
        'notes': list(cfg.notes or ()),
        'input_size': list(cfg.input_size),
        'num_classes': cfg.num_classes,
        'feature_channels': [level['num_chs'] for level in model.feature_info],
        'feature_strides': [level['reduction'] for level in model.feature_info],
        'arguments': model.model_args,
        'paper': f'{cfg.paper_name}, {", ".join(paper_ids)}',
        'origin': cfg.origin_url,
    }


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
        'description': known['description'],
        'size': f'{size}{known["image_size"]} px, {known["num_classes"]} classes',
        'ImageNet top-1': known['top1'] and f'{known["top1"]} %, by {known["top1_source"]}',
        'weights': known['weights'] or 'none published',
        'license': known['license'],
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


def add(verbs: Verbs) -> None:
    """Add the verbs `list` and `info`."""
    parser = verbs.add(
        'list',
        _list,
        'list the models with parameters in millions, GMACs, published ImageNet top-1 and license',
        'timm-res2net list _se',
        "timm-res2net list 'res2net50_*.ssld*' --json",
        'timm-res2net list --license apache-2.0 --sort top1',
    )
    parser.add_argument(
        'filter',
        nargs='?',
        default='*',
        metavar='TEXT',
        help='part of the name, or a glob for the whole name, such as *_vd_*',
    )
    parser.add_argument('--license', metavar='ID', help='only weights with this license')
    parser.add_argument(
        '--sort', choices=_ORDERS, help='order by name, or by a figure, the best top1 first'
    )
    add_json(parser)
    parser = verbs.add(
        'info',
        _info,
        'show what is known of a model',
        'timm-res2net info res2net50_se',
        'timm-res2net info res2net50_vd_26w_4s.in1k --json',
    )
    parser.add_argument('model', metavar='NAME', help='registered name, with or without a tag')
    add_json(parser)
