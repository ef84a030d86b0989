"""Reading files that are not to be trusted."""

import argparse
import datetime
import json
import os
import pickle
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.common import randomise
from tests.convert.helpers import Trap, refused, save, tiny, zeros
from timm_res2net import convert_checkpoint
from timm_res2net.convert import files
from timm_res2net.convert.files import read_checkpoint
from timm_res2net.convert.pickles import HARMLESS


def assert_same(got, expected) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in got.items())


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    ('function', 'name'),
    [
        (os.system, f'{os.name}.system'),
        (eval, 'eval'),
        (__import__, '__import__'),
    ],
)
def test_a_torch_file_that_wants_to_run_something(function, name, legacy, tmp_path):
    argument = f'touch {tmp_path}/trap' if function is os.system else '__import__("os")'
    content = {'state_dict': tiny(), 'hook': Trap(function, argument)}
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "wants to load '", f"{name}'", 'Nothing in it was run', 'If you trust')


def rewrite(path: Path, compression: int, repeat: int = 1) -> None:
    """A torch archive with its entries compressed, or pointing at the same bytes many times."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if repeat > 1:
            last = max(archive.infolist(), key=lambda info: info.file_size)
            for i in range(repeat):
                twin = zipfile.ZipInfo(f'{last.filename}-{i}')
                for field in ('header_offset', 'CRC', 'compress_size', 'file_size'):
                    setattr(twin, field, getattr(last, field))
                archive.filelist.append(twin)


def test_zip_bombs(tmp_path):
    path = tmp_path / 'w.pth'
    save({'a': torch.zeros(1_000_000)}, path)
    rewrite(path, zipfile.ZIP_DEFLATED)
    refused(path, 'entries claim ', 'torch compresses nothing')
    save({'a': torch.zeros(10_000)}, path)
    rewrite(path, zipfile.ZIP_STORED, repeat=20)
    refused(path, 'entries claim ', ' bytes')


def history_buffer(monkeypatch) -> Any:
    """What mmengine's message hub keeps, with its class gone when the file is read."""
    module = types.ModuleType('mmengine.logging.history_buffer')

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3, dtype=np.float64)
            self.statistics_methods = {'min': HistoryBuffer.min, 'mean': HistoryBuffer.mean}

        def min(self):
            raise AssertionError('nothing of it is called')

        def mean(self):
            raise AssertionError('nothing of it is called')

        def __setstate__(self, state):
            raise AssertionError('nothing of it is called')

    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = 'HistoryBuffer'
    HistoryBuffer.min.__qualname__ = 'HistoryBuffer.min'
    HistoryBuffer.mean.__qualname__ = 'HistoryBuffer.mean'
    HistoryBuffer.min.__module__ = HistoryBuffer.mean.__module__ = module.__name__
    module.HistoryBuffer = HistoryBuffer
    for name in ('mmengine', 'mmengine.logging'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer()


BESIDE: dict[str, Any] = {
    'a tensor': torch.tensor(0.5),  # torchvision's and PyTorch's examples keep one
    'float64': np.float64(0.5),
    'float32': np.float32(0.5),
    'int64': np.int64(3),
    'bool': np.bool_(True),
    'an array': np.arange(5),
    'a large array': np.ones((3, 4), np.float32),
    'strings': np.array(['a', 'b']),
    'objects': np.array([None, {'a': 1}], dtype=object),
    'an empty array': np.zeros((0, 3)),
    'a path': Path('/some/where'),
    'a Windows path': PureWindowsPath('C:/x'),
    'defaultdict': defaultdict(list, {'loss': [np.float64(1.0)]}),
    'nested defaultdict': defaultdict(dict, {'a': {1: defaultdict(int, b=2)}}),
    'OrderedDict': OrderedDict(a=1),
    'deque': deque([1.0, 2.0], maxlen=3),
    'Counter': Counter('aab'),
    'Namespace': argparse.Namespace(lr=0.1, output=Path('out')),
    'SimpleNamespace': types.SimpleNamespace(lr=0.1),
    'datetime': datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
    'timedelta': datetime.timedelta(seconds=3),
}


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('kind', [*BESIDE, 'HistoryBuffer'])
def test_what_training_scripts_keep_beside_the_weights(kind, legacy, tmp_path, monkeypatch):
    weights = tiny()
    beside = history_buffer(monkeypatch) if kind == 'HistoryBuffer' else BESIDE[kind]
    content = {'meta': {'x': [beside]}, 'epoch': 3, 'state_dict': weights, 'best': beside}
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    found = read_checkpoint(path)
    assert (found.entry, found.others) == ('state_dict', ())
    assert_same(found.tensors, weights)


def test_a_module_that_a_file_names_is_not_imported(tmp_path, monkeypatch):
    path = save({'state_dict': tiny(), 'log': history_buffer(monkeypatch)}, tmp_path / 'w.pth')
    monkeypatch.undo()
    read_checkpoint(path)
    assert 'mmengine' not in sys.modules


def test_a_getattr_in_a_file_gets_nothing(tmp_path):
    """The name is on the list, because a HistoryBuffer asks for it. What it gets does nothing."""
    trap = {'state_dict': tiny(), 'x': Trap(getattr, Path, 'home')}
    found = read_checkpoint(save(trap, tmp_path / 'w.pth'))
    assert found.entry == 'state_dict'


def test_a_torch_file_cannot_write_what_it_finds(tmp_path):
    """torch sets the state of objects alone, so the records of the list stay as they are."""
    records = {'argparse.Namespace': argparse.Namespace, **HARMLESS}
    before = {name: dict(vars(record)) for name, record in records.items()}
    path = tmp_path / 'w.pth'
    for name in records:
        module, _, attribute = name.rpartition('.')
        found = f'c{module}\n{attribute}\n'.encode()
        for state in (b'}X\x01\0\0\0xK\x01s', b'}}X\x01\0\0\0xK\x01s\x86'):
            with zipfile.ZipFile(path, 'w') as archive:
                archive.writestr('w/data.pkl', b'\x80\x02' + found + state + b'b.')
                archive.writestr('w/version', '3\n')
            refused(path, 'Nothing in it was run')
    assert {name: dict(vars(record)) for name, record in records.items()} == before


def test_an_average_of_models(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(randomise(timm.create_model('test_res2net_se')))
    path = save({'model_ema': average.state_dict(), 'model': zeros(tiny())}, tmp_path / 'w.pth')
    found = read_checkpoint(path)
    assert found.entry == 'model_ema'
    assert_same(found.tensors, average.module.state_dict())


def test_mmengines_ema_entry_is_not_the_average(tmp_path):
    """MMEngine swaps the two as it saves: the averaged weights stand in state_dict."""
    content = {'state_dict': tiny(), 'ema_state_dict': {'steps': torch.tensor(3), **zeros(tiny())}}
    assert read_checkpoint(save(content, tmp_path / 'w.pth')).entry == 'state_dict'


def test_keys_that_are_no_names(tmp_path):
    path = save({0: torch.ones(1)}, tmp_path / 'w.pth')
    refused(path, 'none of its entries', 'model.state_dict()')


def test_tensors_that_claim_more_than_there_is(tmp_path):
    path = save({'a': torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / 'w.pth')
    refused(path, "'a' claims the shape (1048576, 1048576)", 'less memory')


@pytest.fixture(params=['this', 'older'])
def torchs(request, monkeypatch):
    """The version of torch. Older ones only compare sizes if they map the file."""
    if request.param == 'older':
        monkeypatch.setattr(files, 'SIZES_COMPARED', False)


def test_a_storage_that_claims_more_than_its_record(torchs, tmp_path):
    """Older versions of torch would read beyond it."""
    path = save({'a': torch.ones(1000)}, tmp_path / 'w.pth')
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in entries.items():
            archive.writestr(name, content[:8] if name.endswith('/data/0') else content)
    refused(path, 'Download it again')


def test_older_versions_of_torch_read_the_same(torchs, tmp_path):
    path = save({'state_dict': tiny()}, tmp_path / 'w.pth')
    found = read_checkpoint(path)
    os.truncate(path, 0)  # it is not the file that is mapped
    assert_same(found.tensors, tiny())


def test_a_damaged_file(tmp_path):
    path = save(tiny(), tmp_path / 'w.pth')
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    refused(path, 'cut short or damaged', 'Download it again')
    torch.save(tiny(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])
    refused(path, 'Download it again')
    save_file(tiny(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    refused(path, 'Download it again')
    path.write_bytes(b'')
    refused(path, 'empty', 'Download it again')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'\x89PNG\r\n\x1a\n' + bytes(99), ["begins with b'\\x89PNG", 'Give the file']),
        (pickle.dumps([1, 2]), ['holds list', 'not a state dict']),
        (pickle.dumps({'epoch': 3}), ['entries (epoch)', 'Give the file that']),
        (
            pickle.dumps({'a': np.ones(3, np.int32), 'b': np.ones(2)}),
            ["'a' is a", 'torch.int32', 'to float32'],
        ),
    ],
)
def test_a_file_of_another_kind(content, words, tmp_path):
    path = tmp_path / 'w.bin'
    path.write_bytes(content)
    refused(path, *words)


@pytest.mark.filterwarnings('ignore:Validating sparse tensor')  # torch, of sparse tensors
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ([torch.ones(1)], ['holds list', 'Save `model.state_dict()`']),
        ({'optimizer': {'lr': 1}}, ['entries (optimizer)', 'Give the file that']),
        ({'a': torch.ones(2, dtype=torch.int64)}, ["'a' is", 'torch.int64', 'Save dense']),
        ({'a': torch.ones(2, 2) + 2j}, ["'a' is a torch.strided tensor of torch.complex64"]),
        (
            {'a.num_batches_tracked': torch.ones(2, 2) + 2j},
            ['num_batches_tracked', 'torch.complex64', 'Save dense floating-point tensors'],
        ),
        ({'a': torch.ones(2, 2).to_sparse()}, ["'a' is a torch.sparse_coo tensor", 'Save dense']),
    ],
)
def test_a_torch_file_of_another_kind(content, words, tmp_path):
    refused(save(content, tmp_path / 'w.pth'), *words)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_whole_model_is_refused(legacy, tmp_path):
    path = tmp_path / 'w.pth'
    model = timm.create_model('test_res2net_se')
    torch.save(model, path, _use_new_zipfile_serialization=not legacy)
    words = "'timm_res2net.models.res2net_zoo.Res2Net'", 'a whole model', 'save the state dict'
    assert 'Download it again' not in refused(path, *words)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    ('wrap', 'entry'),
    [
        (lambda w: w, ''),
        (lambda w: {f'module.{k}': v for k, v in w.items()}, ''),
        (lambda w: {f'_orig_mod.module.{k}': v for k, v in w.items()}, ''),
        (lambda w: {'state_dict': w, 'optimizer': {'state': {0: torch.ones(3)}}}, 'state_dict'),
        (lambda w: {'model': w, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)}, 'model'),
        (lambda w: {'state_dict': zeros(w), 'state_dict_ema': w}, 'state_dict_ema'),
        (lambda w: {'net': {f'module.{k}': v for k, v in w.items()}}, 'net'),
    ],
)
def test_what_wraps_weights(wrap, entry, legacy, tmp_path):
    weights = tiny()
    path = tmp_path / 'w.pth'
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    assert found.entry == entry
    assert found.format == ('torch (legacy)' if legacy else 'torch')
    assert_same(found.tensors, weights)


