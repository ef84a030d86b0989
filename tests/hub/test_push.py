"""To the Hub and back: what is pushed, that it loads as what it was, and what is refused."""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, save
from torch import nn

import timm_res2net
from tests.common import PADDLE, PUSHED, dry, files_of, image, network, states
from timm_res2net import check, pull, push_to_hub
from timm_res2net.cli import main
from timm_res2net.folder.card import accuracy, results_of
from timm_res2net.folder.config import MODULE
from timm_res2net.folder.golden import GOLDEN

tiny = functools.partial(network, num_classes=5)


def push(model: Any, **kwargs: Any) -> list[str]:
    """The files that a push changes."""
    return sorted(push_to_hub(model, 'me/net', **kwargs).changed)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(image())


def loaded(name: str = 'me/net', **kwargs: Any) -> Any:
    return timm.create_model(f'hf-hub:{name}', pretrained=True, **kwargs).eval()


def card_of(server: Any, revision: str = 'main') -> str:
    return server.repos['me/net'].files(revision)['README.md'].decode()


# --- there and back -----------------------------------------------------------------------------


def test_there_and_back(server):
    """Push, then load as users do: whole, features, embeddings, by branch and commit."""
    model = tiny()
    done = push_to_hub(model, 'me/net', license='mit')
    assert (done.repo, done.url) == ('me/net', f'{server.url}/me/net')
    assert sorted(done.changed) == PUSHED
    assert sorted(server.repos['me/net'].files()) == ['.gitattributes', *PUSHED]
    for at in ('', '@main', f'@{done.commit}'):
        assert torch.equal(outputs(loaded(f'me/net{at}')), outputs(model))
    with torch.no_grad():
        levels = model.forward_intermediates(image(), intermediates_only=True)
        features = loaded(features_only=True)(image())
        assert all(map(torch.equal, features, levels))
    assert torch.equal(outputs(loaded(num_classes=0)), levels[-1].mean((2, 3)))
    # another state on a branch, main untouched
    other = tiny(num_classes=7)
    push(other, revision='seven', commit_message='Seven classes')
    assert server.repos['me/net'].messages[-1] == 'Seven classes'
    assert torch.equal(outputs(loaded('me/net@seven')), outputs(other))
    assert "'hf-hub:me/net@seven'" in card_of(server, 'seven')
    assert torch.equal(outputs(loaded()), outputs(model))


def test_the_same_again_is_no_commit(server):
    """Nor are results, names of classes and the license lost when they are not given again."""
    first = push_to_hub(tiny(), 'me/net', license='mit')
    again = push_to_hub(tiny(), 'me/net')  # the license is on the card
    assert (again.commit, again.changed) == (first.commit, ())
    assert server.count('POST .*/commit/') == 1
    names = ['a', 'b', 'c', 'd', 'e']
    results = {'results': {'top1': 99.5, 'ece': 0.02}, 'dataset': 'digits'}
    assert push(tiny(), label_names=names, **results) == ['README.md', 'config.json']
    assert push(tiny()) == []
    card = card_of(server)
    assert ModelCard(card).data.license == 'mit'
    assert results_of(card) == [accuracy('top1', 99.5, 'digits'), accuracy('ece', 0.02, 'digits')]
    assert 'source:' not in card  # an address that is empty is none
    # results and names belong to weights: those of others are removed, and the push says so
    done = push_to_hub(tiny(seed=2), 'me/net')
    assert any('other weights' in note for note in done.notes)
    assert done.config.label_names == names
    assert results_of(card_of(server)) == [] and '99.5' not in card_of(server)
    done = push_to_hub(tiny(num_classes=2), 'me/net')
    assert any('names for another number of classes' in note for note in done.notes)
    assert done.config.label_names is None


