"""Reading files that are not to be trusted."""

import argparse
import datetime
import gzip
import io
import os
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from safetensors.torch import save as safetensors
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from tests.common import Trap, random_weights, save, saved
from tests.convert.helpers import refused
from timm_res2net import convert_checkpoint
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.pickles import HARMLESS

WEIGHTS = {'conv1.weight': torch.rand(4, 3, 7, 7), 'bn1.weight': torch.rand(4)}
ZEROS = {key: torch.zeros_like(value) for key, value in WEIGHTS.items()}
LEGACY = pytest.mark.parametrize('legacy', [False, True])


def assert_same(got, expected) -> None:
    assert got.keys() == expected.keys()
    assert all(value.equal(expected[key]) for key, value in got.items())


# --- what a file may hold -------------------------------------------------------------------------


@LEGACY
@pytest.mark.parametrize(
    ('content', 'entry', 'others'),
    [
        (WEIGHTS, '', ()),
        ({'state_dict': WEIGHTS, 'optimizer': {'state': {0: torch.ones(3)}}}, 'state_dict', ()),
        ({'model': WEIGHTS, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)}, 'model', ()),
        # averaged weights first
        ({'state_dict': ZEROS, 'state_dict_ema': WEIGHTS}, 'state_dict_ema', ('state_dict',)),
        ({'model': WEIGHTS, 'ema': {'module': ZEROS, 'n': 3}}, 'model', ('ema.module',)),
        # MMEngine swaps the two as it saves: the averaged weights are in state_dict
        ({'state_dict': WEIGHTS, 'ema_state_dict': ZEROS}, 'state_dict', ('ema_state_dict',)),
    ],
)
def test_entries(content, entry, others, legacy, tmp_path):
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.entry, checkpoint.others) == (entry, others)
    assert checkpoint.format == ('torch (legacy)' if legacy else 'torch')
    assert checkpoint.training == ({'lr': 0.1} if 'args' in content else {})
    assert_same(checkpoint.tensors, WEIGHTS)
    for name in others:
        assert_same(read_checkpoint(path, name).tensors, ZEROS)
    with pytest.raises(ValueError, match=rf"entry 'x'\. .*{'.*'.join(others)}"):
        read_checkpoint(path, 'x')


def test_what_train_py_keeps(tmp_path):
    """An optimizer with momenta has some after its first step; without, nothing tells."""
    args = argparse.Namespace(lr=0.1)
    for groups, told in (([{'momentum': 0.9}], False), ([{'momentum': 0}], True), ([], False)):
        optimizer = {'state': {}, 'param_groups': groups}
        content = {'state_dict': WEIGHTS, 'arch': 'x', 'args': args, 'optimizer': optimizer}
        checkpoint = read_checkpoint(save(content, tmp_path / 'w.pth'))
        assert checkpoint.training == {'lr': 0.1, 'model': 'x', 'has_steps': told}


