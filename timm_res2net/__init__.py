"""Res2Net for timm: importing this package registers its models with timm's model registry.

>>> import timm, timm_res2net
>>> model = timm.create_model('test_res2net_se', pretrained=True)
"""

from .detection import detection_backbone
from .drawing import show
from .export import export_model, load_exported
from .files import VERSION as __version__  # noqa: F401 as every package has it
from .folder import convert_checkpoint
from .hub import check, pull, push_to_hub
from .layers.bottle2neck import Bottle2neck
from .layers.semantics import SEMANTICS
from .models import hrnet_res2net  # noqa: F401 registers its models
from .models.deploy import reparameterize_model
from .models.res2net_zoo import Res2Net
from .prediction import predict

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
