"""A Hub that answers what its API does not say, late, or never: one sentence each, in time."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from tests.common import PUSHED, randomise, repository_files, slow_except
from tests.hub.client import Client, RemoteError, environment
from tests.hub.server import Fault, Hub, hub
from timm_res2net.cli import main
from timm_res2net.compare import GOLDEN
from timm_res2net.download import Limit

REPO = 'me/tiny'
CHECK = 'answer = [list(f) for f in hub.check(repo, **kwargs)]'
PUSH = """
done = hub.push_to_hub(source, repo, license='mit', **kwargs)
answer = [done.commit, list(done.changed)]
"""
LOAD = 'from timm_res2net.load import load_model; load_model(repo)'
PULL = 'hub.pull(repo, source + ".out", **kwargs)'


@pytest.fixture(scope='module')
def model() -> Any:
    return randomise(timm.create_model('test_res2net_se', num_classes=5)).eval()


@pytest.fixture(scope='module')
def files(model) -> dict[str, bytes]:
    return repository_files(REPO, model)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    with hub() as server:
        client = Client(environment(server.url, home))
        client.run('from timm_res2net import download; download._GRACE = 0.05')
        yield server, client
        client.close()


@pytest.fixture
def world(shared, files, model, tmp_path) -> Iterator[tuple[Hub, Client, dict[str, Any]]]:
    """A Hub with one model, a client, and what the client's code needs."""
    server, client = shared
    server.faults.clear()
    server.repos.clear()
    server.requests.clear()
    server.add(REPO, files)
    client.run('import shutil; shutil.rmtree(os.environ["HF_HOME"] + "/hub", ignore_errors=True)')
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    yield server, client, {'repo': REPO, 'source': str(tmp_path / 'w.safetensors'), 'kwargs': {}}
    for fault in server.faults:
        if fault.hold is not None:
            fault.hold.set()


def fails(client: Client, code: str, **args: Any) -> str:
    """The one sentence with which code fails."""
    with pytest.raises(RemoteError) as error:
        client.run(code, **args)
    assert error.value.kind == 'OSError', error.value
    assert '\n' not in error.value.text
    assert args['repo'] in error.value.text
    return error.value.text


# --- answers that are not what the API says -------------------------------------------------------


def info(**changes: Any) -> str:
    """The Hub's answer about a repository, with other values; None leaves one out."""
    good = {'id': REPO, 'sha': 'a' * 40, 'private': False, 'siblings': [], 'tags': []}
    return json.dumps({k: v for k, v in {**good, **changes}.items() if v is not None})


def sibling(**changes: Any) -> str:
    good = {'rfilename': 'model.safetensors', 'size': 5, 'blobId': 'b' * 40}
    return info(siblings=[{k: v for k, v in {**good, **changes}.items() if v is not None}])


HASHES = {'sha256': 'c' * 64, 'size': 5, 'pointerSize': 5}
ANSWERS = {
    'null': 'null',
    'a list': '[]',
    'a number': '1e400',
    'no JSON': '<html>Sign in to the network</html>',
    'half of a JSON': info()[:-5],
    'deeply nested': '[' * 100_000,
    'a number of 5,000 digits': info(downloads=0).replace('false', '9' * 5000),
    'no id': info(id=None),
    'an id that is a list': info(id=[REPO]),
    'an id that leads elsewhere': info(id='../../elsewhere'),
    'a commit that is a number': info(sha=1),
    'a commit that is a path': info(sha='../' * 13 + 'a'),
    'siblings that are a number': info(siblings=3),
    'a sibling that is null': info(siblings=[None]),
    'a sibling without a name': sibling(rfilename=None),
    'a name that is a list': sibling(rfilename=['x']),
    'a name of two lines': sibling(rfilename='x\ny.bin'),
    'a blob that is a number': sibling(blobId=7),
    'hashes that are a list': sibling(lfs=[1]),
    'no sha256': sibling(lfs={'size': 5}),
    'a sha256 that is a number': sibling(lfs={**HASHES, 'sha256': 5}),
    'a short sha256': sibling(lfs={**HASHES, 'sha256': 'cc'}),
    'a date that is none': info(createdAt='yesterday'),
}


@pytest.mark.parametrize('case', slow_except(list(ANSWERS)[:2], ANSWERS))
def test_an_answer_about_a_repository(case, world):
    server, client, args = world
    server.faults.append(Fault('GET /api/models/', body=ANSWERS[case]))
    for code in (CHECK, PULL, PUSH, LOAD):
        text = fails(client, code, **args)
        assert 'cannot use what the Hub answers for me/tiny (' in text
        assert server.url in text and 'run again later' in text
    assert server.repos[REPO].messages == ['initial commit']


