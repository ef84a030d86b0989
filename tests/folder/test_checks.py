"""What `check` asks about a folder, and what each command makes of the answers."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.common import model_folder, randomise
from timm_res2net import check
from timm_res2net.cli import main
from timm_res2net.folder.checks import QUESTIONS, checks, refuse
from timm_res2net.folder.folder import ModelFolder
from timm_res2net.folder.golden import GOLDEN


def tiny(**kwargs: Any) -> Any:
    """A small model with random weights and statistics."""
    return randomise(timm.create_model('test_res2net_se', **{'num_classes': 5, **kwargs})).eval()


def overflowing() -> Any:
    model = tiny()
    with torch.no_grad():
        model.fc.weight.fill_(3e38)
    return model


@pytest.fixture
def folder(tmp_path):
    """A folder as a push writes it."""
    return model_folder(tmp_path / 'net', num_classes=5)


def found(path: Path, what: str) -> tuple[str, str]:
    return next((f.state, f.text) for f in check(path) if f.what == what)


def test_check_of_a_good_folder(folder):
    assert {f.state for f in check(folder)} == {'ok'}
    assert [f.what for f in check(folder)] == [
        'config', 'weights', 'tensors', 'values', 'outputs', 'golden', 'images', 'license', 'card',
    ]  # fmt: skip
    assert found(folder, 'config')[1] == 'test_res2net_se, 5 classes, 64 px'
    assert found(folder, 'outputs')[1] == 'an image gives 5 finite outputs'
    assert found(folder, 'images')[1] == (
        'interpolation bilinear, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]'
    )


def test_check_of_a_folder_without_weights(folder):
    (folder / 'model.safetensors').unlink()
    state, text = found(folder, 'weights')
    assert state == 'error'
    assert 'no model.safetensors' in text and '`timm-res2net convert`' in text
    torch.save(tiny().state_dict(), folder / 'pytorch_model.bin')
    state, text = found(folder, 'weights')
    assert state == 'error'
    assert 'pytorch_model.bin is a pickle' in text and '`timm-res2net convert`' in text


def test_check_of_a_folder_with_pickles_beside(folder):
    torch.save(tiny().state_dict(), folder / 'pytorch_model.bin')
    assert found(folder, 'weights')[0] == 'ok'
    state, text = found(folder, 'pickles')
    assert state == 'warning'
    assert 'pytorch_model.bin: not checked' in text and '`timm-res2net convert`' in text


def test_check_of_a_folder_without_card_and_license(folder):
    (folder / 'README.md').write_text('---\nlicense: [\n---\n')
    assert found(folder, 'card')[0] == 'warning'  # it keeps nobody from using the weights
    assert found(folder, 'card')[1].startswith('The metadata of README.md cannot be read (')
    assert '\n' not in found(folder, 'card')[1]
    (folder / 'README.md').write_text('Words.')
    state, text = found(folder, 'card')
    assert state == 'warning'
    assert 'README.md has no metadata' in text
    (folder / 'README.md').unlink()
    state, text = found(folder, 'card')
    assert state == 'warning'
    assert 'There is no README.md' in text
    assert found(folder, 'license') == ('ok', 'mit')  # from the config
    config = json.loads((folder / 'config.json').read_text())
    del config['pretrained_cfg']['license']
    (folder / 'config.json').write_text(json.dumps(config))
    state, text = found(folder, 'license')
    assert state == 'warning'  # only a push needs one
    assert 'No license' in text and '`timm-res2net push --license`' in text
    assert 'error' in [f.state for f in checks(ModelFolder(folder), 'push') if f.what == 'license']


LICENSES = {  # the lines of a card that name it, and what the warning says, if there is one
    'mit': ('license: mit', ''),
    'no commercial use': ('license: cc-by-nc-sa-4.0', 'cc-by-nc-sa-4.0 does not allow commercial'),
    'a name of its own': (
        'license: other\nlicense_name: my-own\nlicense_link: https://example.com/own',
        'The license is my-own (https://example.com/own). Read it',
    ),
    'no name of its own': ('license: other', "The license is 'other'. Read it"),
    'a name of two lines': ('license: other\nlicense_name: "a\\nb"', 'The license is a b. Read it'),
}


@pytest.mark.parametrize('command', ['check', 'pull'])
@pytest.mark.parametrize('case', LICENSES)
def test_a_license_with_conditions_is_a_warning(case, command, folder):
    lines, warning = LICENSES[case]
    (folder / 'README.md').write_text(f'---\n{lines}\n---\nWords.')
    told = [f for f in checks(ModelFolder(folder), command) if f.what == 'license']
    assert told[0][1:] == ('ok', lines.partition('\n')[0].removeprefix('license: '))
    assert [f.state for f in told[1:]] == ['warning'] * bool(warning)
    assert warning in told[-1].text


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('fc.weight', float('nan'), 'NaN or infinite, 1: fc.weight'),
        ('layer1.0.bn1.bias', float('-inf'), 'NaN or infinite, 1: layer1.0.bn1.bias'),
        ('bn1.running_var', -1e-3, 'negative variances, 1: bn1.running_var'),
    ],
)
def test_weights_that_mislead(key, value, words, folder, tmp_path, capsys):
    """Every command says it; those that would hand on or use the weights refuse."""
    weights = load_file(folder / 'model.safetensors')
    weights[key].view(-1)[0] = value
    save_file(weights, folder / 'model.safetensors')
    (folder / GOLDEN).unlink()  # they would tell that the weights are others
    states = {
        command: next(f.state for f in checks(ModelFolder(folder), command) if words in f.text)
        for command in ('push', 'check', 'pull')
    }
    assert states == {'push': 'error', 'check': 'warning', 'pull': 'warning'}
    out = tmp_path / 'out'
    for argv in (
        ['convert', str(folder), '--out', str(out)],
        ['convert', str(folder), '--to', 'paddle', '--out', str(out)],
        ['convert', str(folder), '--dry-run'],
        ['predict', str(folder)],
        ['show', str(folder), '--out', str(tmp_path / 'seen.png')],
    ):
        assert main(argv) == 1
        told = capsys.readouterr().err
        assert f'{folder} was not' in told
        assert f'Weights are {words}. Use another checkpoint.' in told
    assert os.listdir(tmp_path) == ['net']


def test_check_of_weights_that_do_not_fit(folder):
    weights = load_file(folder / 'model.safetensors')
    changes = {
        'without a value, 1: bn1.weight': {'bn1.weight': None},
        'that the model does not have, 1: odd': {'odd': torch.zeros(1)},
        'size mismatch for fc.bias: ': {'fc.bias': torch.zeros(6)},
    }
    for words, change in changes.items():
        changed = {key: value for key, value in {**weights, **change}.items() if value is not None}
        save_file(changed, folder / 'model.safetensors')
        state, text = found(folder, 'tensors')
        assert state == 'error'
        assert words in text
        assert 'push again' in text


@pytest.mark.parametrize(('dtype', 'name'), [(torch.bool, 'BOOL'), (torch.int8, 'I8')])
def test_check_of_weights_of_another_type(dtype, name, folder):
    weights = load_file(folder / 'model.safetensors')
    weights['fc.bias'] = weights['fc.bias'].to(dtype)
    save_file(weights, folder / 'model.safetensors')
    state, text = found(folder, 'tensors')
    assert state == 'error'
    assert text == (
        f'Weights are {name}, not floating-point numbers, 1: fc.bias. Save them as float32.'
    )


def test_check_of_empty_and_cut_weights(folder):
    weights = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(weights[:-100])
    assert found(folder, 'weights')[0] == 'error'
    assert 'model.safetensors is damaged (' in found(folder, 'weights')[1]
    save_file({}, folder / 'model.safetensors')
    state, text = found(folder, 'weights')
    assert state == 'error'
    assert 'model.safetensors is empty' in text and 'Push the model again' in text


def test_check_json_and_exit_code(folder, capsys):
    assert main(['check', str(folder), '--json']) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        'what': 'config',
        'state': 'ok',
        'text': 'test_res2net_se, 5 classes, 64 px',
    }
    (folder / 'config.json').unlink()
    assert main(['check', str(folder)]) == 1
    assert capsys.readouterr().out.startswith('error    config      There is no ')


def test_check_of_names():
    findings = check('test_res2net_se')
    assert {f.state for f in findings} == {'ok'}
    for target, value, remedy in (
        ('res2net152d', "no published weights for 'res2net152d'", '`timm-res2net convert`'),
        ('res2net50_pd_26w_4s', 'res2net50_pd_26w_4s are at https://', '`timm-res2net convert`'),
        ('res2net50_26w_4s', "'res2net50_26w_4s' is a model of timm", 'timm/res2net50_26w_4s.in1k'),
        (__file__, 'test_checks.py is a file', '`timm-res2net convert --dry-run`'),
    ):
        with pytest.raises(ValueError) as error:
            check(target)
        assert value in str(error.value)
        assert remedy in str(error.value)


@pytest.mark.parametrize(
    ('change', 'what', 'text'),
    [
        ({'interpolation': 'cubicle'}, 'config', "lanczos, random, got 'cubicle'."),
        (
            {'std': [0, 0, 0]},
            'config',
            'each a number from 1e-06 to 1000000, got [0, ',
        ),
        (
            {'mean': [0.5, 0.5]},
            'images',
            'Images cannot be prepared with interpolation bilinear, mean [0.5, 0.5]',
        ),
    ],
)
def test_check_of_images_that_cannot_be_prepared(change, what, text, folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg'].update(change)
    (folder / 'config.json').write_text(json.dumps(config))
    state, told = found(folder, what)
    assert state == 'error'
    assert text in told


def test_check_of_images_of_other_channels(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['input_size'] = [4, 64, 64]
    (folder / 'config.json').write_text(json.dumps(config))
    assert found(folder, 'images') == (
        'error',
        'interpolation bilinear, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225] do not suit '
        '4 channels. Push again with other values.',
    )


def test_check_of_outputs_that_are_not_finite(folder):
    save_file(overflowing().state_dict(), folder / 'model.safetensors')
    assert found(folder, 'values') == ('ok', 'all finite')
    state, text = found(folder, 'outputs')
    assert state == 'warning'
    assert 'NaN or infinite' in text


def other_semantics(folder: Path) -> None:
    config = json.loads((folder / 'config.json').read_text())
    config['model_args']['semantics'] = 'paddle'
    (folder / 'config.json').write_text(json.dumps(config))


def other_weights(folder: Path) -> None:
    save_file(randomise(tiny(), seed=2).state_dict(), folder / 'model.safetensors')


@pytest.mark.parametrize('change', [other_semantics, other_weights])
def test_golden_tensors_see_another_network_under_the_same_keys(change, folder):
    state, text = found(folder, 'golden')
    assert state == 'ok'
    assert re.fullmatch(rf'as in {GOLDEN}, largest relative difference \S+ \(\w+\)', text)
    change(folder)
    state, text = found(folder, 'golden')
    assert state == 'error'
    assert GOLDEN in text and '(output)' in text
    assert 'semantics' in text and 'damaged' in text  # what it may mean


# --- the table ------------------------------------------------------------------------------------


def test_every_question_is_asked_once_and_after_what_it_needs():
    asked: list[Any] = []
    for question in QUESTIONS:
        assert question.ask not in asked
        assert set(question.needs) <= set(asked)
        assert question.ask.__doc__.endswith('?')
        assert {question.push, question.check, question.pull} <= {'warning', 'error'}
        asked.append(question.ask)


@pytest.mark.parametrize('command', ['push', 'check', 'pull'])
def test_one_problem_under_every_command(command, folder):
    """NaN is what the table says, whichever command looks."""
    tensors = load_file(folder / 'model.safetensors')
    tensors['bn1.bias'][0] = float('nan')
    save_file(tensors, folder / 'model.safetensors')
    row = next(question for question in QUESTIONS if question.what == 'values')
    findings = checks(ModelFolder(folder), command)
    state, text = next((f.state, f.text) for f in findings if f.what == 'values')
    assert state == getattr(row, command)
    assert '1: bn1.bias' in text
    if state == 'error':
        with pytest.raises(ValueError, match=r'me/net was.*bn1\.bias.*another checkpoint'):
            refuse(findings, 'me/net was not pushed')
    else:
        refuse(findings, 'it')


def test_what_a_failed_question_needed_is_not_asked(folder):
    (folder / 'config.json').unlink()
    assert [f.what for f in check(folder)] == ['config', 'weights', 'values', 'card']
