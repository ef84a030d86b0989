"""The picture of what a model sees, and the numbers in it."""

import pytest
import torch
from PIL import Image

from tests.common import SMALL_HRNET, TINY, change_config, from_folder, image, model_folder, network
from timm_res2net.drawing import activations, show
from timm_res2net.folder.config import MULTI_LABEL
from timm_res2net.prediction import Images

pytest.importorskip('matplotlib', reason='needs the extra plots')

NARROW = {'layers': (1, 2, 1, 1), 'channels': (32, 32, 32, 32)}


@pytest.mark.parametrize('pool', ['avg', 'max', 'avgmax', 'catavgmax'])
def test_its_sum_is_the_logit(pool):
    """Less the bias: what it shows is all of the evidence, and nothing else."""
    model = network(global_pool=pool)
    seen = activations(model, image(1, 96))
    best = int(seen.logits.argmax())
    assert seen.evidence.shape == (3, 3)
    expected = seen.logits[best] - model.fc.bias[best].detach()
    assert abs(float(seen.evidence.sum() - expected)) < 1e-4 * float(seen.logits.abs().max())


@pytest.mark.parametrize(
    ('name', 'kwargs'), [(TINY, {}), ('res2net50_26w_4s', NARROW), ('resnet18', {})]
)
def test_what_is_seen_is_what_the_model_computes(name, kwargs):
    model, x, inputs = network(name, **kwargs), image(1), []
    for key, module in model.named_modules():
        if key.endswith('conv3'):
            module.register_forward_pre_hook(lambda m, args, key=key: inputs.append((key, args[0])))
    seen = activations(model, x)
    block_name, splits = seen.splits
    if name == 'resnet18':
        assert seen.splits == ('', ())
    else:
        assert len(splits) == model.get_submodule(block_name).scale
        assert torch.equal(torch.cat(splits), dict(inputs)[f'{block_name}.conv3'][0])
        assert not block_name.endswith('.0')  # whose splits may not build upon each other
    with torch.no_grad():
        assert torch.equal(seen.logits, model(x)[0])
        levels = model.forward_intermediates(x, intermediates_only=True)
    for found, expected in zip(seen.levels.values(), levels, strict=True):
        assert torch.equal(found, expected[0])


@pytest.mark.parametrize('kwargs', [{'layers': (1, 1, 1, 1)}, {'scale': 1}])
def test_models_without_splits_that_are_added(kwargs):
    assert activations(network(**kwargs), image(1)).splits == ('', ())


def test_an_hrnet():
    seen = activations(network('hrnet_w18_res2net', **SMALL_HRNET), image(1))
    assert [level.shape[0] for level in seen.levels.values()] == [64, 128, 256, 512, 1024]


def test_pictures(tmp_path):
    Image.new('RGBA', (50, 40), (200, 30, 90)).save(tmp_path / 'in.png')
    done = show(TINY, tmp_path / 'in.png', tmp_path / 'out.png')
    assert len(done.top) == 5
    assert sum(share for _, share in done.top) <= 1
    assert done.levels[:2] == (('act1', 16, 32, 32), ('layer1', 64, 16, 16))
    with Image.open(tmp_path / 'out.png') as picture:
        assert picture.format == 'PNG'
        assert min(picture.size) > 500
        assert len(set(picture.convert('L').tobytes())) > 100  # something is drawn
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.png', 'out.png']


@pytest.mark.parametrize('names', [(), ('$\\foo$', 'b')])
def test_folders(names, tmp_path):
    """Of grey images without classes, and with several classes, whose names could be formulas."""
    source = model_folder(tmp_path / 'net$', in_chans=1, num_classes=len(names), **NARROW)
    change_config(source, label_names=names or None, problem_type=MULTI_LABEL)
    top = dict(show(source, None, tmp_path / 'out.png').top)
    model = from_folder(source)
    with torch.no_grad():
        shares = model(Images(model).load(None)[None])[0].sigmoid().tolist() if names else []
    assert top == pytest.approx(dict(zip(names, shares, strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    ('target', 'source', 'out', 'value'),
    [
        (TINY, 'none.png', 'x.png', '{tmp}/none.png'),
        (TINY, 'text.png', 'x.png', '{tmp}/text.png as an image'),
        (TINY, 'huge.png', 'x.png', 'huge.png as an image'),
        (TINY, None, 'x.jpg', 'x.jpg'),
        ('channels', None, 'x.png', '5 channels'),
        ('vit_tiny_patch16_224', None, 'x.png', 'VisionTransformer'),
    ],
)
def test_refused(target, source, out, value, tmp_path, monkeypatch):
    if source == 'huge.png':
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    (tmp_path / 'text.png').write_text('no picture')
    Image.new('L', (60, 60)).save(tmp_path / 'huge.png')
    if target == 'channels':
        target = model_folder(tmp_path / 'net', in_chans=5, **NARROW)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, OSError)) as error:
        show(target, source and tmp_path / source, tmp_path / out, pretrained=target == TINY)
    assert value.format(tmp=tmp_path.resolve()) in str(error.value)
    assert sorted(tmp_path.iterdir()) == before