def test_a_size_of_400_digits_is_no_obstacle(world):
    """Nothing depends on the sizes in the answer about a repository; those of files do matter."""
    server, client, args = world
    server.faults.append(Fault('HEAD .*safetensors', headers={'X-Linked-Size': '9' * 400}))
    assert 'run again' in fails(client, CHECK, **args).lower()
    server.faults[:] = [Fault('GET /api/models/', body=sibling(size=10**400, rfilename='other'))]
    assert 'no config.json or model.safetensors' in fails(client, CHECK, **args)


@pytest.mark.parametrize('name', ['README.md', 'config.json', GOLDEN])
def test_a_large_file_is_not_downloaded(name, world):
    """What is read whole has a bound, and the Hub says the size beforehand."""
    server, client, args = world
    server.faults.append(Fault('GET /api/models/', body=sibling(rfilename=name, size=17 << 20)))
    for code in (CHECK, PULL, PUSH):
        text = fails(client, code, **args)
        assert text.startswith(f'{name} of me/tiny has 17,825,792 bytes, and at most 16,777,216')
        assert 'Nothing was downloaded' in text
    assert not server.count('/resolve/')


FILE_ANSWERS = {  # headers of the answer about a file
    'no commit': {'X-Repo-Commit': ''},
    'a Xet hash that is none': {'X-Xet-Hash': 'none'},
    'a Xet token from nowhere': {'X-Xet-Refresh-Route': 'http://127.0.0.1:9/'},
    'a size that is a word': {'X-Linked-Size': 'large'},
}


@pytest.mark.parametrize('case', slow_except(list(FILE_ANSWERS)[:2], FILE_ANSWERS))
def test_an_answer_about_a_file(case, world):
    server, client, args = world
    server.faults.append(Fault('HEAD .*safetensors', headers=FILE_ANSWERS[case]))
    for code in (CHECK, LOAD):
        assert 'run again' in fails(client, code, **args).lower()
    server.faults.clear()
    assert {state for _, state, _ in client.run(CHECK, **args)} == {'ok'}


@pytest.mark.parametrize('name', ['README.md', 'model.safetensors'])
def test_an_etag_that_leads_out_of_the_cache(name, world):
    """The client makes the name of a file in its cache of it."""
    server, client, args = world
    home = Path(client.run('answer = os.environ["HF_HOME"]'))
    etag = '"../../../../evil"'
    server.faults.append(Fault(f'HEAD .*{name}', headers={'ETag': etag, 'X-Linked-ETag': etag}))
    for code in (CHECK, PULL, PUSH, LOAD):
        if (code, name) in ((LOAD, 'README.md'), (PUSH, 'model.safetensors')):
            continue  # not asked for
        text = fails(client, code, **args)
        assert f"the ETag of {name} is '../../../../evil'" in text
    assert not list(home.parent.rglob('evil'))


PUSH_ANSWERS = {  # a request of a push, and an answer after which nothing was pushed
    'a creation without url': ('POST /api/repos/create', '{}'),
    'a creation that is null': ('POST /api/repos/create', 'null'),
    'no preupload': ('POST .*/preupload/', '{}'),
    'a preupload of other types': ('POST .*/preupload/', '{"files": [{"path": 5}]}'),
    'a validation that is null': ('POST .*/validate-yaml', 'null'),
}


@pytest.mark.parametrize('case', slow_except(list(PUSH_ANSWERS)[:2], PUSH_ANSWERS))
def test_an_answer_to_a_push(case, world):
    server, client, args = world
    match, body = PUSH_ANSWERS[case]
    args['repo'] = 'me/new'
    server.faults.append(Fault(match, body=body))
    text = fails(client, PUSH, **args)
    assert 'cannot use what the Hub answers for me/new (' in text and 'run again' in text
    server.faults.clear()
    assert sorted(client.run(PUSH, **args)[1]) == PUSHED


# --- a commit -------------------------------------------------------------------------------------

LOST = {
    'reset': Fault('POST .*/commit/', keep=0.0),
    'no commitUrl': Fault('POST .*/commit/', body='{}'),
    'null': Fault('POST .*/commit/', body='null'),
    'a commit that is a number': Fault('POST .*/commit/', body='{"commitUrl": "", "commitOid": 1}'),
}


@pytest.mark.parametrize('case', LOST)
def test_a_commit_whose_answer_is_lost_is_looked_for(case, world):
    server, client, args = world
    args['repo'] = 'me/new'
    server.faults.append(Fault(**vars(LOST[case])))
    commit, changed = client.run(PUSH, **args)
    assert commit == server.repos['me/new'].refs['main']
    assert sorted(changed) == PUSHED


def test_the_next_push_finds_the_commit_whose_answer_was_lost(world):
    server, client, args = world
    args['repo'] = 'me/new'
    server.faults.append(Fault('POST .*/commit/', 1, keep=0.0))
    # without a fault: the look before the push
    server.faults.append(Fault('GET /api/models/me/new$|GET /api/models/me/new[?]', 1))
    server.faults.append(Fault('GET /api/models/me/new/revision', 1, status=503))
    assert 'Check the network and run again' in fails(client, PUSH, **args)
    assert len(server.repos['me/new'].messages) == 2
    commit, changed = client.run(PUSH, **args)
    assert commit == server.repos['me/new'].refs['main']
    assert changed == []
    assert len(server.repos['me/new'].messages) == 2


