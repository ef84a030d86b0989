"""Read and write MindSpore's checkpoints (.ckpt). The files are untrusted.

A file is one protobuf message without a header: `Checkpoint` with a `Value` for each tensor. A
`Value` has a name (1) and a `TensorProto` (2), which has the sizes (1), the type by name (2) and
the numbers (3). This reader knows these six fields alone, so it needs no protobuf, and nothing in a
file can run.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch

_DTYPES = {
    'Float16': torch.float16, 'Float32': torch.float32, 'Float64': torch.float64,
    'BFloat16': torch.bfloat16, 'Int8': torch.int8, 'Int16': torch.int16, 'Int32': torch.int32,
    'Int64': torch.int64, 'UInt8': torch.uint8,
}  # fmt: skip
_VARINT, _BYTES = 0, 2  # the wire types of protobuf that the message uses
_CRC = b'crc_num'  # before 10 bytes with the checksum, at the end of the file
_CRC_BYTES = len(_CRC) + 10
_MOST_TENSORS = 100_000  # a network with its optimizer has some thousands
_MOST_SIZES = 16


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of up to 63 bits and the position behind it."""
    number = 0
    for i, byte in enumerate(data[at : at + 9]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError('a number does not end')


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
            raise ValueError(f'it has a field {number} of wire type {wire_type} that no tensor has')
        value, at = _varint(data, at)
        if wire_type == _VARINT:
            yield number, value
            continue
        if value > len(data) - at:
            raise ValueError(f'a part of {value:,} bytes has {len(data) - at:,}')
        yield number, data[at : at + value]
        at += value


def _parts(data: memoryview, wire_types: Mapping[int, int]) -> dict[int, list[Any]]:
    """Return the values of a message's fields by number, of which all must be there."""
    parts: dict[int, list[Any]] = {number: [] for number in wire_types}
    for number, value in _fields(data, wire_types):
        most = _MOST_SIZES if wire_types[number] == _VARINT else 1
        if len(parts[number]) == most:
            raise ValueError(f'a field {number} occurs more than {most} times')
        parts[number].append(value)
    if not all(parts[number] for number in wire_types if wire_types[number] == _BYTES):
        raise ValueError('a tensor lacks its name, its type or its numbers')
    return parts


def _tensors(data: memoryview) -> dict[str, tuple[tuple[int, ...], str, list[memoryview]]]:
    """Return the sizes, the type and the numbers of each tensor, in parts if it exceeds 512 MB."""
    tensors: dict[str, tuple[tuple[int, ...], str, list[memoryview]]] = {}
    for count, (_, value) in enumerate(_fields(data, {1: _BYTES})):
        if count >= _MOST_TENSORS:
            raise ValueError(f'it has more than {_MOST_TENSORS:,} tensors')
        field = _parts(value, {1: _BYTES, 2: _BYTES})
        name, inner = bytes(field[1][0]).decode(), field[2][0]
        field = _parts(inner, {1: _VARINT, 2: _BYTES, 3: _BYTES})
        tensor = tuple(field[1]), bytes(field[2][0]).decode(), field[3]
        first = tensors.setdefault(name, tensor)
        if first is not tensor:
            if first[:2] != tensor[:2]:
                raise ValueError(f'{name!r} occurs twice')
            first[2].extend(tensor[2])
    return tensors


def _convert(
    name: str, dims: tuple[int, ...], kind: str, parts: list[memoryview]
) -> torch.Tensor | str:
    """Return a copy of the numbers, or the name of a type that torch does not have."""
    dtype = _DTYPES.get(kind)
    if dtype is None:
        return kind
    raw = bytearray().join(parts)
    if dims == (0,) and raw:  # so MindSpore writes a scalar
        dims = ()
    if math.prod(dims) * dtype.itemsize != len(raw):
        raise ValueError(f'{name!r} has {len(raw):,} bytes, not those of {kind} and {list(dims)}')
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
        raise ValueError('its checksum does not match')
    return message


def starts_as_ckpt(start: bytes) -> bool:
    """Return whether a file starts as MindSpore writes it: a value, a name, and a tensor."""
    data = memoryview(start)
    try:
        _, at = _varint(data, 1)
        length, behind = _varint(data, at + 1)
    except ValueError:
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
        By name: a tensor, or the name of its type if torch does not have it, such as 'str'.

    Raises:
        ValueError: It is not what MindSpore writes.
    """
    try:
        tensors = _tensors(_without_crc(memoryview(raw)))
        return {name: _convert(name, *tensors.pop(name)) for name in list(tensors)}
    except (ValueError, RuntimeError) as error:  # RuntimeError: sizes that torch cannot have
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
