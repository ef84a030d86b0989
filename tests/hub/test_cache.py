"""What `check`, `pull` and loading do to the client's cache, in each of its layouts: nothing."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load, save

from tests.common import Trap, image, network, saved, slow_except
from tests.hub.client import connected
from tests.hub.conftest import REPO
from tests.hub.server import Hub, hub
from timm_res2net import check, pull
from timm_res2net.hub.fetch import load_model

# How the cache keeps the weights of REPO
LAYOUTS = {
    'the defaults: Xet, a shared store': {'HF_HUB_DISABLE_XET': False},
    'Xet, no shared store': {'HF_HUB_DISABLE_XET': False, 'HF_HUB_DISABLE_SHARED_BLOBS': True},
    'Xet, no symbolic links': {'HF_HUB_DISABLE_XET': False, 'HF_HUB_DISABLE_SYMLINKS': True},
    'git LFS': {},
}
OFFLINE = {  # a constant of the client, and the remedy
    'a variable says so': ('HF_HUB_OFFLINE', True, 'HF_HUB_OFFLINE'),
    'nobody listens': ('ENDPOINT', 'http://127.0.0.1:9', 'Check the network.'),
}


@pytest.fixture(scope='module')
def xet_hub():
    with hub() as server:
        yield server


@pytest.fixture(params=slow_except([*LAYOUTS][:1] + [*LAYOUTS][3:], LAYOUTS))
def world(request, xet_hub, files, tmp_path):
    """A Hub with one model, and a cache that has what timm loads of it."""
    xet_hub.add(REPO, files)
    home = tmp_path / 'home'
    with connected(xet_hub.url, home, **LAYOUTS[request.param]) as patch:
        timm.create_model(f'hf-hub:{REPO}', pretrained=True)
        yield patch, home / 'hub'


def content(cache: Path) -> dict[str, bytes | str]:
    """Every file of a cache: what it holds, or where it leads. No link leads nowhere."""
    there: dict[str, bytes | str] = {}
    for path in sorted(cache.rglob('*')):
        assert path.exists(), f'{path} leads nowhere'
        if path.is_symlink():
            there[str(path)] = os.readlink(path)
        elif path.is_file():
            there[str(path)] = path.read_bytes()
    return there


def weights_in(cache: Path) -> Path:
    return next(cache.glob('models--me--*/snapshots/*/model.safetensors'))


@pytest.mark.parametrize('case', OFFLINE)
def test_without_the_hub_nothing_is_deleted(case, world, files, tmp_path):
    patch, cache = world
    name, value, remedy = OFFLINE[case]
    before = content(cache)
    patch.setattr(constants, name, value)
    for findings in (check(REPO), pull(REPO, tmp_path / 'out')):
        told = {finding.what: finding for finding in findings}
        assert told['repository'].state == 'warning'
        assert REPO in told['repository'].text and remedy in told['repository'].text
        assert told['values'].state == 'ok'
        assert told['card'].state == 'warning'  # timm did not load it
        assert 'no README.md in the cache' in told['card'].text
        assert 'error' not in {finding.state for finding in findings}
    assert (tmp_path / 'out/model.safetensors').read_bytes() == files['model.safetensors']
    assert content(cache) == before


def test_damaged_weights_are_refused(world, model, tmp_path):
    """A byte changed in the cache. The error names the file; nothing is removed by us."""
    _, cache = world
    path = weights_in(cache).resolve()
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    before = content(cache)
    for use in (check, load_model, lambda repo: pull(repo, tmp_path / 'out')):
        with pytest.raises(ValueError, match=rf'model\.safetensors of {REPO}') as error:
            use(REPO)
        assert f'Remove {path} and run again' in str(error.value)
    assert not (tmp_path / 'out').exists()
    assert content(cache).items() >= before.items()  # `check` downloads the card, too
    path.unlink()
    with torch.no_grad():
        assert torch.equal(load_model(REPO).eval()(image()), model(image()))
    assert weights_in(cache).read_bytes() == good


# --- repositories that others wrote ---------------------------------------------------------------


def test_a_network_of_timm(server: Hub):
    """`show` and `export` take other networks, too."""
    other = network('test_resnet', num_classes=5)
    config = {'architecture': 'test_resnet', 'num_classes': 5, 'pretrained_cfg': {}}
    weights = save(other.state_dict(), {'format': 'pt'})
    files = {'model.safetensors': weights, 'config.json': json.dumps(config).encode()}
    server.add('me/other', files)
    with torch.no_grad():
        assert torch.equal(load_model('me/other').eval()(image()), other(image()))
    server.add('me/damaged', {**files, 'config.json': b'{'})
    with pytest.raises(ValueError, match=r'config\.json does not describe a model'):
        load_model('me/damaged')


def test_a_pickle_alone(server: Hub, files, model, tmp_path):
    """timm wrote such repositories before safetensors. With both, the pickle is not downloaded."""
    config = {'config.json': files['config.json']}
    old = {'pytorch_model.bin': saved(load(files['model.safetensors'])), **config}
    evil = saved({'a': torch.zeros(2), 'b': Trap(os.mkdir, str(tmp_path / 'made'))})
    server.add('me/old', old)
    server.add('me/both', {**files, 'pytorch_model.bin': evil})
    for repo in ('me/old', 'me/both'):
        with torch.no_grad():
            assert torch.equal(load_model(repo).eval()(image()), model(image()))
    assert server.count('me/both/resolve/.*bin') == 0


def test_small_weights_are_compared_too(server: Hub, files, tmp_path):
    """Files in git itself have a git hash, and no sha256."""
    server.add('me/small', files, large=())
    assert {finding.state for finding in check('me/small')} == {'ok'}
    path = weights_in(tmp_path / 'home/hub').resolve()
    path.write_bytes(b'?' * len(files['model.safetensors']))
    with pytest.raises(ValueError, match='is not what the Hub announces'):
        check('me/small')
