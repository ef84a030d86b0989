"""MindSpore's checkpoints: numbers are read, and nothing else."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.convert.helpers import FIXTURES, refused
from tests.fixtures import values
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.mindspore import dump_ckpt, read_ckpt

FILES = ['mindcv.ckpt', 'mindcv_v1b.ckpt']
TENSORS = {
    'a.weight': torch.arange(6, dtype=torch.float32).reshape(2, 3),
    'b': torch.ones(4, dtype=torch.float16),
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


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('file', FILES)
def test_a_file_that_mindspore_wrote(file):
    """The values follow from names and shapes: tests/fixtures/record_mindcv.py."""
    found = read_checkpoint(FIXTURES / file)
    assert (found.format, found.entry) == ('MindSpore', '')
    # the deep stem of v1b has two more convolutions, each with a BatchNorm
    assert len(found.tensors) == 152 + 10 * (file == 'mindcv_v1b.ckpt')
    for name, got in found.tensors.items():
        expected = torch.from_numpy(values.values(name, tuple(got.shape)))
        assert torch.equal(got, expected)


@pytest.mark.parametrize('file', FILES)
def test_writing_as_mindspore_does(file, tmp_path):
    with open(tmp_path / 'w.ckpt', 'wb') as out:
        dump_ckpt(read_ckpt((FIXTURES / file).read_bytes()), out)
    written, theirs = (tmp_path / 'w.ckpt').read_bytes(), (FIXTURES / file).read_bytes()
    has_crc = file == 'mindcv_v1b.ckpt'
    assert (written == theirs) is not has_crc
    assert written + b'crc_num' + zlib.crc32(written).to_bytes(10, 'big') == theirs or not has_crc


def test_types_and_scalars(tmp_path):
    with open(tmp_path / 'w.ckpt', 'wb') as out:
        dump_ckpt(TENSORS, out)
    got = read_ckpt((tmp_path / 'w.ckpt').read_bytes())
    assert got.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert got[name].dtype == expected.dtype
        assert torch.equal(got[name], expected)
    # what training keeps beside the weights is no tensor
    text = value(b'arch', tensor((0,), b'str', b'r\0\0\0'))
    path = write(tmp_path / 'w.ckpt', (tmp_path / 'w.ckpt').read_bytes() + text)
    assert read_ckpt(path.read_bytes())['arch'] == 'str'
    assert read_checkpoint(path).values.keys() == TENSORS.keys()


def test_a_tensor_in_several_parts():
    """MindSpore splits what is larger than 512 MB; every part has the sizes of the whole."""
    raw = TENSORS['a.weight'].numpy().tobytes()
    parts = (value(b'a', tensor((2, 3), content=piece)) for piece in (raw[:16], raw[16:]))
    found = read_ckpt(b''.join(parts))
    assert torch.equal(found['a'], TENSORS['a.weight'])


GOOD = value() + value(b'b')


MALFORMED = [
    (GOOD[:-1], 'a part of 26 bytes has 25'),
    (GOOD + b'\n', 'a number does not end'),
    (GOOD + b'\n' + b'\xff' * 99, 'a number does not end'),
    (GOOD + part(2, b''), 'a field 2 of wire type 2'),
    (GOOD + part(1, 5), 'a field 1 of wire type 0'),
    (GOOD + b'\x0b\x0c', 'a field 1 of wire type 3'),
    (GOOD + part(1, b''), 'a tensor lacks its name'),
    (GOOD + part(1, part(1, b'c')), 'lacks its name, its type or its numbers'),
    (GOOD + part(1, part(1, b'c') + part(3, tensor())), 'a field 3 of wire type 2'),
    (GOOD + part(1, part(1, b'c') * 2 + part(2, tensor())), 'a field 1 occurs more than 1 times'),
    (GOOD + value(b'\xff'), "'utf-8' codec can't decode"),
    (GOOD + value(b'c', part(2, b'Float32')), 'its type or its numbers'),
    (GOOD + value(b'c', tensor() + part(3, b'')), 'a field 3 occurs more than 1 times'),
    (GOOD + value(b'c', tensor([1] * 17)), 'a field 1 occurs more than 16 times'),
    (GOOD + value(b'c', tensor([3])), "'c' has 8 bytes, not those of Float32 and [3]"),
    (GOOD + value(b'c', tensor([2**62, 2**62])), "'c' has 8 bytes"),
    (GOOD + value(b'c', tensor([2**63])), 'a number does not end'),
    (GOOD + value(), "'a' has 16 bytes, not those of Float32 and [2]"),
    (GOOD + value(body=tensor((1, 2))), "'a' occurs twice"),
    (GOOD + b'crc_num' + bytes(10), 'its checksum does not match'),
]


@pytest.mark.parametrize(('content', 'words'), MALFORMED, ids=[words for _, words in MALFORMED])
def test_malformed_files(content, words, tmp_path):
    path = write(tmp_path / 'w.ckpt', content)
    refused(path, 'damaged as a MindSpore checkpoint', words, 'Download it again')


def test_a_type_that_torch_has_not_is_no_weight(tmp_path):
    path = write(tmp_path / 'w.ckpt', value(body=tensor((8,), b'Hifloat8')))
    refused(path, 'none of its entries (a) holds weights')


# Reads each file in a process of its own, whose memory is then its own, too
READ = """
import json, resource, sys
from timm_res2net.convert.files import read_checkpoint

resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_checkpoint(sys.argv[1]).tensors
    text = ''
except ValueError as error:
    text = str(error)
print(json.dumps([text, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (lambda: b''.join(value(b'%d' % i) for i in range(100_002)), 'more than 100,000 tensors'),
        (lambda: GOOD + value(b'c', part(1, 1) * 10_000_000), 'more than 16 times'),
    ],
    ids=['many tensors', 'many sizes'],
)
def test_a_file_that_would_fill_the_memory(content, words, tmp_path):
    path = write(tmp_path / 'w.ckpt', content())
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', READ, str(path)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text, grown = json.loads(done.stdout)
    assert words in text
    assert grown < 200_000  # kilobytes


def read_anything(path: Path) -> None:
    """Read a file, which gives tensors within its size or a ValueError that names it."""
    try:
        tensors = read_checkpoint(path).tensors
    except ValueError as error:
        assert str(error).startswith(f'Cannot read {path} as a checkpoint: ')
    else:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        # float16 is widened to twice its bytes
        assert size <= 2 * path.stat().st_size


FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANGES = st.lists(st.tuples(st.integers(0), st.binary(max_size=4), st.integers(0, 4)), max_size=4)


@FUZZ
@given(changes=CHANGES, cut=st.integers(0))
def test_a_damaged_file(changes, cut, tmp_path):
    with open(tmp_path / 'w.ckpt', 'wb') as out:
        dump_ckpt(TENSORS, out)
    content = bytearray((tmp_path / 'w.ckpt').read_bytes())
    for at, new, old in changes:
        start = at % (len(content) + 1)
        content[start : start + old] = new
    content = content[: len(content) - cut % (len(content) + 1)] if cut % 2 else content
    read_anything(write(tmp_path / 'w.ckpt', bytes(content)))


@FUZZ
@given(
    parts=st.recursive(
        st.integers(0, 2**70) | st.binary(max_size=12) | st.sampled_from([b'Float32', b'a']),
        lambda inner: st.lists(st.tuples(st.integers(0, 4), inner), max_size=4),
        max_leaves=12,
    )
)
def test_any_message(parts, tmp_path):
    def build(content):
        if isinstance(content, list):
            return b''.join(part(field, build(inner)) for field, inner in content)
        return content

    content = build(parts)
    content = content if isinstance(content, bytes) else varint(content)
    # behind a tensor, so that the file is taken for one of MindSpore
    read_anything(write(tmp_path / 'w.ckpt', value(b'a') + content))
