"""The record of the libraries that CI does not run."""

import json

import pytest
import timm

from tests.integration import record_captum, record_consumers

RECORD = json.loads((record_consumers.HERE / 'consumers.json').read_text())


@pytest.mark.parametrize('name', record_consumers.CONSUMERS)
def test_record(name):
    """The library trained a model of this package, and its features were timm's."""
    entry = RECORD[name]
    _, packages = record_consumers.CONSUMERS[name]
    assert {'python', 'torch', 'timm', 'timm_res2net', *packages} <= entry['versions'].keys()
    assert 0 <= entry['relative_error'] < 1e-5  # float32
    percent = entry['held_out_accuracy']
    assert percent['before'] < 25  # one of ten classes is right by chance
    assert percent['after'] > 50
    # what README.md shows is what ran
    assert entry['code'] == record_consumers.code_of(name)
    assert record_consumers.NAME in entry['code']
    assert timm.is_model(record_consumers.NAME)


def test_captum():
    """DeepLift took every form of the model, and its attributions added up."""
    record = json.loads((record_captum.HERE / 'captum.json').read_text())
    assert {'python', 'torch', 'timm', 'timm_res2net', 'captum'} <= record['versions'].keys()
    assert record['forms'].keys() == record_captum.FORMS.keys()
    for found in record['forms'].values():
        assert 0 <= found['relative_error_of_sum'] < 1e-3  # differences of float32 numbers
