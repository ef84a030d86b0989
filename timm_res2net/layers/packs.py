"""The packed weights of a convolution: a copy for each layout that oneDNN asks for."""

import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch

TRUSTED = 8
"""Number of known sizes from which the layout of another size is inferred."""
REMEMBERED = 1024
"""Largest number of input shapes whose layout is remembered; each takes about 200 bytes."""


class Key(NamedTuple):
    """What the layout of packed weights depends on.

    Attributes:
        batch: Images.
        size: Pixels of the input for a 1x1 convolution of stride 1, otherwise height and width.
        threads: Threads of torch.
    """

    batch: int
    size: Any
    threads: int


def infer_layout(known: Mapping[int, bytes], pixels: int) -> bytes | None:
    """Infer the layout for a number of pixels from known ones, without asking oneDNN.

    In most layers the layout changes at one number of pixels at most; then a number between two
    with the same layout has that layout, too. In other layers layouts alternate, and nothing is
    inferred.

    Args:
        known: Layout by number of pixels.
        pixels: Another number of pixels.

    Returns:
        The layout, or None if the known ones do not tell it.
    """
    if len(known) < TRUSTED or not min(known) < pixels < max(known):
        return None
    ordered = [known[number] for number in sorted(known)]
    if sum(a != b for a, b in pairwise(ordered)) > 1:
        return None
    below = known[max(number for number in known if number < pixels)]
    above = known[min(number for number in known if number > pixels)]
    return below if below == above else None


_PADDING = (108, 316, 420)
"""Where four bytes of oneDNN's memory descriptor are padding of its C struct: after `data_type`,
`format_kind` and `inner_nblks`."""


def without_padding(descriptor: bytes, numbers: int) -> bytes:
    """Return a memory descriptor of oneDNN 3 without the bytes that no one has initialized.

    They hold what stood there before, such as the width of an image, and made equal layouts look
    like different ones.

    Args:
        descriptor: A dnnl_memory_desc_t. One of another form is returned as it is.
        numbers: How many numbers it describes, by which its form is told.
    """
    if len(descriptor) < _PADDING[-1] + 4:
        return descriptor
    rank, *dims = struct.unpack_from('=i12q', descriptor, 4)
    if math.prod(dims[:rank]) != numbers:
        return descriptor
    found = bytearray(descriptor)
    for start in _PADDING:
        found[start : start + 4] = bytes(4)
    return bytes(found)


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

        A plain convolution packs its weight in every call, so a shape that never comes again costs
        no more than it would there. A pack of another layout is never used knowingly: oneDNN would
        take up to 30 times as long to bring it into the right one.
        """
        pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
        batch, _, height, width = x.shape
        size: Any = height * width if pointwise else (height, width)
        key = Key(batch, size, torch.get_num_threads())
        layout = self.layouts.get(key) or infer_layout(self._known(key), height * width)
        packed = None if layout is None else self.packs.get(layout)
        if packed is None:
            packed, layout = self._pack(conv, x)
            if len(self.layouts) >= REMEMBERED:
                self.layouts.clear()
            self.layouts[key] = layout
            packed = self._keep(packed, layout)
        self.last = layout
        return packed

    def _known(self, key: Key) -> dict[int, bytes]:
        """Return the layouts that are known for the same batch and threads, by pixels."""
        return {
            other.size if isinstance(other.size, int) else math.prod(other.size): layout
            for other, layout in list(self.layouts.items())  # another thread may add one
            if (other.batch, other.threads) == (key.batch, key.threads)
        }

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
