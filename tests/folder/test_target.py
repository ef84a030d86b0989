"""One function from a text to a registered name, a folder, a file or a repository."""

import pytest
import timm
import torch

from timm_res2net import check, convert_checkpoint, export_model, push_to_hub, show
from timm_res2net.cli import main
from timm_res2net.folder.target import Target, find_name, find_repository, find_target


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
    ('text', 'value', 'remedy'),
    [
        ('nothing', "'nothing'", '`timm-res2net list`'),
        ('res2net50_es', "'res2net50_es'", 'Did you mean res2net50_se'),
        ('res2net50_se.in21k', "'in21k'", 'Use one of se_identity_in1k, se_identity_mindcv_in1k'),
        ('./nothing', './nothing', 'Check the path'),
        ('local-dir:nothing', 'nothing', 'Check the path'),
        ('a/b/c', 'a/b/c', 'OWNER/NAME'),
        ('me/ne t', "'me/ne t'", 'OWNER/NAME'),
    ],
)
def test_every_command_refuses_a_text_alike(text, value, remedy, here):
    """The model of a command, whatever it does with it."""
    told = set()
    for command in (
        find_target,
        check,
        lambda target: export_model(target, 'net.pt2', 'pt2', pretrained=False),
        lambda target: show(target, None, 'net.png', pretrained=False),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            command(text)
        told.add(str(error.value))
    assert len(told) == 1
    assert value in told.pop()
    assert remedy in str(error.value)


@pytest.mark.parametrize(
    ('name', 'value', 'remedy'),
    [
        ('res2net50_es', "'res2net50_es' is not a registered Res2Net", 'Did you mean res2net50_se'),
        ('resnet18', "'resnet18' is not a registered Res2Net", '`timm-res2net list`'),
        ('res2net50_se.in21k', "'res2net50_se' has no tag 'in21k'", 'Use one of se_identity_in1k'),
    ],
)
def test_every_command_refuses_a_name_alike(name, value, remedy, here, capsys):
    """The name of an architecture: `info NAME`, `convert --model NAME`, `push --model NAME`."""
    torch.save({}, 'net.pth')
    with pytest.raises(ValueError) as error:
        find_name(name)
    assert value in str(error.value)
    assert remedy in str(error.value)
    for words in (
        ['info', name],
        ['convert', 'net.pth', '--model', name, '--dry-run'],
        ['push', 'net.pth', 'me/net', '--model', name, '--dry-run'],
    ):
        assert main(words) == 1
        assert capsys.readouterr().err == f'timm-res2net {words[0]}: {error.value}\n'


def test_every_command_takes_a_tag(here):
    model = timm.create_model('test_res2net_se.digits')
    torch.save(model.state_dict(), 'net.pth')
    found = convert_checkpoint('net.pth', model='test_res2net_se.digits')
    assert found.config.architecture == 'test_res2net_se'
    done = push_to_hub(
        'net.pth', 'me/net', license='mit', dry_run=True, architecture='test_res2net_se.digits'
    )
    assert done.config.architecture == 'test_res2net_se'


def test_revisions():
    assert find_repository('me/net@v1') == Target('repository', 'me/net', 'v1')
    with pytest.raises(ValueError, match=r"'me/net@v1' and revision='v2'.*Name one"):
        find_repository('me/net@v1', 'v2')


def test_an_empty_tag():
    with pytest.raises(ValueError, match=r"'res2net50_se' has no tag ''.*Use one of se_identity"):
        find_name('res2net50_se.')
