"""Res2Net for timm: importing this package registers its models with timm's model registry.

>>> import timm, timm_res2net
>>> model = timm.create_model('res2net50_se', pretrained=True)
"""

__version__ = '0.1.0'  # before the imports, which use it

from . import hrnet_res2net as hrnet_res2net  # registers its models
from .bottle2neck import Bottle2neck as Bottle2neck
from .checkpoints import convert_checkpoint as convert_checkpoint
from .detection import detection_backbone as detection_backbone
from .hub import push_to_hub as push_to_hub
from .reparam import align_widths as align_widths
from .reparam import reparameterize_model as reparameterize_model
from .res2net_zoo import Res2Net as Res2Net
