"""What happens when network, disk or the other side fail: the real client, a loopback Hub.

Each fault is one test: the error, what is left in the cache, and that the next attempt is clean.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
import timm
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.common import PUSHED, image, network, slow_except, states
from tests.hub.client import environment
from tests.hub.conftest import REPO
from tests.hub.server import Fault
from timm_res2net import check, pull, push_to_hub
from timm_res2net.cli.frame import explain

LOGIN = 'log in with `hf auth login`, or set HF_TOKEN.'


@pytest.fixture
def home(server, files, tmp_path):
    """The folder of a cold cache. The Hub has one model."""
    server.add(REPO, files)
    return tmp_path / 'home'


def assert_clean(model, home: Path) -> None:
    """The repository is in order, loads as it was pushed, and the cache has nothing half."""
    assert set(states(check(REPO)).values()) == {'ok'}
    loaded = timm.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image()), model(image()))
    assert_sound(home)


def assert_sound(home: Path) -> None:
    for path in (home / 'hub').glob('models--*/blobs/*'):
        assert path.suffix != '.incomplete'
        if len(path.name) == 64:  # a large file's name is its sha256
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


# --- refusals -----------------------------------------------------------------------------------

REFUSALS = {  # the type that `check` raises, and what the command line prints
    'no repository': (
        Fault('.', status=401, code='RepoNotFound'), RepositoryNotFoundError,
        f'It does not exist, or is private: check the name, or {LOGIN}',
    ),
    'forbidden': (Fault('.', status=403), HfHubHTTPError, f'To get access, {LOGIN}'),
    'gated': (
        Fault('.', status=403, code='GatedRepo'), GatedRepoError,
        f'It is gated: accept its conditions on the Hub, then {LOGIN}',
    ),
    'no revision': (
        Fault('.', status=404, code='RevisionNotFound'), RevisionNotFoundError,
        'There is no such revision: name a branch, a tag or a commit.',
    ),
    'too many requests': (
        Fault('GET /api/models', status=429), HfHubHTTPError, 'Wait a while and run again.',
    ),
    'out of order': (Fault('GET /cdn', status=503), HfHubHTTPError, 'Run again later.'),
    'a connection that breaks': (
        Fault('GET /cdn', keep=0.5), httpx.RemoteProtocolError, 'Check the network and run again.',
    ),
    'cut short': (
        Fault('HEAD .*model.safetensors', headers={'X-Linked-Size': '1234'}), OSError,
        'Consistency check failed',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', slow_except([c for c in REFUSALS if 'breaks' not in c], REFUSALS))
def test_refused(case, server, home, model):
    """The client's error passes, nothing half is left, and the next attempt is clean."""
    fault, kind, line = REFUSALS[case]
    server.faults.append(fault)
    with pytest.raises(kind) as error:
        check(REPO)
    assert type(error.value) is kind
    assert line in explain(error.value)
    if fault.status:
        assert f'The Hub answers {fault.status} for http' in explain(error.value)
    assert_sound(home)
    server.faults.clear()
    assert_clean(model, home)


def test_another_content_than_announced(server, home, model, tmp_path):
    """The client compares the size alone. The error names the file to remove, which stays."""
    server.faults.append(Fault('GET /cdn', flip=True))
    for use in (check, lambda repo: pull(repo, tmp_path / 'out')):
        with pytest.raises(ValueError, match=rf'model.safetensors of {REPO} is not what') as error:
            use(REPO)
    assert not (tmp_path / 'out').exists()
    server.faults.clear()
    Path(re.search('Remove (.*) and run again', str(error.value))[1]).unlink()
    pull(REPO, tmp_path / 'out')
    assert_clean(model, home)


def test_a_push_while_it_is_downloaded(server, home, model):
    """Another commit between the list of files and the files: nothing is taken for damaged."""
    theirs = Fault(
        'GET .*/revision/', 1, before=lambda: server.change(REPO, 'theirs', **{'theirs.txt': b''})
    )
    server.faults.append(theirs)
    with pytest.raises(ValueError, match=f'{REPO} changed while it was downloaded.*Run again'):
        check(REPO)
    assert_clean(model, home)


# --- what is there is wrong ---------------------------------------------------------------------


