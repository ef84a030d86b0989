"""Read and write MindSpore's checkpoints (.ckpt). The files are untrusted.

A file is one protobuf message without a header: `Checkpoint` with a `Value` for each tensor. A
`Value` has a name (1) and a `TensorProto` (2), which has the sizes (1), the type by name (2) and
the numbers (3). This reader knows only these six fields, so it needs no protobuf, and nothing in a
file can run.
"""

import zlib
from collections.abc import Mapping
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


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of up to 63 bits and the position behind it."""
    number = 0
    for i, byte in enumerate(data[at : at + 9]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError('a number does not end')


def _fields(data: memoryview, wire_types: Mapping[int, int]) -> dict[int, list[Any]]:
    """Return the values of a message's fields by number, ints or bytes.

    Args:
        data: The message.
        wire_types: Wire type by the number of each field that the message may have.
    """
    fields: dict[int, list[Any]] = {number: [] for number in wire_types}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_types.get(number) != wire_type:
            raise ValueError(f'it has a field {number} of wire type {wire_type} that no tensor has')
        value, at = _varint(data, at)
        if wire_type == _VARINT:
            fields[number].append(value)
            continue
        if value > len(data) - at:
            raise ValueError(f'a part of {value:,} bytes has {len(data) - at:,}')
        fields[number].append(data[at : at + value])
        at += value
    return fields


def _tensor(value: memoryview) -> tuple[str, torch.Tensor | str]:
    """Return a name, and a copy of the numbers or the name of a type that torch does not have."""
    (name,), (body,) = _fields(value, {1: _BYTES, 2: _BYTES}).values()
    sizes, (kind,), (numbers,) = _fields(body, {1: _VARINT, 2: _BYTES, 3: _BYTES}).values()
    dtype = _DTYPES.get(bytes(kind).decode())
    if dtype is None:
        return bytes(name).decode(), bytes(kind).decode()
    if sizes == [0]:  # so MindSpore writes a scalar
        sizes = []
    tensor = torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(sizes)
    return bytes(name).decode(), tensor


def _without_crc(data: memoryview) -> memoryview:
    """Return the message without the checksum behind it, which is compared."""
    tail = bytes(data[-_CRC_BYTES:])
    if not tail.startswith(_CRC):
        return data
    message = data[:-_CRC_BYTES]
    if zlib.crc32(message) != int.from_bytes(tail[len(_CRC) :], 'big'):
        raise ValueError('its checksum does not match')
    return message


def read_ckpt(raw: bytes) -> dict[str, Any]:
    """Read a MindSpore checkpoint.

    Args:
        raw: The content of the file.

    Returns:
        By name: a tensor, or the name of its type if torch does not have it, such as 'str'.

    Raises:
        ValueError: It is not what MindSpore writes.
    """
    out: dict[str, Any] = {}
    try:
        for value in _fields(_without_crc(memoryview(raw)), {1: _BYTES})[1]:
            name, tensor = _tensor(value)
            if name in out:
                raise ValueError(f'{name!r} occurs twice')
            out[name] = tensor
    except (ValueError, RuntimeError) as error:  # RuntimeError: sizes that do not fit
        raise ValueError(
            f'it is cut short or damaged as a MindSpore checkpoint ({error}). Download it again.'
        ) from error
    return out


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
