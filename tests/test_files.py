"""Writing that leaves nothing half-written, and the one check of a path."""

import hashlib
import os

import pytest

from timm_res2net.files import check_writable, new_folder, sha256_of, write_file


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


def test_sha256(tmp_path):
    (tmp_path / 'file').write_bytes(b'x' * 3_000_000)
    assert sha256_of(tmp_path / 'file') == hashlib.sha256(b'x' * 3_000_000).hexdigest()
