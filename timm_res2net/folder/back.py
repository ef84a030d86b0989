"""The way back: a model's tensors under the keys of another project."""

from typing import Any

import torch
from torch import nn

from ..convert.engine import COUNTER, undo_rules
from ..convert.find import infer_arguments
from ..convert.sources import SOURCES
from ..layers.text import sentence
from ..models.hrnet_res2net import HighResolutionRes2Net
from .model import Model


def back(model: Model, to: str) -> dict[str, torch.Tensor]:
    """Return a model's tensors under the keys of another project.

    Args:
        model: The model.
        to: The project, one of `timm_res2net.convert.sources.SOURCES`.

    Raises:
        ValueError: The project's code computes another network.
    """
    source = SOURCES[to]
    tensors = model.net.state_dict()
    what = f'{model.notes.file} cannot be written as {to}'
    if isinstance(model.net, HighResolutionRes2Net):
        raise ValueError(f'{what}: it is an HRNet, and only timm has HRNets.')
    unusual = _unusual(model.net)
    if unusual:
        raise ValueError(f'{what}: {to} cannot express its {", ".join(unusual)}.')
    arguments = {**infer_arguments(tensors), 'semantics': model.config.semantics}
    reason = source.refuse(arguments)
    if reason:
        raise ValueError(sentence(f'{what}: {reason}'))
    if not source.counts_batches:
        tensors = {key: value for key, value in tensors.items() if not key.endswith(COUNTER)}
    try:
        return undo_rules(tensors, source.rules(tensors.keys()), to)
    except ValueError as error:
        raise ValueError(sentence(f'{what}: {error}')) from error


def _unusual(model: Any) -> list[str]:
    """Return non-default arguments that cannot be read from keys or shapes."""
    norms = [m for m in model.modules() if 'norm' in type(m).__name__.lower()]
    usual = {
        'act_layer': type(model.act1) is nn.ReLU,
        'norm_layer': all(type(norm) is nn.BatchNorm2d for norm in norms),
        'aa_layer or replace_stem_pool': type(model.maxpool) is nn.MaxPool2d,
        'global_pool': model.global_pool.pool_type == 'avg',
        'output_stride': model.feature_info[-1]['reduction'] == 32,
    }
    return [name for name, is_usual in usual.items() if not is_usual]
