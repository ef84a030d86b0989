"""One function from a text to a registered name, a folder, a file or a repository."""

import pytest
import timm
import torch

from timm_res2net import convert_checkpoint, push_to_hub
from timm_res2net.cli import main
from timm_res2net.folder.target import Target, close_names, find_target


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_text_means(here):
    (here / 'net').mkdir()
    (here / 'net.pth').touch()
    assert find_target('net') == Target('folder', 'net')
    assert find_target('local-dir:net') == Target('folder', 'net')
    assert find_target(here / 'net') == Target('folder', str(here / 'net'))
    assert find_target('net.pth') == Target('file', 'net.pth')
    assert find_target('me/net') == Target('repository', 'me/net')
    assert find_target('hf-hub:me/net') == Target('repository', 'me/net')
    assert (
        find_target('me/net@v1')
        == find_target('me/net', 'v1')
        == Target('repository', 'me/net', 'v1')
    )
    found = find_target('res2net50_vd_26w_4s.in1k')
    assert found == Target('name', 'res2net50_vd_26w_4s.in1k')
    assert found.architecture == 'res2net50_vd_26w_4s'
    assert found.cfg.tag == 'in1k'
    assert find_target('res2net50_vd_26w_4s').cfg.tag == 'ssld_in1k'
    assert find_target('resnet18').architecture == 'resnet18'  # any model of timm


def test_a_folder_that_is_called_like_a_model(here):
    """It is the folder if it holds a config, and the model otherwise."""
    (here / 'test_res2net_se').mkdir()
    assert find_target('test_res2net_se').kind == 'name'
    (here / 'test_res2net_se' / 'config.json').touch()
    assert find_target('test_res2net_se').kind == 'folder'


@pytest.mark.parametrize(
    'name', ['res2net50_es', 'resnet18', 'res2net50_se.in21k', 'res2net50_se.']
)
def test_every_command_refuses_a_name_alike(name, here, capsys):
    """The name of an architecture: `info NAME`, `convert --model NAME`, `push --model NAME`."""
    torch.save({}, 'net.pth')
    told = set()
    for words in (
        ['info', name],
        ['convert', 'net.pth', '--model', name, '--dry-run'],
        ['push', 'net.pth', 'me/net', '--model', name, '--dry-run'],
    ):
        assert main(words) == 1
        told.add(capsys.readouterr().err.removeprefix(f'timm-res2net {words[0]}: '))
    (sentence,) = told
    assert f"'{name.removeprefix('res2net50_se.')}'" in sentence


def test_every_command_takes_a_tag(here):
    model = timm.create_model('test_res2net_se.digits')
    torch.save(model.state_dict(), 'net.pth')
    taken = convert_checkpoint('net.pth', model='test_res2net_se.digits')
    assert taken.config.architecture == 'test_res2net_se'
    named = {'architecture': 'test_res2net_se.digits', 'license': 'mit'}
    done = push_to_hub('net.pth', 'me/net', dry_run=True, **named)
    assert done.config.architecture == 'test_res2net_se'


def test_two_revisions_and_a_deep_path():
    with pytest.raises(FileNotFoundError, match='no file or folder a/b/c'):
        find_target('a/b/c')
    with pytest.raises(ValueError, match=r"'me/net@v1' and revision='v2'.*Name one"):
        find_target('me/net@v1', 'v2')


def test_close_names():
    assert close_names('Res2net50_es', ['res2net50_se', 'x']) == ' Did you mean res2net50_se?'
    assert close_names('qqq', ['res2net50_se']) == ''
