"""What `check` asks about a folder, and what each command makes of the answers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.common import change_config, model_folder, random_weights
from timm_res2net import check, push_to_hub
from timm_res2net.cli import main
from timm_res2net.folder.golden import GOLDEN


@pytest.fixture
def folder(tmp_path):
    """A folder as a push writes it."""
    return model_folder(tmp_path / 'net', num_classes=5)


def change_weights(folder: Path, **changes: Any) -> None:
    """Write other tensors under some keys (`__` for a dot); None removes one."""
    changes = {key.replace('__', '.'): value for key, value in changes.items()}
    tensors = load_file(folder / 'model.safetensors') | changes
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, folder / 'model.safetensors')


def change_card(folder: Path, text: str) -> None:
    (folder / 'README.md').write_text(text)


NAN = torch.full((5,), torch.nan)
DEFECTS = {  # what is wrong, and the findings by question: the state for `check`, and a text
    'nothing': (lambda folder: None, {}),
    'no weights': (
        lambda folder: (folder / 'model.safetensors').unlink(),
        {'weights': ('error', 'no model.safetensors')},
    ),
    'a pickle': (
        lambda folder: torch.save(random_weights(), folder / 'pytorch_model.bin'),
        {'pickles': ('warning', 'pytorch_model.bin: not checked')},
    ),
    'a pickle instead': (
        lambda folder: (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin'),
        {'weights': ('error', 'pytorch_model.bin'), 'pickles': ('warning', 'not checked')},
    ),
    'no config': (
        lambda folder: (folder / 'config.json').unlink(), {'config': ('error', 'There is no ')},
    ),
    'no weights in the file': (
        lambda folder: save_file({}, folder / 'model.safetensors'),
        {'weights': ('error', 'without a value, ')},
    ),
    'weights cut short': (
        lambda folder: os.truncate(folder / 'model.safetensors', 80_000),
        {'weights': ('error', 'is damaged (')},
    ),
    'a tensor too few': (
        lambda folder: change_weights(folder, bn1__weight=None),
        {'weights': ('error', 'without a value, 1: bn1.weight')},
    ),
    'a tensor too many': (
        lambda folder: change_weights(folder, odd=torch.zeros(1)),
        {'weights': ('error', 'that the model does not have, 1: odd')},
    ),
    'another shape': (
        lambda folder: change_weights(folder, fc__bias=torch.zeros(6)),
        {'weights': ('error', 'size mismatch for fc.bias: ')},
    ),
    'booleans': (
        lambda folder: change_weights(folder, fc__bias=torch.ones(5, dtype=torch.bool)),
        {'weights': ('error', 'not floating-point numbers, 1: fc.bias')},
    ),
    'integers': (
        lambda folder: change_weights(folder, fc__bias=torch.ones(5, dtype=torch.int8)),
        {'weights': ('error', 'not floating-point numbers, 1: fc.bias')},
    ),
    'NaN': (
        lambda folder: change_weights(folder, fc__bias=NAN),
        {'values': ('warning', '1: fc.bias'), 'golden': None},
    ),
    'a negative variance': (
        lambda folder: change_weights(folder, bn1__running_var=torch.full((16,), -1e-3)),
        {'values': ('warning', 'negative variances, 1: bn1.running_var'), 'golden': None},
    ),
    'outputs that overflow': (
        lambda folder: change_weights(folder, fc__weight=torch.full((5, 192), 3e38)),
        {'values': ('warning', 'NaN or infinite'), 'golden': None},
    ),
    'other semantics': (
        lambda folder: change_config(folder, 'model_args', semantics='paddle'),
        {'golden': ('error', '(output)')},
    ),
    'other weights': (
        lambda folder: change_weights(folder, fc__bias=torch.ones(5)),
        {'golden': ('error', '(output)')},
    ),
    'two means': (
        lambda folder: change_config(folder, 'pretrained_cfg', mean=[0.5, 0.5]),
        {'config': ('error', 'mean=[0.5, 0.5]')},
    ),
    'four channels': (
        lambda folder: change_config(folder, 'pretrained_cfg', input_size=[4, 64, 64]),
        {'config': ('error', 'do not suit 4 channels')},
    ),
    'no license': (
        lambda folder: (
            change_config(folder, 'pretrained_cfg', license=None), change_card(folder, 'Words.')
        ),
        {'license': ('warning', 'No license'), 'card': ('warning', 'has no metadata')},
    ),
    'an unknown license': (
        lambda folder: change_card(folder, '---\nlicense: unknown\n---\n'),
        {'license': ('warning', "'unknown'")},
    ),
    'no card': (
        lambda folder: (folder / 'README.md').unlink(), {'card': ('warning', 'There is no README')},
    ),
    'a damaged card': (
        lambda folder: change_card(folder, '---\nlicense: [\n---\n'),
        {'license': ('warning', 'cannot be read ('), 'card': ('warning', 'cannot be read (')},
    ),
    'two licenses': (
        lambda folder: change_card(folder, '---\nlicense: [mit, cc-by-nc-4.0]\n---\n'),
        {'license': ('warning', 'mit, cc-by-nc-4.0 does not allow commercial use')},
    ),
    'no commercial use': (
        lambda folder: change_card(folder, '---\nlicense: cc-by-nc-sa-4.0\n---\n'),
        {'license': ('warning', 'commercial')},
    ),
    'a license of its own': (
        lambda folder: change_card(folder, '---\nlicense: other\nlicense_name: "a\\nb"\n---\n'),
        {'license': ('warning', 'The license is a b. Read it')},
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', DEFECTS)
def test_each_defect_is_found_and_nothing_else(case, folder):
    """What cannot be asked after it is not asked; what is no worse for a push is pushed."""
    change, expected = DEFECTS[case]
    change(folder)
    told = {(f.what, f.state): f.text for f in check(folder) if f.state != 'ok'}
    assert '\n' not in ''.join(told.values())
    for what, finding in expected.items():
        if finding:
            state, text = finding
            assert text in told.pop((what, state))
    assert {what for what, _ in told} <= {what for what, finding in expected.items() if not finding}


def test_another_network_under_the_same_keys_is_not_pushed(folder):
    change_config(folder, 'model_args', semantics='paddle')
    with pytest.raises(ValueError, match=r'\(output\)'):
        push_to_hub(folder, 'me/net', dry_run=True)


def test_weights_that_mislead_are_not_used(folder, tmp_path, capsys):
    """Every command that would hand them on or use them refuses, and writes nothing."""
    change_weights(folder, fc__bias=NAN)
    (folder / GOLDEN).unlink()  # they would tell that the weights are others
    out = str(tmp_path / 'out')
    for argv in (
        ['convert', str(folder), '--out', out],
        ['convert', str(folder), '--to', 'paddle', '--out', out],
        ['convert', str(folder), '--dry-run'],
        ['predict', str(folder)],
        ['show', str(folder), '--out', str(tmp_path / 'seen.png')],
    ):
        assert main(argv) == 1
        assert '1: fc.bias' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['net']


def test_the_command(folder, capsys):
    assert main(['check', str(folder), '--json']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told[0]['text'] == 'test_res2net_se, 5 classes, 64 px'
    assert [finding['what'] for finding in told] == [
        'config', 'weights', 'values', 'golden', 'images', 'license', 'card',
    ]  # fmt: skip
    (folder / 'config.json').unlink()
    assert main(['check', str(folder)]) == 1
    assert capsys.readouterr().out.startswith('error    config      There is no ')


def test_names():
    with pytest.raises(ValueError, match=r'test_res2net_se has no revisions'):
        check('test_res2net_se', 'v1')
    assert {finding.state for finding in check('test_res2net_se')} == {'ok'}
    for target in ('res2net152d', __file__):
        with pytest.raises(ValueError) as error:
            check(target)
        assert Path(target).name in str(error.value)
