"""To the Hub and back: what is pushed, that it loads as what it was, and what `check` sees."""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file, save, save_file
from timm_res2net.folder.remote_code import MODULE
from torch import nn

import timm_res2net
from tests.common import PUSHED, image, randomise, relative_error
from tests.hub.client import Client, RemoteError, command, environment
from tests.hub.server import hub as serve_hub
from timm_res2net import Res2Net, hub, push_to_hub
from timm_res2net.folder.card import Result, results_of
from timm_res2net.folder.config import Config
from timm_res2net.folder.golden import GOLDEN

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parents[1] / 'fixtures'


def tiny(**kwargs: Any) -> Any:
    """A small model with random weights and statistics."""
    return randomise(timm.create_model('test_res2net_se', **{'num_classes': 5, **kwargs})).eval()


def dry(model: Any, **kwargs: Any) -> hub.Push:
    """What would be pushed."""
    return push_to_hub(model, 'me/net', **{'license': 'mit', 'dry_run': True, **kwargs})


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    with serve_hub() as server:
        home = tmp_path_factory.mktemp('home')
        client = Client(environment(server.url, home))
        yield server, client, home
        client.close()


@pytest.fixture
def world(shared):
    server, client, home = shared
    server.requests.clear()
    return server, client, home


PUSH = """
done = hub.push_to_hub(source, repo, **kwargs)
answer = [done.repo, done.commit, list(done.changed), done.url]
"""
SAVE = """
model = timm.create_model(name, pretrained=True, **kwargs).eval()
with torch.no_grad():
    torch.save(model(torch.load(x)), out)
answer = None
"""


def loaded(client: Client, name: str, x: torch.Tensor, folder: Path, **kwargs: Any) -> Any:
    """What a model answers that timm loads in the other process."""
    torch.save(x, folder / 'x')
    client.run(SAVE, name=name, x=str(folder / 'x'), out=str(folder / 'out'), kwargs=kwargs)
    return torch.load(folder / 'out')


# --- there and back -----------------------------------------------------------------------------


def test_there_and_back(world, tmp_path):
    """Push, then load as users do: whole, features, embeddings, by branch, tag and commit."""
    server, client, _ = world
    model = tiny()
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/net'}
    repo, commit, changed, url = client.run(PUSH, **args, kwargs={'license': 'mit'})
    assert (repo, url) == ('me/net', f'{server.url}/me/net')
    assert sorted(changed) == PUSHED
    files = server.repos['me/net'].files('main')[1]
    assert sorted(files) == ['.gitattributes', *PUSHED]

    x = image(64)
    expected = outputs(model, x)
    for at in ('', '@main', f'@{commit}'):
        assert torch.equal(loaded(client, f'hf-hub:me/net{at}', x, tmp_path), expected)
    features = loaded(client, 'hf-hub:me/net', x, tmp_path, features_only=True)
    neck = timm.create_model('test_res2net_se', features_only=True)
    neck.load_state_dict(model.state_dict(), strict=False)
    for got, feature in zip(features, outputs(neck.eval(), x), strict=True):
        assert torch.equal(got, feature)
    embedding = loaded(client, 'hf-hub:me/net', x, tmp_path, num_classes=0)
    assert torch.equal(embedding, model.forward_features(x).mean((2, 3)).detach())

    # another state on a branch and a tag, main untouched
    other = tiny(num_classes=7)
    save_file(other.state_dict(), tmp_path / 'w.safetensors')
    client.run(PUSH, **args, kwargs={'revision': 'seven', 'commit_message': 'Seven classes'})
    client.run("from huggingface_hub import HfApi; HfApi().create_tag('me/net', tag='v1')")
    assert server.repos['me/net'].messages[-1] == 'Seven classes'
    assert torch.equal(loaded(client, 'hf-hub:me/net@seven', x, tmp_path), outputs(other, x))
    assert torch.equal(loaded(client, 'hf-hub:me/net@v1', x, tmp_path), expected)


