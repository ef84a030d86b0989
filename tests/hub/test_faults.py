"""What happens when network, disk or the other side fail: the real client, a loopback Hub.

Each fault is one test: the text of the error or the success after a retry, what is left in the
cache, and that the next attempt is clean.
"""

import functools
import hashlib
import json
import os
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
from timm_res2net.download import NOT_CACHED

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
    server.times.clear()
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


def fails(client, code: str, kind: str, text: str, **args) -> None:
    with pytest.raises(RemoteError) as error:
        client.run(code, **args)
    assert error.value.kind == kind, error.value
    assert text in error.value.text


def last_line(done: subprocess.CompletedProcess) -> str:
    """What a command says on stderr, after what an old timm says of a new torch."""
    return done.stderr.splitlines()[-1]


def states(findings) -> dict[str, str]:
    return {what: state for what, state, _ in findings}


def text_of(findings, what: str) -> str:
    return next(text for name, _, text in findings if name == what)


# --- refusals -----------------------------------------------------------------------------------

REFUSALS = {
    'no repository': (
        Fault('.', status=401, code='RepoNotFound'),
        'RepositoryNotFoundError',
        'There is no repository me/tiny, or it is private. Check the name, or log in with `hf auth '
        'login`, or set HF_TOKEN.',
    ),
    'no token': (
        Fault('.', status=401),
        'HfHubHTTPError',
        'The Hub refuses access to me/tiny (401: ',
    ),
    'forbidden': (
        Fault('.', status=403),
        'LocalEntryNotFoundError',
        'The Hub refuses access to me/tiny (403: ',
    ),
    'gated': (
        Fault('.', status=403, code='GatedRepo'),
        'GatedRepoError',
        'me/tiny is gated. Accept its conditions on the Hub, then log in with `hf auth login`',
    ),
    'forbidden, where only the files are': (
        Fault('/resolve/', status=403),
        'LocalEntryNotFoundError',
        'The Hub refuses access to me/tiny (403: ',
    ),
    'gated, where only the files are': (
        Fault('/resolve/', status=403, code='GatedRepo'),
        'GatedRepoError',
        'me/tiny is gated. Accept its conditions on the Hub, then log in with `hf auth login`',
    ),
    'no revision': (
        Fault('.', status=404, code='RevisionNotFound'),
        'RevisionNotFoundError',
        "me/tiny has no revision 'main'. Name one of its branches, tags or commits.",
    ),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_refused(case, world):
    server, client, home, logits = world
    fault, kind, text = REFUSALS[case]
    server.faults.append(fault)
    fails(client, LOAD, kind, '', repo=REPO)
    fails(client, CHECK, 'OSError', text, repo=REPO)
    assert blobs(home) == {}
    server.faults.clear()
    assert close_to(client.run(LOAD, repo=REPO), logits)
    assert_sound(home)


def test_private_without_a_token(world):
    server, client, _, logits = world
    server.repos[REPO].private = True
    hide = "os.environ.pop('HF_TOKEN', None)"
    client.run(hide)
    try:
        fails(client, LOAD, 'RepositoryNotFoundError', 'Repository Not Found', repo=REPO)
    finally:
        client.run("os.environ['HF_TOKEN'] = 'hf_write'")
    assert close_to(client.run(LOAD, repo=REPO), logits)


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


# --- trouble that passes ------------------------------------------------------------------------

PASSING = {
    '429 for the config': Fault('HEAD .*config.json', 2, 429, headers={'Retry-After': '1'}),
    '503 for the config': Fault('HEAD .*config.json', 2, 503, headers={'Retry-After': '1'}),
    '503 for the weights': Fault('HEAD .*model.safetensors', 2, 503),
    '429 for the content': Fault('GET /cdn', 2, 429, headers={'Retry-After': '1'}),
    'reset at 10 %': Fault('GET /cdn', 1, keep=0.1),
    'reset at 50 %': Fault('GET /cdn', 1, keep=0.5),
    'reset at 99 %': Fault('GET /cdn', 1, keep=0.99),
    'three resets': Fault('GET /cdn', 3, keep=0.3),
    'a longer Content-Length': Fault('GET /cdn', 1, longer=1000),
}


@pytest.mark.parametrize('case', PASSING)
def test_trouble_that_passes(case, world):
    server, client, home, logits = world
    fault = Fault(**vars(PASSING[case]))
    server.faults.append(fault)
    assert close_to(client.run(LOAD, repo=REPO), logits)
    assert fault.times == 0  # it did happen
    assert_sound(home)


def test_trouble_that_stays(world):
    """A 503 for the content is not retried by the client; the next attempt is clean."""
    server, client, home, logits = world
    server.faults.append(Fault('GET /cdn', status=503))
    fails(client, LOAD, 'HfHubHTTPError', '503', repo=REPO)
    text = 'The Hub has a problem (503 for me/tiny). Run again later.'
    fails(client, CHECK, 'OSError', text, repo=REPO)
    assert_sound(home)
    server.faults.clear()
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_too_many_requests(world):
    server, client, _, _ = world
    server.faults.append(Fault('GET /api/models', status=429))
    text = 'The Hub limits the number of requests (429 for me/tiny). Wait a while and run again.'
    fails(client, CHECK, 'OSError', text, repo=REPO)


def test_what_the_files_alone_refuse(world):
    """The client asks again for half a minute, then says that it is not in the cache."""
    server, client, home, logits = world
    server.faults.append(Fault('HEAD', status=429, headers={'Retry-After': '0'}))
    fails(client, CHECK, 'OSError', 'The Hub limits the number of requests (429 for', repo=REPO)
    assert blobs(home) == {}
    server.faults.clear()
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_gated(world):
    server, client, _, logits = world
    server.repos[REPO].gated = True
    client.run("os.environ.pop('HF_TOKEN', None)")
    try:
        fails(client, LOAD, 'GatedRepoError', 'restricted', repo=REPO)
        fails(client, CHECK, 'OSError', 'me/tiny is gated. Accept its conditions', repo=REPO)
    finally:
        client.run("os.environ['HF_TOKEN'] = 'hf_write'")
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_a_connection_that_always_breaks(world):
    server, client, home, logits = world
    server.faults.append(Fault('GET /cdn', keep=0.0))
    fails(client, LOAD, 'RemoteProtocolError', '', repo=REPO)
    assert_sound(home)
    server.faults.clear()
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_another_size_than_announced(world):
    server, client, home, logits = world
    server.faults.append(Fault('HEAD .*model.safetensors', headers={'X-Linked-Size': '1234'}))
    fails(client, LOAD, 'OSError', 'Consistency check failed', repo=REPO)
    text = 'A file of me/tiny arrived with another size than the Hub announces. It was not '
    fails(client, CHECK, 'OSError', text, repo=REPO)
    assert_sound(home)
    server.faults.clear()
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_less_than_the_content_length_says(world):
    """A Content-Length that is too short: the rest is not read, and the size is wrong."""
    server, client, home, logits = world
    server.faults.append(Fault('GET /cdn', longer=-1000))
    fails(client, LOAD, 'OSError', 'Consistency check failed', repo=REPO)
    assert_sound(home)
    server.faults.clear()
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_another_content_than_announced(world, tmp_path):
    """The client does not look at the content: timm loads it, and it stays in the cache, until
    `check` or `pull` find it."""
    server, client, home, logits = world
    server.faults.append(Fault('GET /cdn', 1, flip=True))
    assert not close_to(client.run(LOAD, repo=REPO), logits)
    with pytest.raises(AssertionError):
        assert_sound(home)
    findings = client.run(CHECK, repo=REPO)  # takes it out and fetches it once more
    assert states(findings)['content'] == 'ok'
    assert_sound(home)
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_another_content_every_time(world, tmp_path):
    server, client, home, logits = world
    server.faults.append(Fault('GET /cdn', flip=True))
    findings = client.run(CHECK, repo=REPO)
    assert states(findings)['content'] == 'error'
    assert 'weights' not in states(findings)  # they are not there any more
    text = text_of(findings, 'content')
    assert text.startswith('model.safetensors is not what the Hub announces (sha256 ')
    assert text.endswith('It was removed from the cache; run again.')
    assert_sound(home)
    out = str(tmp_path / 'out')
    pull = 'hub.pull(repo, out)'
    fails(client, pull, 'OSError', 'is not what the Hub announces', repo=REPO, out=out)
    assert list(tmp_path.iterdir()) == []
    server.faults.clear()
    client.run(pull, repo=REPO, out=out)
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
    text = 'The checkpoint has attention weights that the model does not have, 4: layer3.2.se.'
    fails(client, LOAD, 'RuntimeError', text, repo=REPO)
    findings = client.run(CHECK, repo=REPO)
    assert states(findings)['tensors'] == 'error'
    assert 'outputs' not in states(findings)
    text = text_of(findings, 'tensors')
    assert text.startswith('weights have no place in the model, ')
    assert 'layer3.2.bn1.bias' in text
    assert text.endswith('Config and weights are of different models: push again.')
    replace(server, 'model.safetensors', files[0]['model.safetensors'])
    assert close_to(client.run(LOAD, repo=REPO), logits)


def test_weights_that_are_no_safetensors(world):
    server, client, _, _ = world
    replace(server, 'model.safetensors', b'<html>no</html>' * 100)
    fails(client, LOAD, 'SafetensorError', '', repo=REPO)
    findings = client.run(CHECK, repo=REPO)
    assert states(findings)['weights'] == 'error'
    assert 'model.safetensors is damaged (' in text_of(findings, 'weights')


def test_weights_that_are_not_finite(world, files):
    server, client, _, _ = world
    weights = load(files[0]['model.safetensors'])
    weights['layer2.0.conv1.weight'][0, 0] = float('nan')
    replace(server, 'model.safetensors', save(weights))
    findings = client.run(CHECK, repo=REPO)
    assert states(findings)['values'] == 'warning'
    assert 'NaN or infinite, 1: layer2.0.conv1.weight' in text_of(findings, 'values')
    assert states(findings)['outputs'] == 'warning'
    done = subprocess.run(
        command('check', REPO),
        env=environment(server.url, Path(str(world[2]) + '-cli')),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr  # a warning is no error
    assert 'warning  values' in done.stdout


def test_a_bad_repository_is_not_pulled(world, files, tmp_path):
    server, client, _, _ = world
    replace(server, 'model.safetensors', files[0]['model.safetensors'][:-50])
    out = str(tmp_path / 'out')
    text = 'me/tiny is not in order, and nothing was written: model.safetensors is damaged ('
    fails(client, 'hub.pull(repo, out)', 'ValueError', text, repo=REPO, out=out)
    server.add('me/empty', {'notes.txt': b'nothing'})
    text = 'me/empty has no config.json or model.safetensors. Name a model of timm.'
    fails(client, 'hub.pull(repo, out)', 'OSError', text, repo='me/empty', out=out)
    assert list(tmp_path.iterdir()) == []


def test_a_push_in_mid_check_is_told(world, files):
    """Another commit between the list of files and the files: nothing is taken for damaged."""
    _, client, home, _ = world
    code = """
from huggingface_hub import HfApi
plain = HfApi.model_info
def model_info(self, *args, **kwargs):
    found = plain(self, *args, **kwargs)
    found.sha = 'ab' * 20
    return found
HfApi.model_info = model_info
try:
    hub.check(repo)
finally:
    HfApi.model_info = plain
"""
    client.run(LOAD, repo=REPO)
    fails(client, code, 'OSError', 'me/tiny has changed during the download. Run again.', repo=REPO)
    assert len([name for name in blobs(home) if len(name) == 64]) == 1  # still there


CONFIGS = {
    'a key that timm does not know': (
        lambda c: c['pretrained_cfg'].update(colour='grey'),
        'ValueError',
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


@pytest.mark.slow
def test_killed_in_mid_upload(world, tmp_path, files):
    server, client, _, logits = world
    (tmp_path / 'model').mkdir()
    for name, content in files[0].items():
        (tmp_path / 'model' / name).write_bytes(content)
    server.lfs.clear()
    env = environment(server.url, tmp_path / 'home', HF_HUB_DISABLE_XET='1')
    hold = threading.Event()
    server.faults.append(Fault('PUT /lfs', 1, keep=0.5, hold=hold))
    push = command('push', str(tmp_path / 'model'), 'me/new')
    process = subprocess.Popen(push, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: server.count('PUT /lfs'), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold.set()
    assert server.repos['me/new'].messages == ['initial commit']  # no commit, nothing to load
    done = subprocess.run(push, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert server.repos['me/new'].messages == ['initial commit', 'Push by timm_res2net']
    assert close_to(client.run(LOAD, repo='me/new'), logits)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 8])
def test_several_processes_download_once(processes, world, tmp_path):
    """The first download lasts until all processes have asked for the file."""
    server, _, _, logits = world
    home = tmp_path / 'home'
    hold = threading.Event()
    server.faults.append(Fault('GET /cdn', 1, keep=0.1, hold=hold))
    started = [start(environment(server.url, home), SCRIPT, REPO) for _ in range(processes)]
    wait_for(lambda: server.count('HEAD .*model.safetensors') >= processes, started[0], 500)
    time.sleep(1)  # from having asked to having downloaded, were there no lock
    hold.set()
    for process in started:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert close_to(json.loads(out), logits)
    assert server.count('GET /cdn') == 1
    assert_sound(home)


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
        text = last_line(told)
        assert text.startswith(
            'timm-res2net check: The cache is not writable ([Errno 13] Permission denied: '
        )
        assert text.endswith(' Set HF_HOME to a folder you can write to.')
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
    text = 'timm-res2net check: There is no space left in the cache for me/tiny. Free some, or'
    assert text in done.stderr
    assert done.stdout == ''  # nothing of it was kept
    again = subprocess.run(
        command('check', REPO),
        env=environment(server.url, tmp_path / 'larger'),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr


# --- without a network --------------------------------------------------------------------------


@pytest.mark.slow
def test_offline(world, tmp_path):
    server, _, _, logits = world
    home = tmp_path / 'home'
    offline = environment(server.url, home, HF_HUB_OFFLINE='1')
    cold = start(offline, SCRIPT, REPO)
    out, err = cold.communicate(timeout=300)
    assert cold.returncode == 1
    assert 'outgoing traffic has been disabled' in err or 'offline mode' in err.lower()
    told = subprocess.run(command('check', REPO), env=offline, capture_output=True, text=True)
    assert last_line(told) == (
        'timm-res2net check: HF_HUB_OFFLINE is set, so the Hub was not asked for me/tiny. '
        f'Unset it to ask the Hub.{NOT_CACHED}'
    )
    assert server.requests == []
    warm = start(environment(server.url, home), SCRIPT, REPO)
    assert warm.communicate(timeout=300) and warm.returncode == 0
    server.requests.clear()
    again = start(offline, SCRIPT, REPO)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert close_to(json.loads(out), logits)
    told = subprocess.run(command('check', REPO), env=offline, capture_output=True, text=True)
    assert told.returncode == 0
    assert 'ok       outputs' in told.stdout
    assert 'warning  hub         HF_HUB_OFFLINE is set' in told.stdout
    assert 'warning  card        README.md is not in the cache' in told.stdout
    assert server.requests == []


@pytest.mark.slow
def test_no_server_at_all(world, tmp_path):
    """Nobody listens: the warm cache serves, the cold one says so; a push says so at once."""
    server, _, _, logits = world
    home = tmp_path / 'home'
    nowhere = environment('http://127.0.0.1:9', home)
    told = subprocess.run(command('check', REPO), env=nowhere, capture_output=True, text=True)
    assert told.returncode == 1
    assert last_line(told).startswith(
        'timm-res2net check: The Hub cannot be reached for me/tiny (ConnectError: '
    )
    assert last_line(told).endswith(f'Check the network and run again.{NOT_CACHED}')
    warm = start(environment(server.url, home), SCRIPT, REPO)
    assert warm.communicate(timeout=300) and warm.returncode == 0
    again = start(nowhere, SCRIPT, REPO)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert close_to(json.loads(out), logits)
    told = subprocess.run(command('check', REPO), env=nowhere, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert 'ok       outputs' in told.stdout
    folder = str(next(home.glob('hub/models--*/snapshots/*')))
    push = command('push', folder, 'me/new', '--license', 'mit')
    told = subprocess.run(push, env=nowhere, capture_output=True, text=True)
    assert last_line(told).startswith('timm-res2net push: The Hub cannot be reached for me/new (')
    offline = environment(server.url, home, HF_HUB_OFFLINE='1')
    told = subprocess.run(push, env=offline, capture_output=True, text=True)
    assert last_line(told) == (
        'timm-res2net push: HF_HUB_OFFLINE is set, so the Hub was not asked for me/new. Unset it '
        'to ask the Hub.'
    )


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
    'no token': ('', None, 'The Hub refuses access to me/new (401: '),
    'a token to read': ('hf_read', None, 'The Hub refuses access to me/new (403: '),
    'somebody was faster': (
        'hf_write',
        Fault('POST .*/commit/', status=412),
        'Someone else has pushed to me/new in the meantime. Nothing was changed; run again.',
    ),
    'a lasting 500 at the end': (
        'hf_write',
        Fault('POST .*/commit/', status=500),
        'The Hub has a problem (500 for me/new). Run again later.',
    ),
    'content that does not arrive': (
        'hf_write',
        Fault('POST .*/verify', status=404),
        'The Hub answers 404 for me/new (',
    ),
}


@pytest.mark.parametrize('case', UPLOAD_REFUSALS)
def test_an_upload_refused(case, world, source):
    server, client, _, logits = world
    token, fault, text = UPLOAD_REFUSALS[case]
    server.lfs.clear()
    server.faults += [fault] if fault else []
    args = {'source': source, 'repo': 'me/new', 'token': token or False}
    fails(client, PUSH, 'OSError', text, **args)
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
    text = 'Someone else has pushed to me/tiny in the meantime. Nothing was changed; run again.'
    fails(client, code, 'OSError', text, source=source, repo=REPO)
    assert server.repos[REPO].messages == ['initial commit', 'theirs']
    client.run(PUSH, source=source, repo=REPO, token='hf_write')
    assert 'theirs.txt' in server.repos[REPO].files('main')[1]


UPLOAD_PASSING = {
    'reset at 50 %': Fault('PUT /lfs', 1, keep=0.5),
    '503 with Retry-After': Fault('PUT /lfs', 1, 503, headers={'Retry-After': '1'}),
    '429 for the batch': Fault('POST .*/batch', 1, 429, headers={'Retry-After': '1'}),
    '503 for the commit': Fault('POST .*/commit/', 1, 503),
}


@pytest.mark.parametrize('case', UPLOAD_PASSING)
def test_upload_trouble_that_passes(case, world, source):
    server, client, _, logits = world
    server.lfs.clear()
    fault = Fault(**vars(UPLOAD_PASSING[case]))
    server.faults.append(fault)
    args = {'source': source, 'repo': 'me/new', 'token': 'hf_write'}
    if 'commit' in case:  # the client does not retry a commit, which might have happened
        fails(client, PUSH, 'OSError', 'The Hub has a problem (503 for me/new). ', **args)
        assert server.repos['me/new'].messages == ['initial commit']
    client.run(PUSH, **args)
    assert fault.times == 0
    assert close_to(client.run(LOAD, repo='me/new'), logits)


def test_a_push_that_comes_back_otherwise(world, source):
    server, client, _, _ = world
    server.faults.append(Fault('GET /cdn', flip=True))
    code = "hub.push_to_hub(source, 'me/new', license='mit', verify=True)"
    text = 'model.safetensors of me/new at '
    fails(client, code, 'OSError', text, source=source)
    fails(client, code, 'OSError', 'is not the file that was pushed.', source=source)
    server.faults.clear()
    client.run(code, source=source)
