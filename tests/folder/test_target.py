"""One function from a text to a registered name, a folder, a file or a repository."""

from pathlib import Path

import pytest
import timm
import torch

from timm_res2net import check, convert_checkpoint, export_model, push_to_hub, show
from timm_res2net.cli import main
from timm_res2net.folder.target import (
    File,
    Folder,
    Name,
    Repository,
    resolve,
    resolve_name,
    resolve_repository,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_text_means(here):
    (here / 'net').mkdir()
    (here / 'net.pth').touch()
    assert resolve('net') == Folder(Path('net'))
    assert resolve('local-dir:net') == Folder(Path('net'))
    assert resolve(here / 'net') == Folder(here / 'net')
    assert resolve('net.pth') == File(Path('net.pth'))
    assert resolve('me/net') == Repository('me/net')
    assert resolve('hf-hub:me/net') == Repository('me/net')
    assert resolve('me/net@v1') == resolve('me/net', 'v1') == Repository('me/net', 'v1')
    found = resolve('res2net50_vd_26w_4s.in1k')
    assert isinstance(found, Name)
    assert (found.full, found.architecture) == ('res2net50_vd_26w_4s.in1k', 'res2net50_vd_26w_4s')
    assert found.cfg.tag == 'in1k'
    assert resolve('res2net50_vd_26w_4s').cfg.tag == 'ssld_in1k'
    assert resolve('resnet18').architecture == 'resnet18'  # any model of timm


def test_a_folder_that_is_called_like_a_model(here):
    """It is the folder if it holds a config, and the model otherwise."""
    (here / 'test_res2net_se').mkdir()
    assert isinstance(resolve('test_res2net_se'), Name)
    (here / 'test_res2net_se' / 'config.json').touch()
    assert isinstance(resolve('test_res2net_se'), Folder)


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
def test_every_verb_refuses_a_text_alike(text, value, remedy, here):
    """The model of a verb, whatever it does with it."""
    told = set()
    for verb in (
        resolve,
        check,
        lambda target: export_model(target, 'net.pt2', 'pt2', pretrained=False),
        lambda target: show(target, None, 'net.png', pretrained=False),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            verb(text)
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
def test_every_verb_refuses_a_name_alike(name, value, remedy, here, capsys):
    """The name of an architecture: `info NAME`, `convert --model NAME`, `push --model NAME`."""
    torch.save({}, 'net.pth')
    with pytest.raises(ValueError) as error:
        resolve_name(name)
    assert value in str(error.value)
    assert remedy in str(error.value)
    for words in (
        ['info', name],
        ['convert', 'net.pth', '--model', name, '--dry-run'],
        ['push', 'net.pth', 'me/net', '--model', name, '--dry-run'],
    ):
        assert main(words) == 1
        assert capsys.readouterr().err == f'timm-res2net {words[0]}: {error.value}\n'


def test_every_verb_takes_a_tag(here):
    model = timm.create_model('test_res2net_se.digits')
    torch.save(model.state_dict(), 'net.pth')
    found = convert_checkpoint('net.pth', model='test_res2net_se.digits')
    assert found.architecture == 'test_res2net_se'
    done = push_to_hub(
        'net.pth', 'me/net', license='mit', dry_run=True, architecture='test_res2net_se.digits'
    )
    assert done.config.architecture == 'test_res2net_se'


def test_revisions():
    assert resolve_repository('me/net@v1') == Repository('me/net', 'v1')
    with pytest.raises(ValueError, match=r"'me/net@v1' and revision='v2'.*Name one"):
        resolve_repository('me/net@v1', 'v2')


def test_an_empty_tag():
    with pytest.raises(ValueError, match=r"'res2net50_se' has no tag ''.*Use one of se_identity"):
        resolve_name('res2net50_se.')
