"""Train with timm's own train.py on a CPU, and record what it saved and what became of it.

timm's packages do not contain the script, and neither does this project.
`timm-res2net run train.py` prints where to get it.

    python -m tests.integration.record_train train.py "v1.0.31 of timm's repository"
"""

import csv
import json
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

import timm_res2net

FILE = Path(__file__).with_name('train.json')
NAME = 'test_res2net_se'
COLORS = {'daisy': (220, 220, 210), 'rose': (190, 30, 50), 'violet': (90, 40, 200)}
RUN = f'-m timm_res2net run train.py data --model {NAME} --pretrained \
--num-classes {len(COLORS)} --device cpu --workers 0 --batch-size 8 --epochs 6 --warmup-epochs 0 \
--lr 0.02 --experiment one'
BEST = 'output/train/one/model_best.pth.tar'


def draw(folder: Path) -> None:
    """Write images of one color per class, each a little different, for training and validation."""
    generator = random.Random(0)
    for split, count in (('train', 16), ('validation', 4)):
        for name, color in COLORS.items():
            path = folder / split / name
            path.mkdir(parents=True)
            for i in range(count):
                shade = tuple(min(255, value + generator.randrange(35)) for value in color)
                Image.new('RGB', (64, 64), shade).save(path / f'{i}.png')


def train(folder: Path) -> dict[str, Any]:
    """Train, convert the best checkpoint, check it, and predict an image of each class."""

    def call(words: str) -> str:
        command = [sys.executable, *words.split()]
        return subprocess.run(command, cwd=folder, stdout=-1, text=True, check=True).stdout

    call(RUN)
    with open(folder / 'output/train/one/summary.csv') as file:
        top1 = [round(float(row['eval_top1']), 2) for row in csv.DictReader(file)]
    names = '--label-names data/train --license mit --json'
    converted = json.loads(call(f'-m timm_res2net convert {BEST} --out mine {names}'))
    checked = json.loads(call('-m timm_res2net check mine --json'))
    images = ' '.join(f'data/validation/{name}/0.png' for name in COLORS)
    lines = call(f'-m timm_res2net predict mine {images} --json').splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        'command': f'python {RUN}',
        'top1': top1,
        'converted': {
            'entry': converted['notes']['entry'],
            'architecture': converted['config']['architecture'],
            'num_classes': converted['config']['num_classes'],
            'tensors': len(converted['notes']['moved']),
        },
        'check': sorted({finding['state'] for finding in checked}),
        'predicted': {
            row['image'].removeprefix('data/validation/'): row['top'][0]['class'] for row in rows
        },
    }


def main(script: str, taken_from: str) -> None:
    """Train and write the record."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / 'train.py').write_text(Path(script).read_text())
        draw(folder / 'data')
        training = train(folder)
        # trusted: the script has just written it
        saved = torch.load(folder / BEST, weights_only=False)
    versions = {m.__name__: m.__version__ for m in (torch, timm, timm_res2net)}
    record = {
        'script': taken_from,
        'versions': {'python': platform.python_version(), **versions},
        'classes': list(COLORS),
        'training': training,
        'arguments': {k: type(v).__name__ for k, v in sorted(vars(saved['args']).items())},
    }
    FILE.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
