"""Shared set-up: one thread a test process, since pytest-xdist brings a process a core."""

import os
import signal

import pytest
import torch
from hypothesis import settings

# started in the background, a process ignores Ctrl-C, and all that it starts would ignore it, too
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenVINO and NNCF send usage data from a fork, which hangs without a network, but not from CI.
os.environ['CI'] = 'true'

# every run tries the same examples, however long one takes
settings.register_profile('same', derandomize=True, deadline=None, database=None)
settings.load_profile('same')


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Start processes before exports: in one with many, the kernel ended a wait for a child.

    It was SIGSEGV on the return of poll(), seen on an Intel CPU with AMX.
    """
    items.sort(key=lambda item: item.path.parent.name == 'export')
