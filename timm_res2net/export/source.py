"""What is exported: the model of a name, a folder or a repository, or a model in memory."""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.models import FeatureInfo
from torch import nn

from ..hub.load import load_model

# The fields of a pretrained_cfg that go into the file
_DESCRIBING = (
    'architecture', 'tag', 'num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
    'label_names', 'license',
)  # fmt: skip


class Source(NamedTuple):
    """What is exported.

    Attributes:
        model: The model in eval mode, in float32 on the CPU. It is never the caller's.
        name: What the model is called in messages.
        outputs: Names of its outputs.
        input_size: Channels, height and width of its images.
    """

    model: nn.Module
    name: str
    outputs: list[str]
    input_size: list[int]

    @property
    def is_classifier(self) -> bool:
        """Whether it answers with a class: neither feature levels nor the pooled last one."""
        return self.outputs == ['logits'] and getattr(self.model, 'num_classes', 1) != 0


def take(
    target: nn.Module | str | os.PathLike[str],
    pretrained: bool,
    img_size: int | None,
    features: bool,
    out_indices: Sequence[int] | int,
) -> Source:
    """Load a model, or copy one from memory; arguments and errors as in `export_model`."""
    if isinstance(target, nn.Module):
        model, name = _copy(target, features), type(target).__name__
    else:
        model, name = _load(target, pretrained, features, out_indices), str(target)
    info = getattr(model, 'feature_info', None)
    outputs = list(info.module_name()) if isinstance(info, FeatureInfo) else ['logits']
    _describe_channels(model)
    cfg: Any = model.pretrained_cfg
    size = list(cfg['input_size'])
    if img_size is not None:
        size[1:] = [img_size, img_size]
    return Source(model.eval().requires_grad_(False), name, outputs, size)


def _load(
    target: str | os.PathLike[str],
    pretrained: bool,
    features: bool,
    out_indices: Sequence[int] | int,
) -> nn.Module:
    levels: dict[str, Any] = dict(features_only=True, out_indices=out_indices) if features else {}
    try:
        return load_model(target, pretrained, **levels)
    except (IndexError, AssertionError) as error:  # timm's errors for levels that are not there
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


def _describe_channels(model: Any) -> None:
    """Correct the channels in the cfg of a model. timm keeps those of the registered weights."""
    cfg = model.pretrained_cfg
    weights = (weight for weight in model.parameters() if weight.ndim == 4)
    channels = next((weight.shape[1] for weight in weights), cfg['input_size'][0])
    if channels == cfg['input_size'][0]:
        return
    changed: dict[str, Any] = {'input_size': (channels, *cfg['input_size'][1:])}
    for key in ('mean', 'std'):  # statistics of colors, for another number of channels
        if cfg.get(key):
            changed[key] = (sum(cfg[key]) / len(cfg[key]),) * channels
    model.pretrained_cfg = {**cfg, **changed}


def describe(source: Source, found: Sequence[Any]) -> str:
    """Return the JSON text for the file.

    Args:
        source: The model.
        found: Its outputs for some images.

    Raises:
        ValueError: They are not those that `source` names.
    """
    if len(found) != len(source.outputs) or not all(isinstance(t, torch.Tensor) for t in found):
        raise ValueError(
            f'{source.name} returns {len(found)} outputs, and {", ".join(source.outputs)} can be '
            'exported. Pass a classifier, or a model that was created with features_only=True.'
        )
    known: Any = source.model.pretrained_cfg
    cfg = dict(known)
    if source.outputs == ['logits']:
        # the layers count, because a head may have been replaced
        cfg['num_classes'] = found[0].shape[-1] if source.is_classifier else 0
        if len(cfg.get('label_names') or ()) != cfg['num_classes']:
            cfg['label_names'] = None
    cfg['input_size'] = source.input_size
    return json.dumps({key: cfg[key] for key in _DESCRIBING if cfg.get(key) is not None})