def test_an_entry_by_name(tmp_path):
    path = save({'state_dict': zeros(tiny()), 'state_dict_ema': tiny()}, tmp_path / 'w.pth')
    found = read_checkpoint(path, entry='state_dict')
    assert not any(value.any() for value in found.tensors.values())
    with pytest.raises(ValueError, match=r"entry 'x'.* Use .*state_dict, state_dict_ema"):
        read_checkpoint(path, entry='x')


def test_an_entry_of_an_entry(tmp_path):
    content = {'model': zeros(tiny()), 'ema': {'module': tiny(), 'updates': 3}}
    path = save(content, tmp_path / 'w.pth')
    found = read_checkpoint(path)
    assert (found.entry, found.others) == ('model', ('ema.module',))
    found = read_checkpoint(path, entry='ema.module')
    assert (found.entry, found.others) == ('ema.module', ('model',))
    assert_same(found.tensors, tiny())


def test_entries_of_unknown_names_become_prefixes(tmp_path):
    content = {'ema': {'module': tiny(), 'updates': 3}, 'decoder': {'a.weight': torch.ones(2, 2)}}
    found = read_checkpoint(save(content, tmp_path / 'w.pth'))
    assert (found.entry, found.others) == ('', ())
    expected = {f'ema.module.{key}': value for key, value in tiny().items()}
    assert_same(found.tensors, {**expected, 'decoder.a.weight': torch.ones(2, 2)})


