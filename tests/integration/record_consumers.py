"""Record what libraries that are too heavy for CI make of a model.

    python -m venv consumers && consumers/bin/pip install '.[test]' fastai lightning captum
    consumers/bin/python -m tests.integration.record_consumers fastai lightning captum

    python -m venv mm && mm/bin/pip install '.[test]' setuptools \\
        mmpretrain==1.2.0 mmcv-lite==2.2.0 mmengine==0.10.7
    mm/bin/python -m tests.integration.record_consumers mmpretrain

README.md's code runs, and the network that it trained or built is compared with timm's, with the
same random weights (consumers.json). What captum's DeepLift attributes to the pixels of noise is
compared in sum with the difference from the logit of a black image, for the model and its deploy
form.
"""

import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import timm
import torch

from tests.common import TINY, image, randomise, relative_error
from timm_res2net import reparameterize_model

FILE = Path(__file__).with_name('consumers.json')
PACKAGES = {
    'fastai': ('fastai',),
    'lightning': ('lightning',),
    'mmpretrain': ('mmpretrain', 'mmengine', 'mmcv-lite'),
    'captum': ('captum',),
}
"""The packages whose versions are recorded."""


def code_of(name: str) -> str:
    """Return the code of README.md that imports a library."""
    page = FILE.with_name('README.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', page, re.S | re.M)
    return next(b for b in blocks if re.search(rf'^(import|from) {name}\b', b, re.M))


def relative_error_of(library: str, names: dict) -> float:
    """Compare what a library gets with timm's own model, and attributions with logits.

    Args:
        library: One of `PACKAGES`.
        names: What the code of README.md defines.
    """
    if library == 'captum':
        model = randomise(names['model'])
        return max(error_of_sum(form) for form in (model, reparameterize_model(model)))
    if library == 'fastai':
        answering = names['learner'].model[0]
        network = answering.model
    elif library == 'lightning':
        answering = network = names['trainer'].model.model
    else:
        answering = names['model'].backbone
        network = answering.timm_model
    randomise(network)
    answering.eval()
    own = timm.create_model(TINY, num_classes=getattr(network, 'num_classes', 0)).eval()
    own.load_state_dict(network.state_dict())
    with torch.no_grad():
        answer = answering(image())
        answer = answer[-1] if isinstance(answer, list | tuple) else answer
        return relative_error(answer, (own if answer.ndim == 2 else own.forward_features)(image()))


def error_of_sum(model: torch.nn.Module) -> float:
    """Return how far the attributions of DeepLift are off in sum."""
    from captum.attr import DeepLift

    x = image(4)
    attributed = DeepLift(model).attribute(x, torch.zeros_like(x), target=3).sum((1, 2, 3))
    with torch.no_grad():
        expected = model(x)[:, 3] - model(torch.zeros_like(x))[:, 3]
    return relative_error(attributed, expected)


def main(libraries: list[str]) -> None:
    """Renew the entries of libraries."""
    record = json.loads(FILE.read_text())
    for name in libraries:
        names: dict = {}
        exec(compile(code_of(name), name, 'exec'), names)
        used = ('torch', 'torchvision', 'timm', 'timm_res2net', 'numpy', *PACKAGES[name])
        record[name] = {
            'command': f'python -m tests.integration.record_consumers {name}',
            'versions': {'python': platform.python_version(), **{p: version(p) for p in used}},
            'relative_error': relative_error_of(name, names),
            'code': code_of(name),
        }
        FILE.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
