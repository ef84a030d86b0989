"""The real client of the Hub, in this process or another, with a loopback Hub and its own cache."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _http

from tests.common import SHARED


@contextmanager
def connected(endpoint: str, home: Path, **settings: Any) -> Iterator[pytest.MonkeyPatch]:
    """Let the client in this process talk to a loopback Hub for the length of a block.

    Args:
        endpoint: Address of the Hub.
        home: Folder of the cache.
        settings: Further constants of huggingface_hub.
    """
    values = {
        'ENDPOINT': endpoint,
        'HUGGINGFACE_CO_URL_TEMPLATE': endpoint + '/{repo_id}/resolve/{revision}/{filename}',
        'HF_HUB_CACHE': str(home / 'hub'),
        'HF_HUB_DISABLE_XET': True,
        **settings,
    }
    # the client waits less between its tries, of which there are as many
    quick = SimpleNamespace(**vars(time))
    quick.sleep = lambda seconds: time.sleep(min(seconds, 0.01))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # its uploads without Xet use an argument of httpx that is deprecated
        warnings.filterwarnings('ignore', "Use 'content=", DeprecationWarning)
        for name, value in values.items():
            patch.setattr(constants, name, value)
        patch.setattr(_http, 'time', quick)
        patch.setenv('HF_TOKEN', 'hf_write')
        patch.setenv('HF_XET_CACHE', str(home / 'xet'))
        try:
            yield patch
        finally:
            close_session()  # a connection that is open would outlive the server


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a client: a loopback Hub, a cache of its own, one thread."""
    ours = {
        'HF_ENDPOINT': endpoint,
        'HF_HOME': str(home),
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_DISABLE_XET': '1',
        'HF_TOKEN': 'hf_write',
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith('HF_')}
    return {**kept, **SHARED, **ours, **more}