def test_values_that_are_not_weights_may_be_anything(tmp_path):
    """Only what is taken is checked: a whole model has integers and masks. Entries of unknown names
    become prefixes."""
    odd = {'index': torch.arange(4), 'mask': torch.ones(2, dtype=torch.bool), 'lr': 0.1}
    content = {'ema': {'a': {'b': WEIGHTS}, 'updates': 3}, 'head': odd}
    checkpoint = read_checkpoint(save(content, tmp_path / 'w.pth'))
    assert (checkpoint.entry, checkpoint.others) == ('', ())
    expected = {f'ema.a.b.{key}': value for key, value in WEIGHTS.items()}
    assert checkpoint.values.keys() == {*expected, 'head.index', 'head.mask'}
    assert_same(checkpoint.take(expected), expected)
    with pytest.raises(ValueError, match=r"Cannot read .*'head\.index' is a .*int64.*Save dense"):
        checkpoint.take(['head.index'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_narrow_floats_are_widened(dtype, tmp_path):
    count = {'bn1.num_batches_tracked': torch.tensor(3)}
    weights = {**{key: value.to(dtype) for key, value in WEIGHTS.items()}, **count}
    checkpoint = read_checkpoint(save(weights, tmp_path / 'w.pth'))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [v.dtype for v in checkpoint.tensors.values()] == [wide, wide, torch.int64]
    assert_same({k: v.to(weights[k].dtype) for k, v in checkpoint.tensors.items()}, weights)


def history_buffer(monkeypatch) -> Any:
    """What mmengine's message hub keeps, with its class gone when the file is read."""
    module: Any = types.ModuleType('mmengine.logging.history_buffer')
    kind: Any = type('HistoryBuffer', (), {'__module__': module.__name__, 'min': lambda self: 0})
    kind.min.__module__, kind.min.__qualname__ = module.__name__, 'HistoryBuffer.min'
    module.HistoryBuffer = kind
    for name in ('mmengine', 'mmengine.logging', module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    buffer = kind()
    buffer.__dict__ |= {'_log_history': np.arange(3.0), 'statistics_methods': {'min': kind.min}}
    return buffer


BESIDE: dict[str, Any] = {
    'a tensor': torch.tensor(0.5),  # torchvision's and PyTorch's examples keep one
    'scalars': [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)],
    'arrays': [np.arange(5), np.array(['a', 'b']), np.array([None, {'a': 1}], dtype=object)],
    'an empty array': np.zeros((0, 3)),
    'paths': [Path('/some/where'), PureWindowsPath('C:/x')],
    'defaultdict': defaultdict(dict, {'a': {1: defaultdict(int, b=2)}}),
    'collections': [OrderedDict(a=1), deque([1.0, 2.0], maxlen=3)],
    'namespaces': [argparse.Namespace(output=Path('out')), types.SimpleNamespace(lr=0.1)],
    'dates': [
        datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), datetime.timedelta(seconds=3)
    ],
    'HistoryBuffer': None,
    # the name is on the list because a HistoryBuffer asks for it; what it gets does nothing
    'getattr': Trap(getattr, Path, 'home'),
}  # fmt: skip


@LEGACY
@pytest.mark.parametrize('kind', BESIDE)
def test_what_training_scripts_keep_beside_the_weights(kind, legacy, tmp_path, monkeypatch):
    beside = history_buffer(monkeypatch) if kind == 'HistoryBuffer' else BESIDE[kind]
    content = {'meta': {'x': [beside]}, 'epoch': 3, 'state_dict': WEIGHTS, 'best': beside}
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    checkpoint = read_checkpoint(path)
    assert (checkpoint.entry, checkpoint.others) == ('state_dict', ())
    assert_same(checkpoint.tensors, WEIGHTS)
    assert 'mmengine' not in sys.modules


# --- no code in a file is run ---------------------------------------------------------------------


@LEGACY
@pytest.mark.parametrize('function', [os.system, eval, __import__])
def test_a_torch_file_that_wants_to_run_something(function, legacy, tmp_path):
    argument = f'touch {tmp_path}/trap' if function is os.system else '__import__("os")'
    path = tmp_path / 'w.pth'
    content = {'state_dict': WEIGHTS, 'hook': Trap(function, argument)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "wants to load '", f"{function.__name__}'", 'Nothing in it was run')
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=not legacy)
    refused(path, "linear.Linear'", 'a whole model', 'save the state dict')


def test_a_torch_file_cannot_write_attributes_of_records(tmp_path):
    """torch sets the state of objects alone, so the records of the list stay as they are."""
    records = {'argparse.Namespace': argparse.Namespace, **HARMLESS}
    before = {name: dict(vars(record)) for name, record in records.items()}
    for name in records:
        module, _, attribute = name.rpartition('.')
        record = f'c{module}\n{attribute}\n'.encode()
        for state in (b'}X\x01\0\0\0xK\x01s', b'}}X\x01\0\0\0xK\x01s\x86'):
            opcodes = b'\x80\x02' + record + state + b'b.'
            (tmp_path / 'w.pth').write_bytes(zipped({'w/data.pkl': opcodes, 'w/version': b'3\n'}))
            refused(tmp_path / 'w.pth', 'Nothing in it was run')
    assert {name: dict(vars(record)) for name, record in records.items()} == before


# --- other files ----------------------------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


CHECKPOINT = saved(WEIGHTS)
DATA = CHECKPOINT.index(WEIGHTS['conv1.weight'].numpy().tobytes())
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
SAFETENSORS = safetensors(WEIGHTS)


