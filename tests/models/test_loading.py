"""Where weights come from, and that no file fills only a part of a network."""

import dataclasses
import importlib
import os
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors.torch import save_file
from timm.layers import SEModule
from timm.models import load_pretrained

from tests.common import TINY, image, model_folder, network, random_weights, randomise
from tests.convert.helpers import V1B, undone
from tests.hub.server import Fault, hub
from timm_res2net.files import sha256_of
from timm_res2net.models import loading
from timm_res2net.models.loading import NOT_CACHED, checkpoint_filter_fn, fill, prepare_weights

# what huggingface_hub asks with: httpx2, in old versions httpx
client: Any = importlib.import_module(HTTPError.__module__.partition('.')[0])


def under_a_prefix() -> dict[str, torch.Tensor]:
    return {f'resnet.{key}': value for key, value in random_weights().items()}


def of_mmdet() -> dict[str, torch.Tensor]:
    tensors = network(semantics='mmdet', attn_layer='', num_classes=0, **V1B).state_dict()
    return {f'backbone.{key}': value for key, value in undone('mmdet', tensors).items()}


def without_a_block() -> dict[str, torch.Tensor]:
    return {
        key: value for key, value in random_weights().items() if not key.startswith('layer3.1.')
    }


PART = r'lacks weights of the network \(\d+: .*makes a folder of it, which loads with .*local-dir'


@pytest.mark.parametrize(
    ('foreign', 'asked'),  # how people ask for a model
    [
        (under_a_prefix, {}),
        (of_mmdet, {'features_only': True, 'out_indices': (3, 4)}),
        (without_a_block, {'features_only': True, 'feature_cls': 'getter'}),
        (under_a_prefix, {'num_classes': 3}),
        (of_mmdet, {'num_classes': 0}),
        (without_a_block, {'in_chans': 1}),
    ],
)
def test_no_file_fills_a_part_of_a_network(foreign, asked, tmp_path):
    """In a file, in a folder and at an address; the model's own file loads."""
    folder = model_folder(tmp_path / 'net')
    save_file(foreign(), folder / 'model.safetensors')
    torch.save(foreign(), tmp_path / 'w.pth')
    with pytest.raises(RuntimeError, match=PART):
        timm.create_model(f'local-dir:{folder}', pretrained=True, **asked)
    for overlay in ({'file': str(tmp_path / 'w.pth')}, {'url': 'http://no/w.pth', 'file': ''}):
        with pytest.raises(RuntimeError, match=PART):
            timm.create_model(
                TINY, True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path, **asked
            )
    weights = random_weights()
    torch.save(weights, tmp_path / 'w.pth')
    overlay = {'file': str(tmp_path / 'w.pth')}
    model = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay, **asked)
    loaded = {k.removeprefix('model.'): v for k, v in model.state_dict().items()}
    for key in ('layer1.0.conv1.weight', 'layer1.0.convs.0.weight', 'bn1.running_mean'):
        assert torch.equal(loaded[key], weights[key])


# --- gates ----------------------------------------------------------------------------------------


def test_gates_start_at_the_identity_and_learn():
    plain = random_weights(attn_layer='')
    before = {key: value.clone() for key, value in plain.items()}
    model = timm.create_model(TINY)
    model.load_state_dict(checkpoint_filter_fn(plain, model))
    assert all(torch.equal(plain[key], before[key]) for key in plain)
    assert plain.keys() == before.keys()
    x = image()
    same = timm.create_model(TINY, attn_layer='')
    same.load_state_dict(plain)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(model.eval()(x), same.eval()(x))
    assert torch.equal(model.train()(x), same.train()(x))  # in training mode, too
    assert torch.equal(model.bn1.running_var, same.bn1.running_var)
    model(x).square().mean().backward()
    assert all(block.se.fc2.weight.grad.any() for block in model.layer4)
    trained = randomise(model).state_dict()
    kept = checkpoint_filter_fn(trained, model)  # one that has gates
    assert all(torch.equal(kept[key], trained[key]) for key in trained)


class HardGate(SEModule):
    def __init__(self, channels, **kwargs):
        super().__init__(channels, gate_layer='tanh', **kwargs)


@pytest.mark.parametrize(
    ('of_file', 'of_model', 'words'),
    [
        ('', 'eca', r"no attention weights.*layer1\.0\.se\..*attn_layer='se'.*pretrained=False"),
        ('', HardGate, r'no attention weights.*layer1\.0\.se\.'),
        ('se', '', r"24: layer1.*checkpoint's attn_layer"),
        ('se', 'eca', r"24: layer1.*checkpoint's attn_layer"),
    ],
)
def test_other_attention_is_an_error(of_file, of_model, words):
    weights = timm.create_model(TINY, attn_layer=of_file).state_dict()
    model = timm.create_model(TINY, attn_layer=of_model)
    with pytest.raises(RuntimeError, match=words):
        checkpoint_filter_fn(weights, model)


def test_some_gates_missing_is_an_error():
    weights = {k: v for k, v in random_weights().items() if not k.startswith('layer2.1.se.fc2')}
    with pytest.raises(RuntimeError, match=r'2: layer2.1.se.fc2.bias, layer2.1.se.fc2.w'):
        checkpoint_filter_fn(weights, timm.create_model(TINY))


# --- filling a model ------------------------------------------------------------------------------


