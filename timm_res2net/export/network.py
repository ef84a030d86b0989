"""The network that is exported: of a name, a folder or a repository, or a model in memory."""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import nn

from ..hub.fetch import load_model
from ..models.deploy import reparameterize_model

# The fields of a pretrained_cfg that go into the file
_DESCRIBING = (
    'architecture', 'tag', 'num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
    'label_names', 'license',
)  # fmt: skip


class Network(nn.Module):
    """A model whose output is a tuple, whether it returns a tensor, a list or a dict of tensors.

    Attributes:
        model: The model. Its `pretrained_cfg` has the size of its images, and as many channels in
            `input_size`, `mean` and `std` as the model takes.
        title: What it is called in messages.
        input_size: Channels, height and width of its images.
        outputs: Names of its outputs: those of the feature levels, or 'logits' alone.
        is_classifier: Whether it returns logits, rather than feature levels or the pooled last one.
    """

    def __init__(self, model: Any, title: str, img_size: int | None = None) -> None:
        """
        Args:
            model: The model. Its `pretrained_cfg` is changed.
            title: What it is called in messages.
            img_size: Side of the images in px; None for the size in the cfg.
        """
        super().__init__()
        _set_input_size(model, img_size)
        info = getattr(model, 'feature_info', None)
        self.model = model
        self.title = title
        self.input_size = tuple(model.pretrained_cfg['input_size'])
        self.outputs = list(info.module_name()) if isinstance(info, FeatureInfo) else ['logits']
        self.is_classifier = self.outputs == ['logits'] and getattr(model, 'num_classes', None) != 0

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model on (B, in_chans, H, W)."""
        out = self.model(image)
        out = list(out.values()) if isinstance(out, dict) else out
        # torch 2.6 cannot trace a union of types here
        return tuple(out) if isinstance(out, (list, tuple)) else (out,)

    def description(self, images: torch.Tensor) -> str:
        """Return the JSON text for a file: how images are prepared, and the classes.

        Args:
            images: Images (B, in_chans, H, W) to run the model on.

        Raises:
            ValueError: The model has other outputs than `outputs` names.
        """
        results: Sequence[Any] = self(images)
        if len(results) != len(self.outputs) or not all(map(torch.is_tensor, results)):
            raise ValueError(
                f'{self.title} returns {len(results)} outputs, and {", ".join(self.outputs)} can '
                'be exported. Pass a classifier, or a model that was created with '
                'features_only=True.'
            )
        original: Any = self.model.pretrained_cfg
        cfg = dict(original)
        if self.outputs == ['logits']:
            # the layers count, because a head may have been replaced
            cfg['num_classes'] = results[0].shape[-1] if self.is_classifier else 0
            if len(cfg.get('label_names') or ()) != cfg['num_classes']:
                cfg['label_names'] = None
        return json.dumps({key: cfg[key] for key in _DESCRIBING if cfg.get(key) is not None})


def load_network(
    target: nn.Module | str | os.PathLike[str],
    *,
    pretrained: bool = True,
    features: bool = False,
    out_indices: Sequence[int] | int = (),
    img_size: int | None = None,
    deploy: bool = False,
) -> Network:
    """Load a network, or copy a model from memory: in eval mode and float32, on the CPU.

    Arguments and errors are those of `export_model`.
    """
    if isinstance(target, nn.Module):
        model = _copy(target, features)
        title = type(model).__name__
    else:
        model = _load(target, pretrained, features, out_indices)
        title = str(target)
    if deploy:
        model = reparameterize_model(model)
    return Network(model, title, img_size).eval().requires_grad_(False)


def _load(
    target: str | os.PathLike[str],
    pretrained: bool,
    features: bool,
    out_indices: Sequence[int] | int,
) -> nn.Module:
    levels: dict[str, Any] = dict(features_only=True, out_indices=out_indices) if features else {}
    try:
        return load_model(target, pretrained, **levels)
    except (IndexError, AssertionError) as error:  # timm's errors for levels that do not exist
        raise ValueError(
            f'{target} has no feature levels {out_indices}. Use a network with five levels, such '
            'as a Res2Net.'
        ) from error


def _copy(model: nn.Module, features: bool) -> nn.Module:
    model = getattr(model, '_orig_mod', model)  # what torch.compile was given
    name = type(model).__name__
    cfg = getattr(model, 'pretrained_cfg', None)
    if not isinstance(cfg, Mapping) or 'input_size' not in cfg:
        raise ValueError(
            f'{name} has no pretrained_cfg that says which images it takes. Pass a model of timm, '
            'or set model.pretrained_cfg = {"input_size": (3, 224, 224)}.'
        )
    if features and not isinstance(getattr(model, 'feature_info', None), FeatureInfo):
        raise ValueError(
            f'{name} returns no feature levels. Create it with features_only=True, and leave '
            'features out.'
        )
    with torch.inference_mode(False):
        return copy.deepcopy(model).to('cpu', torch.float32)


def _set_input_size(model: Any, img_size: int | None) -> None:
    """Correct the images in the cfg of a model: timm keeps the channels of registered weights."""
    cfg = dict(model.pretrained_cfg)
    channels, height, width = cfg['input_size']
    weights = (weight for weight in model.parameters() if weight.ndim == 4)
    in_chans = next((weight.shape[1] for weight in weights), channels)
    if in_chans != channels:
        for key in ('mean', 'std'):  # statistics of colors, for another number of channels
            if cfg.get(key):
                cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * in_chans
    cfg['input_size'] = (in_chans, img_size or height, img_size or width)
    model.pretrained_cfg = cfg
