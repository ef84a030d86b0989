"""Res2Net for timm: importing this package registers its models with timm's model registry.

>>> import timm, timm_res2net
>>> model = timm.create_model('res2net50_se', pretrained=True)
"""

__version__ = '0.1.0'  # before the imports, which use it

from .checkpoint import convert_checkpoint as convert_checkpoint
from .deploy import align_widths as align_widths
from .deploy import reparameterize_model as reparameterize_model
from .detection import detection_backbone as detection_backbone
from .hub import push_to_hub as push_to_hub
from .layers.bottle2neck import Bottle2neck as Bottle2neck
from .models import hrnet_res2net as hrnet_res2net
from .models.res2net_zoo import Res2Net as Res2Net
