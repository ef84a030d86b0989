"""Weights and files that several tests of this folder read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.common import FIXTURES
from timm_res2net.convert.engine import undo_rules
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.sources import SOURCES

LAYERS = (1, 2, 1, 1)  # of a network that has every kind of block
FLOAT32 = 2e-4  # the reference folds BatchNorm differently
V1B: dict[str, Any] = dict(stem_type='deep', stem_width=8, avg_down=True, down_kernel_size=1)


def without_counters(tensors) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if not key.endswith('num_batches_tracked')}


def undone(source: str, tensors) -> dict[str, torch.Tensor]:
    """A state dict as the source has it."""
    if not SOURCES[source].counts_batches:
        tensors = without_counters(tensors)
    return undo_rules(tensors, SOURCES[source].rules(tensors), source)


def recorded(file: str) -> dict:
    return json.loads((FIXTURES / file).read_text())


def refused(path: Path, *words: str) -> None:
    """Reading a file that is alone in its folder fails, with all of the words in the error."""
    with pytest.raises(ValueError) as error:
        _ = read_checkpoint(path).tensors
    text = str(error.value)
    assert text.startswith(f'Cannot read {path} as a checkpoint: ')
    assert {p.name for p in path.parent.iterdir()} == {path.name}  # no trap sprang
    assert not [word for word in words if word not in text], text