def test_what_is_no_weight_may_be_anything(tmp_path):
    """Only what is taken is checked: a whole model has integers and masks."""
    odd = {'head.index': torch.arange(4), 'head.mask': torch.ones(2, dtype=torch.bool), 'lr': 0.1}
    found = read_checkpoint(save({**tiny(), **odd}, tmp_path / 'w.pth'))
    assert_same(found.take(tiny()), tiny())
    with pytest.raises(ValueError, match=r"Cannot read .*'head\.index' is a .*int64.*Save dense"):
        found.take(['head.index'])


def test_parts_of_a_checkpoint(tmp_path):
    """Their index and the parts themselves are refused, with how to save one file."""
    words = 'several files are not read', 'save one file', 'torch.save(model.state_dict()'
    path = tmp_path / 'model.safetensors.index.json'
    path.write_text(json.dumps({'weight_map': {'a': 'model-00001-of-00002.safetensors'}}))
    refused(path, 'index of shards', *words)
    path.unlink()
    for suffix, write in (('safetensors', save_file), ('bin', torch.save)):
        path = tmp_path / f'model-00002-of-00002.{suffix}'
        write(tiny(), path)
        refused(path, 'it is shard 2 of 2', *words)
        path.unlink()
    save_file(tiny(), tmp_path / 'model-00001-of-00001.safetensors')
    assert_same(read_checkpoint(tmp_path / 'model-00001-of-00001.safetensors').tensors, tiny())