def test_filling_a_model():
    tensors = {k: v for k, v in random_weights().items() if not k.endswith('num_batches_tracked')}
    tensors['bn1.num_batches_tracked'] = torch.tensor(3)
    model = timm.create_model(TINY, device='meta')
    fill(model, tensors)
    for key, value in model.state_dict().items():
        assert value.equal(tensors.get(key, torch.tensor(0)))  # counters start
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            {'bn1.bias': None, 'odd': torch.ones(1)},
            'without a value, 1: bn1.bias; weights that the model does not have, 1: odd$',
        ),
        ({'bn1.bias': torch.ones(9)}, r'^size mismatch for bn1.bias: .*\[9\]\) .*\[16\]\)$'),
        (
            {k: torch.ones(9) for k in ('bn1.bias', 'bn1.weight', 'fc.bias')},
            r'^size .*; size .*; and 1 more$',
        ),
    ],
)
def test_what_does_not_fill_a_model(change, words):
    tensors = {
        key: value for key, value in {**random_weights(), **change}.items() if value is not None
    }
    with pytest.raises(ValueError, match=words):
        fill(timm.create_model(TINY, device='meta'), tensors)


# --- the Hub and URLs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('failure', 'words'),
    [
        (client.ConnectError('refused'), r'cannot be reached .*\(ConnectError: refused\)\. Check'),
        (client.ConnectTimeout('slow'), r'cannot be reached .*\(ConnectTimeout: slow\)\. Check'),
        (OfflineModeIsEnabled('offline'), 'HF_HUB_OFFLINE is set.* Unset it'),
    ],
)
def test_without_the_hub(failure, words, tmp_path, monkeypatch):
    """One question with a bounded wait, unless the cache has the weights."""
    asked = []

    def model_info(api, repo, **kwargs):
        asked.append((repo, kwargs['revision'], kwargs['timeout']))
        raise failure

    monkeypatch.setattr(loading.HfApi, 'model_info', model_info)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(ConnectionError, match=words) as error:
        timm.create_model('res2net50_se', pretrained=True)
    assert 'timm/res2net50_26w_4s.in1k' in str(error.value)
    assert str(error.value).endswith(NOT_CACHED)
    cfg = timm.models.get_pretrained_cfg('res2net50_se')
    cfg = dataclasses.replace(cfg, hf_hub_id='me/net@v1', source='hf-hub')
    with pytest.raises(ConnectionError, match='me/net'):
        prepare_weights(cfg, tmp_path)
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    assert asked == [('timm/res2net50_26w_4s.in1k', None, timeout), ('me/net', 'v1', timeout)]
    commit = tmp_path / 'models--me--net/snapshots/abc'
    commit.mkdir(parents=True)
    (commit / 'pytorch_model.bin').write_bytes(b'')
    (commit.parents[1] / 'refs').mkdir()
    (commit.parents[1] / 'refs/v1').write_text('abc')
    prepare_weights(cfg, tmp_path)
    with pytest.raises(ConnectionError):
        prepare_weights(dataclasses.replace(cfg, hf_hub_filename='other.bin'), tmp_path)
    overlay = {'state_dict': random_weights()}
    prepare_weights(dataclasses.replace(cfg, source='', **overlay), tmp_path)  # needs no Hub
    assert len(asked) == 3


def test_what_the_hub_refuses_is_left_to_the_download(monkeypatch):
    def model_info(api, repo, **kwargs):
        request = client.Request('GET', 'https://hub')
        raise RepositoryNotFoundError('no', response=client.Response(404, request=request))

    monkeypatch.setattr(loading.HfApi, 'model_info', model_info)
    cfg = timm.models.get_pretrained_cfg('res2net50_se')
    prepare_weights(dataclasses.replace(cfg, hf_hub_id='me/none'), 'nowhere')
    with pytest.raises(RepositoryNotFoundError):
        loading.ask_hub('me/none')


def test_downloads(tmp_path, monkeypatch):
    """What is refused, cut short, or not what the published hash says leaves nothing."""
    source, cache = tmp_path / 'source', tmp_path / 'cache'
    source.write_bytes(os.urandom(300_000))
    with hub() as server:
        server.plain = {'/weights.pdparams': source}
        cfg = timm.models.get_pretrained_cfg('res2net50_vd_26w_4s')
        cfg = dataclasses.replace(cfg, url=f'{server.url}/weights.pdparams')
        own = next(file for file in loading.FILES if file.hash)
        for prefix, fault, words in (
            ('', Fault('GET', 1, status=503), r'Cannot download .*HTTP Error 503.*file='),
            (
                '00000000',
                None,
                r'Cannot download .*RuntimeError: invalid hash.*00000000.*Run again',
            ),
        ):
            monkeypatch.setattr(loading, 'FILES', [own._replace(url=cfg.url, hash=prefix)])
            server.faults.extend([fault] if fault else [])
            with pytest.raises(OSError, match=words) as error:
                prepare_weights(cfg, cache)
            assert cfg.url in str(error.value)
            assert list(cache.iterdir()) == []
            if fault:
                error.value.__cause__.close()  # the answer of the server, which torch leaves open
        right = own._replace(url=cfg.url, hash=sha256_of(source)[:8])
        monkeypatch.setattr(loading, 'FILES', [right])
        prepare_weights(cfg, cache)
        prepare_weights(cfg, cache)  # it is there
        assert server.count('GET') == 3
    assert (cache / 'weights.pdparams').read_bytes() == source.read_bytes()


@pytest.mark.parametrize('file', ['w.pdparams', 'w.safetensors'])
def test_a_file_that_is_not_there(file, tmp_path):
    overlay = {'file': str(tmp_path / file)}
    with pytest.raises(FileNotFoundError, match=rf'There is no .*{file}. Check the path'):
        timm.create_model('res2net50_pd_26w_4s', True, pretrained_cfg_overlay=overlay)


def test_no_weights_is_an_error():
    with pytest.raises(RuntimeError, match='No pretrained weights exist for res2net50_18w_4s'):
        timm.create_model('res2net50_18w_4s', pretrained=True)
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        load_pretrained(timm.create_model('res2net50_18w_4s', device='meta'))