def test_what_the_hub_leaves_out_is_said(world):
    server, client, args = world
    args['repo'] = 'me/ignoring'
    server.add('me/ignoring', {'.gitignore': b'*.safetensors\n'})
    text = fails(client, PUSH, **args)
    assert text.startswith(f'model.safetensors, {GOLDEN} of me/ignoring at ')
    assert 'is not what was sent' in text and '.gitignore' in text


REASONS = {
    400: 'The commit message is too long',
    402: 'You have exceeded your private storage limit',
    409: 'A repository is being renamed',
    413: 'Too many files: \x1b[31mat most 25',
}


@pytest.mark.parametrize('status', slow_except(list(REASONS)[:2], REASONS))
def test_the_reason_of_the_hub_is_printed(status, world):
    server, client, args = world
    args['repo'] = 'me/new'
    headers = {'X-Error-Message': REASONS[status].replace('\x1b', '')}
    server.faults.append(Fault('POST .*/(commit|preupload)/', status=status, headers=headers))
    text = fails(client, PUSH, **args)
    assert f'({status}: {headers["X-Error-Message"]}' in text
    assert 'run again' in text


# --- time -----------------------------------------------------------------------------------------

SLOW = {
    'no answer about the repository': lambda: Fault('GET /api/models/', hold=threading.Event()),
    'a dripping answer': lambda: Fault('GET /api/models/', keep=0.1, hold=threading.Event()),
    'no answer about a file': lambda: Fault('HEAD', hold=threading.Event()),
    'a dripping file': lambda: Fault('GET .*config.json', keep=0.1, hold=threading.Event()),
}


@pytest.mark.parametrize('case', SLOW)
def test_a_hub_that_takes_too_long(case, world):
    server, client, args = world
    server.faults.append(SLOW[case]())
    args['kwargs'] = {'timeout': 0.25}
    for code in (CHECK, PULL, PUSH):
        start = time.monotonic()
        text = fails(client, code, **args)
        assert time.monotonic() - start < 5  # 10 or 60 seconds are the client's own
        assert 'not answered for me/tiny in 0.25 seconds' in text
        assert 'timeout=SECONDS (--timeout)' in text
    assert not Path(args['source'] + '.out').exists()


def test_a_push_that_takes_too_long(world):
    server, client, args = world
    args |= {'repo': 'me/new', 'kwargs': {'timeout': 1}}
    server.faults.append(Fault('POST .*/commit/', 1, hold=threading.Event()))
    assert 'not answered for me/new in 1 seconds' in fails(client, PUSH, **args)
    args['kwargs'] = {}
    assert sorted(client.run(PUSH, **args)[1]) == PUSHED


@pytest.mark.parametrize('seconds', [3601, 10**9])
def test_a_retry_after_that_is_too_long(seconds, world):
    server, client, args = world
    server.faults.append(Fault('HEAD', status=429, headers={'Retry-After': str(seconds)}))
    args['kwargs'] = {'timeout': 0.25}
    client.run("""
import time
from huggingface_hub.utils import _http
timm.sleep, timm.slept = _http.time.sleep, []
def sleep(seconds):
    timm.slept.append(seconds)
    time.sleep(2)
_http.time.sleep = sleep
""")
    try:
        assert 'not answered for me/tiny in 0.25 seconds' in fails(client, CHECK, **args)
        assert client.run('answer = timm.slept') == [seconds + 1]
    finally:
        client.run('from huggingface_hub.utils import _http; _http.time.sleep = timm.sleep')


@pytest.mark.parametrize('seconds', [0, -1, float('nan'), float('inf'), 1e7, True, '5', None])
def test_a_limit_that_is_none(seconds):
    with pytest.raises(ValueError) as error:
        Limit(seconds, REPO)
    assert repr(seconds) in str(error.value) and 'number of seconds above 0' in str(error.value)


def test_a_limit_counts_all_calls():
    limit = Limit(60, REPO)
    assert limit.run(lambda: 5) == 5
    with pytest.raises(KeyError):
        limit.run(lambda: {}[1])
    limit.left = 0
    with pytest.raises(OSError, match=r'me/tiny in 60 seconds'):
        limit.run(lambda: time.sleep(0.1))


def test_what_takes_too_long_cleans_up(tmp_path):
    def download() -> None:
        (tmp_path / 'incomplete').touch()
        try:
            while True:
                time.sleep(0.01)
        finally:
            (tmp_path / 'incomplete').unlink()

    with pytest.raises(OSError, match=REPO):
        Limit(0.1, REPO).run(download)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('verb', ['check', 'pull', 'push'])
def test_the_limit_is_in_the_help(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, '--help'])
    out = ' '.join(capsys.readouterr().out.split())
    assert '--timeout SECONDS' in out and '(default: 3600)' in out
