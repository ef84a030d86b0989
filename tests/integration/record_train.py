"""Train with timm's own train.py on a CPU, and record what it saved and what became of it.

timm's packages do not contain the script, and neither does this project.
`timm-res2net run train.py` prints where to get it.

    python -m tests.integration.record_train train.py --taken-from "v1.0.31 of timm's repository"

`--commit-results` renews train.json beside this file.
"""

import argparse
import csv
import json
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

import timm_res2net
from benchmarks.script import add_out

HERE = Path(__file__).parent
NAME = 'test_res2net_se'
SCRIPT = 'train.py'
COLORS = {'daisy': (220, 220, 210), 'rose': (190, 30, 50), 'violet': (90, 40, 200)}

RUN = f'python -m timm_res2net run {SCRIPT} data --model {NAME} --pretrained \
--num-classes {len(COLORS)} --device cpu --workers 0 --batch-size 8 --epochs 6 --warmup-epochs 0 \
--lr 0.02 --experiment one'


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


def call(command: str, folder: Path) -> str:
    """Run a command in a folder and return what it printed."""
    first, *words = shlex.split(command)
    start = {
        'python': [sys.executable],
        'timm-res2net': [sys.executable, '-m', 'timm_res2net'],
    }[first]
    done = subprocess.run([*start, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{command} failed:\n{done.stderr}')
    return done.stdout


def train(command: str, folder: Path) -> dict[str, Any]:
    """Train, convert the best checkpoint, check it, and predict an image of each class."""
    call(command, folder)
    output = folder / 'output' / 'train' / command.split()[-1]
    with open(output / 'summary.csv') as file:
        top1 = [round(float(row['eval_top1']), 2) for row in csv.DictReader(file)]
    made = f'my_flowers-{output.name}'
    best = (output / 'model_best.pth.tar').relative_to(folder)
    converted = json.loads(
        call(
            f'timm-res2net convert {best} --out {made} --label-names data/train --license mit '
            '--json', folder,
        )
    )  # fmt: skip
    checked = json.loads(call(f'timm-res2net check {made} --json', folder))
    images = ' '.join(f'data/validation/{name}/0.png' for name in COLORS)
    rows = json.loads(call(f'timm-res2net predict {made} {images} --json', folder))
    return {
        'command': command,
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


def main() -> None:
    """Train and write the record."""
    parser = argparse.ArgumentParser(
        prog='python -m tests.integration.record_train',
        description=(__doc__ or '').splitlines()[0],
    )
    parser.add_argument('script', type=Path, help="timm's train.py")
    parser.add_argument(
        '--taken-from', required=True, metavar='TEXT', help='which version of the script it is'
    )
    add_out(parser, 'recorded/train.json', HERE / 'train.json')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copy(args.script, folder / SCRIPT)
        draw(folder / 'data')
        training = train(RUN, folder)
        # trusted: the script has just written it
        path = folder / 'output' / 'train' / 'one' / 'model_best.pth.tar'
        saved = torch.load(path, weights_only=False)
    record = {
        'script': args.taken_from,
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'timm': timm.__version__,
            'timm_res2net': timm_res2net.__version__,
        },
        'classes': list(COLORS),
        'training': training,
        'entries': {key: type(value).__name__ for key, value in saved.items()},
        'arguments': {
            key: type(value).__name__ for key, value in sorted(vars(saved['args']).items())
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + '\n')
    print(f'Written to {args.out}.')


if __name__ == '__main__':
    main()
