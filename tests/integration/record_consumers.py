"""Record what libraries that are too heavy for CI make of a model.

    python -m venv consumers && consumers/bin/pip install '.[test]' fastai lightning captum
    consumers/bin/python -m tests.integration.record_consumers fastai lightning captum

    python -m venv mm && mm/bin/pip install '.[test]' setuptools \\
        mmpretrain==1.2.0 mmcv-lite==2.2.0 mmengine==0.10.7
    mm/bin/python -m tests.integration.record_consumers mmpretrain

README.md's code runs, and the network that it trained or built is compared with timm's, with the
same random weights (consumers.json). captum's DeepLift attributes a logit to the pixels of noise
(captum.json): the attributions must add up to the difference from the logit of a black image. Its
network has no SE, because DeepLift has no rule for a product of two activations.
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

FILE, CAPTUM = (Path(__file__).with_name(f'{name}.json') for name in ('consumers', 'captum'))
PACKAGES = {
    'fastai': ('fastai',),
    'lightning': ('lightning',),
    'mmpretrain': ('mmpretrain', 'mmengine', 'mmcv-lite'),
}
"""The packages whose versions are recorded."""
FORMS = {'plain': lambda model: model, 'deployed': reparameterize_model}


def code_of(name: str) -> str:
    """Return the code of README.md that imports a library."""
    page = FILE.with_name('README.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', page, re.S | re.M)
    return next(b for b in blocks if re.search(rf'^(import|from) {name}\b', b, re.M))


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of packages."""
    return {'python': platform.python_version(), **{name: version(name) for name in packages}}


def relative_error_of(library: str, names: dict) -> float:
    """Compare the features or logits that a library gets with those of timm's own model.

    Args:
        library: One of `PACKAGES`.
        names: What the code of README.md defines.
    """
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


def explained() -> dict[str, dict[str, float]]:
    """Return how far the attributions of each form of the model are off in sum."""
    from captum.attr import DeepLift

    found = {}
    for form, change in FORMS.items():
        model = change(randomise(timm.create_model(TINY, attn_layer='')).eval())
        x = image(4)
        attributed = DeepLift(model).attribute(x, torch.zeros_like(x), target=3).sum((1, 2, 3))
        with torch.no_grad():
            expected = model(x)[:, 3] - model(torch.zeros_like(x))[:, 3]
        found[form] = {'relative_error_of_sum': relative_error(attributed, expected)}
    return found


def main(libraries: list[str]) -> None:
    """Renew the entries of libraries."""
    record = json.loads(FILE.read_text())
    for name in libraries:
        if name == 'captum':
            used = versions('torch', 'timm', 'timm_res2net', 'captum')
            told = {'model': TINY, 'versions': used, 'forms': explained()}
            CAPTUM.write_text(json.dumps(told, indent=2) + '\n')
            continue
        names: dict = {}
        exec(compile(code_of(name), name, 'exec'), names)
        known = ('torch', 'torchvision', 'timm', 'timm_res2net', 'numpy', *PACKAGES[name])
        record[name] = {
            'command': f'python -m tests.integration.record_consumers {name}',
            'versions': versions(*known),
            'relative_error': relative_error_of(name, names),
            'code': code_of(name),
        }
        FILE.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
