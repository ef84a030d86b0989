"""What `check` and `pull` do to the client's cache, in each of its layouts."""

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save

from tests.common import randomise, repository_files, slow_except
from tests.hub.client import Client, RemoteError, command, environment, without_override
from tests.hub.server import Hub, hub
from timm_res2net.models.loading import NOT_CACHED

REPO = 'me/tiny'
# How the cache keeps the weights of REPO; each value is set for the client while a test runs.
LAYOUTS = {
    'the defaults: Xet, a shared store': {},
    'Xet, no shared store': {'HF_HUB_DISABLE_SHARED_BLOBS': True},
    'Xet, no symbolic links': {'HF_HUB_DISABLE_SYMLINKS': True},
    'git LFS': {'HF_HUB_DISABLE_XET': True},
}
CHECK = 'answer = [list(finding) for finding in hub.check(repo)]'
LOAD = """
timm.create_model(f'hf-hub:{repo}', pretrained=True)
answer = None
"""
SET = """
from huggingface_hub import constants
for name, value in values.items():
    setattr(constants, name, value)
constants.HUGGINGFACE_CO_URL_TEMPLATE = (
    constants.ENDPOINT + '/{repo_id}/resolve/{revision}/{filename}'
)
"""


@pytest.fixture(scope='module')
def files() -> dict[str, bytes]:
    model = randomise(timm.create_model('test_res2net_se', num_classes=5)).eval()
    return repository_files(REPO, model)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    with hub() as server:
        client = Client(environment(server.url, home))
        yield server, client, home / 'hub'
        client.close()


@pytest.fixture(params=LAYOUTS)
def world(request, shared, files) -> Iterator[tuple[Hub, Client, Path]]:
    """A Hub with one model, and a client whose cache has what timm loads of it."""
    server, client, cache = shared
    server.faults.clear()
    server.repos.clear()
    server.add(REPO, files)
    shutil.rmtree(cache, ignore_errors=True)
    client.run(SET, values=LAYOUTS[request.param])
    client.run(LOAD, repo=REPO)
    yield server, client, cache
    names = [*LAYOUTS[request.param], 'HF_HUB_OFFLINE']
    client.run(SET, values=dict.fromkeys(names, False))
    client.run(SET, values={'ENDPOINT': server.url})


def content(cache: Path) -> dict[str, bytes | str]:
    """Every file of a cache: what it holds, or where it leads. No link leads nowhere."""
    found: dict[str, bytes | str] = {}
    for path in sorted(cache.rglob('*')):
        assert path.exists(), f'{path} leads nowhere'
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


def weights_of(cache: Path) -> Path:
    return next(cache.glob('models--me--tiny/snapshots/*/model.safetensors'))


def damage(cache: Path) -> None:
    """Change a byte of the cached weights, wherever they are."""
    path = weights_of(cache).resolve()
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))


def found(findings: list[list[str]], what: str) -> list[str]:
    return next((finding[1:] for finding in findings if finding[0] == what), [])


OFFLINE = {
    'a variable says so': ({'HF_HUB_OFFLINE': True}, 'HF_HUB_OFFLINE'),
    'nobody listens': ({'ENDPOINT': 'http://127.0.0.1:9'}, 'Check the network.'),
}


@pytest.mark.parametrize('case', OFFLINE)
def test_without_the_hub_nothing_is_deleted(case, world, files, tmp_path):
    _, client, cache = world
    values, remedy = OFFLINE[case]
    before = content(cache)
    client.run(SET, values=values)
    findings = client.run(CHECK, repo=REPO)
    code = 'answer = [list(finding) for finding in hub.pull(repo, out)]'
    pulled = client.run(code, repo=REPO, out=str(tmp_path / 'out'))
    for told in (findings, pulled):
        state, text = found(told, 'repository')
        assert state == 'warning'
        assert REPO in text and remedy in text and 'Only the cache was checked' in text
        assert 'announces' not in text
        assert found(told, 'outputs')[0] == 'ok'
        assert found(told, 'card')[0] == 'warning'
        assert 'README.md is not in the cache' in found(told, 'card')[1]
        assert 'error' not in {state for _, state, _ in told}
    assert (tmp_path / 'out/model.safetensors').read_bytes() == files['model.safetensors']
    assert content(cache) == before


USES = """
import pathlib
from huggingface_hub.utils import _http
from timm_res2net import export_model, show
from timm_res2net.prediction import predict
from timm_res2net.hub.fetch import load_model

waits = []
_http.time.sleep = waits.append  # between the client's tries
uses = {
    'predict': lambda: list(predict(load_model(repo).eval(), [None])),
    'show': lambda: show(repo, None, f'{out}/shown.png'),
    'export': lambda: export_model(repo, f'{out}/exported.pt', 'torchscript'),
}
answer = {}
for command, use in uses.items():
    try:
        use()
        answer[command] = ''
    except OSError as error:
        answer[command] = str(error)
answer['waits'] = waits
"""


