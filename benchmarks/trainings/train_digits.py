"""Train the embedded model `test_res2net_se.digits`; write its weights, demo images and figures.

    python -m benchmarks.trainings.train_digits

Data: scikit-learn's handwritten digits (`load_digits`, 1797 gray images of 8x8 pixels), enlarged by
the transform that timm makes from the model's cfg, so that any user of timm gets the same accuracy.
The held-out images are set apart first and used once, after training. Weights, images and README go
into a folder named as the result file; `--commit-results` renews those in the package.
"""

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.nn import functional as F

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.files import write_file

from ..script import Script

NAME = 'test_res2net_se'
FILE = f'{NAME}.digits.safetensors'
HELD_OUT = 360
WEIGHTS = Path(__file__).parents[2] / 'timm_res2net' / 'weights'


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and held-out images (N, 8, 8) uint8, training and held-out labels (N,)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return train_test_split(
        images, data.target, test_size=HELD_OUT, stratify=data.target, random_state=0
    )


def to_batch(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    """Apply timm's evaluation transform of a model to images (N, h, w) uint8.

    Returns:
        Images of the model's input size, (N, 3, H, W) float32.
    """
    transform = create_transform(**resolve_data_config({}, model=model))
    return torch.stack([transform(Image.fromarray(image).convert('RGB')) for image in images])


def accuracy(model: nn.Module, x: torch.Tensor, labels: np.ndarray) -> float:
    """Return the percentage of images (N, 3, H, W) whose top class is their label (N,)."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in x.split(256)])
    return 100 * float((predicted.numpy() == labels).mean())


def jitter(x: torch.Tensor) -> torch.Tensor:
    """Rotate each image (N, 3, H, W) by up to 10 degrees, zoom and shift it by up to 10 %."""
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
) -> None:
    """Train by AdamW with a one-cycle learning rate.

    Args:
        model: The model, from images to logits.
        x: Images (N, 3, H, W).
        labels: Classes (N,).
        steps: Number of optimizer steps.
        batch: Images a step.
    """
    y = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        pick = torch.randint(len(x), (batch,))
        loss = F.cross_entropy(model(jitter(x[pick])), y[pick], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


README = """\
# Weights in the package

`test_res2net_se.digits.safetensors`: the tiny model that works offline.

- Accuracy: {accuracy:.2f} % of {held_out} held-out images ({wrong} wrong).
- Data: scikit-learn's `load_digits` (1797 gray images of 8x8 pixels, the test part of the UCI set
  "Optical Recognition of Handwritten Digits"), split by `train_test_split(...,
  test_size={held_out}, stratify=labels, random_state=0)`: {train} training images, and {held_out}
  held-out images that were used once, after training.
- Made by, in a clone after `pip install '.[scripts]'`:
  `python -m benchmarks.trainings.train_digits --commit-results`
  (seed {seed}, {steps} steps, one thread).
- License: Apache-2.0, like the package.

`digits.png`: twenty of the held-out images in a row, 8x8 pixels each, with labels 0 to 9 twice.
"""


def main(argv: list[str] | None = None) -> None:
    """Train, and write weights, demo images, README and figures."""
    script = Script('trainings.train_digits', __doc__, 'sklearn')
    add = script.parser.add_argument
    add('--steps', type=int, default=1500, help='optimizer steps (default: %(default)s)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    args = script.parse(argv)
    folder = WEIGHTS if script.out == script.committed else script.out.with_suffix('')
    folder.mkdir(exist_ok=True)

    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
    torch.manual_seed(args.seed)
    model = timm.create_model(NAME)
    train_images, test_images, train_labels, test_labels = digits()
    train(model, to_batch(model, train_images), train_labels, args.steps)
    percent = accuracy(model, to_batch(model, test_images), test_labels)

    report = {
        'model': f'{NAME}.digits',
        'accuracy': percent,
        'held_out': HELD_OUT,
        'wrong': round(HELD_OUT * (1 - percent / 100)),
        'train': len(train_images),
        'seed': args.seed,
        'steps': args.steps,
    }
    picked = [np.flatnonzero(test_labels == digit)[k] for k in range(2) for digit in range(10)]
    note = {key: str(report[key]) for key in ('model', 'accuracy', 'held_out')}
    note['command'] = 'python -m benchmarks.trainings.train_digits'
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()}, metadata=note)
    strip = Image.fromarray(np.concatenate(test_images[picked], axis=1))
    write_file(folder / FILE, lambda file: file.write(weights))
    write_file(folder / 'digits.png', lambda file: strip.save(file, format='PNG', optimize=True))
    readme = README.format(**report).encode()
    write_file(folder / 'README.md', lambda file: file.write(readme))
    script.save(report)
    print(report)


if __name__ == '__main__':
    main()
