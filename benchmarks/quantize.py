"""Measure what int8 costs: ONNX Runtime's static quantisation of an exported model.

    python -m benchmarks.quantize

The embedded digits model, exported as ONNX in its deploy form, is quantised to int8 (weights a
channel, activations a tensor, both signed) with statistics of training images, and looked at on the
360 held-out ones. Larger models have no weights that could be shipped, and random ones say nothing
about what a trained network bears.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.export import INPUT, export_model

from . import results
from .train_digits import NAME, digits, to_batch

__all__ = ['answers', 'main', 'quantize', 'sentence']

CALIBRATION = 128  # images


def quantize(path: Path, out: Path, images: torch.Tensor) -> None:
    """Write an int8 form of an ONNX file.

    Args:
        path: From `timm_res2net.export`.
        out: File to write.
        images: (N, C, H, W), normalized, which show how large activations get.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[torch.Tensor] = iter(images.split(16))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = out.with_suffix('.prepared.onnx')
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        out,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def answers(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Logits of an ONNX file, (N, num_classes)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    parts = [session.run(None, {INPUT: part.numpy()})[0] for part in images.split(60)]
    return torch.from_numpy(np.concatenate(parts))


def sentence(report: dict[str, Any]) -> str:
    """What the README says of it."""
    (size, small), (before, after) = report['bytes'], report['accuracy']
    return (
        f'the digits model then gets {after:.1f} % of {report["held_out"]} images right\n'
        f'instead of {before:.1f} %, with logits {100 * report["error_rms"]:.1f} % off (rms) and '
        f'a file × {small / size:.2f} as large'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parent / 'results' / 'quantize.json'
    )
    args = parser.parse_args(argv)
    results.check_writable(args.out)
    model: Any = timm.create_model(NAME, pretrained=True)
    train_images, test_images, _, labels = digits()
    calibration = to_batch(model, train_images[:CALIBRATION])
    images = to_batch(model, test_images)
    with tempfile.TemporaryDirectory() as made:
        plain, small = Path(made) / 'model.onnx', Path(made) / 'int8.onnx'
        export_model(NAME, plain, deploy=True)
        quantize(plain, small, calibration)
        expected, got = answers(plain, images), answers(small, images)
        sizes = [plain.stat().st_size, small.stat().st_size]
    error = got - expected
    right = [out.argmax(1) == torch.from_numpy(labels) for out in (expected, got)]
    report = {
        'model': NAME,
        'calibration': CALIBRATION,
        'held_out': len(images),
        'bytes': sizes,
        'accuracy': [round(100 * float(one.float().mean()), 2) for one in right],
        'error_rms': round(float(error.norm() / expected.norm()), 4),
        'error_max': round(float(error.abs().max() / expected.abs().max()), 4),
    }
    print(sentence(report))
    results.save_script(args.out, 'quantize', argv, report)


if __name__ == '__main__':
    main()
