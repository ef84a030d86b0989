"""The error of a file that is not a checkpoint says what the file is, and what to do."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.convert.helpers import refused, save, tiny
from timm_res2net.convert.files import read_checkpoint


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save(tiny(), buffer)
    return buffer.getvalue()


def in_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        info = tarfile.TarInfo('w.pth')
        info.size = len(checkpoint())
        archive.addfile(info, io.BytesIO(checkpoint()))
    return buffer.getvalue()


def in_zip(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        archive.writestr('folder/w.pth', checkpoint())
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
# ir_version 8, then producer_name
ONNX = b'\x08\x08\x12\x07pytorch\x1a\x051.0.0' + bytes(100)
UNPACK = 'Unpack it'


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (LFS, ['Git LFS pointer', 'git lfs pull']),
        (b'<!DOCTYPE html><html>', ['web page', 'in a browser']),
        (b'\n\n  <html lang="en">', ['web page', 'in a browser']),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', ['XML', 'in a browser']),
        (gzip.compress(checkpoint()), ['gzip', UNPACK]),
        (bz2.compress(checkpoint()), ['bzip2', UNPACK]),
        (lzma.compress(checkpoint()), ['xz', UNPACK]),
        (b'\x28\xb5\x2f\xfd' + bytes(99), ['zstd', UNPACK]),
        (b'7z\xbc\xaf\x27\x1c' + bytes(99), ['7z', UNPACK]),
        (b'Rar!\x1a\x07' + bytes(99), ['RAR', UNPACK]),
        (in_tar(), ['archive', 'tar', UNPACK]),
        (in_zip(zipfile.ZIP_STORED), ['zip archive', 'folder/w.pth', UNPACK]),
        (in_zip(zipfile.ZIP_DEFLATED), ['zip archive', 'folder/w.pth', UNPACK]),
        (npz(), ['.npz', 'torch.from_numpy']),
        (b'\x89HDF\r\n\x1a\n' + bytes(99), ['HDF5', '.safetensors']),
        (ONNX, ['ONNX', 'exported from']),
        (b'PK\x03\x04' + bytes(99), ['cut short or damaged', 'Download it again']),
        (checkpoint()[:5000], ['cut short or damaged', 'Download it again']),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_files_that_are_not_checkpoints(content, words, tmp_path):
    path = tmp_path / 'w.pth'
    path.write_bytes(content)
    text = refused(path, *words)
    assert ('Download it again' in text) == ('Download it again' in words)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x)


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('script', [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2))])
def test_torchscript(script, tmp_path):
    path = tmp_path / 'w.pt'
    script(Tiny().eval()).save(str(path))
    refused(path, 'TorchScript archive', 'torch.jit.load', 'state_dict()')


def test_an_exported_program(tmp_path):
    path = tmp_path / 'w.pt2'
    torch.export.save(torch.export.export(Tiny().eval(), (torch.ones(2),)), path)
    refused(path, '.pt2', 'torch.export.load', 'state_dict')


def test_a_state_dict_of_torchscript_is_one(tmp_path):
    """The remedy works."""
    assert save(Tiny().state_dict(), tmp_path / 'w.pth').is_file()


def test_a_folder_in_the_archive_does_not_matter(tmp_path):
    """torch names the folder in the archive after the file, or `archive`."""
    path: Path = tmp_path / 'code.pth'
    torch.save(tiny(), path)
    assert read_checkpoint(path).tensors.keys() == tiny().keys()
