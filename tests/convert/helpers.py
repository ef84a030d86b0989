"""Weights and files that several tests of this folder read."""

from pathlib import Path

import pytest
import timm
import torch

from tests.common import randomise
from timm_res2net.convert.files import read_checkpoint

FIXTURES = Path(__file__).parents[1] / 'fixtures'


def save(tensors, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def random_weights(name: str, **kwargs) -> dict[str, torch.Tensor]:
    return randomise(timm.create_model(name, **kwargs)).state_dict()


def tiny() -> dict[str, torch.Tensor]:
    return random_weights('test_res2net_se')


def zeros(weights) -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(value) for key, value in weights.items()}


class Trap:
    """A pickle that calls something as it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(path: Path, *words: str) -> str:
    """The error of reading a file that is alone in its folder, which has all of the words."""
    with pytest.raises(ValueError) as error:
        _ = read_checkpoint(path).tensors
    text = str(error.value)
    assert text.startswith(f'Cannot read {path} as a checkpoint: ')
    assert {p.name for p in path.parent.iterdir()} == {path.name}  # no trap sprang
    assert not [word for word in words if word not in text], text
    return text