def test_the_same_again_is_no_commit(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/again'}
    first = client.run(PUSH, **args, kwargs={'license': 'mit'})
    again = client.run(PUSH, **args, kwargs={})  # the license is on the card
    assert again[1] == first[1]
    assert again[2] == []
    assert server.count('POST .*/commit/') == 1
    kwargs = {'results': {'top1': 99.5, 'top5': 100.0, 'ece': 0.02}, 'dataset': 'digits'}
    assert client.run(PUSH, **args, kwargs=kwargs)[2] == ['README.md']
    assert client.run(PUSH, **args, kwargs={})[2] == []  # the results stay
    # a branch that main's state makes; its card loads the branch
    assert client.run(PUSH, **args, kwargs={'revision': 'dev'})[2] == ['README.md']
    repo = server.repos['me/again']
    assert "'hf-hub:me/again@dev'" in repo.files('dev')[1]['README.md'].decode()
    card = repo.files('main')[1]['README.md'].decode()
    assert ModelCard(card).data.license == 'mit'
    assert results_of(card) == [
        Result('top1', 99.5, 'digits'),
        Result('top5', 100.0, 'digits'),
        Result('ece', 0.02, 'digits'),
    ]
    assert '| digits   | Top-1 accuracy | 99.5  | the owner of the weights' in card
    assert 'source:' not in card  # an address that is empty is none


def test_what_the_owner_wrote_on_the_card_stays(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/edited'}
    client.run(PUSH, **args, kwargs={'license': 'mit'})
    repo = server.repos['me/edited']
    files = repo.files('main')[1]
    text = files['README.md'].decode().replace('license: mit', 'license: mit\nlanguage: en')
    edited = f'{text}\n## My notes\n\nTrained on rainy days.\n'
    repo.commit({**files, 'README.md': edited.encode()}, 'main', 'edit the card')
    save_file(tiny(num_classes=3).state_dict(), tmp_path / 'w.safetensors')
    client.run(PUSH, **args, kwargs={'license': 'cc-by-4.0'})
    card = repo.files('main')[1]['README.md'].decode()
    assert 'Trained on rainy days.' in card
    assert '3 classes' in card
    assert '5 classes' not in card
    assert ModelCard(card).data.to_dict()['language'] == 'en'
    assert ModelCard(card).data.license == 'cc-by-4.0'


def test_results_are_of_weights(world, tmp_path):
    """What was measured on other weights leaves the card, and the push says so."""
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/measured'}
    kwargs = {'license': 'mit', 'results': {'top1': 99.5}, 'dataset': 'digits'}
    client.run(PUSH, **args, kwargs=kwargs)
    repo = server.repos['me/measured']
    # its owner adds what only they know
    files = repo.files('main')[1]
    card = files['README.md'].decode()
    edited = card.replace('      type: digits\n', '      type: digits\n      split: test\n')
    edited = edited.replace(
        '    - type: accuracy', '    - type: loss\n      value: low\n    - type: acc'
    )
    edited = edited.replace('type: acc\n', 'type: accuracy\n')
    repo.commit({**files, 'README.md': edited.encode()}, 'main', 'more')
    assert client.run(PUSH, **args, kwargs={})[2] == []
    save_file(tiny(num_classes=3).state_dict(), tmp_path / 'w.safetensors')
    code = 'answer = list(hub.push_to_hub(source, repo).notes)'
    (note,) = client.run(code, **args)
    assert 'results' in note and 'other weights' in note
    card = repo.files('main')[1]['README.md'].decode()
    assert results_of(card) == []
    assert '99.5' not in card


def test_an_edit_of_the_folder_and_one_of_the_hub(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    client.run(
        PUSH, source=str(tmp_path / 'w.safetensors'), repo='me/cards', kwargs={'license': 'mit'}
    )
    out = tmp_path / 'out'
    client.run('hub.pull(repo, out)', repo='me/cards', out=str(out))
    args = {'source': str(out), 'repo': 'me/cards'}
    assert client.run(PUSH, **args, kwargs={})[2] == []
    repo = server.repos['me/cards']
    files = repo.files('main')[1]
    card = files['README.md'].decode()
    repo.commit({**files, 'README.md': f'{card}\nOn the Hub.\n'.encode()}, 'main', 'edit')
    assert client.run(PUSH, **args, kwargs={})[2] == []  # the folder's says nothing of its own
    (out / 'README.md').write_text(f'{card}\nIn the folder.\n')
    with pytest.raises(RemoteError) as error:
        client.run(PUSH, **args, kwargs={})
    assert 'me/cards' in error.value.text
    assert "card='folder' or card='hub' (--card)" in error.value.text
    assert client.run(PUSH, **args, kwargs={'card': 'hub'})[2] == []
    assert client.run(PUSH, **args, kwargs={'card': 'folder'})[2] == ['README.md']
    card = repo.files('main')[1]['README.md'].decode()
    assert 'In the folder.' in card
    assert 'On the Hub.' not in card


@pytest.mark.parametrize(
    'factor',
    [pytest.param(1 + 1e-6, id='rounding'), pytest.param(1.1, id='other', marks=pytest.mark.slow)],
)
def test_golden_tensors_on_the_hub(factor, world, tmp_path):
    """Those of another machine stay; those that the model does not give are replaced."""
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': f'me/golden{factor}'}
    client.run(PUSH, **args, kwargs={'license': 'mit'})
    repo = server.repos[args['repo']]
    files = repo.files('main')[1]
    tensors = load(files[GOLDEN])
    theirs = save({**tensors, 'output': tensors['output'] * factor}, {'format': 'pt'})
    repo.commit({**files, GOLDEN: theirs}, 'main', 'on another machine')
    code = 'answer = [finding.state for finding in hub.check(repo) if finding.what == "golden"]'
    is_same = factor < 1.01
    assert client.run(code, repo=args['repo']) == ['ok' if is_same else 'error']
    pull = 'hub.pull(repo, out)'
    if is_same:
        client.run(pull, repo=args['repo'], out=str(tmp_path / 'out'))
        assert (tmp_path / 'out' / GOLDEN).read_bytes() == theirs
    else:
        with pytest.raises(RemoteError, match=rf'nothing was written.*{GOLDEN}.*\(output\)'):
            client.run(pull, repo=args['repo'], out=str(tmp_path / 'out'))
    assert client.run(PUSH, **args, kwargs={})[2] == ([] if is_same else [GOLDEN])
    assert client.run(code, repo=args['repo']) == ['ok']


@pytest.mark.slow
def test_the_module_for_transformers(world, tmp_path):
    """It is pushed if asked for, and then stays; `pull` takes it, but no code of others."""
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/code'}
    assert MODULE not in client.run(PUSH, **args, kwargs={'license': 'mit'})[2]
    changed = client.run(PUSH, **args, kwargs={'remote_code': True})[2]
    assert sorted(changed) == ['README.md', 'config.json', MODULE]
    notes = 'done = hub.push_to_hub(source, repo); answer = [list(done.changed), list(done.notes)]'
    changed, (note,) = client.run(notes, **args)
    assert changed == []
    assert 'module for transformers stays' in note
    repo = server.repos['me/code']
    files = repo.files('main')[1]
    assert "repo = 'me/code'" in files['README.md'].decode()
    assert 'trust_remote_code=True' in files['README.md'].decode()
    x = image(64)
    assert torch.equal(loaded(client, 'hf-hub:me/code', x, tmp_path), outputs(tiny(), x))

    pull = 'answer = [finding.state for finding in hub.pull(repo, out) if finding.what == "code"]'
    assert client.run(pull, repo='me/code', out=str(tmp_path / 'ours')) == ['ok']
    assert (tmp_path / 'ours' / MODULE).read_bytes() == files[MODULE]
    done = dry(tmp_path / 'ours', remote_code=None)
    assert done.config.remote_code and MODULE in done.files
    repo.commit({**files, MODULE: b'import os'}, 'main', 'theirs')
    assert client.run(pull, repo='me/code', out=str(tmp_path / 'theirs')) == ['warning']
    assert not (tmp_path / 'theirs' / MODULE).exists()

    changed = client.run(PUSH, **args, kwargs={'remote_code': False, 'revision': 'plain'})[2]
    assert sorted(changed) == ['README.md', 'config.json']
    assert 'auto_map' not in json.loads(repo.files('plain')[1]['config.json'])
    client.run(PUSH, **args, kwargs={'remote_code': True, 'revision': 'plain'})
    assert "(repo, revision='plain', trust" in repo.files('plain')[1]['README.md'].decode()


def test_what_it_was_made_from_goes_with_the_weights(world, tmp_path):
    server, client, _ = world
    args = {'repo': 'me/made', 'kwargs': {'license': 'mit'}}
    client.run(PUSH, source=str(FIXTURES / 'paddle.pdparams'), **args)
    card = server.repos['me/made'].files('main')[1]['README.md'].decode()
    assert ', from `paddle.pdparams` (paddle, sha256 ' in card
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    client.run(PUSH, source=str(tmp_path / 'w.safetensors'), **args)
    assert 'paddle' not in server.repos['me/made'].files('main')[1]['README.md'].decode()


def test_a_repository_without_a_license_is_pulled(world, tmp_path):
    server, client, _ = world
    server.add('me/free', {
        'config.json': dry(tiny()).config.to_json().replace('"license": "mit"', '"tag": "x"')
        .encode(),
        'model.safetensors': save(tiny().state_dict()),
    })  # fmt: skip
    code = 'answer = [list(finding) for finding in hub.pull(repo, out)]'
    findings = client.run(code, repo='me/free', out=str(tmp_path / 'out'))
    (text,) = [text for what, state, text in findings if (what, state) == ('license', 'warning')]
    assert 'No license' in text and '`timm-res2net push --license`' in text
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        'config.json', 'model.safetensors',
    ]  # fmt: skip


def test_a_license_that_the_hub_does_not_know(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/odd'}
    with pytest.raises(RemoteError, match=r'license.* must be one of apache-2.0') as error:
        client.run(PUSH, **args, kwargs={'license': 'my-own-1.0'})
    assert error.value.kind == 'ValueError'
    assert 'me/odd' not in server.repos  # asked before anything is made


def test_private(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors')}
    kwargs = {'license': 'mit', 'private': True}
    client.run(PUSH, **args, repo='me/secret', kwargs=kwargs)
    assert server.repos['me/secret'].private
    client.run(PUSH, **args, repo='me/public', kwargs={'license': 'mit'})
    with pytest.raises(RemoteError) as error:
        client.run(PUSH, **args, repo='me/public', kwargs=kwargs)
    assert 'me/public exists and is public' in error.value.text
    assert 'Push without private' in error.value.text


@pytest.mark.slow
def test_the_commands(world, tmp_path):
    """push, pull, check, as typed, with a training checkpoint."""
    server, _, _ = world
    model = tiny()
    torch.save({'arch': 'test_res2net_se', 'state_dict': model.state_dict()}, tmp_path / 'c.pth')
    (tmp_path / 'names.txt').write_text('a\nb\nc\nd\ne\n')
    env = environment(server.url, tmp_path / 'home')

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(*args), env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    done = run(
        'push', 'c.pth', 'me/typed', '--license', 'mit', '--eval', 'top1=98.5', '--dataset', 'mine',
        '--label-names', 'names.txt',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split('|')[4].strip() for line in lines[2:6]] == ['yes'] * 4
    assert lines[6:8] == [
        'test_res2net_se, block semantics official, 5 classes, license mit',
        "The weights are those of the entry 'state_dict'.",
    ]
    assert lines[8].startswith(f'Pushed to {server.url}/me/typed, branch main, commit ')
    assert lines[9:] == ["timm.create_model('hf-hub:me/typed', pretrained=True)"]
    again = run('push', 'c.pth', 'me/typed', '--label-names', 'names.txt')
    assert again.returncode == 0, again.stderr
    assert f'Nothing to change at {server.url}/me/typed, branch main, commit ' in again.stdout

    checked = run('check', 'hf-hub:me/typed')
    assert checked.returncode == 0, checked.stdout
    rows = [line.split(maxsplit=2) for line in checked.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        ['ok', what]
        for what in (
            'repository', 'config', 'weights', 'tensors', 'values', 'outputs', 'golden',
            'images', 'license', 'card',
        )
    ]  # fmt: skip
    pulled = run('pull', 'me/typed', '--out', 'here')
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.endswith("Written: timm.create_model('local-dir:here', pretrained=True)\n")
    for name, content in server.repos['me/typed'].files('main')[1].items():
        if name != '.gitattributes':
            assert (tmp_path / 'here' / name).read_bytes() == content
    local = timm.create_model(f'local-dir:{tmp_path / "here"}')
    assert local.pretrained_cfg['label_names'] == list('abcde')
    local.load_state_dict(load_file(tmp_path / 'here' / 'model.safetensors'))
    assert torch.equal(outputs(local.eval(), image()), outputs(model, image()))
    refused = run('pull', 'me/typed', '--out', 'here')
    assert refused.returncode == 1
    assert 'here already exists. Choose another name' in refused.stderr


TRAIN = """
import argparse
import hashlib
import timm, torch
from timm.utils import CheckpointSaver

parser = argparse.ArgumentParser()
parser.add_argument('--model')
parser.add_argument('--pretrained', action='store_true')
parser.add_argument('--num-classes', type=int)
parser.add_argument('--img-size', type=int)
parser.add_argument('--output')
args = parser.parse_args()
torch.manual_seed(0)
model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=args.num_classes)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
saver = CheckpointSaver(model, optimizer, args=args, checkpoint_dir=args.output)
for step in range(2):
    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
saver.save_checkpoint(0, metric=1.0)
with torch.no_grad():
    torch.save(model.eval()(torch.ones(1, 3, 64, 64)), args.output + '/expected')
"""


@pytest.mark.slow
def test_the_story(world, tmp_path):
    """Fine-tune through `run` by a script in the manner of timm's, push, load elsewhere."""
    server, client, _ = world
    (tmp_path / 'train.py').write_text(TRAIN)
    (tmp_path / 'classes.txt').write_text('a\nb\nc\nd\n')
    env = environment(server.url, tmp_path / 'home')
    for line in (
        'run train.py --model test_res2net_se --pretrained --num-classes 4 --img-size 64 '
        '--output .',
        'push model_best.pth.tar me/story --license mit --eval top1=93.1 --dataset my-data '
        '--label-names classes.txt',
        'check me/story',
    ):
        done = subprocess.run(
            command(*line.split()), env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    got = loaded(client, 'hf-hub:me/story', torch.ones(1, 3, 64, 64), tmp_path)
    assert relative_error(got, torch.load(tmp_path / 'expected')) < 1e-5  # float32, two processes
    files = server.repos['me/story'].files('main')[1]
    assert json.loads(files['config.json'])['label_names'] == ['a', 'b', 'c', 'd']


# --- what is pushed -----------------------------------------------------------------------------


def rebuilt(done: hub.Push, model: nn.Module, tmp_path: Path) -> Any:
    """The model that a config makes, with a model's weights."""
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'config.json').write_text(done.config.to_json())
    made = timm.create_model(f'local-dir:{tmp_path / "folder"}')
    made.load_state_dict(model.state_dict())
    return made.eval()


def test_a_config_says_all_that_is_needed(tmp_path):
    model = tiny(
        layers=(1, 1, 2, 1), scale=8, base_width=14, semantics='caffe', attn_layer='eca',
        in_chans=1, global_pool='max', act_layer='silu', output_stride=16,
    )  # fmt: skip
    data = {
        'img_size': 40, 'mean': (0.4,), 'std': (0.2,), 'crop_pct': 0.9, 'interpolation': 'bicubic',
    }  # fmt: skip
    done = dry(model, data=data, label_names=['a', 'b', 'c', 'd', 'e'])
    assert done.config.num_classes == 5
    assert done.config.label_names == ['a', 'b', 'c', 'd', 'e']
    assert 'num_classes' not in done.config.model_args  # transformers would get it twice
    assert done.config.model_args['global_pool'] == 'max'
    cfg = done.config.pretrained_cfg
    assert cfg['input_size'] == [1, 40, 40]
    assert (cfg['mean'], cfg['std']) == ([0.4], [0.2])
    assert (cfg['crop_pct'], cfg['interpolation']) == (0.9, 'bicubic')
    assert cfg['license'] == 'mit'
    made = rebuilt(done, model, tmp_path)
    x = image(40, channels=1)
    assert torch.equal(outputs(made, x), outputs(model, x))
    assert made.pretrained_cfg['label_names'] == ['a', 'b', 'c', 'd', 'e']


def test_no_name_of_another_class_stays():
    """A model in memory may have learnt ten other classes than its weights came with."""
    model = timm.create_model('test_res2net_se', pretrained=True)
    assert dry(model).config.label_names is None
    names = [f'class {i}' for i in range(10)]
    assert dry(model, label_names=names).config.label_names == names


def test_a_model_made_by_its_class(tmp_path):
    model = randomise(Res2Net((1, 1, 1, 1), num_classes=4, attn_layer='se')).eval()
    done = dry(model)
    assert torch.equal(outputs(rebuilt(done, model, tmp_path), image()), outputs(model, image()))


@pytest.mark.slow  # 50 million parameters
def test_a_model_made_by_its_class_has_the_name_of_its_arguments():
    assert dry(Res2Net((3, 4, 23, 3), attn_layer='se')).config.architecture == 'res2net101_se'


def test_timms_own_models(tmp_path):
    model = randomise(
        timm.create_model(
            'res2net50_48w_2s', num_classes=3, in_chans=1, global_pool='max', output_stride=16
        )
    ).eval()
    done = dry(model)
    assert done.config.architecture == 'res2net50_48w_2s'
    assert 'import timm\n' in done.card
    assert 'import timm, timm_res2net' not in done.card
    x = image(channels=1)
    assert torch.equal(outputs(rebuilt(done, model, tmp_path), x), outputs(model, x))


class Wrapped(nn.Module):
    """As DistributedDataParallel holds a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapped_narrow_and_in_training():
    model = tiny()
    weights = dry(model).files['model.safetensors']
    assert dry(Wrapped(model)).files['model.safetensors'] == weights
    model.train()
    assert dry(model).files['model.safetensors'] == weights
    assert model.training
    compiled = torch.compile(model, backend='eager')
    assert dry(compiled).files['model.safetensors'] == weights
    narrow = tiny().bfloat16()
    assert dry(narrow).files['model.safetensors'].bytes == weights.bytes  # as float32
    assert next(narrow.parameters()).dtype == torch.bfloat16
    assert dry(tiny().double()).files['model.safetensors'] == weights


def test_a_checkpoint_of_timms_training_script(tmp_path):
    """Its arguments tell what no shape does: semantics, pooling, preparation of the images."""
    model = tiny(semantics='paddle', global_pool='max')
    args = argparse.Namespace(
        model='test_res2net_se', model_kwargs={'semantics': 'paddle', 'drop_path_rate': 0.1},
        gp='max', img_size=48, input_size=None, mean=[0.5, 0.5, 0.5], std=None, crop_pct=None,
        interpolation='', lr=0.1,
    )  # fmt: skip
    path = tmp_path / 'model_best.pth.tar'
    torch.save({'arch': 'test_res2net_se', 'args': args, 'state_dict': model.state_dict()}, path)
    done = dry(path)
    assert done.config.architecture == 'res2net_custom'
    assert done.config.pretrained_cfg['crop_pct'] == 1.0  # that name's
    assert done.config.model_args['semantics'] == 'paddle'
    assert done.config.model_args['global_pool'] == 'max'
    assert done.config.pretrained_cfg['input_size'] == [3, 48, 48]
    assert done.config.pretrained_cfg['mean'] == [0.5, 0.5, 0.5]
    assert torch.equal(outputs(rebuilt(done, model, tmp_path), image()), outputs(model, image()))
    assert 'from `model_best.pth.tar` (timm, ' in done.card
    # what is asked for comes first
    assert dry(path, semantics='caffe').config.model_args['semantics'] == 'caffe'
    assert dry(path, data={'img_size': 96}).config.pretrained_cfg['input_size'] == [3, 96, 96]


def test_a_folder_of_timm_says_nothing_of_what_it_started_from(tmp_path):
    """timm copies description, notes and origin of the first weights into what it saves."""
    model = timm.create_model('test_res2net_se', pretrained=True, num_classes=3)
    timm.models.save_for_hf(
        model, str(tmp_path / 'net'), model_args=model.model_args, safe_serialization=True
    )
    done = dry(tmp_path / 'net')
    assert 'handwritten digits' not in done.card
    assert done.card.count('test_res2net_se with 3 classes.') == 1
    cfg = done.config.pretrained_cfg
    assert cfg['tag'] == 'converted'
    assert not {'notes', 'origin_url'} & cfg.keys()


def test_an_entry_is_told(tmp_path):
    ema, plain = tiny(), randomise(tiny(), seed=2)
    path = tmp_path / 'c.pth'
    torch.save({'state_dict': plain.state_dict(), 'state_dict_ema': ema.state_dict()}, path)
    done = dry(path)
    assert done.notes == ("The weights are those of the entry 'state_dict_ema'.",)
    assert done.files['model.safetensors'] == dry(ema).files['model.safetensors']
    other = dry(path, entry='state_dict')
    assert other.files['model.safetensors'] == dry(plain).files['model.safetensors']


def test_what_is_no_model():
    with pytest.raises(
        TypeError, match=r'model must be a model or the path of .*, not a OrderedDi'
    ):
        dry(tiny().state_dict())


def test_the_names_of_classes_stay(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/names'}
    code = 'answer = list(hub.push_to_hub(source, repo, **kwargs).notes)'
    kwargs = {'license': 'mit', 'label_names': ['a', 'b', 'c', 'd', 'e']}
    assert client.run(code, **args, kwargs=kwargs) == []
    save_file(randomise(tiny(), seed=3).state_dict(), tmp_path / 'w.safetensors')
    assert client.run(code, **args, kwargs={}) == [
        'The names of the classes are those that the Hub had.'
    ]
    config = json.loads(server.repos['me/names'].files('main')[1]['config.json'])
    assert config['label_names'] == kwargs['label_names']
    save_file(tiny(num_classes=2).state_dict(), tmp_path / 'w.safetensors')
    (note,) = client.run(code, **args, kwargs={})
    assert 'names for another number of classes' in note


def test_a_checkpoint_of_another_project():
    done = dry(FIXTURES / 'paddle.pdparams')
    assert done.config.model_args['semantics'] == 'paddle'
    sha256 = hashlib.sha256((FIXTURES / 'paddle.pdparams').read_bytes()).hexdigest()
    assert f'10 classes, from `paddle.pdparams` (paddle, sha256 {sha256}).' in done.card


def test_a_converted_folder_keeps_where_it_came_from(tmp_path):
    timm_res2net.convert_checkpoint(FIXTURES / 'paddle.pdparams', tmp_path / 'net')
    done = push_to_hub(tmp_path / 'net', 'me/net', license='apache-2.0', dry_run=True)
    assert '10 classes, from `paddle.pdparams` (paddle, sha256 ' in done.card
    assert "timm.create_model('hf-hub:me/net', pretrained=True)" in done.card
    assert 'local-dir:' not in done.card
    assert 'The converter does not know' not in done.card
    assert ModelCard(done.card).data.license == 'apache-2.0'


def test_the_same_model_gives_the_same_bytes():
    assert dry(tiny()).files == dry(tiny()).files


# --- what is refused ----------------------------------------------------------------------------


def spoiled() -> Any:
    model = tiny()
    with torch.no_grad():
        model.layer1[0].conv1.weight[0] = float('nan')
    return model


def overflowing() -> Any:
    model = tiny()
    with torch.no_grad():
        model.fc.weight.fill_(3e38)
    return model


def odd() -> Any:
    model = tiny()
    model.act1 = nn.Tanh()
    return model


REFUSED = {  # what is pushed, arguments, and what the error says: the value and the remedy
    'no license': (tiny, {'license': None}, 'No license', 'a dry run does not ask', '--license'),
    'a license that is none': (tiny, {'license': 'My own'}, "'My own'", 'such as apache-2.0'),
    'weights that are not finite': (
        spoiled, {}, 'NaN or infinite, 1: layer1.0.conv1.weight', 'Use another checkpoint',
    ),
    'a deployed model': (
        lambda: timm_res2net.reparameterize_model(tiny()), {},
        'Res2Net is deployed', 'Give the model that it was made from',
    ),
    'features only': (
        lambda: timm.create_model('test_res2net_se', features_only=True), {},
        'FeatureListNet is not a whole Res2Net', 'without features_only',
    ),
    'another model': (
        lambda: timm.create_model('resnet18'), {}, 'ResNet is not', '`timm.models.push_to_hf_hub`',
    ),
    'a part that no argument describes': (
        odd, {}, 'level 0 differs first', 'A layer was replaced', 'Undo the change',
    ),
    'too few label names': (
        tiny, {'label_names': ['a']}, '1 label names for 5 classes', 'for each class, in order',
    ),
    'label names of the wrong type': (
        tiny, {'label_names': 'abcde'}, 'must be a list of names', "'abcde'",
    ),
    'results on nothing': (tiny, {'results': {'top1': 5}}, 'Name the data set', 'top1'),
    'a data set without results': (tiny, {'dataset': 'mine'}, "'mine'", 'such as top1=78.3'),
    'a result that is no number': (
        tiny, {'results': {'top1': 'good'}, 'dataset': 'mine'},
        'must be numbers, top1, top5, accuracy in percent', "{'top1': 'good'}",
    ),
    'a result of more than all': (
        tiny, {'results': {'top1': 101, 'ece': 500}, 'dataset': 'mine'}, "got {'top1': 101}.",
    ),
    'a result that is a truth': (
        tiny, {'results': {'ece': True}, 'dataset': 'mine'}, "got {'ece': True}.",
    ),
    'a size of nothing': (
        tiny, {'data': {'img_size': 0}}, "{'img_size': 0}", 'a whole number from 1 to 4096',
    ),
    'a std of nothing': (
        tiny, {'data': {'std': (0.0, 1.0, 1.0)}}, 'got (0.0, 1.0, 1.0)', 'std must be a list of',
    ),
    'a crop in percent': (
        tiny, {'data': {'crop_pct': 87.5}}, 'got 87.5', 'crop_pct must be a number from 0.01 to 1',
    ),
    'data of another name': (
        tiny, {'data': {'crop_pc': 3}},
        'crop_pc', 'Use input_size, img_size, mean, std, crop_pct, interpolation',
    ),
    'an interpolation that is none': (
        tiny, {'data': {'interpolation': 'cubicle'}},
        "{'interpolation': 'cubicle'}", 'interpolation must be one of bilinear, bicubic',
    ),
    'a card that is neither': (tiny, {'card': 'mine'}, "'folder', 'hub' or None", "'mine'"),
    'outputs that are not finite': (
        overflowing, {}, 'outputs that are NaN or infinite', 'Use another checkpoint',
    ),
    'a size that is none': (
        tiny, {'data': {'input_size': (3, 64)}}, "{'input_size'", 'input_size must be a list of 3',
    ),
    'an architecture for a model': (
        tiny, {'architecture': 'res2net50_se'},
        'A model in memory knows its architecture', 'Leave architecture, semantics',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case):
    make, kwargs, *texts = REFUSED[case]
    with pytest.raises(ValueError) as error:
        dry(make(), **kwargs)
    for text in texts:
        assert text in str(error.value)


@pytest.mark.parametrize('repo', ['a/b/c', 'me/ne t', '', 'net', 'me/-x'])
def test_names_that_are_no_repository(repo, tmp_path):
    with pytest.raises(ValueError, match=r'is not the name of a repository\. Write it as OWNER'):
        push_to_hub(tiny(), repo, license='mit')
    with pytest.raises(ValueError, match=r'is not the name of a repository'):
        hub.pull(repo, tmp_path / 'out')


def test_two_revisions(tmp_path):
    with pytest.raises(ValueError, match=r"'me/net@v1' and revision='v2' name two revisions. Name"):
        hub.pull('me/net@v1', tmp_path / 'out', revision='v2')
    with pytest.raises(ValueError, match=r"me/net@dev.*revision='dev' \(--revision\)"):
        push_to_hub(tiny(), 'me/net@dev', license='mit')


def test_a_license_that_only_timm_says_is_unknown(tmp_path):
    model = tiny()
    (tmp_path / 'net').mkdir()
    model.pretrained_cfg = dict(model.pretrained_cfg, license='unknown')
    config = Config.of(model, 'test_res2net_se', model.model_args, model.pretrained_cfg)
    (tmp_path / 'net' / 'config.json').write_text(config.to_json())
    save_file(model.state_dict(), tmp_path / 'net' / 'model.safetensors')
    text = r"dry run does not ask .*only known as 'unknown'.*--license"
    with pytest.raises(ValueError, match=text):
        dry(tmp_path / 'net', license=None)
    card = dry(tmp_path / 'net', license='unknown').card
    (tmp_path / 'net' / 'README.md').write_text(card)
    with pytest.raises(ValueError, match=text):  # a card that says so names none either
        dry(tmp_path / 'net', license=None)
    finding = next(f for f in hub.check(tmp_path / 'net') if f.what == 'license')
    assert finding.state == 'warning'
    assert "'unknown'" in finding.text
    assert ModelCard(dry(tmp_path / 'net', license='unknown').card).data.license == 'unknown'
