"""`list`, `info`: the registered models."""

import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
from timm.models import get_arch_pretrained_cfgs

from ..convert import COUNTS, file_of
from ..folder.target import find_name
from .frame import Done, add_command, add_options, fitting_table


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
    matching = []
    for name, counted in COUNTS.items():
        for full, cfg in get_arch_pretrained_cfgs(name).items():
            if not any(fnmatch.fnmatch(n, pattern) for n in (name, full)):
                continue
            file = file_of(full)
            top1 = file.top1 if file else None
            source = file.figures if file else None
            weights = 'in the package' if cfg.file else str(cfg.url or '') or None
            if cfg.hf_hub_id:
                weights = f'hf-hub:{cfg.hf_hub_id}'
            side = cfg.input_size[-1]
            matching.append(Row(full, *counted, side, top1, source, cfg.license, weights))
    return matching


HEADER = ('model', 'M', 'GMACs', 'top-1', 'license', 'published by', 'weights')
"""Columns of the table in hub_configs/README.md; `list` prints the first five."""
_IN_A_TERMINAL = 5  # columns that fit 80 characters
_ORDERS: dict[str, Callable[[Row], Any]] = {
    'name': lambda row: row.model,
    'params': lambda row: row.params,
    'gmacs': lambda row: row.gmacs,
    'top1': lambda row: -(row.top1 or 0),  # the best first, those without at the end
}


def cells_of(row: Row) -> tuple[str, ...]:
    """Return the cells of a row under `HEADER`."""
    weights = row.weights or 'none published'
    return (
        row.model,
        f'{row.params / 1e6:.2f}',
        f'{row.gmacs:.2f}',
        '' if row.top1 is None else f'{row.top1:.2f}',
        row.license or '',
        row.top1_source or '',
        weights.rpartition('/')[2] if weights.startswith('https:') else weights,
    )


def _list(text: str = '*', license: str | None = None, sort: str | None = None) -> Done:
    """List the models with parameters in millions, GMACs, published ImageNet top-1 and license.

    timm-res2net list _se
    timm-res2net list 'res2net50_*.ssld*' --json
    timm-res2net list --license apache-2.0 --sort top1
    """
    matching = rows(text if set('*?[') & set(text) else f'*{text}*')
    licensed = ''
    if license is not None:
        licensed = f" with license '{license}'"
        matching = [row for row in matching if row.license == license.lower()]
    if not matching:
        raise ValueError(
            f"No model matches '{text}'{licensed}. `timm-res2net list` shows all models."
        )
    if sort:
        matching.sort(key=_ORDERS[sort])
    cells = [cells_of(row)[:_IN_A_TERMINAL] for row in matching]
    return Done(matching, fitting_table(HEADER[:_IN_A_TERMINAL], cells))


def _info(name: str) -> Done:
    """Show what is known of a model.

    timm-res2net info res2net50_se
    timm-res2net info res2net50_vd_26w_4s.in1k --json
    """
    architecture = name.partition('.')[0]
    cfg = find_name(name).cfg
    if architecture not in COUNTS:
        raise ValueError(
            f"'{name}' is a model of timm, not of timm_res2net. `timm.create_model` makes it."
        )
    tags = rows(architecture)
    row = next(row for row in tags if name in (architecture, row.model))
    model: Any = timm.create_model(architecture, device='meta')
    paper_ids = (cfg.paper_ids,) if isinstance(cfg.paper_ids, str) else cfg.paper_ids
    create = f"timm.create_model('{name}'{', pretrained=True' if row.weights else ''}"
    levels = model.feature_info
    facts: dict[str, Any] = {
        **row._asdict(),
        'tags': [row.model.partition('.')[2] for row in tags],
        'description': cfg.description,
        'notes': list(cfg.notes or ()),
        'input_size': list(cfg.input_size),
        'num_classes': cfg.num_classes,
        'feature_channels': [level['num_chs'] for level in levels],
        'feature_strides': [level['reduction'] for level in levels],
        'arguments': model.model_args,
        'paper': f'{cfg.paper_name}, {", ".join(paper_ids)}',
        'origin': cfg.origin_url,
        'load': f'import timm, timm_res2net\nmodel = {create})\n'
        f'neck = {create}, features_only=True, out_indices=(1, 2, 3, 4))',
    }
    told = {
        **facts,
        'params': f'{row.params / 1e6:.2f} M parameters',
        'arguments': '\n'.join(f'{key}={value!r}' for key, value in model.model_args.items()),
        'notes': '\n'.join(facts['notes']),
    }
    indented = {
        key: str(value).replace('\n', '\n' + ' ' * 18) for key, value in told.items() if value
    }
    text = '\n'.join(f'{key.replace("_", " "):<18}{value}' for key, value in indented.items())
    return Done(facts, text)


def add(commands: Any) -> None:
    """Add the commands `list` and `info`."""
    parser = add_command(commands, _list)
    text = 'part of the name, or a glob for the whole name, such as *_vd_*'
    parser.add_argument('text', nargs='?', default='*', help=text)
    add_options(parser, '--license')
    parser.add_argument(
        '--sort', choices=_ORDERS, help='order by name, or by a figure, the best top1 first'
    )
    add_options(parser, '--json', '--debug')
    parser = add_command(commands, _info)
    parser.add_argument('name', help='registered name, with or without a tag')
    add_options(parser, '--json', '--debug')
