"""No pretrained file fills a part of a network, and what is converted fills all of one."""

import functools
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.common import files_of, model_folder, randomise, slow_except
from tests.hub.client import connected
from tests.hub.server import hub, serve
from timm_res2net.convert.engine import undo_rules
from timm_res2net.convert.sources import SOURCES
from timm_res2net.models.loading import fill

NAME = 'test_res2net_se'
HRNET = 'hrnet_w18_res2net'
SENTENCE = (
    r'lacks weights of the network \(\d+: .*'
    r'(makes a folder of it, which loads with .*local-dir|give the whole checkpoint)'
)


@functools.cache
def weights(name: str = NAME) -> dict[str, torch.Tensor]:
    return randomise(timm.create_model(name)).state_dict()


def under_a_prefix() -> dict[str, torch.Tensor]:
    return {f'resnet.{key}': value for key, value in weights().items()}


def without_a_stem() -> dict[str, torch.Tensor]:
    """MMDetection's and others' blocks have timm's names, and their stems have not."""
    return {
        key.replace('conv1.', 'stem.0.', 1) if key.startswith('conv1.') else key: value
        for key, value in weights().items()
    }


def of_mmdet() -> dict[str, torch.Tensor]:
    deep = dict(stem_type='deep', stem_width=8, avg_down=True, attn_layer='', num_classes=0)
    model = randomise(timm.create_model(NAME, semantics='mmdet', **deep))
    tensors = model.state_dict()
    theirs = undo_rules(tensors, SOURCES['mmdet'].rules(tensors), 'mmdet')
    return {f'backbone.{key}': value for key, value in theirs.items()}


def without_a_block() -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if not key.startswith('layer3.1.')}


def of_something_else() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict()


FOREIGN = [under_a_prefix, without_a_stem, of_mmdet, without_a_block, of_something_else]
# How people ask for a model: as it is, for features, with other classes, with other channels
ASKED = [
    {}, {'features_only': True}, {'features_only': True, 'out_indices': (3, 4)},
    {'num_classes': 3}, {'num_classes': 0}, {'in_chans': 1},
    {'features_only': True, 'feature_cls': 'getter'},
]  # fmt: skip


@pytest.mark.parametrize('asked', ASKED, ids=str)
@pytest.mark.parametrize('foreign', FOREIGN)
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_file(foreign, asked, suffix, tmp_path):
    path = tmp_path / f'w.{suffix}'
    (save_file if suffix == 'safetensors' else torch.save)(foreign(), path)
    overlay = {'file': str(path)}
    with pytest.raises(RuntimeError, match=SENTENCE):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **asked)


@pytest.mark.parametrize('asked', ASKED, ids=str)
def test_the_models_own_file_loads(asked, tmp_path):
    """The tests above do not refuse everything."""
    save_file(weights(), tmp_path / 'w.safetensors')
    overlay = {'file': str(tmp_path / 'w.safetensors')}
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **asked)
    own = {k.removeprefix('model.'): v for k, v in model.state_dict().items()}
    for key in ('layer1.0.conv1.weight', 'layer1.0.convs.0.weight', 'bn1.running_mean'):
        assert torch.equal(own[key], weights()[key])


@pytest.mark.parametrize('asked', slow_except(ASKED[:3], ASKED), ids=str)
@pytest.mark.parametrize('foreign', FOREIGN)
def test_a_folder(foreign, asked, tmp_path):
    folder = model_folder(tmp_path / 'net')
    save_file(foreign(), folder / 'model.safetensors')
    with pytest.raises(RuntimeError, match=SENTENCE):
        timm.create_model(f'local-dir:{folder}', pretrained=True, **asked)


@pytest.mark.parametrize('asked', [{}, {'features_only': True}], ids=str)
def test_an_address(asked, tmp_path):
    torch.save(under_a_prefix(), tmp_path / 'w.pth')
    with serve({'/w.pth': tmp_path / 'w.pth'}) as (url, _):
        overlay = {'url': f'{url}/w.pth', 'file': None}
        with pytest.raises(RuntimeError, match=SENTENCE):
            timm.create_model(
                NAME, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path, **asked
            )


