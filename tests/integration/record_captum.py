"""Explain a model with captum's DeepLift, and record how exact the attributions are.

    python -m venv explain && explain/bin/pip install '.[test]' captum
    explain/bin/python -m tests.integration.record_captum

DeepLift attributes a logit of a network with random weights to the pixels of noise. The
attributions must add up to the difference from the logit of a black image. `--commit-results`
renews captum.json beside this file.
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
from timm_res2net import reparameterize_model
from timm_res2net.files import require

HERE = Path(__file__).parent
NAME = 'test_res2net_se'
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    'plain': lambda model: model,
    'deployed': reparameterize_model,
}


def explain(form: Callable[[nn.Module], nn.Module]) -> dict[str, float]:
    """Attribute a logit, in a form of the network without SE.

    DeepLift has no rule for a product of two activations.
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


def main() -> None:
    """Run DeepLift and write the record."""
    parser = argparse.ArgumentParser(
        prog='python -m tests.integration.record_captum',
        description=__doc__.partition('\n')[0],
        allow_abbrev=False,
    )
    add_out(parser, 'recorded/captum.json', HERE / 'captum.json')
    args = parser.parse_args()
    try:
        require('test', 'pytest')
        if importlib.util.find_spec('captum') is None:
            raise ValueError('captum is not installed. Run pip install captum')
    except ValueError as error:
        parser.exit(1, f'{parser.prog}: {error}\n')
    versions = {name: version(name) for name in ('torch', 'timm', 'timm_res2net', 'captum')}
    found = {
        'model': NAME,
        'versions': {'python': platform.python_version(), **versions},
        'forms': {kind: explain(form) for kind, form in FORMS.items()},
    }
    print(json.dumps(found, indent=2))
    file: Path = args.out
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + '\n')
    print(f'Written to {file}.')


if __name__ == '__main__':
    main()