def test_what_the_owner_wrote_on_the_card_stays(server, tmp_path):
    """An edit on the Hub stays. If the folder's card has another, `card` says which one stays."""
    push(tiny(), license='mit')
    pull('me/net', tmp_path / 'net')
    text = card_of(server).replace('license: mit', 'license: mit\nlanguage: en')
    server.change('me/net', 'edit', **{'README.md': f'{text}\nOn the Hub.\n'.encode()})
    push(tiny(num_classes=3), license='cc-by-4.0')
    card = card_of(server)
    assert 'On the Hub.' in card and '3 classes' in card and '5 classes' not in card
    assert ModelCard(card).data.to_dict()['language'] == 'en'
    assert ModelCard(card).data.license == 'cc-by-4.0'
    push(tmp_path / 'net')  # the folder's card says nothing of its own
    assert 'On the Hub.' in card_of(server)
    own = tmp_path / 'net' / 'README.md'
    own.write_text(f'{own.read_text()}\nIn the folder.\n')
    with pytest.raises(ValueError, match=r"me/net.*card='folder' or card='hub' \(--card\)"):
        push(tmp_path / 'net')
    assert push(tmp_path / 'net', card='hub') == []
    assert 'README.md' in push(tmp_path / 'net', card='folder')
    assert 'In the folder.' in card_of(server) and 'On the Hub.' not in card_of(server)


@pytest.mark.parametrize('factor', [1 + 1e-6, 1.1, float('nan')])
def test_golden_tensors_on_the_hub(factor, server, tmp_path):
    """Those of another machine stay; those that the model does not give are replaced."""
    push(tiny(), license='mit')
    tensors = load(server.repos['me/net'].files()[GOLDEN])
    theirs = save({**tensors, 'output': tensors['output'] * factor}, {'format': 'pt'})
    server.change('me/net', 'on another machine', **{GOLDEN: theirs})
    is_same = factor == 1 + 1e-6
    assert states(check('me/net'))['golden'] == ('ok' if is_same else 'error')
    if is_same:
        pull('me/net', tmp_path / 'out')
        assert (tmp_path / 'out' / GOLDEN).read_bytes() == theirs
    else:
        with pytest.raises(ValueError, match=rf'nothing was written.*{GOLDEN}.*\(output\)'):
            pull('me/net', tmp_path / 'out')
    assert push(tiny()) == ([] if is_same else [GOLDEN])
    assert {finding.state for finding in check('me/net')} == {'ok'}


def test_the_module_for_transformers(server, tmp_path):
    """It is pushed if asked for, and then stays; `pull` takes it, but no code of others."""
    assert MODULE not in push(tiny(), license='mit')
    assert push(tiny(), remote_code=True) == ['README.md', 'config.json', MODULE]
    done = push_to_hub(tiny(), 'me/net')
    assert done.changed == ()
    assert 'module for transformers stays' in done.notes[0]
    files = server.repos['me/net'].files()
    assert 'trust_remote_code=True' in card_of(server)
    assert states(pull('me/net', tmp_path / 'ours'))['code'] == 'ok'
    assert (tmp_path / 'ours' / MODULE).read_bytes() == files[MODULE]
    server.change('me/net', 'theirs', **{MODULE: b'import os'})
    assert states(pull('me/net', tmp_path / 'theirs'))['code'] == 'warning'
    assert not (tmp_path / 'theirs' / MODULE).exists()
    assert 'config.json' in push(tiny(), remote_code=False)
    assert 'auto_map' not in json.loads(server.repos['me/net'].files()['config.json'])


def test_what_it_was_made_from_goes_with_the_weights(server):
    push(PADDLE, license='mit')
    assert ', from `paddle.pdparams` (paddle, sha256 ' in card_of(server)
    push(tiny())
    assert 'paddle' not in card_of(server)


def test_a_license_that_the_hub_does_not_know(server):
    with pytest.raises(ValueError, match=r'license.* must be one of apache-2.0'):
        push(tiny(), license='my-own-1.0')
    assert 'me/net' not in server.repos  # asked before anything is made


def test_a_repository_without_a_license_is_pulled(server, tmp_path):
    push(tiny(), license='mit')
    files = server.repos['me/net'].files()
    bare = files['config.json'].replace(b'"license": "mit"', b'"tag": "x"')
    weights = {'model.safetensors': files['model.safetensors']}
    server.add('me/free', {'config.json': bare, **weights})
    told = states(pull('me/free', tmp_path / 'out'))
    assert told['license'] == told['card'] == 'warning'
    assert sorted(files_of(tmp_path / 'out')) == ['config.json', 'model.safetensors']


