"""Reading files that are not to be trusted."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.common import randomise
from tests.convert.helpers import Trap, refused, save, tiny, zeros
from timm_res2net.convert import read_checkpoint


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
    refused(path, 'entry ', ' is compressed')
    save({'a': torch.zeros(10_000)}, path)
    rewrite(path, zipfile.ZIP_STORED, repeat=20)
    refused(path, 'entries claim ', ' bytes')


def end_records(content: bytes) -> tuple[bytes, bytes]:
    """A zip file before its end record, and that record."""
    return content[:-22], content[-22:]


def test_a_zip_file_with_two_directories(tmp_path):
    """Python takes the one before the end record, torch the one that the record points to."""
    path = save({'a': torch.zeros(10)}, tmp_path / 'w.pth')
    rewrite(path, zipfile.ZIP_STORED)
    harmless = path.read_bytes()
    save({'a': torch.zeros(1_000_000)}, path)
    rewrite(path, zipfile.ZIP_DEFLATED)
    bomb = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    body, end = end_records(harmless)
    # ... and the harmless archive behind the bomb, with the bomb's directory in its record
    record = bytearray(end)
    record[8:10] = record[10:12] = count.to_bytes(2, 'little')
    record[16:20] = start.to_bytes(4, 'little')
    path.write_bytes(bomb[:-22] + body + bytes(record))
    refused(path, 'does not end as', 'Download it again')
    path.write_bytes(harmless)
    assert list(read_checkpoint(path).tensors) == ['a']
    path.write_bytes(harmless + b'more')
    refused(path, 'Download it again')


@pytest.mark.parametrize('kind', ['optimizer', 'scalar'])
def test_what_training_scripts_keep_beside_the_weights(kind, tmp_path):
    if kind == 'optimizer':  # torchvision's and PyTorch's examples keep a tensor, too
        content = {'epoch': 3, 'state_dict': tiny(), 'best_acc1': torch.tensor(0.5)}
        assert read_checkpoint(save(content, tmp_path / 'w.pth')).entry == 'state_dict'
    else:
        path = save({'state_dict': tiny(), 'best': np.float64(0.5)}, tmp_path / 'w.pth')
        assert 'weights_only' not in refused(path, "scalar'", 'Nothing in it was run')


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
    refused(path, 'keys of type int')


def test_tensors_that_claim_more_than_there_is(tmp_path):
    path = save({'a': torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / 'w.pth')
    refused(path, "'a' claims the shape (1048576, 1048576)", 'less memory')


def test_a_damaged_file(tmp_path):
    path = save(tiny(), tmp_path / 'w.pth')
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    refused(path, 'not a zip file', 'Download it again')
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
        (b'<!DOCTYPE html><html>', ["begins with b'<!DOCTYPE html><'", 'Download it again']),
        (b'\x89PNG\r\n\x1a\n' + bytes(99), ["begins with b'\\x89PNG"]),
        (pickle.dumps([1, 2]), ['holds list', 'not a dict']),
        (pickle.dumps({'epoch': 3}), ['entries (epoch)', 'Looked for state_dict_ema', 'name it']),
        (
            pickle.dumps({'a': np.ones(3, np.int32), 'b': np.ones(2)}),
            ["'a' is int32", 'as float32'],
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
        ({'optimizer': {'lr': 1}}, ['entries (optimizer)', 'name it']),
        ({'a': torch.ones(2), 'lr': 0.1}, ["'lr' is float", 'nothing but tensors']),
        ({'a': torch.ones(2, dtype=torch.int64)}, ["'a' is", 'torch.int64', 'Save dense']),
        ({'a': torch.ones(2, 2).to_sparse()}, ["'a' is a torch.sparse_coo tensor", 'Save dense']),
    ],
)
def test_a_torch_file_of_another_kind(content, words, tmp_path):
    refused(save(content, tmp_path / 'w.pth'), *words)


def test_a_torchscript_archive(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / 'w.pt'))
    refused(tmp_path / 'w.pt')


def test_a_whole_model_is_refused(tmp_path):
    path = tmp_path / 'w.pth'
    torch.save(timm.create_model('test_res2net_se'), path)
    refused(path, "'timm_res2net.models.res2net_zoo.Res2Net'", 'save the state dict')


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
    assert found.widened == sum(v.is_floating_point() for v in weights.values())
    for key, value in weights.items():
        assert found.tensors[key].dtype in (torch.float32, torch.int64)
        assert torch.equal(found.tensors[key].to(value.dtype), value)
