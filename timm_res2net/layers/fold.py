"""Pure functions that change the form of layers and weights, but not what they compute."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrize
from torchvision.ops import FrozenBatchNorm2d

from .text import list_some


def check_fusible(model: nn.Module, what: str) -> None:
    """Check that layers can be replaced by others that compute the same from their parameters.

    Weights must be finite: oneDNN's ReLU turns NaN into 0, so that a deployed model would give a
    plausible answer.

    Args:
        model: Any module. Whether tensors on the meta device and of other classes are finite is not
            checked.
        what: What is refused otherwise, the beginning of the error's sentence.

    Raises:
        ValueError: A layer has a LoRA adapter, a forward that was replaced, or a weight that is
            quantized or computed from others (pruning, weight norm, spectral norm and other
            parametrizations of `torch.nn.utils`). It is named, with the remedy. Or tensors are not
            finite, or a BatchNorm would take the root of a negative variance.
    """
    for name, layer in model.named_modules():
        problem = _find_problem(layer)
        if problem:
            raise ValueError(f'{what}, because {f"{name!r}" if name else "the model"} {problem}')
    bad = []
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            # quantized tensors do not know isfinite
            if tensor.is_meta or type(tensor) not in (torch.Tensor, nn.Parameter):
                continue
            if tensor.is_floating_point() and not tensor.isfinite().all():
                bad.append(name)
            elif name.endswith('.running_var'):
                norm: Any = model.get_submodule(name.removesuffix('.running_var'))
                if (tensor + norm.eps).min() <= 0:
                    bad.append(name)
    if bad:
        raise ValueError(
            f'{what}, because weights hold NaN or infinity, or a variance is negative '
            f'({list_some(bad)}). Load weights that are finite.'
        )


def _find_problem(layer: nn.Module) -> str:
    """Return why a layer does more than its parameters say, with the remedy, or ''."""
    if isinstance(getattr(layer, 'base_layer', None), nn.Conv2d):
        return 'has an adapter. Call merge_and_unload() of peft first.'
    if 'forward' in vars(layer):
        return (
            'has a forward that was replaced. Call `del layer.forward` first, and replace it again.'
        )
    # pruning and the norms of `torch.nn.utils` keep what they compute as a plain attribute
    if parametrize.is_parametrized(layer) or {'weight', 'bias'} & vars(layer).keys():
        return (
            'computes a weight from other parameters. Call remove_parametrizations, prune.remove, '
            'remove_weight_norm or remove_spectral_norm of torch.nn.utils first.'
        )
    if isinstance(layer, nn.Conv2d) and type(layer.weight) is not nn.Parameter:
        return f'has a weight of type {type(layer.weight).__name__}. Quantize the model afterwards.'
    return ''


def folds(norm: nn.Module) -> bool:
    """Return whether a norm is an affine map in inference, so that a convolution can include it."""
    # Compare exact types: subclasses may do more, for example timm's BatchNormAct2d.
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    return type(norm) is nn.Identity or (known and norm.running_mean is not None)


def fold_conv(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """Return a new convolution that includes the norm after it (arXiv:1712.05877, section 3.2).

    The weights are folded in float64 and rounded once. They keep the dtype, device and memory
    format of `conv.weight`, and its `requires_grad`.

    Args:
        conv: Convolution. It is not changed.
        norm: Norm for which `folds` is true. It is not changed.
    """
    folded = copy.deepcopy(conv)
    if not isinstance(norm, nn.Identity):
        wide = torch.float32 if conv.weight.device.type == 'mps' else torch.float64  # MPS has none
        norm = copy.deepcopy(norm).to(wide).eval()
        folded = fuse_conv_bn_eval(folded.to(wide).eval(), norm).to(conv.weight.dtype)
        folded.bias.requires_grad_(conv.weight.requires_grad)  # type: ignore[union-attr]
    return folded.train(conv.training)