def test_private(server):
    push(tiny(), license='mit', private=True)
    assert server.repos['me/net'].private
    server.repos['me/net'].private = False
    with pytest.raises(ValueError, match=r'me/net exists and is public.*Push without private'):
        push(tiny(), private=True)


def test_the_commands(server, tmp_path, monkeypatch, capsys):
    """push, check, pull and push again, as they are typed, with a training checkpoint."""
    monkeypatch.chdir(tmp_path)
    model = tiny(num_classes=4)
    torch.save({'arch': 'test_res2net_se', 'state_dict': model.state_dict()}, 'c.pth')
    Path('classes.txt').write_text('a\nb\nc\nd\n')
    told = {}
    for line in (
        'push c.pth me/net --license mit --eval top1=93.1 --dataset mine --label-names classes.txt',
        'check me/net',
        'pull me/net --out here',
        'push here me/net',
    ):
        assert main(line.split()) == 0
        told[line[:7]] = capsys.readouterr().out
    assert f'Pushed to {server.url}/me/net, branch main, commit ' in told['push c.']
    assert f'Nothing to change at {server.url}/me/net, branch main, ' in told['push he']
    assert {line.split()[0] for line in told['check m'].splitlines()} == {'ok'}
    assert torch.equal(outputs(loaded()), outputs(model))
    files = server.repos['me/net'].files()
    assert json.loads(files['config.json'])['label_names'] == list('abcd')
    for name, content in files_of(Path('here')).items():
        assert files[name] == content


# --- what is pushed -----------------------------------------------------------------------------


def test_data_and_label_names(tmp_path):
    """Of another number of channels, the statistics follow."""
    data = {'img_size': 40, 'mean': (0.4,), 'std': (0.2,), 'crop_pct': 0.9}
    done = dry(tiny(in_chans=1), data=data, label_names=list('abcde'))
    cfg = done.config.pretrained_cfg
    assert cfg['input_size'] == [1, 40, 40]
    assert (cfg['mean'], cfg['std'], cfg['crop_pct']) == ([0.4], [0.2], 0.9)
    assert cfg['license'] == 'mit'
    assert done.config.label_names == list('abcde')
    assert 'num_classes' not in done.config.model_args  # transformers would get it twice
    # a model in memory may have learnt ten other classes than its weights came with
    torch.save(tiny().state_dict(), tmp_path / 'w.pth')
    assert any(
        'were not recorded with the weights' in note for note in dry(tmp_path / 'w.pth').notes
    )
    digits = timm.create_model('test_res2net_se', pretrained=True)
    assert dry(digits).config.label_names is None


def test_narrow_and_in_training():
    """The same weights give the same bytes, and the model is not changed."""
    model = tiny()
    weights = dry(model).files['model.safetensors']
    assert dry(model.train()).files['model.safetensors'] == weights
    assert model.training
    narrow = tiny().bfloat16()
    assert dry(narrow).files['model.safetensors'].bytes == weights.bytes  # as float32
    assert next(narrow.parameters()).dtype == torch.bfloat16


def test_a_checkpoint_of_timms_training_script(tmp_path):
    """Its arguments tell what no shape does. What is asked for comes first."""
    model = tiny(semantics='paddle', global_pool='max')
    args = argparse.Namespace(
        model='test_res2net_se', model_kwargs={'semantics': 'paddle', 'drop_path_rate': 0.1},
        gp='max', img_size=48, input_size=None, mean=[0.5, 0.5, 0.5], std=None, crop_pct=None,
        interpolation='', lr=0.1,
    )  # fmt: skip
    path = tmp_path / 'model_best.pth.tar'
    content = {'arch': 'test_res2net_se', 'args': args, 'state_dict_ema': model.state_dict()}
    torch.save({**content, 'state_dict': tiny(seed=2).state_dict()}, path)
    done = dry(path)
    assert done.notes == ("The weights are those of the entry 'state_dict_ema'.",)
    assert done.files['model.safetensors'] == dry(model).files['model.safetensors']
    assert done.config.architecture == 'res2net_custom'
    cfg, arguments = done.config.pretrained_cfg, done.config.model_args
    assert (arguments['semantics'], arguments['global_pool']) == ('paddle', 'max')
    assert (cfg['input_size'], cfg['mean']) == ([3, 48, 48], [0.5, 0.5, 0.5])
    assert cfg['crop_pct'] == 1.0  # that name's
    assert "from `model_best.pth.tar` (timm, entry 'state_dict_ema', sha256 " in done.card
    other = dry(path, semantics='caffe', data={'img_size': 96}, entry='state_dict')
    assert other.config.model_args['semantics'] == 'caffe'
    assert other.config.pretrained_cfg['input_size'] == [3, 96, 96]
    assert other.files['model.safetensors'] != done.files['model.safetensors']


