"""Predictions: those of the model, in order, whatever is among the images."""

import itertools
import os
import struct
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.common import TINY, network
from timm_res2net import predict, reparameterize_model
from timm_res2net.folder.config import MULTI_LABEL
from timm_res2net.prediction import (
    DIGITS,
    Images,
    Prediction,
    labels_of,
    open_image,
    walk_images,
)

# Python 3.12 and newer warn when a process with threads is forked, as DataLoaders do on Linux
FORKS = pytest.mark.filterwarnings('ignore:.*multi-threaded.*:DeprecationWarning')


@pytest.fixture(scope='module')
def model():
    return timm.create_model(TINY, pretrained=True).eval()


@pytest.fixture
def digits(tmp_path):
    """Three digits in folders, and files that are no images."""
    with Image.open(DIGITS) as strip:
        for i, name in ((7, 'b/7.png'), (4, 'a/deep/4.PNG'), (9, 'a/9.png')):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            strip.crop((8 * i, 0, 8 * i + 8, 8)).save(tmp_path / name)
    (tmp_path / 'a' / 'notes.txt').write_text('no image')
    (tmp_path / 'a' / '._9.png').write_text('no image')
    return tmp_path


# --- which images ---------------------------------------------------------------------------------


def test_images_are_found(digits):
    names = [str(path.relative_to(digits)) for path in walk_images([digits])]
    assert names == ['a/9.png', 'a/deep/4.PNG', 'b/7.png']
    notes = digits / 'a' / 'notes.txt'  # a file that is named is an image, whatever its name
    assert list(walk_images([digits / 'b', str(notes)])) == [digits / 'b' / '7.png', notes]
    with pytest.raises(FileNotFoundError, match='nothing'):
        walk_images([digits, digits / 'nothing'])
    (digits / 'empty').mkdir()
    *_, last = walk_images([digits / 'b', digits / 'empty'])
    assert last.image == str(digits / 'empty') and 'no images' in last.error


def test_links(digits):
    """A folder behind a symbolic link is searched once, also in a loop; a broken link is a row."""
    outside = digits.parent / f'{digits.name} outside'
    outside.mkdir()
    (digits / 'a' / '9.png').rename(outside / '9.png')
    for link, to in (('c', outside), ('d', outside), ('loop', digits), ('gone.png', 'nowhere')):
        (digits / link).symlink_to(to)
    names = [str(path.relative_to(digits)) for path in walk_images([digits])]
    assert names == ['gone.png', 'a/deep/4.PNG', 'b/7.png', 'c/9.png']


def test_a_folder_that_may_not_be_read(digits, model, monkeypatch):
    """It is a row, and the others follow."""
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('deep'):  # permissions do not bind root
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    rows = list(predict(model, walk_images([digits]), top=1))
    assert [row.top and row.top[0][0] for row in rows] == ['9', '7', ()]
    assert rows[-1].image == str(digits / 'a' / 'deep')
    assert 'Permission denied' in rows[-1].error


# --- one image ------------------------------------------------------------------------------------


def kinds() -> dict[str, Image.Image]:
    ramp = np.arange(64, dtype=np.float32).reshape(8, 8)
    return {
        'floats': Image.fromarray(ramp / 63),
        'nan': Image.fromarray(ramp * np.nan),
        '32 bits': Image.fromarray(ramp.astype(np.int32)),
        '16 bits': Image.fromarray(ramp.astype(np.uint16)),
    }


@pytest.mark.parametrize('kind', kinds())
def test_images_whose_scale_is_not_known(kind, tmp_path, model):
    kinds()[kind].save(tmp_path / 'in.tif')
    for image in (tmp_path / 'in.tif', kinds()[kind], np.asarray(kinds()[kind])):
        (row,) = predict(model, [image])
        assert row.top == ()
        assert '8 bits' in row.error
        assert 'float' in row.error or 'int' in row.error


@pytest.mark.filterwarnings('ignore::ResourceWarning')  # timm leaves the file open
@pytest.mark.filterwarnings('ignore:Palette images with Transparency:UserWarning')
@pytest.mark.parametrize('mode', ['L', 'P', 'LA', 'RGBA', 'CMYK', '1'])
def test_images_are_read_as_timm_reads_them(mode, tmp_path, model):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    path = tmp_path / f'in.{"jpg" if mode == "CMYK" else "png"}'
    Image.fromarray(pixels).convert('RGB' if mode == 'CMYK' else 'RGBA').convert(mode).save(path)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    (expected, _), *_ = timm.data.ImageDataset(
        str(tmp_path), class_map={'': 0}, transform=transform
    )
    assert torch.equal(Images(model).load(path), expected)


