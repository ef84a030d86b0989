"""Weights and files that several tests of this folder read."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.common import image, randomise, relative_error
from timm_res2net.convert.files import read_checkpoint

FIXTURES = Path(__file__).parents[1] / 'fixtures'
LAYERS = (1, 2, 1, 1)  # of a network that has every kind of block
FLOAT32 = 2e-4  # the references fold BatchNorm differently
LEVELS: dict[str, Any] = {'features_only': True, 'out_indices': (1, 2, 3, 4)}


def network(seed: int = 1, **kwargs) -> Any:
    """A narrow network with random weights and statistics."""
    return randomise(timm.create_model('test_res2net_se', **kwargs), seed).eval()


def tiny() -> dict[str, torch.Tensor]:
    return network().state_dict()


def without_counters(tensors) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if not key.endswith('num_batches_tracked')}


def assert_levels(model: Any, reference: nn.Module) -> None:
    """Two networks give the same at each of four levels."""
    with torch.no_grad():
        for got, expected in zip(model(image(4)), reference(image(4)), strict=True):
            assert relative_error(got, expected) < FLOAT32


def recorded(file: str) -> dict:
    return json.loads((FIXTURES / file).read_text())


class Trap:
    """A pickle that calls something as it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(path: Path, *words: str) -> None:
    """Reading a file that is alone in its folder fails, with all of the words in the error."""
    with pytest.raises(ValueError) as error:
        _ = read_checkpoint(path).tensors
    text = str(error.value)
    assert text.startswith(f'Cannot read {path} as a checkpoint: ')
    assert {p.name for p in path.parent.iterdir()} == {path.name}  # no trap sprang
    assert not [word for word in words if word not in text], text