def test_a_repository_that_is_not_in_order(server, home, files, model, tmp_path):
    """`check` says what it is (tests/folder/test_checks.py), and `pull` writes nothing."""
    server.change(REPO, 'wrong', **{'model.safetensors': files['model.safetensors'][:-50]})
    told = states(check(REPO))
    assert told['weights'] == 'error' and 'values' not in told
    with pytest.raises(ValueError, match=f'{REPO} is not in order, and nothing was written'):
        pull(REPO, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    server.change(REPO, 'right', **files)
    assert_clean(model, home)


def test_a_repository_without_a_model(server, tmp_path):
    server.add('me/empty', {'notes.txt': b'nothing'})
    with pytest.raises(ValueError, match=r'me/empty has no config\.json or model\.safetensors'):
        pull('me/empty', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# --- the disk, in processes of their own ----------------------------------------------------------


def run(env: dict[str, str], *words: str, before: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    line = [*before, sys.executable, '-m', 'timm_res2net', *words]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


# for which read-only folders are read-only, even for root
AS_USER = () if os.geteuid() else (
    'setpriv', '--bounding-set=-dac_override', '--inh-caps=-dac_override', '--ambient-caps=-all',
    '--',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('warm', [True, False])
@pytest.mark.skipif(
    bool(AS_USER) and not shutil.which('setpriv'), reason='root, without setpriv to be less'
)
def test_a_read_only_cache(warm, server, home):
    (home / 'hub').mkdir(parents=True)
    env = environment(server.url, home)
    if warm:
        assert run(env, 'check', REPO)[0] == 0
    folders = [home, *(p for p in home.rglob('*') if p.is_dir() and not p.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        code, out, err = run(env, 'check', REPO, before=AS_USER)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert code == (0 if warm else 1), err
    if warm:
        assert 'as the Hub announces' in out
    else:
        line = err.splitlines()[-1]
        assert line.startswith('timm-res2net check: PermissionError: ')
        assert 'Choose a folder you can write to (HF_HOME' in line


@pytest.mark.slow
def test_a_full_disk(server, home, tmp_path):
    mount = ['unshare', '--map-root-user', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']
    if not shutil.which('unshare') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('no small file system can be mounted here')
    home.mkdir()
    # room for the config, not for the weights
    script = (
        f'mount -t tmpfs -o size=400k tmpfs {home} && "$@"; code=$?; '
        f'find {home} -name "*.incomplete" -o -type f -size +100k; exit $code'
    )
    unshare = ('unshare', '--map-root-user', '--mount', 'bash', '-c', script, 'bash')
    code, out, err = run(environment(server.url, home), 'check', REPO, before=unshare)
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith('timm-res2net check: ') and 'No space left on device' in line
    assert 'Free some space, or use another disk (HF_HOME' in line
    assert out == ''  # nothing of it was kept
    assert run(environment(server.url, tmp_path / 'larger'), 'check', REPO)[0] == 0


# --- uploads ------------------------------------------------------------------------------------

UPLOADS = {
    'no token': ('', None, HfHubHTTPError, f'To get access, {LOGIN}'),
    'a token to read': ('hf_read', None, HfHubHTTPError, f'To get access, {LOGIN}'),
    'somebody was faster': (
        'hf_write', Fault('POST .*/commit/', status=412), HfHubHTTPError,
        'Someone else has pushed in the meantime. Nothing was changed; run again.',
    ),
    'a reason of the Hub': (
        'hf_write', Fault('POST .*/commit/', status=402), HfHubHTTPError,
        '(a fault of the test). Change what you ask for.',
    ),
    'a 500 for the content': ('hf_write', Fault('PUT /lfs', status=500), RuntimeError, '500'),
}  # fmt: skip


@pytest.mark.parametrize('case', UPLOADS)
def test_an_upload_refused(case, server, home, model):
    """No part of a push is committed, no token is printed, and the next attempt is clean."""
    token, fault, kind, line = UPLOADS[case]
    server.repos.clear()
    server.faults += [fault] if fault else []
    with pytest.raises(kind) as error:
        push_to_hub(model, REPO, license='mit', token=token or False)
    assert type(error.value) is kind
    assert line in explain(error.value)
    assert 'hf_' not in explain(error.value) + str(error.value)
    repo = server.repos.get(REPO)
    assert repo is None or repo.messages == ['initial commit']
    server.faults.clear()
    assert sorted(push_to_hub(model, REPO, license='mit').changed) == PUSHED
    assert_clean(model, home)


def test_of_two_who_push_one_wins(server, home, model):
    """Somebody pushes after the repository was looked at: neither overwrites the other."""
    theirs = {'theirs.txt': b'theirs'}
    server.faults.append(
        Fault('POST .*/preupload/', 1, before=lambda: server.change(REPO, 'theirs', **theirs))
    )
    other = network(num_classes=5, seed=2)
    with pytest.raises(OSError, match='412') as error:
        push_to_hub(other, REPO)
    assert 'Someone else has pushed in the meantime. Nothing' in explain(error.value)
    assert server.repos[REPO].messages == ['initial commit', 'theirs']
    assert 'model.safetensors' in push_to_hub(other, REPO).changed
    assert 'theirs.txt' in server.repos[REPO].files()
    assert json.loads(server.repos[REPO].files()['config.json'])['num_classes'] == 5
