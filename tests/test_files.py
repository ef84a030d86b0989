"""Writing that leaves nothing half-written, and the one check of a path."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.cli.test_cli import PADDLE
from tests.common import randomise
from timm_res2net import convert_checkpoint
from timm_res2net.cli.options import read_label_names
from timm_res2net.files import (
    check_writable,
    new_file,
    new_folder,
    read_file,
    read_text,
    sha256_of,
    write_file,
)
from timm_res2net.folder.config import Config
from timm_res2net.prediction import open_image


def test_paths_that_can_be_written(tmp_path):
    assert check_writable(tmp_path / 'new') == tmp_path / 'new'
    assert check_writable(tmp_path / 'net.tag', folder=True) == tmp_path / 'net.tag'
    (tmp_path / 'empty').mkdir()
    assert check_writable(tmp_path / 'empty', folder=True) == tmp_path / 'empty'
    (tmp_path / 'file').touch()
    assert check_writable(tmp_path / 'file', replace=True) == tmp_path / 'file'
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    assert check_writable(tmp_path / 'link', replace=True) == tmp_path / 'file'


@pytest.mark.parametrize(
    ('name', 'kwargs', 'kind', 'remedy'),
    [
        ('file', {}, FileExistsError, 'Choose another name'),
        ('full', {'folder': True}, FileExistsError, 'Choose another name'),
        ('full', {}, FileExistsError, 'Choose another name'),
        ('full', {'replace': True}, IsADirectoryError, 'Name a file'),
        ('net.pth', {'folder': True}, ValueError, 'Name the folder net.'),
        ('no/new', {}, FileNotFoundError, 'Create it first'),
        ('file/new', {}, FileNotFoundError, 'Create it first'),
    ],
)
def test_paths_that_cannot(name, kwargs, kind, remedy, tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').touch()
    with pytest.raises(kind) as error:
        check_writable(tmp_path / name, **kwargs)
    assert str(tmp_path / name) in str(error.value)
    assert remedy in str(error.value)


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    with pytest.raises(OSError, match=r'new \(Read-only file system\).*a folder you can write to'):
        check_writable(tmp_path / 'new')


def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match='Choose another name'):
        check_writable(tmp_path, folder=True)


def test_a_file_is_written_whole_or_not(tmp_path):
    path = tmp_path / 'file'
    write_file(path, lambda file: file.write(b'old'))
    assert path.stat().st_mode & 0o777 == 0o644

    def fail(file):
        file.write(b'new')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, fail)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['file']


def test_a_folder_is_written_whole_or_not(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / 'net') as made:
        (made / 'part').touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / 'net') as made:
        (made / 'all').touch()
    assert os.listdir(tmp_path / 'net') == ['all']
    assert (tmp_path / 'net').stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize('kind', ['pipe', 'device', 'read-only'])
def test_only_a_file_is_replaced(kind, tmp_path):
    path = Path('/dev/null') if kind == 'device' else tmp_path / 'out'
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'read-only':
        path.write_bytes(b'kept')
        path.chmod(0o444)
    before = path.stat()
    words = 'read-only' if kind == 'read-only' else 'a device or a pipe'
    for write in (
        lambda: check_writable(path, replace=True),
        lambda: write_file(path, lambda file: file.write(b'new')),
    ):
        with pytest.raises(OSError, match=f'Cannot write {path}: it is {words}'):
            write()
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    with pytest.raises(FileExistsError, match='Choose another name'):
        check_writable(path)
    assert set(os.listdir(tmp_path)) <= {'out'}


def test_a_symbolic_link_stays(tmp_path):
    (tmp_path / 'file').write_bytes(b'old')
    (tmp_path / 'link').symlink_to('file')
    write_file(tmp_path / 'link', lambda file: file.write(b'new'))
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'file').read_bytes() == b'new'


@pytest.mark.parametrize('links', [True, False])
def test_the_second_of_two_writers_says_so(links, tmp_path, monkeypatch):
    if not links:  # a file system without hard links

        def refuse(*args):
            raise PermissionError(1, 'Operation not permitted')

        monkeypatch.setattr('os.link', refuse)
    words = 'was written by another process'
    with (
        pytest.raises(FileExistsError, match=f'{tmp_path}/file {words}'),
        new_file(tmp_path / 'file') as made,
    ):
        made.write_bytes(b'mine')
        (tmp_path / 'file').write_bytes(b'theirs')
    assert (tmp_path / 'file').read_bytes() == b'theirs'
    with (
        pytest.raises(FileExistsError, match=f'{tmp_path}/net {words}'),
        new_folder(tmp_path / 'net') as made,
    ):
        (made / 'mine').touch()
        (tmp_path / 'net').mkdir()
        (tmp_path / 'net' / 'theirs').touch()
    assert os.listdir(tmp_path / 'net') == ['theirs']
    assert sorted(os.listdir(tmp_path)) == ['file', 'net']


@pytest.mark.parametrize(
    'read',
    [read_label_names, read_text, lambda path: open_image(path, 'RGB')],
    ids=['labels', 'config and card', 'image'],
)
def test_what_never_ends_is_not_read(read, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe')
    for endless in (tmp_path / 'pipe', Path('/dev/zero')):
        with pytest.raises(
            ValueError, match=f'^{endless} is not a file, but a folder, a device or a pipe.'
        ):
            read(endless)
    path = tmp_path / 'large'
    with open(path, 'wb') as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f'^{path} has more than .* bytes'):
        read(path)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from timm_res2net.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'words',
    [
        ['convert', str(PADDLE)],
        ['push', str(PADDLE), 'me/net', '--license', 'mit', '--dry-run'],
        ['export', 'test_res2net_se', '--format', 'torchscript', '--static'],
        ['export', 'test_res2net_se', '--format', 'pt2', '--static'],
    ],
)
def test_a_full_disk(words, tmp_path):
    """A limit on the size of files stands for the disk. Nothing half-written is left."""
    suffix = {'torchscript': '.pt', 'pt2': '.pt2'}.get(words[3] if len(words) > 3 else '', '')
    out = [] if words[0] == 'push' else ['--out', str(tmp_path / f'out{suffix}')]
    done = subprocess.run(
        [sys.executable, '-c', LIMITED, *words, *out],
        env={**os.environ, 'TMPDIR': str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'timm-res2net {words[0]}: ')
    assert 'Traceback' not in done.stderr
    assert [name for name in os.listdir(tmp_path) if not name.startswith('torchinductor')] == []


def test_reading_has_bounds(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'12345')
    assert read_file(path, 5) == b'12345'
    with pytest.raises(ValueError, match=f'{path} has more than 4 bytes.*Give another file'):
        read_file(path, 4)
    os.mkfifo(tmp_path / 'pipe')
    for endless in (tmp_path, tmp_path / 'pipe', Path('/dev/zero')):
        with pytest.raises(ValueError, match=f'{endless} is not a file.*Give a file'):
            read_file(endless, 5)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / 'nothing', 5)


MINDCV = PADDLE.with_name('mindcv.ckpt')


def sources(folder: Path) -> dict[str, Path]:
    """A small network in each kind of file."""
    tensors = randomise(timm.create_model('test_res2net_se')).state_dict()
    paths = {
        'torch': folder / 'net.pth', 'safetensors': folder / 'net.safetensors',
        'MindSpore': folder / 'net.ckpt', 'Paddle': folder / 'net.pdparams',
    }  # fmt: skip
    torch.save(tensors, paths['torch'])
    save_file(tensors, paths['safetensors'])
    shutil.copyfile(MINDCV, paths['MindSpore'])
    shutil.copyfile(PADDLE, paths['Paddle'])
    return paths


@pytest.mark.parametrize('kind', ['torch', 'safetensors', 'MindSpore', 'Paddle'])
def test_a_source_that_is_cut_after_it_was_read(kind, tmp_path, monkeypatch):
    """Its content is in memory: what is written, and its sha256, are of what was read."""
    source = sources(tmp_path)[kind]
    expected = convert_checkpoint(source, tmp_path / 'expected')
    prepare = Config.with_data

    def cut(config, given):
        for path in tmp_path.iterdir():
            if path.is_file():
                os.truncate(path, 0)
        return prepare(config, given)

    monkeypatch.setattr(Config, 'with_data', cut)
    found = convert_checkpoint(source, tmp_path / 'out')
    assert source.stat().st_size == 0
    assert found.notes == expected.notes
    weights = [(tmp_path / name / 'model.safetensors').read_bytes() for name in ('expected', 'out')]
    assert weights[0] == weights[1]


def test_sha256(tmp_path):
    (tmp_path / 'file').write_bytes(b'x' * 3_000_000)
    assert sha256_of(tmp_path / 'file') == hashlib.sha256(b'x' * 3_000_000).hexdigest()
