"""Writing that leaves nothing half-written, reading within bounds, and the one check of a path."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.common import PADDLE, python
from timm_res2net.cli.folders import read_label_names
from timm_res2net.files import (
    check_writable,
    new_folder,
    read_file,
    read_text,
    sha256_of,
    write_file,
)
from timm_res2net.prediction import open_image


def test_paths_that_can_be_written(tmp_path):
    assert check_writable(tmp_path / 'new') == tmp_path / 'new'
    assert check_writable(tmp_path / 'net.tag', folder=True) == tmp_path / 'net.tag'
    (tmp_path / 'empty').mkdir()
    assert check_writable(tmp_path / 'empty', folder=True) == tmp_path / 'empty'
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    assert check_writable(tmp_path / 'link', replace=True) == tmp_path / 'file'


@pytest.mark.parametrize(
    ('name', 'kwargs', 'kind'),
    [
        ('file', {}, FileExistsError),
        ('full', {}, FileExistsError),
        ('full', {'folder': True}, FileExistsError),
        ('.', {'folder': True}, FileExistsError),  # the working folder
        ('full', {'replace': True}, OSError),
        ('read-only', {'replace': True}, OSError),
        ('pipe', {'replace': True}, OSError),
        ('net.pth', {'folder': True}, ValueError),
        ('no/new', {}, FileNotFoundError),
        ('file/new', {}, FileNotFoundError),
    ],
)
def test_paths_that_cannot(name, kwargs, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').touch()
    (tmp_path / 'read-only').touch(0o444)
    os.mkfifo(tmp_path / 'pipe')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind) as error:
        check_writable(tmp_path / name, **kwargs)
    assert str(tmp_path / name) in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    with pytest.raises(OSError, match='Read-only'):
        check_writable(tmp_path / 'new')


def test_a_file_is_written_whole_or_not(tmp_path):
    path = tmp_path / 'file'
    write_file(path, lambda file: file.write(b'old'))

    def fail(file):
        file.write(b'new')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, fail)
    assert path.read_bytes() == b'old'
    (tmp_path / 'link').symlink_to('file')
    write_file(tmp_path / 'link', lambda file: file.write(b'new'))
    assert (tmp_path / 'link').is_symlink()
    assert path.read_bytes() == b'new'
    assert sorted(os.listdir(tmp_path)) == ['file', 'link']


def test_a_folder_is_written_whole_or_not(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / 'net') as made:
        (made / 'part').touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / 'net') as made:
        (made / 'all').touch()
    assert os.listdir(tmp_path / 'net') == ['all']
    (tmp_path / 'beside').mkdir()  # a temporary folder has 0o700
    assert (tmp_path / 'net').stat().st_mode == (tmp_path / 'beside').stat().st_mode


def test_the_second_of_two_writers_says_so(tmp_path):
    path = tmp_path / 'file'
    with pytest.raises(FileExistsError, match='file'):
        write_file(path, lambda file: path.write_bytes(b'theirs'), replace=False)
    assert (tmp_path / 'file').read_bytes() == b'theirs'
    with pytest.raises(FileExistsError, match='net'), new_folder(tmp_path / 'net') as made:
        (made / 'mine').touch()
        (tmp_path / 'net').mkdir()
        (tmp_path / 'net' / 'theirs').touch()
    assert os.listdir(tmp_path / 'net') == ['theirs']
    assert sorted(os.listdir(tmp_path)) == ['file', 'net']


@pytest.mark.parametrize(
    'read',
    [read_text, lambda path: open_image(path, 'RGB')],
    ids=['config and card', 'image'],
)
def test_what_never_ends_is_not_read(read, tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    path = tmp_path / 'large'
    with open(path, 'wb') as file:
        file.truncate(1 << 40)
    for endless in (Path('/dev/zero'), path, *[tmp_path / 'pipe'] * (read is read_text)):
        with pytest.raises(ValueError, match=f'^{endless} '):
            read(endless)


def test_pipes_of_labels_and_images():
    read, write = os.pipe()
    os.write(write, b'\xef\xbb\xbfcat\r\ndog\n')
    os.close(write)
    assert read_label_names(Path(f'/dev/fd/{read}'), None, '') == ['cat', 'dog']
    os.close(read)
    read, write = os.pipe()
    os.write(write, b'12345')
    with pytest.raises(ValueError, match=f'/dev/fd/{read} has more than 4 bytes'):
        read_file(Path(f'/dev/fd/{read}'), 4, pipe=True)  # although nobody has closed it
    os.close(read)
    os.close(write)


def test_reading_has_bounds(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'12345')
    assert read_file(path, 5) == b'12345'
    assert sha256_of(path) == hashlib.sha256(b'12345').hexdigest()
    with pytest.raises(ValueError, match=f'{path} has more than 4 bytes'):
        read_file(path, 4)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / 'nothing', 5)


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
        ['convert', str(PADDLE), '--out', 'net'],
        ['convert', str(PADDLE), '--to', 'paddle', '--out', 'net.pdparams'],
        ['push', str(PADDLE), 'me/net', '--license', 'mit', '--dry-run'],
        ['export', 'test_res2net_se', '--static', '--out', 'net.pt2'],
    ],
)
def test_a_full_disk(words, tmp_path):
    """A limit on the size of files stands for the disk. Nothing half-written is left."""
    env = {**os.environ, 'TMPDIR': str(tmp_path)}
    done = python('-c', LIMITED, *words, cwd=tmp_path, env=env)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f'timm-res2net {words[0]}: ')
    assert 'Traceback' not in done.stderr
    assert [name for name in os.listdir(tmp_path) if not name.startswith('torchinductor')] == []
