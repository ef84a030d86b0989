"""Without a network: one sentence within seconds, and nothing half-downloaded."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm

from tests.common import repository_files
from tests.hub.client import Client, RemoteError, environment
from tests.hub.server import Fault, hub
from timm_res2net import download
from timm_res2net.download import NOT_CACHED
from timm_res2net.load import load_model

WARM = 'me/warm'  # in the cache
COLD = 'me/cold'
LOAD = """
from timm_res2net.load import load_model
answer = load_model(target).num_classes
"""


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
    """A client that has loaded one repository, and the port of the Hub, which has gone."""
    model = timm.create_model('test_res2net_se', num_classes=5)
    with hub() as server:
        server.add(WARM, repository_files(WARM, model))
        client = Client(environment(server.url, tmp_path_factory.mktemp('home')))
        client.run(LOAD, target=WARM)
    client.run("""
import sys
from huggingface_hub import close_session
from huggingface_hub.utils import _http
from timm_res2net import download
fetch = sys.modules['timm_res2net.hub.fetch']  # `hub.fetch` is the function
close_session()  # a connection that is open would outlive the server
download.PATIENCE = fetch.PATIENCE = 0.05
slept = timm.slept = []
_http.time.sleep = slept.append
""")
    yield client, server.server_port
    client.close()


TROUBLE = {
    'nobody listens': (
        contextlib.nullcontext,
        {},
        'The Hub cannot be reached for {repo} (ConnectError: ',
        'Check the network and run again.',
    ),
    'nobody answers': (
        hole,
        {},
        'The Hub cannot be reached for {repo} (ConnectTimeout: ',
        'Check the network and run again.',
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
    'create_model': ("timm.create_model('res2net50_se', True)", 'timm/res2net50_26w_4s.in1k'),
    'a model of timm': (
        "from timm_res2net.load import load_model; load_model('resnet18.tv_in1k')",
        'timm/resnet18.tv_in1k',
    ),
    'a repository': (f"from timm_res2net.load import load_model; load_model('{COLD}')", COLD),
    'export': (f"import timm_res2net as t; t.export_model('{COLD}', out, 'pt2')", COLD),
    'show': (f"import timm_res2net as t; t.show('{COLD}', None, out.replace('pt2', 'png'))", COLD),
    'check': (f"hub.check('{COLD}')", COLD),
    'check of a name': ("hub.check('res2net50_se')", 'timm/res2net50_26w_4s.in1k'),
}
SET = 'from huggingface_hub import constants; constants.HF_HUB_OFFLINE = offline'


@pytest.mark.parametrize('case', TROUBLE)
@pytest.mark.parametrize('run', RUNS)
def test_every_way_says_the_same_at_once(run, case, world, tmp_path):
    client, port = world
    trouble, settings, value, remedy = TROUBLE[case]
    code, repo = RUNS[run]
    with trouble(port) if trouble is hole else trouble():
        client.run(SET, **{'offline': False, **settings})
        with pytest.raises(RemoteError) as error:
            client.run(code, out=str(tmp_path / 'net.pt2'))
    assert error.value.kind == 'OSError'
    assert error.value.text.startswith(value.format(repo=repo))
    assert error.value.text.endswith(f'{remedy}{NOT_CACHED}')
    assert client.run('answer = timm.slept') == []  # the client's own way is to try six times
    assert list(tmp_path.iterdir()) == []


VERBS = """
import contextlib, io
from timm_res2net.cli import main
answer = []
for words in verbs:
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = main(words)
    answer.append([code, told.getvalue().splitlines()[-1]])
