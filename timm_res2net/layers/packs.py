"""The packed weights of a convolution: a copy for each layout that oneDNN asks for."""

import math
import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch

TRUSTED = 8
"""Number of known sizes from which the layout of another size is inferred."""
REMEMBERED = 1024
"""Largest number of input shapes whose layout is remembered; each takes about 200 bytes, because
equal layouts are one object."""


class Key(NamedTuple):
    """What the layout of packed weights depends on.

    Attributes:
        batch: Images.
        size: Pixels of the input for a 1x1 convolution of stride 1, otherwise height and width.
        threads: Threads of torch.
    """

    batch: int
    size: tuple[int, ...]
    threads: int


def infer_layout(known: Iterable[tuple[int, bytes]], pixels: int) -> bytes | None:
    """Infer the layout for a number of pixels from known ones, without asking oneDNN.

    In most layers the layout changes at one number of pixels at most; then a number between two
    with the same layout has that layout, too. In other layers layouts alternate, and nothing is
    inferred.

    Args:
        known: Numbers of pixels with their layouts.
        pixels: A number of pixels.

    Returns:
        The layout, or None if the known ones do not tell it.
    """
    ordered = sorted(known)
    if len(ordered) < TRUSTED or not ordered[0][0] < pixels < ordered[-1][0]:
        return None
    if sum(a != b for (_, a), (_, b) in pairwise(ordered)) > 1:
        return None
    below = [layout for number, layout in ordered if number <= pixels][-1]
    above = next(layout for number, layout in ordered if number >= pixels)
    return below if below == above else None


_FIELDS = ((4, 108), (112, 316), (320, 420), (424, 616))
"""Bytes of oneDNN's memory descriptor from `ndims` to `inner_idxs`, and padding between them. After
them come the unused rest of a union and `extra`, which weights of floating point do not use."""


def without_padding(descriptor: bytes, numbers: int) -> bytes:
    """Return the fields of a memory descriptor of oneDNN 3 that tell its layout.

    C leaves the padding between them uninitialized, so that equal layouts could look different.

    Args:
        descriptor: A dnnl_memory_desc_t.
        numbers: How many numbers the weight has. If the descriptor's dims have another product, its
            form is not known, and it is returned as it is.
    """
    if len(descriptor) < _FIELDS[-1][1]:
        return descriptor
    rank, *dims = struct.unpack_from('=i12q', descriptor, 4)
    if math.prod(dims[:rank]) != numbers:
        return descriptor
    return b''.join(descriptor[start:end] for start, end in _FIELDS)


class Packs:
    """Packed copies of one weight in one dtype.

    Threads may share it: at worst a weight is packed twice.

    Args:
        weight: The weight. It is kept, so that no other tensor can get its address.
        bias: The bias, or None.
        version: Versions of weight and bias, and the dtype of the input, that the packs are of.
        dtype: Data type of the packs.
        most: How many packs are kept at most. If there are as many, another one replaces the oldest
            as soon as two inputs in a row ask for it.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        version: Any,
        dtype: torch.dtype,
        most: int,
    ):
        self.originals = weight, bias
        self.version = version
        self.dtype = dtype
        self.bias = None if bias is None else bias.to(dtype)
        self.most = most
        self.packs: dict[bytes, torch.Tensor] = {}
        self.layouts: dict[Key, bytes] = {}
        self.last: bytes | None = None

    def is_of(self, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Return whether these tensors are the originals."""
        before, bias_before = self.originals
        if bias is None or bias_before is None:
            return before.data_ptr() == weight.data_ptr() and bias is bias_before
        return (before.data_ptr(), bias_before.data_ptr()) == (weight.data_ptr(), bias.data_ptr())

    def get(self, conv: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the weight packed for a convolution of x.

        A plain convolution prepares its weight in every call, too. Packing takes longer than that
        where a 1x1 convolution reduces the number of channels, but a network as a whole is faster
        also for shapes that never come again (benchmarks/results/changing_sizes.json). A pack of
        another layout is never used knowingly: oneDNN would take up to 30 times as long to bring it
        into the right one.
        """
        pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
        batch, _, height, width = x.shape
        size = (height * width,) if pointwise else (height, width)
        key = Key(batch, size, torch.get_num_threads())
        layout = self.layouts.get(key) or infer_layout(self._known(key), height * width)
        packed = None if layout is None else self.packs.get(layout)
        if packed is None:
            packed, layout = self._pack(conv, x)
            if len(self.layouts) >= REMEMBERED:
                self.layouts.clear()
            same = (known for known in list(self.layouts.values()) if known == layout)
            self.layouts[key] = layout = next(same, layout)
            packed = self._keep(packed, layout)
        self.last = layout
        return packed

    def _known(self, key: Key) -> Iterator[tuple[int, bytes]]:
        """Yield the layouts that are known for the same batch and threads, with their pixels."""
        for other, layout in list(self.layouts.items()):  # another thread may add one
            if (other.batch, other.threads) == (key.batch, key.threads):
                yield math.prod(other.size), layout

    def _pack(self, conv: Any, x: torch.Tensor) -> tuple[torch.Tensor, bytes]:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.originals[0].to(self.dtype), conv.padding, conv.stride, conv.dilation, conv.groups,
            list(x.shape),
        )  # fmt: skip
        found = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        return packed, without_padding(found, packed.numel())

    def _keep(self, packed: torch.Tensor, layout: bytes) -> torch.Tensor:
        """Keep a new pack if there is room or it is asked for again; return the one to use."""
        same = self.packs.get(layout)
        if same is not None:
            return same
        if len(self.packs) < self.most:
            self.packs[layout] = packed
        elif layout == self.last:
            self.packs.pop(next(iter(self.packs), b''), None)
            self.packs[layout] = packed
        return packed
