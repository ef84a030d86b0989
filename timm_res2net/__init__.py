"""Res2Net for timm: importing this package registers its models with timm's model registry.

>>> import timm, timm_res2net
>>> model = timm.create_model('test_res2net_se', pretrained=True)
"""

import importlib
from typing import TYPE_CHECKING, Any

from .detection import detection_backbone
from .drawing import show
from .files import VERSION as __version__  # noqa: F401 as every package has it
from .layers.bottle2neck import Bottle2neck
from .layers.semantics import SEMANTICS
from .models import hrnet_res2net  # noqa: F401 registers its models
from .models.deploy import reparameterize_model
from .models.res2net_zoo import Res2Net
from .prediction import predict

if TYPE_CHECKING:
    from .export import export_model, load_exported
    from .folder import convert_checkpoint
    from .hub import check, pull, push_to_hub

__all__ = [
    'SEMANTICS',
    'Bottle2neck',
    'Res2Net',
    'check',
    'convert_checkpoint',
    'detection_backbone',
    'export_model',
    'load_exported',
    'predict',
    'pull',
    'push_to_hub',
    'reparameterize_model',
    'show',
]

# Functions that need most of the package, by module. They are imported when they are first used, so
# that registering the models stays quick.
_ON_USE = {
    'check': 'hub',
    'convert_checkpoint': 'folder',
    'export_model': 'export',
    'load_exported': 'export',
    'pull': 'hub',
    'push_to_hub': 'hub',
}


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f'.{_ON_USE[name]}', __name__), name)
    globals()[name] = value
    return value
