"""Explain a model with captum's DeepLift, and record how exact the attributions are.

    python -m venv explain && explain/bin/pip install '.[test]' captum
    explain/bin/python -m tests.integration.record_captum

DeepLift attributes a logit of a network with random weights to the pixels of noise. The
attributions must add up to the difference from the logit of a black image. The network has no SE,
because DeepLift has no rule for a product of two activations.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import timm
import torch

from tests.common import image, randomise
from timm_res2net import reparameterize_model

FILE = Path(__file__).with_name('captum.json')
NAME = 'test_res2net_se'
FORMS = {'plain': lambda model: model, 'deployed': reparameterize_model}


def main() -> None:
    """Run DeepLift on each form, and write the record."""
    from captum.attr import DeepLift

    versions = {name: version(name) for name in ('torch', 'timm', 'timm_res2net', 'captum')}
    record = {'model': NAME, 'versions': {'python': platform.python_version(), **versions}}
    record['forms'] = {}
    for form, change in FORMS.items():
        model = change(randomise(timm.create_model(NAME, attn_layer='')).eval())
        x = image(4)
        attributed = DeepLift(model).attribute(x, torch.zeros_like(x), target=3).sum((1, 2, 3))
        with torch.no_grad():
            expected = model(x)[:, 3] - model(torch.zeros_like(x))[:, 3]
        error = (attributed - expected).detach().abs().max() / expected.abs().max()
        record['forms'][form] = {'relative_error_of_sum': float(error)}
    FILE.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main()
