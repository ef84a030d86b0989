"""No checkpoint fills a part of a network, whatever way it is loaded."""

import copy
import functools
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint
from torch import nn

from tests.common import files_of, image, model_folder, randomise, slow_except
from tests.hub.client import Client, RemoteError, environment
from tests.hub.server import hub, serve
from timm_res2net import Res2Net, reparameterize_model
from timm_res2net.convert import SOURCES, undo_rules

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


OTHER_KEYS = [foreign for foreign in FOREIGN if foreign is not without_a_block]


@pytest.mark.parametrize('foreign', OTHER_KEYS)
@pytest.mark.parametrize('asked', [{}, {'features_only': True}, {'num_classes': 3}], ids=str)
def test_a_checkpoint_path(foreign, asked, tmp_path):
    torch.save(foreign(), tmp_path / 'w.pth')
    with pytest.raises(RuntimeError, match=SENTENCE):
        timm.create_model(NAME, checkpoint_path=str(tmp_path / 'w.pth'), **asked)


def test_a_checkpoint_path_without_a_block(tmp_path):
    """torch says it well: all keys are the model's own."""
    torch.save(without_a_block(), tmp_path / 'w.pth')
    with pytest.raises(RuntimeError, match=r'Missing key.*layer3\.1\.'):
        timm.create_model(NAME, checkpoint_path=str(tmp_path / 'w.pth'))


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('asked', [{}, {'features_only': True}], ids=str)
@pytest.mark.parametrize('foreign', OTHER_KEYS)
def test_timms_load_checkpoint(foreign, asked, strict, tmp_path):
    torch.save({'state_dict': foreign()}, tmp_path / 'w.pth')
    model = timm.create_model(NAME, **asked)
    with pytest.raises(RuntimeError, match=SENTENCE):
        load_checkpoint(model, str(tmp_path / 'w.pth'), strict=strict)


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


LOAD = "timm.create_model('hf-hub:me/net', pretrained=True, **asked)"


def test_a_repository_of_the_hub(tmp_path):
    folder = model_folder(tmp_path / 'net')
    save_file(under_a_prefix(), folder / 'model.safetensors', metadata={'format': 'pt'})
    with hub() as server:
        server.add('me/net', files_of(folder))
        client = Client(environment(server.url, tmp_path / 'home'))
        try:
            for asked in ({}, {'features_only': True}):
                with pytest.raises(RemoteError, match=SENTENCE) as error:
                    client.run(LOAD, asked=asked)
                assert error.value.kind == 'RuntimeError'
        finally:
            client.close()


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
    with pytest.raises(RuntimeError, match=SENTENCE):
        model.load_state_dict(foreign, strict=False)


# --- what is no mistake -----------------------------------------------------------------------


def test_a_choice_of_the_models_own_keys_loads():
    model = timm.create_model(NAME)
    some = {key: value for key, value in weights().items() if key.startswith('layer1.')}
    found = model.load_state_dict(some, strict=False)
    assert not found.unexpected_keys
    assert torch.equal(model.state_dict()['layer1.0.bn1.bias'], some['layer1.0.bn1.bias'])
    with pytest.raises(RuntimeError, match='Missing key'):
        model.load_state_dict(some)


def test_a_part_of_a_larger_model_is_its_owners_matter():
    model = nn.ModuleDict({'resnet': timm.create_model(NAME), 'head': nn.Linear(2, 2)})
    found = model.load_state_dict(
        {'head.bias': torch.ones(2), 'other': torch.ones(1)}, strict=False
    )
    assert found.unexpected_keys == ['other']


def test_features_of_some_levels_take_the_whole_checkpoint():
    model = timm.create_model(NAME, features_only=True, out_indices=(1, 2))
    found = model.load_state_dict(weights(), strict=False)
    assert not found.missing_keys


def test_a_plain_checkpoint_into_gates_by_hand():
    """Without timm's filter the gates stay as they are: a choice, as ever with strict=False."""
    model = timm.create_model(NAME)
    plain = {key: value for key, value in weights().items() if '.se.' not in key}
    assert all('.se.' in key for key in model.load_state_dict(plain, strict=False).missing_keys)


def test_a_deployed_model_says_nothing_of_convert():
    deployed = reparameterize_model(timm.create_model(NAME))
    with pytest.raises(RuntimeError, match='Missing key') as error:
        deployed.load_state_dict(weights())
    assert 'convert' not in str(error.value)


@pytest.mark.parametrize('make', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize('features_only', [False, True])
def test_copies_watch_too(make, features_only):
    model = timm.create_model(NAME, features_only=features_only)
    made = make(model)
    with pytest.raises(RuntimeError, match=SENTENCE):
        made.load_state_dict(under_a_prefix(), strict=False)
    assert made.load_state_dict(model.state_dict()).missing_keys == []


def test_a_network_made_by_its_class():
    with pytest.raises(RuntimeError, match=SENTENCE):
        Res2Net(layers=(1, 1, 1, 1)).load_state_dict(under_a_prefix())


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
def test_scripts_and_exports_are_as_before():
    model = randomise(timm.create_model(NAME)).eval()
    x = image()
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(model)(x), model(x), atol=1e-5)
        exported = torch.export.export(model, (x,))
        assert torch.allclose(exported.module()(x), model(x), atol=1e-5)


def test_the_sentence_is_true(tmp_path):
    from timm_res2net import convert_checkpoint

    path: Path = tmp_path / 'w.pth'
    torch.save(under_a_prefix(), path)
    convert_checkpoint(path, tmp_path / 'folder')
    model = timm.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights().items())
