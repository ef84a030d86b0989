"""Pure functions that change the form of layers and weights, but not what they compute."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrize
from torchvision.ops import FrozenBatchNorm2d

from .text import list_some


def check_layers(model: nn.Module, what: str) -> None:
    """Check that the parameters of a model are all that its layers compute with.

    Args:
        model: Any module.
        what: What is refused otherwise, the beginning of the error's sentence.

    Raises:
        ValueError: Weights are sharded; or a layer has a LoRA adapter or a weight that is computed
            from others (pruning, weight norm, spectral norm and other parametrizations of
            `torch.nn.utils`). It is named, with the call that removes it.
    """
    if {'DTensor', 'FlatParameter'} & {type(weight).__name__ for weight in model.parameters()}:
        raise ValueError(
            f'{what}, because its weights are sharded. Call get_model_state_dict(model, options='
            'StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict, '
            'and load the result into a model that is not sharded.'
        )
    for name, layer in model.named_modules():
        which = repr(name) if name else 'the model'
        if isinstance(getattr(layer, 'base_layer', None), nn.Conv2d | nn.Linear):
            raise ValueError(
                f'{what}, because {which} has an adapter. Call merge_and_unload() of peft first.'
            )
        # pruning and the norms of `torch.nn.utils` keep what they compute as a plain attribute
        if parametrize.is_parametrized(layer) or {'weight', 'bias'} & vars(layer).keys():
            raise ValueError(
                f'{what}, because {which} computes a weight from other parameters. Call '
                'remove_parametrizations, prune.remove, remove_weight_norm or remove_spectral_norm '
                'of torch.nn.utils first.'
            )


def check_fusible(model: nn.Module, what: str) -> None:
    """Check that layers can be replaced by others that compute the same from their parameters.

    Weights must be finite: oneDNN's ReLU turns NaN into 0, so that a deployed model would give a
    plausible answer.

    Args:
        model: Any module. Whether tensors on the meta device and of other classes are finite is not
            checked.
        what: What is refused otherwise, the beginning of the error's sentence.

    Raises:
        ValueError: As `check_layers`; or a layer has a forward that was replaced or a quantized
            weight; or tensors are not finite, or a BatchNorm would take the root of a negative
            variance.
    """
    check_layers(model, what)
    for name, layer in model.named_modules():
        which = repr(name) if name else 'the model'
        if 'forward' in vars(layer):
            raise ValueError(
                f'{what}, because {which} has a forward that was replaced. Call `del '
                'layer.forward` first, and replace it again.'
            )
        if isinstance(layer, nn.Conv2d) and type(layer.weight) is not nn.Parameter:
            raise ValueError(
                f'{what}, because {which} has a weight of type {type(layer.weight).__name__}. '
                'Quantize the model afterwards.'
            )
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