def test_turned_images_and_animations(tmp_path):
    turned = Image.new('RGB', (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / 'turned.jpg', exif=exif)
    assert open_image(tmp_path / 'turned.jpg', 'RGB').size == (20, 30)
    frames = [Image.new('L', (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / 'moving.gif', save_all=True, append_images=frames[1:])
    assert set(open_image(tmp_path / 'moving.gif', 'L').tobytes()) == {10}


def test_every_form_of_an_image_gives_the_same(digits, model):
    path = digits / 'b' / '7.png'
    pixels = np.asarray(Image.open(path))
    color = np.repeat(pixels[..., None], 3, 2)
    forms = [path, str(path), Image.open(path), pixels, pixels[..., None], color]
    rows = list(predict(model, [*forms, torch.from_numpy(color).permute(2, 0, 1)]))
    assert {row.top for row in rows} == {rows[0].top}
    assert rows[0].top[0][0] == '7'
    assert [row.image for row in rows] == [str(path)] * 3 + [f'image {i}' for i in range(3, 7)]
    (row,) = predict(model, [np.zeros((2, 8, 8), np.uint8)])
    assert 'ndarray' in row.error


@pytest.mark.parametrize(
    'error', [struct.error('short'), EOFError(), SyntaxError('bad'), RuntimeError, MemoryError]
)
def test_whatever_pillow_raises_is_a_row(error, digits, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, 'open', mock.Mock(side_effect=error))
        rows = list(predict(model, [digits / 'b' / '7.png']))
    assert [row.top for row in rows] == [()]
    assert '7.png' in rows[0].error


# --- predictions ----------------------------------------------------------------------------------


@FORKS
@pytest.mark.parametrize(('batch_size', 'workers'), [(1, 0), (2, 0), (2, 2), (16, 1)])
def test_predictions_come_in_order(digits, batch_size, workers, model):
    """An unreadable image between readable ones shifts nothing."""
    images = list(walk_images([digits]))
    refused = Prediction('a folder', (), 'closed')
    images[1:1] = [digits / 'a' / 'notes.txt', digits / 'gone.png', None, refused]
    state = torch.get_rng_state()
    rows = list(predict(model, images, top=2, batch_size=batch_size, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    names = [str(digits / 'a' / '9.png'), *map(str, images[1:3]), 'bundled digit', 'a folder']
    assert [row.image for row in rows] == [*names, *map(str, images[5:])]
    assert [row.top[0][0] if row.top else '' for row in rows] == ['9', '', '', '3', '', '4', '7']
    assert 'notes.txt as an image' in rows[1].error
    assert 'gone.png' in rows[2].error
    assert [row.error for row in rows[:1] + rows[3:]] == ['', '', 'closed', '', '']


def test_probabilities_are_the_models(digits):
    model = network(num_classes=3)
    model.pretrained_cfg = {**model.pretrained_cfg, 'label_names': ['cat', 'dog', 'owl']}
    path = digits / 'b' / '7.png'
    with torch.no_grad():
        (logits,) = model(Images(model).load(path)[None])
    expected = dict(zip(['cat', 'dog', 'owl'], logits.softmax(0).tolist(), strict=True))
    forms = ({}, {'deploy': True}, {'amp': 'bf16'}, {'amp': 'bf16', 'deploy': True})
    for options, tolerance in zip(forms, (1e-6, 1e-5, 0.02, 0.02), strict=True):  # by dtype
        (row,) = predict(model, [path], top=5, device='cpu', **options)
        assert dict(row.top) == pytest.approx(expected, abs=tolerance), options
        assert [share for _, share in row.top] == sorted(dict(row.top).values(), reverse=True)
    (row,) = predict(reparameterize_model(model).bfloat16(), [path])
    assert dict(row.top) == pytest.approx(expected, abs=0.02)
    assert not any('Fused' in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize('by', ['argument', 'config'])
def test_several_classes(by, digits):
    model = network(num_classes=4)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([2.0, -1.0, float('nan'), 4.0]))
    if by == 'config':
        model.pretrained_cfg['problem_type'] = MULTI_LABEL
    option = {'multi_label': True} if by == 'argument' else {}
    (row,) = predict(model, [None], **option)
    assert [label for label, _ in row.top] == ['2', '3', '0']  # NaN is visible
    shares = dict(row.top)
    assert (shares['3'], shares['0']) == pytest.approx((0.98201, 0.88080), abs=1e-5)  # sigmoids
    (row,) = predict(model, [None], top=2, **option)
    assert len(row.top) == 2
    (row,) = predict(model, [None], multi_label=False, top=4)
    assert len(row.top) == 4


def test_only_the_batches_at_work_are_read(digits, model):
    opened = []

    def images():
        for path in itertools.cycle(walk_images([digits])):
            opened.append(path)
            yield path

    rows = predict(model, images(), batch_size=2)
    assert opened == []
    next(rows)
    assert len(opened) == 2


def test_models_that_cannot_classify_images(model):
    """They are refused at once, before an image is asked for."""
    with pytest.raises(ValueError, match='no classes'):
        predict(timm.create_model(TINY, num_classes=0), ['a.png'])
    with pytest.raises(ValueError, match=r"write \['red.png'\]"):
        predict(TINY, 'red.png')
    with pytest.raises(ValueError, match='fp8'):
        predict(model, ['a.png'], amp='fp8')
    five = timm.create_model(TINY, in_chans=5)
    five.pretrained_cfg['input_size'] = (5, 64, 64)
    with pytest.raises(ValueError, match='takes 5 channels'):
        predict(five, ['a.png'])


def test_labels():
    assert labels_of(timm.create_model(TINY)) == list('0123456789')
    assert labels_of(timm.create_model(TINY, num_classes=3)) == ['0', '1', '2']
    named = timm.create_model(TINY, num_classes=2)
    named.pretrained_cfg = dict(named.pretrained_cfg, label_names={'0': 'cat', '1': 'dog'})
    assert labels_of(named) == ['cat', 'dog']
    names = labels_of(timm.create_model('res2net50_se', device='meta'))
    assert len(names) == 1000
    assert names[1] == 'goldfish, Carassius auratus'