# --- what is refused ----------------------------------------------------------------------------


def changed(key: str, value: float) -> Any:
    model = tiny()
    with torch.no_grad():
        model.get_parameter(key).fill_(value)
    return model


REFUSED = {  # what is pushed, arguments, and what the error names
    'no license': (tiny, {'license': None}, 'No license'),
    'a license that is none': (tiny, {'license': 'My own'}, "'My own'"),
    'NaN': (lambda: changed('layer1.0.conv1.weight', torch.nan), {}, '1: layer1.0.conv1.weight'),
    'outputs that are not finite': (lambda: changed('fc.weight', 3e38), {}, 'outputs that are NaN'),
    'deployed': (lambda: timm_res2net.reparameterize_model(tiny()), {}, 'Res2Net is deployed'),
    'features': (
        lambda: timm.create_model('test_res2net_se', features_only=True), {}, 'FeatureListNet'
    ),
    'another model': (lambda: timm.create_model('test_resnet'), {}, 'ResNet is not'),
    'too few label names': (tiny, {'label_names': ['a']}, '1 label names for 5 classes'),
    'label names in a text': (tiny, {'label_names': 'abcde'}, "'abcde'"),
    'results on nothing': (tiny, {'results': {'top1': 5}}, 'top1'),
    'a data set without results': (tiny, {'dataset': 'mine'}, "'mine'"),
    'a result in words': (tiny, {'results': {'top1': 'good'}, 'dataset': 'mine'}, "'good'"),
    'more than 100 %': (tiny, {'results': {'top1': 101, 'a': 500}, 'dataset': 'm'}, "'top1': 101}"),
    'a result that is a truth': (tiny, {'results': {'ece': True}, 'dataset': 'mine'}, 'True'),
    'a size of nothing': (tiny, {'data': {'img_size': 0}}, 'img_size=0'),
    'a size of two': (tiny, {'data': {'input_size': (3, 64)}}, '(3, 64)'),
    'a crop in percent': (tiny, {'data': {'crop_pct': 87.5}}, '87.5'),
    'data of another name': (tiny, {'data': {'crop_pc': 3}}, 'crop_pc'),
    'a card that is neither': (tiny, {'card': 'mine'}, "'mine'"),
    'an architecture for a model': (tiny, {'architecture': 'res2net50_se'}, 'architecture'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case):
    make, kwargs, text = REFUSED[case]
    with pytest.raises(ValueError) as error:
        dry(make(), **kwargs)
    assert text in str(error.value)


def test_a_state_dict_is_no_model():
    with pytest.raises(TypeError, match=r'model must be a model or the path.*OrderedDict'):
        dry(tiny().state_dict())


@pytest.mark.parametrize('repo', ['a/b/c', 'me/ne t', '', 'net', 'me/-x', 'me/net@dev'])
def test_names_that_are_no_repository(repo, tmp_path):
    with pytest.raises(ValueError) as error:
        push_to_hub(tiny(), repo, license='mit')
    assert repo in str(error.value)
    with pytest.raises(ValueError) as error:
        pull(repo, tmp_path / 'out', revision='v2')
    assert repo in str(error.value)


def test_a_license_that_is_only_known_as_unknown(tmp_path):
    """It is pushed if the owner says so, and not by default, whichever file says it."""
    torch.save(tiny().state_dict(), tmp_path / 'w.pth')
    timm_res2net.convert_checkpoint(tmp_path / 'w.pth', tmp_path / 'net', license='unknown')
    with pytest.raises(ValueError, match="only known as 'unknown'"):
        dry(tmp_path / 'net', license=None)
    assert ModelCard(dry(tmp_path / 'net', license='unknown').card).data.license == 'unknown'