@pytest.mark.filterwarnings('ignore:Validating sparse tensor')  # torch, of sparse tensors
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', ["begins with b''", 'Give the file']),
        (b'\x89PNG\r\n\x1a\n' + bytes(99), ["begins with b'\\x89PNG"]),
        (LFS, ['Git LFS pointer', 'git lfs pull']),
        (b'<!DOCTYPE html><html>', ['web page', 'in a browser']),
        (b'\n' * 9 + b' \r\n<html lang="en">', ['web page']),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', ['XML', 'in a browser']),
        (gzip.compress(CHECKPOINT), ['gzip', 'Unpack it']),
        (bytes(257) + b'ustar' + bytes(250), ['tar', 'Unpack it']),
        (zipped({'folder/w.pth': b'1'}), ['zip archive', '(folder/w.pth)', 'unpack']),
        (zipped({'w/data.pkl': b'', 'w/constants.pkl': b''}), ['torch.jit.load']),
        (b'PK\x03\x04' + bytes(99), ['cut short or damaged', 'Download it again']),
        (CHECKPOINT[:-500], ['cut short or damaged']),
        # what only the checksums show
        (CHECKPOINT[:DATA] + b'\0' + CHECKPOINT[DATA + 1 :], ["/data/0' is damaged", 'copy it']),
        (SAFETENSORS[:-5], ['cut short or damaged']),
        (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-500], ['Download it again']),
        (saved({0: torch.ones(1)}), ['none of its entries', 'model.state_dict()']),
        (saved({'a': torch.ones(2, 2) + 2j}), ["'a' is a", 'torch.complex64']),
        (saved({'a': torch.ones(2, 2).to_sparse()}), ["'a' is a torch.sparse_coo tensor"]),
    ],
)  # fmt: skip
def test_files_that_are_not_checkpoints(content, words, tmp_path):
    (tmp_path / 'w.pth').write_bytes(content)
    refused(tmp_path / 'w.pth', *words)


@pytest.mark.filterwarnings('ignore::UserWarning')  # torch 2.6 warns of its own code
def test_sharded_training(tmp_path):
    """Parts of tensors: in a file, in a folder of torch.distributed.checkpoint, of FSDP."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh('cpu', (1,))
        part = {k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in WEIGHTS.items()}
        save(part, tmp_path / 'w.pth')
        dist.checkpoint.save({'model': part}, checkpoint_id=tmp_path / 'folder')
    finally:
        dist.destroy_process_group()
    folder = tmp_path / 'folder'
    for path in (tmp_path / 'w.pth', folder / '.metadata', folder / '__0_0.distcp'):
        with pytest.raises(ValueError, match=r'parts of .*get_model_state_dict\(') as error:
            _ = read_checkpoint(path).tensors
        assert 'full_state_dict=True' in str(error.value) and 'damaged' not in str(error.value)
    flat = save({'layer1._flat_param': torch.ones(2, 2)}, tmp_path / 'flat.pth')
    for path in (folder, flat):
        with pytest.raises(ValueError, match='dcp_to_torch_save'):
            convert_checkpoint(path)


def test_which_file_of_a_folder_is_read(tmp_path):
    """The one with the usual name, as accelerate's beside its states, or the only one."""
    weights = random_weights()
    path = save(weights, tmp_path / 'fold-2-of-5.pth')  # not a part of five
    assert convert_checkpoint(path).notes.file == path.name
    assert convert_checkpoint(tmp_path).notes.file == path.name
    for name in ('model_best.pth.tar', 'last.pth.tar', 'scheduler.bin', 'random_states_0.pkl'):
        save({'state_dict': weights}, tmp_path / name)
    with pytest.raises(ValueError, match=r'5 files: fold-2-of-5\.pth, last\.pth\.tar, model_best'):
        convert_checkpoint(tmp_path)
    (tmp_path / 'model.safetensors').write_bytes(safetensors(weights))
    assert convert_checkpoint(tmp_path).notes.file == 'model.safetensors'
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no file'):
        convert_checkpoint(tmp_path / 'empty')


def test_devices_and_missing_files(tmp_path):
    for read in (read_checkpoint, convert_checkpoint):
        with pytest.raises(ValueError, match=r'/dev/zero as .*a device or a pipe\. Give'):
            read('/dev/zero')
        with pytest.raises(FileNotFoundError):
            read(tmp_path / 'w.pth')


def test_a_file_without_checksums(tmp_path):
    """torch writes 0 for all of them if it is told to compute none."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(WEIGHTS, tmp_path / 'net.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(read_checkpoint(tmp_path / 'net.pth').tensors, WEIGHTS)
