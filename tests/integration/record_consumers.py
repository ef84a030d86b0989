"""Run README.md's code under libraries that are too heavy for CI, and record the results.

Afterwards the network that the code trained or built is compared with timm's, with the same random
weights.

    python -m venv consumers && consumers/bin/pip install '.[test]' fastai lightning
    consumers/bin/python -m tests.integration.record_consumers fastai lightning

    python -m venv mm && mm/bin/pip install '.[test]' setuptools \\
        mmpretrain==1.2.0 mmcv-lite==2.2.0 mmengine==0.10.7
    mm/bin/python -m tests.integration.record_consumers mmpretrain
"""

import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import timm
import torch

from tests.common import image, randomise, relative_error

FILE = Path(__file__).with_name('consumers.json')
NAME = 'test_res2net_se'

# From the names that the code defines: what answers images, and the network of timm inside.
CONSUMERS = {
    'fastai': (
        lambda names: (names['learner'].model[0], names['learner'].model[0].model),
        ('fastai',),
    ),
    'lightning': (lambda names: (names['trainer'].model.model,) * 2, ('lightning',)),
    'mmpretrain': (
        lambda names: (names['model'].backbone, names['model'].backbone.timm_model),
        ('mmpretrain', 'mmengine', 'mmcv-lite'),
    ),
}
"""How each library keeps the network, and the packages whose versions are recorded."""


def code_of(name: str) -> str:
    """Return the code of README.md that imports a library."""
    blocks = re.findall(
        r'^```python\n(.*?)^```', FILE.with_name('README.md').read_text(), re.S | re.M
    )
    return next(b for b in blocks if re.search(rf'^(import|from) {name}\b', b, re.M))


def relative_error_of(answering: torch.nn.Module, network: torch.nn.Module) -> float:
    """Compare the features or logits that a library gets with those of timm's own model."""
    randomise(network)
    answering.eval()
    own = timm.create_model(NAME, num_classes=getattr(network, 'num_classes', 0)).eval()
    own.load_state_dict(network.state_dict())
    with torch.no_grad():
        answer = answering(image())
        answer = answer[-1] if isinstance(answer, list | tuple) else answer
        return relative_error(answer, (own if answer.ndim == 2 else own.forward_features)(image()))


def main() -> None:
    """Run the code of the libraries named, and renew their entries."""
    record = json.loads(FILE.read_text())
    for name in sys.argv[1:]:
        parts, packages = CONSUMERS[name]
        names: dict = {}
        exec(compile(code_of(name), name, 'exec'), names)
        known = ('torch', 'torchvision', 'timm', 'timm_res2net', 'numpy', *packages)
        record[name] = {
            'command': f'python -m tests.integration.record_consumers {name}',
            'versions': {'python': platform.python_version(), **{p: version(p) for p in known}},
            'relative_error': relative_error_of(*parts(names)),
            'code': code_of(name),
        }
        FILE.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    main()
