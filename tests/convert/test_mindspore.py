"""MindSpore's checkpoints: numbers are read, and nothing else."""

import io
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.common import FIXTURES
from tests.convert.helpers import refused
from tests.fixtures import values
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.mindspore import dump_ckpt, read_ckpt

TENSORS = {
    'a.weight': torch.arange(6, dtype=torch.float32).reshape(2, 3),
    'b': torch.ones(400, dtype=torch.float16),  # its sizes and length need two bytes
    'c': torch.ones(128, dtype=torch.int8),
    'step': torch.tensor(7, dtype=torch.int32),
}


# The message, written from its definition and not by the package: (field, wire type), then a number
# or a length and that many bytes.
def varint(number: int) -> bytes:
    more, last = number >> 7, number & 0x7F
    return bytes([last]) if not more else bytes([last | 0x80]) + varint(more)


def part(field: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(field << 3) + varint(content)
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(dims=(2,), kind=b'Float32', content=bytes(8)) -> bytes:
    return b''.join(part(1, size) for size in dims) + part(2, kind) + part(3, content)


def value(name=b'a', body: bytes | None = None) -> bytes:
    return part(1, part(1, name) + part(2, tensor() if body is None else body))


def written(tensors) -> bytes:
    file = io.BytesIO()
    dump_ckpt(tensors, file)
    return file.getvalue()


@pytest.mark.parametrize(('file', 'tensors'), [('mindcv.ckpt', 152), ('mindcv_v1b.ckpt', 162)])
def test_a_file_that_mindspore_wrote(file, tensors):
    """The values follow from names and shapes: tests/fixtures/record_mindcv.py. Ours is equal."""
    checkpoint = read_checkpoint(FIXTURES / file)
    assert (checkpoint.format, checkpoint.entry) == ('MindSpore', '')
    assert len(checkpoint.tensors) == tensors
    for name, got in checkpoint.tensors.items():
        assert got.equal(torch.from_numpy(values.values(name, tuple(got.shape))))
    theirs = (FIXTURES / file).read_bytes()
    ours = written(read_ckpt(theirs))
    if file == 'mindcv_v1b.ckpt':
        ours += b'crc_num' + zlib.crc32(ours).to_bytes(10, 'big')
    assert ours == theirs


def test_types_and_scalars(tmp_path):
    content = written(TENSORS)
    assert content == b''.join(
        value(
            name.encode(),
            tensor(t.shape or (0,), str(t.dtype)[6:].title().encode(), t.numpy().tobytes()),
        )
        for name, t in TENSORS.items()
    )
    # what training keeps beside the weights, and types of its own, are not tensors
    beside = {b'arch': b'str', b'x': b'Hifloat8'}
    for name, kind in beside.items():
        content += value(name, tensor((0,), kind, b'r\0\0\0'))
    got = read_ckpt(content)
    assert got.keys() == {*TENSORS, 'arch', 'x'}
    assert (got['arch'], got['x']) == ('str', 'Hifloat8')
    for name, expected in TENSORS.items():
        assert got[name].dtype == expected.dtype
        assert got[name].equal(expected)
    (tmp_path / 'w.ckpt').write_bytes(content)
    assert read_checkpoint(tmp_path / 'w.ckpt').values.keys() == TENSORS.keys()


GOOD = value() + value(b'b')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (GOOD[:-1], 'a part of 26 bytes has 25'),
        (GOOD + b'\n', 'a number does not end'),
        (GOOD + b'\n' + b'\xff' * 99, 'a number does not end'),
        (GOOD + part(2, b''), 'a field 2 of wire type 2'),
        (GOOD + part(1, 5), 'a field 1 of wire type 0'),
        (GOOD + part(1, b''), 'not enough values'),
        (GOOD + part(1, part(1, b'c') * 2 + part(2, tensor())), 'too many values'),
        (GOOD + value(b'\xff'), "'utf-8' codec can't decode"),
        (GOOD + value(b'c', part(2, b'Float32')), 'not enough values'),
        (GOOD + value(b'c', tensor([3])), "'[3]' is invalid"),
        (GOOD + value(b'c', tensor([2**63])), 'a number does not end'),
        (GOOD + value(), "'a' occurs twice"),
        (GOOD + b'crc_num' + bytes(10), 'its checksum does not match'),
    ],
)
def test_malformed_files(content, words, tmp_path):
    (tmp_path / 'w.ckpt').write_bytes(content)
    refused(tmp_path / 'w.ckpt', 'damaged as a MindSpore checkpoint', words, 'Download it again')


CHANGES = st.lists(st.tuples(st.integers(0), st.binary(max_size=4), st.integers(0, 4)), max_size=4)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, cut=st.integers(0))
def test_a_damaged_file(changes, cut, tmp_path):
    """It gives tensors within its size, or a ValueError that names it."""
    content = bytearray(written(TENSORS))
    for at, new, old in changes:
        start = at % (len(content) + 1)
        content[start : start + old] = new
    content = content[: len(content) - cut % (len(content) + 1)] if cut % 2 else content
    path: Path = tmp_path / 'w.ckpt'
    path.write_bytes(content)
    try:
        tensors = read_checkpoint(path).tensors
    except ValueError as error:
        assert str(error).startswith(f'Cannot read {path} as a checkpoint: ')
    else:
        # float16 is widened to twice its bytes
        assert sum(t.nbytes for t in tensors.values()) <= 2 * len(content)
