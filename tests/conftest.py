"""Shared set-up: one thread a test process, since pytest-xdist brings a process a core."""

import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
