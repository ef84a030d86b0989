"""What the formats share: the model as they take it, free sizes, and the row of a format."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

INPUT = 'image'
"""Name of the input in every file."""

SMALLEST = 33
"""Smallest free side of an image in px. Below it the last level has one pixel, which torch.export
treats as a special case."""

Run = Callable[[torch.Tensor], Sequence[Any]]
"""Runs a file on images and returns its outputs."""


class Request(NamedTuple):
    """What a format writes.

    Attributes:
        subject: The exported program, or the model for a format that does not start from one.
        images: Images (B, in_chans, H, W) that it was exported with.
        step: The free sizes are multiples of this number of px; 0 if batch and size are fixed.
        outputs: Names of the outputs.
        meta: JSON text that goes into the file.
    """

    subject: Any
    images: torch.Tensor
    step: int
    outputs: list[str]
    meta: str


class Format(NamedTuple):
    """A format.

    Attributes:
        write: Called with a request and a path, it writes the file and returns how to run it.
        suffix: Suffix of the file's name.
        exports: Whether it starts from the program of torch.export.
        help: What it is, in a few words.
        packages: Packages that it needs, of the extra `export`.
        beside: Suffixes of further files that it writes beside the file.
        quantize: Called with a file, the path of a new one and NNCF's function, it writes the file
            in int8. None for a format that has no int8 form here.
        note: How to run the file, in a sentence.
    """

    write: Callable[[Request, Any], Run]
    suffix: str
    exports: bool
    help: str
    packages: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    quantize: Callable[[Any, Any, Callable[[Any], Any]], None] | None = None
    note: str = ''


class TupleOutput(nn.Module):
    """A model whose output is a tuple, whether the model returns a tensor or a list of features."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model on (B, in_chans, H, W)."""
        out = self.model(image)
        out = list(out.values()) if isinstance(out, dict) else out
        # torch 2.6 cannot trace a union of types here
        return tuple(out) if isinstance(out, (list, tuple)) else (out,)


def check_counts(**given: int | None) -> None:
    """Raise a ValueError if an argument is neither None nor a whole number of at least 1."""
    for name, value in given.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}.')


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Ignore torch's warning that TorchScript is deprecated, in the formats that trace a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
        warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
        yield


def dynamic_shapes(step: int) -> dict[str, dict[int, Any]]:
    """Return torch.export's description of a free batch and free sizes.

    Args:
        step: 1 for any size from `SMALLEST` px, or the number of px that sizes are multiples of.
    """
    dim = torch.export.Dim
    if step == 1:
        sizes = [dim(name, min=SMALLEST) for name in ('height', 'width')]
    else:
        sizes = [step * dim(f'{name}_over_{step}', min=2) for name in ('height', 'width')]
    return {INPUT: {0: dim('batch'), 2: sizes[0], 3: sizes[1]}}
