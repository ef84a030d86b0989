"""Read and write MindSpore's checkpoints (.ckpt). The files are untrusted.

A file is one protobuf message without a header: `Checkpoint` with a `Value` for each tensor. A
`Value` has a name (1) and a `TensorProto` (2), which has the sizes (1), the type by name (2) and
the numbers (3). This reader knows these six fields alone, so it needs no protobuf, and nothing in a
file can run.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import torch

_DTYPES = {
    'Float16': torch.float16, 'Float32': torch.float32, 'Float64': torch.float64,
    'BFloat16': torch.bfloat16, 'Int8': torch.int8, 'Int16': torch.int16, 'Int32': torch.int32,
    'Int64': torch.int64, 'UInt8': torch.uint8,
}  # fmt: skip
_VARINT, _BYTES = 0, 2  # the wire types of protobuf that the message uses
_CRC = b'crc_num'  # stands before 10 bytes with the checksum, at the end of the file
_CRC_BYTES = len(_CRC) + 10
_MOST_TENSORS = 100_000  # a network with its optimizer has some thousands
_MOST_SIZES = 16
_LONGEST_TEXT = 4096  # bytes of a name


class _Damage(ValueError):
    """The file is not what MindSpore writes."""


@dataclass
class _Tensor:
    """A tensor as the file describes it, in one part or, above 512 MB, in several."""

    dims: tuple[int, ...]
    kind: str
    parts: list[memoryview] = field(default_factory=list)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of up to 63 bits and the position behind it."""
    number = 0
    for i, byte in enumerate(data[at : at + 9]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise _Damage('a number does not end')


def _fields(data: memoryview, wire_types: Mapping[int, int]) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: number, and an int or the bytes.

    Args:
        data: The message.
        wire_types: Wire type by the number of each field that the message may have.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_types.get(number) != wire_type:
            raise _Damage(f'it has a field {number} of wire type {wire_type} at an odd place')
        value, at = _varint(data, at)
        if wire_type == _VARINT:
            yield number, value
            continue
        if value > len(data) - at:
            raise _Damage(f'a part of {value:,} bytes has {len(data) - at:,}')
        yield number, data[at : at + value]
        at += value


def _text(data: memoryview) -> str:
    if not 0 < len(data) <= _LONGEST_TEXT:
        raise _Damage(f'a name has {len(data):,} bytes')
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise _Damage('a name is not UTF-8') from error


def _only(found: dict[int, Any], number: int, value: Any) -> None:
    if number in found:
        raise _Damage(f'a field {number} occurs twice')
    found[number] = value


def _read_tensor(data: memoryview) -> _Tensor:
    dims: list[int] = []
    found: dict[int, Any] = {}
    for number, value in _fields(data, {1: _VARINT, 2: _BYTES, 3: _BYTES}):
        if number == 1:
            dims.append(value)
            if len(dims) > _MOST_SIZES:
                raise _Damage(f'a tensor has more than {_MOST_SIZES} sizes')
        else:
            _only(found, number, value)
    if found.keys() != {2, 3}:
        raise _Damage('a tensor lacks its type or its numbers')
    return _Tensor(tuple(dims), _text(found[2]), [found[3]])


def _read_message(data: memoryview) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    for count, (_, value) in enumerate(_fields(data, {1: _BYTES})):
        if count >= _MOST_TENSORS:
            raise _Damage(f'it has more than {_MOST_TENSORS:,} tensors')
        found: dict[int, Any] = {}
        for number, part in _fields(value, {1: _BYTES, 2: _BYTES}):
            _only(found, number, part)
        if found.keys() != {1, 2}:
            raise _Damage('a tensor lacks its name or itself')
        name, tensor = _text(found[1]), _read_tensor(found[2])
        first = tensors.setdefault(name, tensor)
        if first is not tensor:
            if (first.dims, first.kind) != (tensor.dims, tensor.kind):
                raise _Damage(f'{name!r} occurs twice')
            first.parts += tensor.parts
    return tensors


def _convert(name: str, tensor: _Tensor) -> torch.Tensor | str:
    """Return a copy of the numbers, or the name of a type that is none of torch's."""
    dtype = _DTYPES.get(tensor.kind)
    if dtype is None:
        return tensor.kind
    raw = bytearray().join(tensor.parts)
    # MindSpore writes the size 0 for a scalar
    dims = () if tensor.dims == (0,) and raw else tensor.dims
    if math.prod(dims) * dtype.itemsize != len(raw):
        raise _Damage(
            f'{name!r} has {len(raw):,} bytes, not those of {tensor.kind} and {list(dims)}'
        )
    if not raw:  # torch refuses an empty buffer
        return torch.empty(dims, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(dims)


def _without_crc(data: memoryview) -> memoryview:
    """Return the message without the checksum behind it, which is compared."""
    tail = bytes(data[-_CRC_BYTES:])
    if not tail.startswith(_CRC):
        return data
    message = data[:-_CRC_BYTES]
    if zlib.crc32(message) != int.from_bytes(tail[len(_CRC) :], 'big'):
        raise _Damage('its checksum does not match')
    return message


def starts_as_ckpt(start: bytes) -> bool:
    """Return whether a file starts as MindSpore writes it: a value, a name, and a tensor."""
    data = memoryview(start)
    try:
        _, at = _varint(data, 1)
        length, behind = _varint(data, at + 1)
    except _Damage:
        return False
    name = start[behind : behind + length]
    return (
        start[:1] == start[at : at + 1] == b'\n'
        and name.isascii()
        and name.decode('ascii').isprintable()
        and start[behind + length : behind + length + 1] in (b'\x12', b'')
    )


def read_ckpt(raw: bytes) -> dict[str, Any]:
    """Read a MindSpore checkpoint.

    Args:
        raw: The content of the file.

    Returns:
        By name: a tensor, or the name of its type if this is not one of torch's, such as 'str'.

    Raises:
        ValueError: It is not what MindSpore writes.
    """
    try:
        found = _read_message(_without_crc(memoryview(raw)))
        return {name: _convert(name, found.pop(name)) for name in list(found)}
    except _Damage as error:
        raise ValueError(
            f'it is cut short or damaged as a MindSpore checkpoint ({error}). Download it again.'
        ) from error


def _write_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _write_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _write_varint(len(value)) + value


def dump_ckpt(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Write a checkpoint as `mindspore.save_checkpoint` does.

    Args:
        tensors: Tensors on the CPU, by name.
        file: The open file.
    """
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    for name, tensor in tensors.items():
        sizes = tensor.shape or (0,)
        dims = b''.join(bytes([1 << 3 | _VARINT]) + _write_varint(size) for size in sizes)
        kind = _write_field(2, kinds[tensor.dtype].encode())
        numbers = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        body = dims + kind + _write_field(3, numbers)
        file.write(_write_field(1, _write_field(1, name.encode()) + _write_field(2, body)))
