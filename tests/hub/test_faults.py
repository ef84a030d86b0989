"""What happens when network, disk or the other side fail: the real client, a loopback Hub.

Each fault is one test: the text of the error or the success after a retry, what is left in the
cache, and that the next attempt is clean.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save, save_file

from tests.common import PUSHED, image, randomise, repository_files
from tests.hub.client import Client, RemoteError, command, environment, start, without_override
from tests.hub.server import Fault, hub
from timm_res2net.models.loading import NOT_CACHED

REPO = 'me/tiny'
LOAD = """
model = timm.create_model(f'hf-hub:{repo}', pretrained=True).eval()
x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
with torch.no_grad():
    answer = model(x).tolist()
"""
CHECK = 'answer = [list(finding) for finding in hub.check(repo)]'
SCRIPT = """
import json, sys, timm, torch, timm_res2net
torch.set_num_threads(1)
model = timm.create_model(f'hf-hub:{sys.argv[1]}', pretrained=True).eval()
x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
with torch.no_grad():
    print(json.dumps(model(x).tolist()))
"""


@pytest.fixture(scope='module')
def files():
    """What is pushed of a small model with random weights and statistics."""
    model = randomise(timm.create_model('test_res2net_se', num_classes=5)).eval()
    with torch.no_grad():
        logits = model(image()).tolist()
    return repository_files(REPO, model), logits


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """A Hub and a client for all tests of a process."""
    home = tmp_path_factory.mktemp('home')
    with hub(xet=False) as server:  # the faults meet downloads and uploads by HTTP
        client = Client(environment(server.url, home, HF_HUB_DISABLE_XET='1'))
        yield server, client, home
        client.close()


@pytest.fixture
def world(shared, files):
    """The Hub with one model on it, the client with a cold cache, and the model's outputs."""
    server, client, home = shared
    server.faults.clear()
    server.requests.clear()
    server.repos.clear()
    server.add(REPO, files[0])
    shutil.rmtree(home / 'hub', ignore_errors=True)
    return server, client, home, files[1]


def close_to(got, expected):
    got, expected = torch.tensor(got), torch.tensor(expected)
    return torch.allclose(got, expected, rtol=1e-5, atol=1e-5)  # float32 in another process


def blobs(home: Path) -> dict[str, bytes]:
    """What the cache holds of files, by name."""
    return {p.name: p.read_bytes() for p in (home / 'hub').glob('models--*/blobs/*') if p.is_file()}


def assert_sound(home: Path) -> None:
    """The cache has nothing half: a large file's name is its sha256."""
    for name, content in blobs(home).items():
        assert not name.endswith('.incomplete')
        if len(name) == 64:
            assert hashlib.sha256(content).hexdigest() == name


def fails(client, code: str, kind: str, line: str, **args) -> RemoteError:
    """Check the type of the error, and what the command line prints of it."""
    with pytest.raises(RemoteError) as error:
        client.run(code, **args)
    assert error.value.kind == kind, error.value
    assert line in error.value.line
    return error.value


def states(findings) -> dict[str, str]:
    return {what: state for what, state, _ in findings}


def text_of(findings, what: str) -> str:
    return next(text for name, _, text in findings if name == what)


# --- refusals -----------------------------------------------------------------------------------