"""


def test_every_verb_prints_it(world, tmp_path):
    client, _ = world
    client.run(SET, offline=False)
    verbs = {
        'export': ['--out', str(tmp_path / 'net.pt2')],
        'show': ['--out', str(tmp_path / 'net.png')],
        'predict': [],
        'check': [],
        'pull': ['--out', str(tmp_path / 'net')],
    }
    told = client.run(VERBS, verbs=[[verb, COLD, *options] for verb, options in verbs.items()])
    for verb, (code, line) in zip(verbs, told, strict=True):
        assert code == 1
        start = f'timm-res2net {verb}: The Hub cannot be reached for {COLD} (ConnectError: '
        assert line.startswith(start)
        assert line.endswith(f'Check the network and run again.{NOT_CACHED}')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('offline', [False, True])
def test_the_cache_serves(offline, world):
    client, _ = world
    client.run(SET, offline=offline)
    assert client.run(LOAD, target=WARM) == 5
    assert client.run('answer = timm.slept') == []


def test_what_the_hub_refuses_is_said_by_the_table(tmp_path):
    with hub() as server:
        server.add(COLD, {'config.json': b'{}'}, gated=True)
        client = Client(environment(server.url, tmp_path, HF_TOKEN=''))
        try:
            for target, text in (
                (COLD, f'{COLD} is gated. Accept its conditions on the Hub'),
                ('me/none', 'There is no repository me/none, or it is private. Check the name'),
                ('res2net50_se', 'There is no repository timm/res2net50_26w_4s.in1k'),
            ):
                with pytest.raises(RemoteError) as error:
                    client.run(LOAD, target=target)
                assert error.value.text.startswith(text)
        finally:
            client.close()


# --- URLs -------------------------------------------------------------------------------------


def fails(url: str, path: Path) -> str:
    with pytest.raises(OSError) as error:
        download.download(url, path)
    assert error.value.__cause__ is not None
    assert not path.exists()
    assert url in str(error.value)
    assert "load it with pretrained_cfg_overlay=dict(file='PATH')" in str(error.value)
    return str(error.value)


BROKEN = {
    'no such file': (Fault('GET', 1, status=404), 'The server answers 404 for ', 'Check the name'),
    'forbidden': (Fault('GET', 1, status=403), 'The server answers 403 for ', 'Check the name'),
    'busy': (Fault('GET', 1, status=429), 'The server limits the number of', 'Wait a while'),
    'out of order': (Fault('GET', 1, status=503), 'The server has a problem', 'Run again later'),
    # before the first byte, since what was sent before a reset may or may not arrive
    'reset': (Fault('GET', 1, keep=0.0), 'than the server announces', 'run again'),
    'cut short': (Fault('GET', 1, longer=1000), 'than the server announces', 'run again'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_download_that_breaks_leaves_nothing(case, tmp_path):
    fault, value, remedy = BROKEN[case]
    (tmp_path / 'source').write_bytes(os.urandom(300_000))
    path = tmp_path / 'cache' / 'weights.pdparams'
    with hub() as server:
        server.plain = {'/weights.pdparams': tmp_path / 'source'}
        server.faults.append(Fault(**vars(fault)))
        url = f'{server.url}/weights.pdparams'
        text = fails(url, path)
        assert value in text
        assert remedy in text
        assert list(path.parent.iterdir()) == []
        download.download(url, path)
    assert path.read_bytes() == (tmp_path / 'source').read_bytes()


def test_a_download_shows_progress(tmp_path, capsys):
    (tmp_path / 'source').write_bytes(bytes(300_000))
    with hub() as server:
        server.plain = {'/weights.pdparams': tmp_path / 'source'}
        download.download(f'{server.url}/weights.pdparams', tmp_path / 'weights.pdparams')
    told = capsys.readouterr()
    assert told.out == ''
    assert 'weights.pdparams: 100%' in told.err
    assert '293k/293k' in told.err  # of 1024 bytes


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'PATIENCE', 0.05)
    with hub() as server:
        pass
    path = tmp_path / 'weights.pdparams'
    text = fails(f'{server.url}/weights.pdparams', path)
    assert text.startswith('The server cannot be reached for http')
    assert '(ConnectionRefusedError: ' in text
    with hole() as port:
        assert '(TimeoutError: timed out)' in fails(f'http://127.0.0.1:{port}/w.pdparams', path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / 'cache').write_text('a file')
    with hub() as server:
        server.plain = {'/w.pdparams': tmp_path / 'cache'}
        with pytest.raises(OSError, match=r'w.pdparams: FileExistsError'):
            download.download(f'{server.url}/w.pdparams', tmp_path / 'cache' / 'w.pdparams')


@pytest.mark.parametrize('name', ['res2net50_vd_26w_4s', 'res2net50_ms_26w_4s'])
def test_weights_at_a_url_without_a_network(name, tmp_path, monkeypatch):
    """What `create_model` says, with the URL and where to put the file."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def refuse(request, timeout):
        raise ConnectionRefusedError(111, 'Connection refused')

    monkeypatch.setattr(download.urllib.request, 'urlopen', refuse)
    url = timm.models.get_pretrained_cfg(name).url
    for load in (lambda: timm.create_model(name, pretrained=True), lambda: load_model(name)):
        with pytest.raises(OSError) as error:
            load()
        assert str(error.value).startswith(f'The server cannot be reached for {url} (Connection')
        assert 'timm-res2net convert' in str(error.value)
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []


def test_errors_that_are_not_of_the_network_pass():
    wrong = RuntimeError('weights do not fit')
    with pytest.raises(RuntimeError) as error, download.explaining('me/net'):
        raise wrong
    assert error.value is wrong
