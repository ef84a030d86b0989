"""The record of the consumers that CI does not run, and the script that wrote it."""

import json

import pytest
import timm
import torch

from tests.common import image, randomise
from tests.integration import record_consumers

RECORD = json.loads(record_consumers.FILE.read_text())
LIBRARIES = {
    'fastai': ['fastai'],
    'lightning': ['lightning'],
    'mmpretrain': ['mmpretrain', 'mmengine', 'mmcv-lite'],
}


def test_each_consumer_has_its_entry():
    assert list(RECORD) == sorted(record_consumers.CONSUMERS) == sorted(LIBRARIES)


@pytest.mark.parametrize('name', LIBRARIES)
def test_record(name):
    entry = RECORD[name]
    assert entry['lines'] == 'ran'
    assert entry['command'] == f'python -m tests.integration.record_consumers --only {name}'
    assert record_consumers.NAME in entry['what']
    assert {'python', 'torch', 'timm', 'timm_res2net', *LIBRARIES[name]} <= set(entry['versions'])
    assert 0 <= entry['parity'] < 1e-5  # float32
    loss, accuracy = entry['held_out_loss'], entry['held_out_accuracy']
    # ten classes: ln 10 = 2.30 and 0.1 before
    assert abs(loss['before'] - 2.30) < 0.05 and accuracy['before'] < 0.25
    assert loss['after'] < 0.75 * loss['before'] and accuracy['after'] > 0.5


def test_help_shows_what_a_user_writes(capsys):
    with pytest.raises(SystemExit):
        record_consumers.main(['--help'])
    shown = capsys.readouterr().out
    assert record_consumers.LINES.keys() == LIBRARIES.keys()
    for name, code in record_consumers.LINES.items():
        assert code in shown
        compile(code, name, 'exec')
        assert 'import timm_res2net' in code or ', timm_res2net' in code


def test_digits():
    train, held_out = record_consumers.digits()
    assert len(train) + len(held_out) == 1797  # all that scikit-learn has
    x, y = held_out.tensors
    assert x.shape == (record_consumers.HELD_OUT, 3, 64, 64)
    assert (x.min(), x.max()) == (-1, 1)
    assert set(y.tolist()) == set(train.tensors[1].tolist()) == set(range(10))


def test_score():
    _, held_out = record_consumers.digits()
    answers = iter(held_out.tensors[1].split(120))
    loss, accuracy = record_consumers.score(
        lambda x: 50 * torch.nn.functional.one_hot(next(answers), 10).float(), held_out
    )
    assert accuracy == 1 and loss < 1e-6
    loss, accuracy = record_consumers.score(lambda x: torch.zeros(len(x), 10), held_out)
    assert abs(loss - 2.302585) < 1e-5  # ln 10
    assert accuracy == float((held_out.tensors[1] == 0).double().mean())


def test_parity_sees_one_changed_weight():
    """In the last level alone."""
    kwargs = {'features_only': True, 'out_indices': (1, 4)}
    model, other = (randomise(timm.create_model('test_res2net_se', **kwargs)) for _ in range(2))
    x = image()
    with torch.no_grad():
        expected = model.eval()(x)
        assert record_consumers.parity(other.eval()(x), expected) == 0
        other.get_parameter('layer4.0.convs.0.weight')[0] *= 1.01
        assert record_consumers.parity(other(x), expected) > 1e-5
    with pytest.raises(ValueError, match=r'zip\(\) argument 2 is shorter than argument 1'):
        record_consumers.parity([x, x], [x])


def test_an_entry_has_what_the_record_has():
    entry = record_consumers.result('fastai', 'it', 0.0, (2.3, 0.1), (1.0, 0.6), ['safetensors'])
    assert entry.keys() | {'lines'} == RECORD['fastai'].keys()
    assert entry['versions']['timm'] == timm.__version__
    assert entry['held_out_loss'] == {'before': 2.3, 'after': 1.0}
    assert entry['held_out_accuracy'] == {'before': 0.1, 'after': 0.6}


def test_the_others_entries_stay(tmp_path, monkeypatch, capsys):
    """Without --only, what is installed runs; json and timm stand for consumers."""
    consumers = {
        'json': lambda: {'seed': torch.initial_seed()},
        'timm': lambda: {'seed': torch.initial_seed()},
        'not_installed': lambda: {'seed': None},
    }
    monkeypatch.setattr(record_consumers, 'CONSUMERS', consumers)
    out = tmp_path / 'record.json'
    out.write_text('{"not_installed": {"seed": 7}, "json": {"seed": 8}}')
    record_consumers.main(['--out', str(out), '--only', 'timm'])
    assert json.loads(out.read_text()) == {
        'json': {'seed': 8}, 'not_installed': {'seed': 7}, 'timm': {'seed': 0},
    }  # fmt: skip
    record_consumers.main(['--out', str(out)])
    assert json.loads(out.read_text()) == {
        'json': {'seed': 0}, 'not_installed': {'seed': 7}, 'timm': {'seed': 0},
    }  # fmt: skip
    with pytest.raises(SystemExit):
        record_consumers.main(['--out', str(out), '--only', 'not_installed', '--only', 'json'])
    text = 'error: not_installed cannot be imported here: pip install it first.'
    assert text in capsys.readouterr().err
    assert json.loads(out.read_text())['json'] == {'seed': 0}