LOGIN = 'log in with `hf auth login`, or set HF_TOKEN.'
REFUSALS = {  # the type that `check` raises, and what the command line prints
    'no repository': (
        Fault('.', status=401, code='RepoNotFound'),
        'RepositoryNotFoundError',
        f'It does not exist, or is private: check the name, or {LOGIN}',
    ),
    'forbidden': (Fault('.', status=403), 'HfHubHTTPError', f'To get access, {LOGIN}'),
    'gated': (
        Fault('.', status=403, code='GatedRepo'),
        'GatedRepoError',
        f'It is gated: accept its conditions on the Hub, then {LOGIN}',
    ),
    'gated, where only the files are': (
        Fault('/resolve/', status=403, code='GatedRepo'),
        'GatedRepoError',
        f'It is gated: accept its conditions on the Hub, then {LOGIN}',
    ),
    'no revision': (
        Fault('.', status=404, code='RevisionNotFound'),
        'RevisionNotFoundError',
        'There is no such revision: name a branch, a tag or a commit.',
    ),
    'too many requests': (
        Fault('GET /api/models', status=429),
        'HfHubHTTPError',
        'Wait a while and run again.',
    ),
    'out of order': (Fault('GET /cdn', status=503), 'HfHubHTTPError', 'Run again later.'),
    'a connection that breaks': (
        Fault('GET /cdn', keep=0.0),
        'RemoteProtocolError',
        'Check the network and run again.',
    ),
    'a connection that breaks in the middle': (
        Fault('GET /cdn', keep=0.5),
        'RemoteProtocolError',
        'Check the network and run again.',
    ),
    'cut short': (
        Fault('HEAD .*model.safetensors', headers={'X-Linked-Size': '1234'}),
        'OSError',
        'Consistency check failed',
    ),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_refused(case, world):
    """The client's error passes, nothing half is left, and the next attempt is clean."""
    server, client, home, logits = world
    fault, kind, line = REFUSALS[case]
    server.faults.append(fault)
    error = fails(client, CHECK, kind, line, repo=REPO)
    if fault.status:
        assert f'The Hub answers {fault.status} for http' in error.line
    assert_sound(home)
    server.faults.clear()
    assert set(states(client.run(CHECK, repo=REPO)).values()) == {'ok'}
    assert close_to(client.run(LOAD, repo=REPO), logits)
    assert_sound(home)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_file_is_missing(name, world):
    server, client, _, _ = world
    repo = server.repos[REPO]
    kept = repo.commits[repo.refs['main']]
    content = kept.pop(name)
    # without safetensors timm asks for a pickle, and says that this is missing
    asked = name if name == 'config.json' else 'pytorch_model.bin'
    fails(client, LOAD, 'RemoteEntryNotFoundError', asked, repo=REPO)
    findings = client.run(CHECK, repo=REPO)
    what = 'config' if name == 'config.json' else 'weights'
    assert states(findings)[what] == 'error'
    text = text_of(findings, what)
    assert text.startswith('There is no ')
    assert name in text
    repo.commit({**kept, name: content}, 'main', 'complete')
    assert all(state == 'ok' for state in states(client.run(CHECK, repo=REPO)).values())


def test_another_content_than_announced(world, tmp_path):
    """The client compares the size alone; `fetch` compares the content."""
    server, client, home, logits = world
    server.faults.append(Fault('GET /cdn', flip=True))
    out = str(tmp_path / 'out')
    for code in (CHECK, 'hub.pull(repo, out)'):
        line = f'model.safetensors of {REPO} is not what the Hub announces'
        error = fails(client, code, 'ValueError', line, repo=REPO, out=out)
    assert list(tmp_path.iterdir()) == []
    server.faults.clear()
    Path(re.search('Remove (.*) and run again', error.text)[1]).unlink()
    client.run('hub.pull(repo, out)', repo=REPO, out=out)
    assert_sound(home)
    assert close_to(client.run(LOAD, repo=REPO), logits)


# --- what is there is wrong ---------------------------------------------------------------------


def replace(server, name: str, content: bytes) -> None:
    repo = server.repos[REPO]
    files = repo.commits[repo.refs['main']]
    server.lfs[hashlib.sha256(content).hexdigest()] = content
    repo.commit({**files, name: content}, 'main', f'another {name}')


def test_weights_of_another_architecture(world, files):
    server, client, _, logits = world
    other = randomise(timm.create_model('test_res2net_se', num_classes=5, layers=(1, 2, 3, 1)))
    replace(server, 'model.safetensors', save(other.state_dict()))
    findings = client.run(CHECK, repo=REPO)
    assert states(findings)['tensors'] == 'error'
    assert 'outputs' not in states(findings)
    text = text_of(findings, 'tensors')
    assert text.startswith('weights that the model does not have, ')
    assert 'layer3.2.bn1.bias' in text
    assert text.endswith('Config and weights are of different models: push again.')
    replace(server, 'model.safetensors', files[0]['model.safetensors'])
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_weights_that_are_no_safetensors(world):
    server, client, _, _ = world
    replace(server, 'model.safetensors', b'<html>no</html>' * 100)
    findings = client.run(CHECK, repo=REPO)
    assert states(findings)['weights'] == 'error'
    assert 'model.safetensors is damaged (' in text_of(findings, 'weights')


def test_a_bad_repository_is_not_pulled(world, files, tmp_path):
    server, client, _, _ = world
    replace(server, 'model.safetensors', files[0]['model.safetensors'][:-50])
    out = str(tmp_path / 'out')
    text = 'me/tiny is not in order, and nothing was written: model.safetensors is damaged ('
    fails(client, 'hub.pull(repo, out)', 'ValueError', text, repo=REPO, out=out)
    server.add('me/empty', {'notes.txt': b'nothing'})
    text = 'me/empty has no config.json or model.safetensors. Name a model of timm.'
    fails(client, 'hub.pull(repo, out)', 'ValueError', text, repo='me/empty', out=out)
    assert list(tmp_path.iterdir()) == []


def test_a_push_in_mid_check_is_told(world, files):
    """Another commit between the list of files and the files: nothing is taken for damaged."""
    _, client, home, _ = world
    code = """
from huggingface_hub import CommitOperationAdd, HfApi
plain = HfApi.model_info
def model_info(self, *args, **kwargs):
    HfApi.model_info = plain
    found = plain(self, *args, **kwargs)
    new = [CommitOperationAdd('theirs.txt', b'theirs')]
    HfApi().create_commit(repo, new, commit_message='theirs')
    return found
HfApi.model_info = model_info
hub.check(repo)
"""
    client.run(LOAD, repo=REPO)
    line = 'me/tiny changed while it was downloaded, or was not downloaded whole. Run again.'
    fails(client, code, 'ValueError', line, repo=REPO)
    assert len([name for name in blobs(home) if len(name) == 64]) == 1  # still there


CONFIGS = {
    'a key that timm does not know': (
        lambda c: c['pretrained_cfg'].update(colour='grey'),
        'TypeError',
        "unexpected keyword argument 'colour'",
    ),
    'an argument that the model does not know': (
        lambda c: c['model_args'].update(scales=4),
        'TypeError',
        "model_args has 'scales', which is not an argument of test_res2net_se",
    ),
    'a wrong type': (
        lambda c: c['pretrained_cfg'].update(input_size='large'),
        None,
        'pretrained_cfg.input_size must be a list of 3 values, each a whole number from 1 to 4096',
    ),
    'a missing field': (
        lambda c: c.pop('architecture'),
        'KeyError',
        'it lacks architecture. Write it again from the model.',
    ),
    'an architecture that is not registered': (
        lambda c: c.update(architecture='res2net51'),
        'RuntimeError',
        "'res2net51' is not a Res2Net of timm_res2net or timm.",
    ),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_a_config_that_is_wrong(case, world, files):
    server, client, _, logits = world
    change, kind, text = CONFIGS[case]
    config = json.loads(files[0]['config.json'])
    change(config)
    replace(server, 'config.json', json.dumps(config).encode())
    if kind:
        fails(client, LOAD, kind, '', repo=REPO)
    findings = client.run(CHECK, repo=REPO)
    assert text in next(t for _, state, t in findings if state == 'error')
    replace(server, 'config.json', files[0]['config.json'])
    assert close_to(client.run(LOAD, repo=REPO), logits)


# --- processes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_mid_download(world, tmp_path):
    server, _, _, logits = world
    home = tmp_path / 'home'
    env = environment(server.url, home)
    hold = threading.Event()
    server.faults.append(Fault('GET /cdn', 1, keep=0.5, hold=hold))
    process = start(env, SCRIPT, REPO)
    wait_for(lambda: server.count('GET /cdn'), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold.set()
    whole = [name for name in blobs(home) if not name.endswith('.incomplete')]
    assert [name for name in whole if len(name) == 64] == []  # the weights have no name yet
    done = start(env, SCRIPT, REPO)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert close_to(json.loads(out), logits)


def wait_for(condition, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'it never came to that'
        time.sleep(0.02)


# --- the disk -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('warm', [True, False])
@pytest.mark.skipif(
    not os.geteuid() and not shutil.which('setpriv'), reason='root, without setpriv to be less'
)
def test_a_read_only_cache(warm, world, tmp_path):
    server, _, _, logits = world
    home = tmp_path / 'home'
    (home / 'hub').mkdir(parents=True)
    env = environment(server.url, home)
    if warm:
        first = start(env, SCRIPT, REPO)
        assert first.communicate(timeout=300) and first.returncode == 0
    folders = [home, *(p for p in home.rglob('*') if p.is_dir() and not p.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = subprocess.run(
            without_override([sys.executable, '-c', SCRIPT, REPO]),
            env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if warm:
            assert done.returncode == 0, done.stderr
            assert close_to(json.loads(done.stdout), logits)
            return
        assert done.returncode == 1
        assert 'PermissionError' in done.stderr
        told = subprocess.run(
            without_override(command('check', REPO)),
            env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert told.returncode == 1
        line = told.stderr.splitlines()[-1]
        assert line.startswith('timm-res2net check: PermissionError: ')
        assert 'Choose a folder you can write to (HF_HOME' in line
    finally:
        for folder in folders:
            folder.chmod(0o755)


@functools.cache
def mounts() -> bool:
    """Whether a small file system can be mounted for a process of its own."""
    try:
        line = ['unshare', '--map-root-user', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']
        return subprocess.run(line, capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_full_disk(world, tmp_path):
    if not mounts():
        pytest.skip('no small file system can be mounted here')
    server, _, _, _ = world
    home = tmp_path / 'home'
    home.mkdir()
    # room for the config, not for the weights
    script = (
        f'mount -t tmpfs -o size=400k tmpfs {home} && "$@"; code=$?; '
        f'find {home} -name "*.incomplete" -o -type f -size +100k; exit $code'
    )
    unshare = ['unshare', '--map-root-user', '--mount', 'bash', '-c', script, 'bash']
    done = subprocess.run(
        [*unshare, *command('check', REPO)],
        env=environment(server.url, home), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith('timm-res2net check: ')
    assert 'No space left on device' in line
    assert 'Free some space, or use another disk (HF_HOME' in line
    assert done.stdout == ''  # nothing of it was kept
    again = subprocess.run(
        command('check', REPO),
        env=environment(server.url, tmp_path / 'larger'),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr


# --- without a network --------------------------------------------------------------------------

WITHOUT = {
    'HF_HUB_OFFLINE': (
        {'HF_HUB_OFFLINE': '1'},
        f'HF_HUB_OFFLINE is set, so the Hub was not asked for {REPO}. Unset it to ask the Hub.',
    ),
    'nobody listens': (
        {'HF_ENDPOINT': 'http://127.0.0.1:9'},
        f'The Hub cannot be reached for {REPO} (ConnectError: [Errno 111] Connection refused). '
        'Check the network.',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', WITHOUT)
def test_without_a_network(case, world, tmp_path):
    """One line with a cold cache, and with a warm one; a push says it, too."""
    server, _, _, _ = world
    settings, line = WITHOUT[case]
    home = tmp_path / 'home'
    offline = {**environment(server.url, home), **settings}

    def run(env: dict[str, str], *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(command(*words), env=env, capture_output=True, text=True, timeout=300)

    cold = run(offline, 'check', REPO)
    assert cold.returncode == 1
    (said,) = cold.stderr.splitlines()
    assert said.startswith('timm-res2net check: ') and said.endswith(line + NOT_CACHED)
    assert run(environment(server.url, home), 'predict', REPO).returncode == 0
    server.requests.clear()
    warm = run(offline, 'predict', REPO)
    assert warm.returncode == 0, warm.stderr
    (said,) = [text for text in warm.stderr.splitlines() if 'cache' in text]
    assert said.endswith(f'{line} The copy in the cache is used.')
    warm = run(offline, 'check', REPO)
    assert warm.returncode == 0, warm.stderr
    assert 'ok       outputs' in warm.stdout
    assert f'{line} Only the cache was checked.' in warm.stdout
    assert 'warning  card        README.md is not in the cache' in warm.stdout
    folder = str(next(home.glob('hub/models--*/snapshots/*')))
    push = run(offline, 'push', folder, REPO, '--license', 'mit')
    assert push.returncode == 1
    assert push.stderr.splitlines()[-1].endswith(line)
    assert server.requests == []


# --- uploads ------------------------------------------------------------------------------------

PUSH = """
done = hub.push_to_hub(source, repo, license='mit', token=token)
answer = [done.commit, list(done.changed)]
"""


@pytest.fixture
def source(tmp_path, files):
    weights = load(files[0]['model.safetensors'])
    save_file(weights, tmp_path / 'weights.safetensors')
    return str(tmp_path / 'weights.safetensors')


UPLOAD_REFUSALS = {
    'no token': ('', None, 'HfHubHTTPError', f'To get access, {LOGIN}'),
    'a token to read': ('hf_read', None, 'HfHubHTTPError', f'To get access, {LOGIN}'),
    'somebody was faster': (
        'hf_write',
        Fault('POST .*/commit/', status=412),
        'HfHubHTTPError',
        'Someone else has pushed in the meantime. Nothing was changed; run again.',
    ),
    'a reason of the Hub': (
        'hf_write',
        Fault('POST .*/commit/', status=402),
        'HfHubHTTPError',
        '(a fault of the test). Change what you ask for.',
    ),
    'a 500 for the content': ('hf_write', Fault('PUT /lfs', status=500), 'RuntimeError', '500'),
}


@pytest.mark.parametrize('case', UPLOAD_REFUSALS)
def test_an_upload_refused(case, world, source):
    """No part of a push is committed, no token is printed, and the next attempt is clean."""
    server, client, _, logits = world
    token, fault, kind, line = UPLOAD_REFUSALS[case]
    server.lfs.clear()
    server.faults += [fault] if fault else []
    args = {'source': source, 'repo': 'me/new', 'token': token or False}
    error = fails(client, PUSH, kind, line, **args)
    assert 'hf_' not in error.line
    repo = server.repos.get('me/new')
    assert repo is None or repo.messages == ['initial commit']
    server.faults.clear()
    _, changed = client.run(PUSH, **{**args, 'token': 'hf_write'})
    assert sorted(changed) == PUSHED
    assert close_to(client.run(LOAD, repo='me/new'), logits)


def test_a_commit_between_the_look_and_the_push(world, source):
    """Somebody pushes to the repository after it was looked at: neither overwrites the other."""
    server, client, _, _ = world
    code = """
from huggingface_hub import CommitOperationAdd, HfApi
from timm_res2net.hub import push
plain = push.refuse
def refuse(*args):
    HfApi().create_commit(
        repo, [CommitOperationAdd('theirs.txt', b'theirs')], commit_message='theirs'
    )
    plain(*args)
push.refuse = refuse
try:
    hub.push_to_hub(source, repo, license='mit')
finally:
    push.refuse = plain
"""
    line = 'Someone else has pushed in the meantime. Nothing was changed; run again.'
    fails(client, code, 'HfHubHTTPError', line, source=source, repo=REPO)
    assert server.repos[REPO].messages == ['initial commit', 'theirs']
    client.run(PUSH, source=source, repo=REPO, token='hf_write')
    assert 'theirs.txt' in server.repos[REPO].files('main')[1]
