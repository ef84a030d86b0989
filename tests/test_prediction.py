"""Predictions: those of the model, in order, whatever is among the images."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.common import TINY, randomise
from timm_res2net.prediction import DIGITS, find_images, predict


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


def test_images_are_found(digits):
    names = [str(path.relative_to(digits)) for path in find_images([digits])]
    assert names == ['a/9.png', 'a/deep/4.PNG', 'b/7.png']
    notes = digits / 'a' / 'notes.txt'  # a file that is named is an image, whatever its name
    assert find_images([digits / 'b', str(notes)]) == [digits / 'b' / '7.png', notes]
    with pytest.raises(FileNotFoundError, match='nothing'):
        find_images([digits, digits / 'nothing'])
    (digits / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty'):
        find_images([digits / 'empty'])


@pytest.mark.parametrize('batch_size', [1, 2, 16])
def test_predictions_come_in_order(digits, batch_size):
    """An unreadable image between readable ones shifts nothing."""
    model = timm.create_model(TINY, pretrained=True).eval()
    images = find_images([digits])
    images[1:1] = [digits / 'a' / 'notes.txt', digits / 'gone.png', None]
    found = list(predict(model, images, top=2, batch_size=batch_size))
    assert [one.image for one in found] == [str(path or 'bundled digit') for path in images]
    assert [one.top[0][0] if one.top else '' for one in found] == ['9', '', '', '3', '4', '7']
    assert 'notes.txt as an image' in found[1].error
    assert 'gone.png' in found[2].error
    assert [one.error for one in found[:1] + found[3:]] == [''] * 4


def test_probabilities_are_the_models(digits):
    model = randomise(timm.create_model(TINY, num_classes=3)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, 'label_names': ['cat', 'dog', 'owl']}
    path = digits / 'b' / '7.png'
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        shares = model(transform(Image.open(path).convert('RGB'))[None]).softmax(1)[0]
    (found,) = predict(model, [path], top=5)
    assert dict(found.top) == pytest.approx(
        {name: float(share) for name, share in zip(['cat', 'dog', 'owl'], shares, strict=True)}
    )
    assert [share for _, share in found.top] == sorted(shares.tolist(), reverse=True)


def test_only_one_batch_is_read(digits):
    opened = []

    def images():
        for path in find_images([digits]):
            opened.append(path)
            yield path

    found = predict(timm.create_model(TINY).eval(), images(), batch_size=2)
    assert opened == []
    next(found)
    assert len(opened) == 2


def test_models_that_cannot_classify_images():
    """They are refused at once, before an image is asked for."""
    with pytest.raises(ValueError, match='no classes'):
        predict(timm.create_model(TINY, num_classes=0), [Path('a.png')])
    model = timm.create_model(TINY, in_chans=5)
    model.pretrained_cfg['input_size'] = (5, 64, 64)
    with pytest.raises(ValueError, match='takes 5 channels'):
        predict(model, [Path('a.png')])
