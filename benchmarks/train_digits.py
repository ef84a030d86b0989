"""Train the embedded model `test_res2net_se.digits` and write its weights, its demo images and its
report.

    python -m benchmarks.train_digits

Data: scikit-learn's handwritten digits (`load_digits`, 1797 grey images of 8x8), enlarged by the
transform that timm makes from the model's own cfg, so that any user of timm gets the same accuracy.
The held-out images are set apart first and looked at once, after training.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.nn import functional as F

import timm_res2net

from .results import write

NAME = 'test_res2net_se'
FILE = f'{NAME}.digits.safetensors'
HELD_OUT = 360
ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / 'timm_res2net' / 'weights'


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, held-out images (N, 8, 8) uint8, training labels, held-out labels."""
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return train_test_split(
        images, data.target, test_size=HELD_OUT, stratify=data.target, random_state=0
    )


def to_batch(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    """Images (N, 8, 8) uint8 through timm's evaluation transform of the model, (N, 3, H, W)."""
    transform = create_transform(**resolve_data_config({}, model=model))
    return torch.stack([transform(Image.fromarray(image).convert('RGB')) for image in images])


def accuracy(model: nn.Module, x: torch.Tensor, labels: np.ndarray) -> float:
    """Percent of images whose top class is their label."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in x.split(256)])
    return 100 * float((predicted.numpy() == labels).mean())


def jitter(x: torch.Tensor) -> torch.Tensor:
    """Rotate by up to 10 degrees, zoom by up to 10 % and shift by up to 10 %, each its own way."""
    n = len(x)
    angle = (torch.rand(n) * 2 - 1) * (10 * torch.pi / 180)
    zoom = 1 + (torch.rand(n) * 2 - 1) * 0.1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * zoom
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * zoom, angle.sin() * zoom
    theta[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * 0.2  # of the half width
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode='border', align_corners=False)


def train(
    model: nn.Module, x: torch.Tensor, labels: np.ndarray, steps: int, batch: int = 64
) -> list[float]:
    """AdamW with a one-cycle learning rate; returns the loss of every step."""
    y = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    losses = []
    model.train()
    for _ in range(steps):
        pick = torch.randint(len(x), (batch,))
        loss = F.cross_entropy(model(jitter(x[pick])), y[pick], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


README = """\
# Weights in the package

`test_res2net_se.digits.safetensors`: the tiny model that works offline.

- Accuracy: {accuracy:.2f} % of {held_out} held-out images ({wrong} wrong).
- Data: scikit-learn's `load_digits` (1797 grey images of 8x8, the test part of the UCI set "Optical
  Recognition of Handwritten Digits"), split by `train_test_split(..., test_size={held_out},
  stratify=labels, random_state=0)`: {train} images to train, {held_out} held out and looked at
  once, after training.
- Made by: `python -m benchmarks.train_digits` (seed {seed}, {steps} steps; torch {torch},
  timm {timm}, one thread).
- Licence: Apache-2.0, as the package.

`digits.png`: twenty of the held-out images in a row, 8x8 pixels each, the labels 0 to 9 and again
0 to 9.
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--weights', type=Path, default=WEIGHTS, help='folder for weights, images and README'
    )
    parser.add_argument(
        '--json', type=Path, default=ROOT / 'benchmarks' / 'results' / 'train_digits.json'
    )
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # sums in one order: a seed gives the same weights on one machine
    torch.manual_seed(args.seed)
    started = time.time()
    model = timm.create_model(NAME)
    train_images, test_images, train_labels, test_labels = digits()
    losses = train(model, to_batch(model, train_images), train_labels, args.steps)
    percent = accuracy(model, to_batch(model, test_images), test_labels)

    report = {
        'model': f'{NAME}.digits',
        'accuracy': percent,
        'held_out': HELD_OUT,
        'wrong': round(HELD_OUT * (1 - percent / 100)),
        'train': len(train_images),
        'params': sum(p.numel() for p in model.parameters()),
        'seed': args.seed,
        'steps': args.steps,
        'loss_first_50': float(np.mean(losses[:50])),
        'loss_last_50': float(np.mean(losses[-50:])),
        'seconds': round(time.time() - started),
        'torch': torch.__version__.split('+')[0],
        'timm': timm.__version__,
        'timm_res2net': timm_res2net.__version__,
        'python': platform.python_version(),
        'command': 'python -m benchmarks.train_digits',
    }
    picked = [np.flatnonzero(test_labels == digit)[k] for k in range(2) for digit in range(10)]
    args.weights.mkdir(parents=True, exist_ok=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        weights, strip = Path(folder, 'w.safetensors'), Path(folder, 's.png')
        note = {key: str(report[key]) for key in ('model', 'accuracy', 'held_out', 'command')}
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()}, weights, metadata=note
        )
        Image.fromarray(np.concatenate(test_images[picked], axis=1)).save(strip, optimize=True)
        write(args.weights / FILE, weights.read_bytes())
        write(args.weights / 'digits.png', strip.read_bytes())
    write(args.weights / 'README.md', README.format(**report).encode())
    write(args.json, (json.dumps(report, indent=2) + '\n').encode())
    json.dump(report, sys.stdout, indent=2)


if __name__ == '__main__':
    main()