def test_what_is_no_file(tmp_path):
    """A pipe would wait for a writer, and a device may never end."""
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path, tmp_path / 'pipe', Path('/dev/zero')):
        with pytest.raises(ValueError, match=f'Cannot read {path} as .*a device or a pipe. Give'):
            read_checkpoint(path)
        if path != tmp_path:
            with pytest.raises(ValueError, match='Give a file'):
                convert_checkpoint(path, tmp_path / 'out')


def test_a_key_that_only_contains_a_prefix_keeps_it(tmp_path):
    weights = {**tiny(), 'layer1.0.module.weight': torch.ones(1)}
    assert_same(read_checkpoint(save(weights, tmp_path / 'w.pth')).tensors, weights)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_floats_are_widened(dtype, tmp_path):
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tiny().items()
    }
    found = read_checkpoint(save(weights, tmp_path / 'w.pth'))
    assert found.narrow(weights) == sum(v.is_floating_point() for v in weights.values())
    for key, value in weights.items():
        assert found.tensors[key].dtype in (torch.float32, torch.int64)
        assert torch.equal(found.tensors[key].to(value.dtype), value)


@pytest.mark.parametrize('how', ['a bit', 'zeros'])
def test_damage_that_only_the_checksums_show(how, tmp_path):
    path = tmp_path / 'net.pth'
    torch.save({'conv1.weight': torch.ones(64, 3, 7, 7), 'bn1.weight': torch.ones(64)}, path)
    whole = path.read_bytes()
    at = whole.index(torch.ones(64).numpy().tobytes())
    new = bytes([whole[at] ^ 1]) if how == 'a bit' else bytes(200)
    path.write_bytes(whole[:at] + new + whole[at + len(new) :])
    with pytest.raises(
        ValueError, match=r"entry 'net/data/\d' is damaged.*Download or copy it again"
    ):
        read_checkpoint(path)


def test_a_file_without_checksums(tmp_path):
    """torch writes 0 for all of them if it is told to compute none."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'conv1.weight': torch.ones(64, 3, 7, 7)}, tmp_path / 'net.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert list(read_checkpoint(tmp_path / 'net.pth').values) == ['conv1.weight']
