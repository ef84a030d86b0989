"""The options that several commands have."""

from pathlib import Path

import pytest
import timm
from PIL import Image

from timm_res2net.cli.options import read_label_names


def test_names_of_classes_from_a_file(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_bytes(b'\xef\xbb\xbfcat\r\ndog \r\n\r\n')
    assert read_label_names(path) == ['cat', 'dog']
    path.write_text('cat\n\ndog\n')
    with pytest.raises(ValueError, match=r'Line 2 of .*names.txt is empty. Give one'):
        read_label_names(path)
    path.write_bytes(b'caf\xe9\n')
    with pytest.raises(
        ValueError, match=r'Cannot read .*names.txt as UTF-8 \(.*\). Save it as UTF-8'
    ):
        read_label_names(path)
    with pytest.raises(FileNotFoundError, match='nothing'):
        read_label_names(tmp_path / 'nothing')
    assert read_label_names(None) is None


def put_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(path)


def test_names_of_classes_from_a_folder(tmp_path):
    """In the order of timm's datasets, which train.py trains on: numbers count as numbers."""
    put_images(tmp_path / 'train', 'c10/a.png', 'c9/a.png', 'Ant/x/bee/a.jpg', 'train/a.png')
    (tmp_path / 'train' / 'empty').mkdir()
    (tmp_path / 'train' / 'notes').mkdir()
    (tmp_path / 'train' / 'notes' / 'a.txt').touch()
    names = read_label_names(tmp_path / 'train')
    assert names == ['bee', 'c9', 'c10', 'train']
    data = timm.data.create_dataset('', str(tmp_path), split='train')
    assert {name: i for i, name in enumerate(names)} == data.reader.class_to_idx


def test_a_folder_without_class_folders(tmp_path):
    with pytest.raises(ValueError, match=r'one folder of images per class.*DATA/train'):
        read_label_names(tmp_path)
    put_images(tmp_path, 'a.png', 'c1/a.png')  # beside the folders
    with pytest.raises(ValueError, match=r'one folder of images per class.*DATA/train'):
        read_label_names(tmp_path)