@pytest.mark.parametrize(
    ('case', 'repo'),
    slow_except(
        [('nobody listens', REPO)],
        [(case, repo) for case in OFFLINE for repo in (REPO, 'me/timms')],
    ),
)
def test_uses_without_the_hub_do_not_wait(case, repo, shared, files, tmp_path):
    """What is in the cache is used at once, and what is not fails at once."""
    server, client, cache = shared
    values, remedy = OFFLINE[case]
    timms = randomise(timm.create_model('res2net50_48w_2s', num_classes=5)).eval()
    server.add(repo, files if repo == REPO else repository_files(repo, timms))
    shutil.rmtree(cache, ignore_errors=True)
    client.run(LOAD, repo=repo)
    server.requests.clear()
    client.run(SET, values=values)
    try:
        told = client.run(USES, repo=repo, out=str(tmp_path))
        assert told == {'predict': '', 'show': '', 'export': '', 'waits': []}
        next(cache.glob('models--*/snapshots/*/model.safetensors')).unlink()
        for path in tmp_path.iterdir():
            path.unlink()
        told = client.run(USES, repo=repo, out=str(tmp_path))
    finally:
        client.run(SET, values={'HF_HUB_OFFLINE': False, 'ENDPOINT': server.url})
    assert told.pop('waits') == []
    for text in told.values():
        assert repo in text and remedy in text and NOT_CACHED in text
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


LOAD_MODEL = """
from timm_res2net.hub.fetch import load_model
answer = load_model(repo).eval()(torch.ones(1, 3, 64, 64)).detach().tolist()
"""


def test_damaged_weights_are_refused(world, files, tmp_path):
    """The error names the file to remove. Nothing is removed by us, and the retry is clean."""
    _, client, cache = world
    outputs = client.run(LOAD_MODEL, repo=REPO)
    damage(cache)
    before = content(cache)
    for code in (CHECK, LOAD_MODEL, 'hub.pull(repo, out)'):
        with pytest.raises(RemoteError) as error:
            client.run(code, repo=REPO, out=str(tmp_path / 'out'))
        assert error.value.kind == 'ValueError'
        assert f'model.safetensors of {REPO} is not what the Hub announces' in error.value.text
        path = Path(re.search('Remove (.*) and run again', error.value.text)[1])
    assert list(tmp_path.iterdir()) == []
    assert content(cache).items() >= before.items()  # `check` downloads the card, too
    path.unlink()
    assert client.run(LOAD_MODEL, repo=REPO) == outputs
    assert weights_of(cache).read_bytes() == files['model.safetensors']


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_network_of_timm_in_a_repository(shared):
    """`show` and `export` take other networks, too."""
    server, client, _ = shared
    model = randomise(timm.create_model('test_resnet', num_classes=5)).eval()
    config = {'architecture': 'test_resnet', 'num_classes': 5, 'pretrained_cfg': {}}
    weights = save(model.state_dict(), {'format': 'pt'})
    files = {'model.safetensors': weights, 'config.json': json.dumps(config).encode()}
    server.add('me/other', files)
    found = client.run(LOAD_MODEL, repo='me/other')
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 64, 64))
    assert torch.allclose(torch.tensor(found), expected, rtol=1e-5, atol=1e-6)


def test_a_repository_with_a_pickle_alone(shared, files, tmp_path):
    """timm wrote such repositories before safetensors. With both, the pickle is not downloaded."""
    server, client, cache = shared
    content = io.BytesIO()
    torch.save(load(files['model.safetensors']), content)
    pickled = {'pytorch_model.bin': content.getvalue(), 'config.json': files['config.json']}
    server.add('me/old', pickled)
    server.add('me/both', {**pickled, **files})
    assert client.run(LOAD_MODEL, repo='me/old') == client.run(LOAD_MODEL, repo='me/both')
    evil = io.BytesIO()
    torch.save({'a': torch.zeros(2), 'b': Evil(str(tmp_path / 'made'))}, evil)
    server.add('me/evil', {**pickled, 'pytorch_model.bin': evil.getvalue()})
    with pytest.raises(RemoteError):
        client.run(LOAD_MODEL, repo='me/evil')
    assert not (tmp_path / 'made').exists()
    names = {path.name for path in (cache / 'models--me--both').rglob('snapshots/*/*')}
    assert names == {'model.safetensors', 'config.json'}


def test_small_weights_are_compared_too(shared, files):
    """Files in git itself have a git hash, and no sha256."""
    server, client, cache = shared
    server.add('me/small', files, large=())
    state, text = found(client.run(CHECK, repo='me/small'), 'repository')
    assert state == 'ok' and text.endswith('weights as the Hub announces')
    link = next(cache.glob('models--me--small/snapshots/*/model.safetensors'))
    link.resolve().write_bytes(b'?' * len(files['model.safetensors']))
    with pytest.raises(RemoteError, match='is not what the Hub announces'):
        client.run(CHECK, repo='me/small')


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['HF_HUB_DISABLE_SHARED_BLOBS', 'HF_HUB_DISABLE_SYMLINKS', ''])
def test_a_read_only_cache(layout, files, tmp_path):
    home = tmp_path / 'home'
    with hub() as server:
        server.add(REPO, files)
        env = environment(server.url, home, **({layout: '1'} if layout else {}))

        def run(*argv: str) -> subprocess.CompletedProcess:
            line = without_override(command(*argv))
            return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)

        assert run('check', REPO).returncode == 0
        before = content(home / 'hub')
        folders = [p for p in home.rglob('*') if p.is_dir() and not p.is_symlink()]
        for folder in folders:
            folder.chmod(0o555)
        try:
            done = run('check', REPO)
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert done.returncode == 0, done.stderr
        assert 'as the Hub announces' in done.stdout
        assert content(home / 'hub') == before
