"""Code that exists only for older versions of timm, huggingface_hub and torch.

Every entry names the version from which it can go, that is, the lowest version that must be
supported before the entry is removed and its callers are simplified.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# The error of huggingface_hub's HTTP library: of requests before huggingface_hub 1.0, of httpx
# before 2.0, of httpx2 since. It can go with 2.0: then import it from httpx2.
from huggingface_hub.errors import HTTPError as HTTPError
from torch.torch_version import TorchVersion

# --- torch ----------------------------------------------------------------------------------------

SIZES_COMPARED = TorchVersion(torch.__version__) >= '2.14'
"""Whether `torch.load` refuses a tensor that claims more bytes than the file has for it.

It can go with torch 2.14, the lowest version that was seen to do so. Files are mapped into memory
with older ones, where such a tensor cannot reach beyond the file.
"""

# --- timm ----------------------------------------------------------------------------------------


def drop_block_of(block: Any) -> Any:
    """Return the DropBlock layer of a Res2Net block, None if it has no such attribute.

    timm's own block has the attribute since timm 1.0.31: from then on, use `block.drop_block`.
    """
    return getattr(block, 'drop_block', None)


def has_intermediates(model: Any) -> bool:
    """Return whether a model, or a class of models, has `forward_intermediates`.

    timm's HRNet has it since timm 1.0.31: from then on, every model of this package does.
    """
    return hasattr(model, 'forward_intermediates')


def complete_head(model: Any) -> None:
    """Set the layers of an HRNet's head that it does not have to None, so that the model runs.

    It can go with timm 1.0.31. timm 1.0.22 looks for `downsamp_modules` with `head='incre'`, where
    it does not set it.
    """
    for name in ('downsamp_modules', 'final_layer'):
        if not hasattr(model, name):
            setattr(model, name, None)


def keep_in_chans(model: Any, in_chans: int) -> None:
    """Store the number of image channels as an attribute of a model.

    timm's ResNet and HRNet store it themselves since timm 1.0.26.
    """
    model.in_chans = in_chans


def hrnet_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of HRNet's table of stages.

    Before timm 1.0.31, HRNet writes its arguments into the table, which all its models share.
    """
    return dict(cfg)


_HRNET_ARGUMENTS = (
    'num_classes', 'global_pool', 'drop_rate', 'head', 'head_conv_bias', 'device', 'dtype',
    'feature_location', 'out_indices',
)  # fmt: skip


def check_hrnet_arguments(cfg: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that timm's HRNet does not have.

    timm refuses them itself since timm 1.0.31.

    Args:
        cfg: HRNet's table of stages, whose entries may be given as arguments.
        arguments: Arguments by name.

    Raises:
        TypeError: An unknown argument.
    """
    unknown = sorted(arguments.keys() - {*cfg, *_HRNET_ARGUMENTS})
    if unknown:
        raise TypeError(
            f'An HRNet has no argument {", ".join(unknown)}. Use {", ".join(_HRNET_ARGUMENTS)}, or '
            'an entry of its cfg.'
        )


def knows_attn(name: str) -> bool:
    """Return whether timm has an attention layer of this name.

    timm has coord, scoord, ela and strip since timm 1.0.24: from then on, it has every name that
    this package asks for.
    """
    from timm.layers import get_attn

    try:
        return get_attn(name) is not None
    except AssertionError:
        return False


def drop_first_conv(cfg: dict[str, Any]) -> None:
    """Remove `first_conv` from the cfg of a model whose images do not have 3 channels.

    It can go with timm 1.0.31. timm 1.0.22 takes the named convolution for one of 3 channels and
    initializes its weights again.
    """
    cfg.pop('first_conv', None)


def local_dir_overlay(weights: Path) -> dict[str, Any]:
    """Return the `pretrained_cfg_overlay` that makes a `local-dir:` model load a file.

    It can go with timm 1.0.26, which looks for safetensors in such a folder itself.
    """
    return {'source': 'file', 'file': str(weights)}
