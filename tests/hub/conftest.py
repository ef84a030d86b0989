"""A loopback Hub for all tests of a process, and the client in this process with a cold cache."""

import pytest

from tests.common import network, repository_files
from tests.hub.client import connected
from tests.hub.server import hub

REPO = 'me/tiny'


@pytest.fixture(scope='session')
def _server():
    with hub(xet=False) as server:  # the faults meet downloads by HTTP
        yield server


@pytest.fixture(scope='session')
def model():
    return network(num_classes=5)


@pytest.fixture(scope='session')
def files(model):
    """The files of a push of the model to REPO."""
    return repository_files(REPO, model)


@pytest.fixture
def patch(_server, tmp_path):
    with connected(_server.url, tmp_path / 'home') as patch:
        yield patch


@pytest.fixture
def server(_server, patch):
    """The Hub, empty, to which `push_to_hub`, `timm.create_model` and the others talk."""
    _server.faults.clear()
    _server.requests.clear()
    _server.repos.clear()
    return _server