def test_a_repository_of_the_hub(tmp_path):
    folder = model_folder(tmp_path / 'net')
    save_file(under_a_prefix(), folder / 'model.safetensors', metadata={'format': 'pt'})
    with hub(xet=False) as server, connected(server.url, tmp_path / 'home'):
        server.add('me/net', files_of(folder))
        for asked in ({}, {'features_only': True}):
            with pytest.raises(RuntimeError, match=SENTENCE):
                timm.create_model('hf-hub:me/net', pretrained=True, **asked)


@pytest.mark.parametrize('asked', [{}, {'features_only': True}, {'num_classes': 3}], ids=str)
def test_hrnets(asked, tmp_path):
    foreign = {f'backbone.{key}': value for key, value in weights(HRNET).items()}
    for name, tensors in (('foreign', foreign), ('own', weights(HRNET))):
        save_file(tensors, tmp_path / f'{name}.safetensors')
    overlay = {'file': str(tmp_path / 'foreign.safetensors')}
    with pytest.raises(RuntimeError, match=SENTENCE):
        timm.create_model(HRNET, pretrained=True, pretrained_cfg_overlay=overlay, **asked)
    overlay = {'file': str(tmp_path / 'own.safetensors')}
    model = timm.create_model(HRNET, pretrained=True, pretrained_cfg_overlay=overlay, **asked)
    assert torch.equal(model.state_dict()['bn1.bias'], weights(HRNET)['bn1.bias'])


def test_the_sentence_is_true(tmp_path):
    from timm_res2net import convert_checkpoint

    path: Path = tmp_path / 'w.pth'
    torch.save(under_a_prefix(), path)
    convert_checkpoint(path, tmp_path / 'folder')
    model = timm.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights().items())


def test_nothing_watches_load_state_dict():
    """What is loaded by hand is torch's matter, with strict=False too."""
    for model in (timm.create_model(NAME), timm.create_model(NAME, features_only=True)):
        assert not model._load_state_dict_pre_hooks
        found = model.load_state_dict(under_a_prefix(), strict=False)
        assert found.missing_keys and found.unexpected_keys


# --- filling a model --------------------------------------------------------------------------


def test_filling_a_model():
    tensors = {k: v for k, v in weights().items() if not k.endswith('num_batches_tracked')}
    model = timm.create_model(NAME, device='meta')
    fill(model, tensors)
    for key, value in model.state_dict().items():
        assert value.equal(tensors.get(key, torch.tensor(0)))  # counters start
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_counter_that_is_there_is_kept():
    model = timm.create_model(NAME, device='meta')
    fill(model, {**weights(), 'bn1.num_batches_tracked': torch.tensor(3)})
    assert model.state_dict()['bn1.num_batches_tracked'] == 3


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'bn1.bias': None}, 'without a value, 1: bn1.bias$'),
        ({'odd': torch.ones(1)}, 'that the model does not have, 1: odd$'),
        ({'odd.num_batches_tracked': torch.tensor(1)}, 'not have, 1: odd.num_batches_tracked$'),
        (
            {'bn1.bias': None, 'odd': torch.ones(1)},
            'without a value, 1: bn1.bias; weights that the model does not have, 1: odd$',
        ),
        ({'bn1.bias': torch.ones(9)}, r'^size mismatch for bn1.bias: .*\[9\]\) .*\[16\]\)$'),
        (
            {k: torch.ones(9) for k in ('bn1.bias', 'bn1.weight', 'fc.bias')},
            r'^size .*; size .*; and 1 more$',
        ),
        ({'bn1.bias': torch.ones(9), 'fc.bias': None}, '^size mismatch for bn1.bias'),
    ],
)
def test_what_does_not_fill_a_model(change, words):
    tensors = {key: value for key, value in {**weights(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        fill(timm.create_model(NAME, device='meta'), tensors)
