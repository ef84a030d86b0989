"""The records of libraries and scripts that CI does not run."""

import json

import pytest

from tests.integration import record_consumers
from tests.integration.record_consumers import PACKAGES


@pytest.mark.parametrize('name', PACKAGES)
def test_record(name):
    """The library took a model of this package, and what it got from it is right."""
    entry = json.loads(record_consumers.FILE.read_text())[name]
    assert {'python', 'torch', 'timm', 'timm_res2net', *PACKAGES[name]} <= entry['versions'].keys()
    assert 0 <= entry['relative_error'] < 1e-5  # float32
    # what README.md shows is what ran
    assert entry['code'] == record_consumers.code_of(name)
