"""Measure the loss in accuracy by int8: ONNX Runtime's static quantization of an exported model.

    python -m benchmarks.quantize

The embedded digits model is deployed, exported to ONNX and quantized to int8 (weights by channel,
activations by tensor, both signed) with statistics of training images, then evaluated on the 360
held-out images. No larger model has weights in the package, and random weights do not tell how much
quantization a trained network bears.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.export import INPUT, export_model

from .script import Script
from .trainings.train_digits import NAME, digits, to_batch

CALIBRATION = 128  # images


def quantize(path: Path, out: Path, images: torch.Tensor) -> None:
    """Write an ONNX file as int8.

    Args:
        path: A file of `timm_res2net.export`.
        out: The file to write.
        images: Normalized images (N, C, H, W) that the ranges of activations are taken from.
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
    """Return the logits of an ONNX file, (N, num_classes), for images (N, C, H, W)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    parts = [session.run(None, {INPUT: part.numpy()})[0] for part in images.split(60)]
    return torch.from_numpy(np.concatenate(parts))


def sentence(report: dict[str, Any]) -> str:
    """Return the figures in one sentence."""
    (size, small), (before, after) = report['bytes'], report['accuracy']
    return (
        f'In int8 the digits model classifies {after:.1f} % of {report["held_out"]} images '
        f'correctly instead of {before:.1f} %; its logits differ by '
        f'{100 * report["error_rms"]:.1f} % (rms) and the file is × {small / size:.2f} as large.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('quantize', __doc__, 'onnx', 'onnxscript', 'onnxruntime', 'sklearn')
    script.parse(argv)
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
    script.save(report)


if __name__ == '__main__':
    main()
