"""Write config.json and card of every tag with weights, and the tables of models and files."""

import argparse
from pathlib import Path

import timm
from timm.models import get_arch_pretrained_cfgs

from timm_res2net.cli.models import HEADER, cells_of, rows
from timm_res2net.convert import COUNTS, FILES
from timm_res2net.folder.card import of_tag
from timm_res2net.folder.config import CONFIG
from timm_res2net.folder.folder import CARD
from timm_res2net.layers.text import table

HERE = Path(__file__).parent
CONVERT = Path('../timm_res2net/convert/README.md')

_README = """# Models

Every model that timm_res2net registers; `timm-res2net list` prints the first five columns. `M` is
parameters in millions. GMACs are multiply-accumulates at 224 px (64 px for the test model), in 1e9.
Top-1 is the ImageNet-1k accuracy in percent that the named publisher gives; timm_res2net has not
measured it. timm's own nine `res2net*` and `res2next50` models stay as they are.

| in a name | meaning |
| --- | --- |
| `26w_4s` | base width 26, scale 4: 4 splits of 26 channels at 64 planes |
| `d` | deep stem of three 3x3 convolutions, average pooling in the shortcuts; the authors' v1b |
| `vd` | PaddleClas's network of that kind, with `paddle` semantics |
| `v1d` | MMDetection's name for it, with `mmdet` semantics |
| `pd`, `ms` | weights of PaddleClas (`paddle` semantics) and of MindCV |
| `se` | squeeze-and-excitation in every block |
| `ssld` | PaddleClas's distilled weights |
| `se_identity` | weights of the plain network with SE gates that start at the identity: fc2 is zero, so that a gate is sigmoid(0) = 1/2, and bn3 is doubled. Outputs equal the plain network's bit for bit until the gates learn |

{table}

Each folder holds `config.json` and the model card of a tag that has weights. This file and the
folders are written by `python hub_configs/generate.py`.
"""
_IN_A_PRODUCT = {'apache-2.0': 'yes', 'unknown': 'ask the publisher'}


def published_table() -> str:
    """Return the Markdown table of all published files."""
    rows = [
        (
            f'[{file.file}]({file.url})',
            file.accuracy,
            file.license,
            file.by,
            ', '.join(f'`{tag}`' for tag in file.tags) or '`convert`',
        )
        for file in FILES
    ]
    return table(('file', 'published accuracy', 'license', 'by', 'load with'), rows)


def licenses_table() -> str:
    """Return the Markdown table of the licenses of published files, and of what names them."""
    rows = dict.fromkeys(
        (
            file.by,
            file.license,
            file.license_source,
            (file.accuracy and file.figures) or 'none published',
            _IN_A_PRODUCT[file.license],
        )
        for file in FILES
    )
    return table(('by', 'license', 'named by', 'accuracies from', 'in a product'), rows)


def with_tables(readme: str) -> str:
    """Return the README of convert with its two tables between their markers."""
    for name, text in (('published', published_table()), ('licenses', licenses_table())):
        start, end = f'<!-- {name} -->\n\n', f'\n\n<!-- end of {name} -->'
        before, _, rest = readme.partition(start)
        readme = f'{before}{start}{text}{end}{rest.partition(end)[2]}'
    return readme


def generate() -> dict[str, str]:
    """Return the text of every generated file, by its path from this folder."""
    texts = {'README.md': _README.format(table=table(HEADER, map(cells_of, rows())))}
    for name in COUNTS:
        for full, cfg in get_arch_pretrained_cfgs(name).items():
            if cfg.has_weights:
                net = timm.create_model(full, device='meta', num_classes=cfg.num_classes).eval()
                model = of_tag(net)
                texts[f'{full}/{CONFIG}'] = model.config.to_json()
                texts[f'{full}/{CARD}'] = model.card
    texts[CONVERT.as_posix()] = with_tables((HERE / CONVERT).read_text(encoding='utf-8'))
    return texts


def compare(texts: dict[str, str]) -> list[str]:
    """Return the paths of files that are missing, outdated, or not generated any more."""
    there = {
        path.relative_to(HERE).as_posix(): path.read_text(encoding='utf-8')
        for pattern in ('README.md', '*.*/*')
        for path in HERE.glob(pattern)
    }
    there[CONVERT.as_posix()] = (HERE / CONVERT).read_text(encoding='utf-8')
    return sorted(path for path in texts.keys() | there if texts.get(path) != there.get(path))


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(prog='python hub_configs/generate.py', description=__doc__)
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit with 1 if a file is outdated'
    )
    args = parser.parse_args()
    texts = generate()
    outdated = compare(texts)
    for path in outdated:
        print(path)
        if args.check:
            continue
        (HERE / path).parent.mkdir(exist_ok=True)
        if path in texts:
            (HERE / path).write_text(texts[path], encoding='utf-8')
        else:
            (HERE / path).unlink()
    return int(args.check and bool(outdated))


if __name__ == '__main__':
    raise SystemExit(main())
