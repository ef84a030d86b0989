"""Quantize and explain a model with tools that keep one record for each module, and record it.

    python -m venv tools && tools/bin/pip install '.[test]' torchao==0.18.0 captum
    tools/bin/python -m tests.integration.record_tools

PyTorch's own quantization (PT2E, torchao's X86 quantizer) makes the digits model of
`benchmarks.trainings` int8, with the ranges of training images, and is compared with float32 on the
held-out images. captum's DeepLift attributes a logit to the pixels of noise; the attributions must
add up to the difference from the logit of a black image. `--commit-results` renews tools.json
beside this file.
"""

import argparse
import importlib.util
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.script import add_out
from benchmarks.trainings.train_digits import NAME, accuracy, digits, to_batch
from timm_res2net import align_widths, reparameterize_model
from timm_res2net.export.measure import quantize_program
from timm_res2net.extras import require

HERE = Path(__file__).parent
CALIBRATION = 128  # images
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    'plain': lambda model: model,
    'deployed': reparameterize_model,
    'aligned and deployed': lambda model: reparameterize_model(align_widths(model, 8)),
}


def quantize(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return the int8 form of a model, with the ranges that activations have for images."""
    sizes = ({0: torch.export.Dim('batch')},)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=sizes)
    return quantize_program(program, images.split(16))


def torchao(form: Callable[[nn.Module], nn.Module]) -> dict[str, float]:
    """Compare int8 with float32 on the held-out digits."""
    model = timm.create_model(NAME, pretrained=True).eval()
    train_images, images, _, labels = digits()
    calibration, x = to_batch(model, train_images[:CALIBRATION]), to_batch(model, images)
    with torch.no_grad():
        expected = model(x)
        small = quantize(form(model), calibration)
        found = small(x)
    same = found.argmax(1) == expected.argmax(1)
    right = found.argmax(1) == torch.from_numpy(labels)
    return {
        'error_rms': round(float((found - expected).norm() / expected.norm()), 4),
        'same_answers_percent': round(100 * float(same.float().mean()), 2),
        'accuracy_percent': round(100 * float(right.float().mean()), 2),
        'accuracy_percent_float32': round(accuracy(model, x, labels), 2),
    }


def captum(form: Callable[[nn.Module], nn.Module]) -> dict[str, float]:
    """Attribute a logit of a network with random weights.

    Without SE: DeepLift has no rule for a product of two activations.
    """
    from captum.attr import DeepLift

    from tests.common import image, randomise

    model = form(randomise(timm.create_model(NAME, attn_layer='')).eval())
    x = image(4)
    found = DeepLift(model).attribute(x, torch.zeros_like(x), target=3)
    with torch.no_grad():
        expected = model(x)[:, 3] - model(torch.zeros_like(x))[:, 3]
    error = found.sum((1, 2, 3)) - expected
    return {'relative_error_of_sum': float(error.detach().abs().max() / expected.abs().max())}


TOOLS = {'torchao': torchao, 'captum': captum}


def main() -> None:
    """Run the tools and write the record."""
    parser = argparse.ArgumentParser(
        prog='python -m tests.integration.record_tools',
        description=__doc__.partition('\n')[0],
        allow_abbrev=False,
    )
    add_out(parser, 'recorded/tools.json', HERE / 'tools.json')
    args = parser.parse_args()
    missing = [name for name in TOOLS if not importlib.util.find_spec(name)]
    try:
        require('This script', 'test', 'sklearn', 'pytest')
        if missing:
            raise ValueError(
                f'Not installed: {", ".join(missing)}. Run pip install torchao==0.18.0 captum'
            )
    except ValueError as error:
        parser.exit(1, f'{parser.prog}: {error}\n')
    found = {}
    for name, run in TOOLS.items():
        known = ('torch', 'timm', 'timm_res2net', name)
        found[name] = {
            'model': NAME,
            'versions': {'python': platform.python_version(), **{p: version(p) for p in known}},
            'forms': {kind: run(form) for kind, form in FORMS.items()},
        }
        print(name, json.dumps(found[name], indent=2))
    file: Path = args.out
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + '\n')
    print(f'Written to {file}.')


if __name__ == '__main__':
    main()
