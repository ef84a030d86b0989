"""Without a network: one sentence within seconds, and nothing half-downloaded."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import timm
from huggingface_hub import close_session, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import _http

from tests.common import repository_files
from tests.hub.client import connected
from tests.hub.server import Fault, hub
from timm_res2net import check, export_model, show
from timm_res2net.cli import main
from timm_res2net.hub.load import load_model
from timm_res2net.models.loading import NOT_CACHED, prepare_weights

WARM = 'me/warm'  # in the cache
COLD = 'me/cold'


@contextlib.contextmanager
def hole(port: int = 0) -> Iterator[int]:
    """A port that neither accepts nor refuses a connection: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(('127.0.0.1', port))
        listener.listen(0)
        for _ in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """The client with one repository in its cache, and the port of the Hub, which has gone."""
    home = tmp_path_factory.mktemp('home')
    model = timm.create_model('test_res2net_se', num_classes=5)
    with contextlib.ExitStack() as stack:
        with hub(xet=False) as server:
            server.add(WARM, repository_files(WARM, model))
            patch = stack.enter_context(
                connected(server.url, home, HF_HUB_ETAG_TIMEOUT=0.05, HF_HUB_OFFLINE=False)
            )
            load_model(WARM)
            close_session()  # a connection that is open would outlive the server
        slept: list[float] = []
        patch.setattr(_http.time, 'sleep', slept.append)
        yield patch, server.server_port, slept


TROUBLE = {
    'nobody listens': (
        contextlib.nullcontext,
        {},
        'The Hub cannot be reached for {repo} (ConnectError: ',
        'Check the network.',
    ),
    'nobody answers': (
        hole,
        {},
        'The Hub cannot be reached for {repo} (ConnectTimeout: ',
        'Check the network.',
    ),
    'HF_HUB_OFFLINE': (
        contextlib.nullcontext,
        {'offline': True},
        'HF_HUB_OFFLINE is set, so the Hub was not asked for {repo}.',
        'Unset it to ask the Hub.',
    ),
}
# what is run, and the repository that its weights come from
RUNS = {
    'create_model': (
        lambda out: timm.create_model('res2net50_se', True), 'timm/res2net50_26w_4s.in1k'
    ),
    'a model of timm': (lambda out: load_model('resnet18.tv_in1k'), 'timm/resnet18.tv_in1k'),
    'a repository': (lambda out: load_model(COLD), COLD),
    'export': (lambda out: export_model(COLD, out / 'net.pt2', 'pt2'), COLD),
    'show': (lambda out: show(COLD, None, out / 'net.png'), COLD),
    'check': (lambda out: check(COLD), COLD),
    'check of a name': (lambda out: check('res2net50_se'), 'timm/res2net50_26w_4s.in1k'),
}  # fmt: skip


@pytest.mark.parametrize('case', TROUBLE)
@pytest.mark.parametrize('run', RUNS)
def test_every_way_says_the_same_at_once(run, case, world, tmp_path):
    patch, port, slept = world
    trouble, settings, value, remedy = TROUBLE[case]
    use, repo = RUNS[run]
    with trouble(port) if trouble is hole else trouble(), patch.context() as more:
        more.setattr(constants, 'HF_HUB_OFFLINE', bool(settings))
        with pytest.raises(ConnectionError) as error:
            use(tmp_path)
    assert str(error.value).startswith(value.format(repo=repo))
    assert str(error.value).endswith(f'{remedy}{NOT_CACHED}')
    assert slept == []  # the client's own way is to try six times
    assert list(tmp_path.iterdir()) == []


def test_every_command_prints_it(world, tmp_path, capsys):
    commands = {
        'export': ['--out', str(tmp_path / 'net.pt2')],
        'show': ['--out', str(tmp_path / 'net.png')],
        'predict': [],
        'check': [],
        'pull': ['--out', str(tmp_path / 'net')],
    }
    for command, options in commands.items():
        assert main([command, COLD, *options]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        start = f'timm-res2net {command}: The Hub cannot be reached for {COLD} (ConnectError: '
        assert line.startswith(start)
        assert line.endswith(f'Check the network.{NOT_CACHED}')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('offline', [False, True])
def test_the_cache_serves(offline, world, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
    assert load_model(WARM).num_classes == 5
    assert world[2] == []


def test_what_the_hub_refuses_passes(tmp_path):
    with hub() as server, connected(server.url, tmp_path) as patch:
        server.add(COLD, {'config.json': b'{}'}, gated=True)
        patch.setenv('HF_TOKEN', '')
        for target, kind in (
            (COLD, GatedRepoError),
            ('me/none', RepositoryNotFoundError),
            ('res2net50_se', RepositoryNotFoundError),
        ):
            with pytest.raises(kind):
                load_model(target)


# --- URLs -------------------------------------------------------------------------------------

NAME = 'res2net50_vd_26w_4s'


def weights_at(url: str) -> Any:
    """The cfg of a model of PaddleClas, with its weights elsewhere."""
    return dataclasses.replace(timm.models.get_pretrained_cfg(NAME), url=url)


@pytest.mark.parametrize(
    ('status', 'kind'), [(404, 'HTTPError: HTTP Error 404'), (503, 'HTTPError: HTTP Error 503')]
)
def test_a_download_that_is_refused(status, kind, tmp_path):
    (tmp_path / 'source').write_bytes(os.urandom(300_000))
    with hub() as server:
        server.plain = {'/weights.pdparams': tmp_path / 'source'}
        server.faults.append(Fault('GET', 1, status=status))
        cfg = weights_at(f'{server.url}/weights.pdparams')
        with pytest.raises(OSError) as error:
            prepare_weights(cfg, tmp_path / 'cache')
        assert f'Cannot download {cfg.url} ({kind}' in str(error.value)
        assert "load a copy of the file with pretrained_cfg_overlay=dict(file='PATH')" in str(
            error.value
        )
        error.value.__cause__.close()  # the answer of the server, which torch leaves open
        assert list((tmp_path / 'cache').iterdir()) == []
        prepare_weights(cfg, tmp_path / 'cache')
        prepare_weights(cfg, tmp_path / 'cache')  # it is there
        assert server.count('GET') == 2
    assert (tmp_path / 'cache/weights.pdparams').read_bytes() == (tmp_path / 'source').read_bytes()


@pytest.mark.parametrize('name', ['res2net50_vd_26w_4s', 'res2net50_ms_26w_4s'])
def test_weights_at_a_url_without_a_network(name, tmp_path, monkeypatch):
    """What `create_model` says, with the URL and where to put the file."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def refuse(request):
        raise ConnectionRefusedError(111, 'Connection refused')

    monkeypatch.setattr('torch.hub.urlopen', refuse)
    url = timm.models.get_pretrained_cfg(name).url
    for load in (lambda: timm.create_model(name, pretrained=True), lambda: load_model(name)):
        with pytest.raises(OSError) as error:
            load()
        assert str(error.value).startswith(f'Cannot download {url} (ConnectionRefusedError: ')
        assert "pretrained_cfg_overlay=dict(file='PATH')" in str(error.value)
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
