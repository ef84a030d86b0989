"""To the Hub and back: what is pushed, that it loads as what it was, and what `check` sees."""

import argparse
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save, save_file
from timm.models import get_arch_pretrained_cfgs
from torch import nn

import timm_res2net
from tests.common import image, randomise, relative_error
from tests.hub.client import Client, RemoteError, command, environment
from tests.hub.server import hub as serve_hub
from timm_res2net import Res2Net, hub, push_to_hub
from timm_res2net.card import Result, merge_card, results_of
from timm_res2net.folder import model_config
from timm_res2net.models.figures import FIGURES
from timm_res2net.models.res2net_zoo import default_cfgs

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
answer = [done.repo, done.commit, list(done.changed), done.verified, done.url]
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
    repo, commit, changed, verified, url = client.run(
        PUSH, **args, kwargs={'license': 'mit', 'verify': True}
    )
    assert (repo, verified, url) == ('me/net', True, f'{server.url}/me/net')
    assert sorted(changed) == ['README.md', 'config.json', 'model.safetensors']
    files = server.repos['me/net'].files('main')[1]
    assert sorted(files) == ['.gitattributes', 'README.md', 'config.json', 'model.safetensors']

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
    again = client.run(PUSH, **args, kwargs={})  # the licence is on the card
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
    assert results_of(card) == (
        'mit',
        [
            Result('top1', 99.5, 'digits'),
            Result('top5', 100.0, 'digits'),
            Result('ece', 0.02, 'digits'),
        ],
    )
    assert '| digits   | Top-1 accuracy | 99.5  | the weights' in card


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
    assert client.run(code, **args) == [
        'The results on the card were of other weights and were taken off.'
    ]
    card = repo.files('main')[1]['README.md'].decode()
    assert results_of(card) == ('mit', [])
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
    assert error.value.text == (
        "The folder's card and that of me/cards differ in what their owner wrote. Say which stays: "
        "card='folder' or card='hub' (--card)."
    )
    assert client.run(PUSH, **args, kwargs={'card': 'hub'})[2] == []
    assert client.run(PUSH, **args, kwargs={'card': 'folder'})[2] == ['README.md']
    card = repo.files('main')[1]['README.md'].decode()
    assert 'In the folder.' in card
    assert 'On the Hub.' not in card


def test_what_it_was_made_from_goes_with_the_weights(world, tmp_path):
    server, client, _ = world
    args = {'repo': 'me/made', 'kwargs': {'license': 'mit'}}
    client.run(PUSH, source=str(FIXTURES / 'paddle.pdparams'), **args)
    assert '## Made from' in server.repos['me/made'].files('main')[1]['README.md'].decode()
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    client.run(PUSH, source=str(tmp_path / 'w.safetensors'), **args)
    assert '## Made from' not in server.repos['me/made'].files('main')[1]['README.md'].decode()


def test_a_repository_without_a_licence_is_pulled(world, tmp_path):
    server, client, _ = world
    server.add('me/free', {
        'config.json': json.dumps(dry(tiny()).config).replace('"license": "mit"', '"tag": "x"')
        .encode(),
        'model.safetensors': save(tiny().state_dict()),
    })  # fmt: skip
    code = 'answer = [list(finding) for finding in hub.pull(repo, out)]'
    findings = client.run(code, repo='me/free', out=str(tmp_path / 'out'))
    text = 'None is named. `timm-res2net push --license` names one.'
    assert ['licence', 'warning', text] in findings
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        'config.json', 'model.safetensors',
    ]  # fmt: skip


def test_a_licence_that_the_hub_does_not_know(world, tmp_path):
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/odd'}
    text = r"refuses the card's metadata, with license 'my-own-1.0': .*license.* must be one of"
    with pytest.raises(RemoteError, match=text):
        client.run(PUSH, **args, kwargs={'license': 'my-own-1.0'})
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
    assert error.value.text == (
        'me/public is there already, and public. Push without private, or make it private on the '
        'Hub first.'
    )


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
        '--label-names', 'names.txt', '--verify',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split('|')[4].strip() for line in lines[2:5]] == ['yes'] * 3
    assert lines[5:7] == [
        'test_res2net_se, block semantics official, 5 classes, licence mit',
        "The weights are those of the entry 'state_dict'.",
    ]
    assert lines[7].startswith(f'Pushed to {server.url}/me/typed, branch main, commit ')
    assert lines[8:] == [
        'Downloaded again: the same files.',
        "timm.create_model('hf-hub:me/typed', pretrained=True)",
    ]
    again = run('push', 'c.pth', 'me/typed', '--label-names', 'names.txt')
    assert again.returncode == 0, again.stderr
    assert 'me/typed, branch main, has all of it already (commit ' in again.stdout

    checked = run('check', 'hf-hub:me/typed')
    assert checked.returncode == 0, checked.stdout
    rows = [line.split(maxsplit=2) for line in checked.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        ['ok', what]
        for what in (
            'repository', 'content', 'config', 'weights', 'tensors', 'values', 'runs', 'images',
            'licence', 'card',
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
    assert 'here is there already. Give another name, or remove it first.' in refused.stderr


TRAIN = """
import argparse
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
        '--label-names classes.txt --verify',
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
    (tmp_path / 'folder' / 'config.json').write_text(json.dumps(done.config))
    made = timm.create_model(f'local-dir:{tmp_path / "folder"}')
    made.load_state_dict(model.state_dict())
    return made.eval()


def test_a_config_says_all_that_is_needed(tmp_path):
    model = tiny(
        layers=(1, 1, 2, 1), scale=8, base_width=14, semantics='caffe', attn_layer='eca',
        in_chans=1, global_pool='max', act_layer='silu', output_stride=16, width_multiple=4,
    )  # fmt: skip
    data = {
        'img_size': 40, 'mean': (0.4,), 'std': (0.2,), 'crop_pct': 0.9, 'interpolation': 'bicubic',
    }  # fmt: skip
    done = dry(model, data=data, label_names=['a', 'b', 'c', 'd', 'e'])
    assert done.config['num_classes'] == 5
    assert done.config['label_names'] == ['a', 'b', 'c', 'd', 'e']
    assert 'num_classes' not in done.config['model_args']  # transformers would get it twice
    assert done.config['model_args']['global_pool'] == 'max'
    cfg = done.config['pretrained_cfg']
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
    assert 'label_names' not in dry(model).config
    names = [f'class {i}' for i in range(10)]
    assert dry(model, label_names=names).config['label_names'] == names


def test_a_model_made_by_its_class(tmp_path):
    model = randomise(Res2Net((1, 1, 1, 1), num_classes=4, attn_layer='se')).eval()
    done = dry(model)
    assert torch.equal(outputs(rebuilt(done, model, tmp_path), image()), outputs(model, image()))
    assert dry(Res2Net((3, 4, 23, 3), attn_layer='se')).config['architecture'] == 'res2net101_se'


def test_timms_own_models(tmp_path):
    model = randomise(
        timm.create_model(
            'res2net50_48w_2s', num_classes=3, in_chans=1, global_pool='max', output_stride=16
        )
    ).eval()
    done = dry(model)
    assert done.config['architecture'] == 'res2net50_48w_2s'
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
    assert dry(narrow).files['model.safetensors'][0] == weights[0]  # as float32
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
    assert done.config['architecture'] == 'test_res2net_se'
    assert done.config['pretrained_cfg']['crop_pct'] == 1.0  # that name's
    assert done.config['model_args']['semantics'] == 'paddle'
    assert done.config['model_args']['global_pool'] == 'max'
    assert done.config['pretrained_cfg']['input_size'] == [3, 48, 48]
    assert done.config['pretrained_cfg']['mean'] == [0.5, 0.5, 0.5]
    assert torch.equal(outputs(rebuilt(done, model, tmp_path), image()), outputs(model, image()))
    assert 'from `model_best.pth.tar`.' in done.card
    # what is asked for comes first
    assert dry(path, semantics='caffe').config['model_args']['semantics'] == 'caffe'
    assert dry(path, data={'img_size': 96}).config['pretrained_cfg']['input_size'] == [3, 96, 96]


def test_a_folder_of_timm_says_nothing_of_what_it_started_from(tmp_path):
    """timm copies description, notes and origin of the first weights into what it saves."""
    model = timm.create_model('test_res2net_se', pretrained=True, num_classes=3)
    timm.models.save_for_hf(
        model, str(tmp_path / 'net'), model_args=model.model_args, safe_serialization=True
    )
    done = dry(tmp_path / 'net')
    assert 'handwritten digits' not in done.card
    assert done.card.count('test_res2net_se with 3 classes.') == 1
    cfg = done.config['pretrained_cfg']
    assert cfg['tag'] == 'pushed'
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
    assert client.run(code, **args, kwargs={}) == [
        'The names of the classes on the Hub are of another number and go.'
    ]


def test_a_checkpoint_of_another_project():
    done = dry(FIXTURES / 'paddle.pdparams')
    assert done.config['model_args']['semantics'] == 'paddle'
    assert '10 classes, from `paddle.pdparams` of paddle.' in done.card
    assert '## Made from' in done.card
    assert '| `out.weight`' in done.card


def test_a_converted_folder_keeps_where_it_came_from(tmp_path):
    timm_res2net.convert_checkpoint(FIXTURES / 'paddle.pdparams', tmp_path / 'net')
    done = push_to_hub(tmp_path / 'net', 'me/net', license='apache-2.0', dry_run=True)
    assert '| `out.weight`' in done.card
    assert "timm.create_model('hf-hub:me/net', pretrained=True)" in done.card
    assert 'local-dir:' not in done.card
    assert 'The converter cannot tell' not in done.card
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


REFUSED = {
    'no licence': (
        tiny, {'license': None},
        'No licence is known for these weights (a dry run does not ask the Hub). Name it, such as ',
    ),
    'a licence that is none': (
        tiny, {'license': 'My own'},
        "'My own' is no identifier of a licence. Use the Hub's, such as apache-2.0",
    ),
    'weights that are not finite': (
        spoiled, {},
        'Weights are NaN or infinite: 1: layer1.0.conv1.weight. Push an earlier checkpoint.',
    ),
    'the deploy form': (
        lambda: timm_res2net.reparameterize_model(tiny()), {},
        'Res2Net is in its deploy form, which no config rebuilds. Push the model that it was made',
    ),
    'features only': (
        lambda: timm.create_model('test_res2net_se', features_only=True), {},
        'FeatureListNet is no whole Res2Net of timm_res2net or timm. Push the model that',
    ),
    'another model': (
        lambda: timm.create_model('resnet18'), {},
        'ResNet is no whole Res2Net of timm_res2net or timm.',
    ),
    'a part that no argument describes': (
        odd, {},
        'it has parts that no noted argument describes, such as another activation. Nothing was '
        'pushed; `timm.models.push_to_hf_hub` takes models as they are.',
    ),
    'too few label names': (
        tiny, {'label_names': ['a']},
        'There are 1 label names for 5 classes. Give one for each, in order.',
    ),
    'label names that are none': (
        tiny, {'label_names': 'abcde'}, "label_names must be a list of names, got 'abcde'.",
    ),
    'results on nothing': (
        tiny, {'results': {'top1': 5}}, 'Name the data set on which top1 was measured.',
    ),
    'a data set without results': (
        tiny, {'dataset': 'mine'}, "Say what was measured on 'mine', such as top1=78.3.",
    ),
    'a result that is no number': (
        tiny, {'results': {'top1': 'good'}, 'dataset': 'mine'},
        'Results must be numbers, top1, top5, accuracy in percent from 0 to 100; got '
        "{'top1': 'good'}.",
    ),
    'a result of more than all': (
        tiny, {'results': {'top1': 101, 'ece': 500}, 'dataset': 'mine'}, "got {'top1': 101}.",
    ),
    'a result that is a truth': (
        tiny, {'results': {'ece': True}, 'dataset': 'mine'}, "got {'ece': True}.",
    ),
    'a size of nothing': (
        tiny, {'data': {'img_size': 0}},
        "with {'img_size': 0}: that is a size that is not from 1 to 4096.",
    ),
    'a std of nothing and a crop in percent': (
        tiny, {'data': {'std': (0.0, 1.0, 1.0), 'crop_pct': 87.5}},
        'that is a std of 0, a crop_pct that is not above 0 and up to 1.',
    ),
    'data of another name': (
        tiny, {'data': {'crop_pc': 3}},
        'Unknown crop_pc of images. Use input_size, img_size, mean, std, crop_pct, interpolation.',
    ),
    'an interpolation that is none': (
        tiny, {'data': {'interpolation': 'cubicle'}},
        "Images cannot be prepared with {'interpolation': 'cubicle'} (KeyError: 'cubicle'). Give "
        "values as timm's train.py takes them",
    ),
    'a card that is neither': (
        tiny, {'card': 'mine'}, "card must be 'folder', 'hub' or None, got 'mine'.",
    ),
    'outputs that are not finite': (
        overflowing, {}, 'The model answers NaN or infinity. Push an earlier checkpoint.',
    ),
    'a size that is none': (
        tiny, {'data': {'input_size': (3, 64)}}, "Images cannot be prepared with {'input_size'",
    ),
    'an architecture for a model': (
        tiny, {'architecture': 'res2net50_se'},
        'A model in memory knows its architecture and semantics, and is all there is. ',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case):
    make, kwargs, text = REFUSED[case]
    with pytest.raises(ValueError) as error:
        dry(make(), **kwargs)
    assert text in str(error.value)


@pytest.mark.parametrize('repo', ['a/b/c', 'me/ne t', '', 'net', 'me/-x'])
def test_names_that_are_no_repository(repo, tmp_path):
    with pytest.raises(ValueError, match=r'is no name of a repository \(.*\)\. Write it as OWNER'):
        push_to_hub(tiny(), repo, license='mit')
    with pytest.raises(ValueError, match=r'is no name of a repository'):
        hub.pull(repo, tmp_path / 'out')


def test_two_revisions(tmp_path):
    with pytest.raises(ValueError, match=r"'me/net@v1' and revision='v2' name two revisions. Name"):
        hub.pull('me/net@v1', tmp_path / 'out', revision='v2')
    with pytest.raises(
        ValueError, match=r"Name the branch apart: revision='dev' \(--revision\), no"
    ):
        push_to_hub(tiny(), 'me/net@dev', license='mit')


def test_a_licence_that_only_timm_says_is_unknown(tmp_path):
    model = tiny()
    (tmp_path / 'net').mkdir()
    model.pretrained_cfg = dict(model.pretrained_cfg, license='unknown')
    config = model_config(model, 'test_res2net_se', model.model_args)
    (tmp_path / 'net' / 'config.json').write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / 'net' / 'model.safetensors')
    text = r'known for these weights, only that it is called unknown \(a dry run does not ask the H'
    with pytest.raises(ValueError, match=text):
        dry(tmp_path / 'net', license=None)
    card = dry(tmp_path / 'net', license='unknown').card
    (tmp_path / 'net' / 'README.md').write_text(card)
    with pytest.raises(ValueError, match=text):  # a card that says so names none either
        dry(tmp_path / 'net', license=None)
    assert hub.check(tmp_path / 'net')[-2] == ('licence', 'warning', 'unknown')
    assert ModelCard(dry(tmp_path / 'net', license='unknown').card).data.license == 'unknown'


# --- check --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder as a push writes it."""
    model = tiny()
    done = dry(model)
    path = tmp_path / 'net'
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(done.config))
    (path / 'README.md').write_text(done.card)
    save_file(model.state_dict(), path / 'model.safetensors')
    return path


def found(path: Path, what: str) -> tuple[str, str]:
    return next((f.state, f.text) for f in hub.check(path) if f.what == what)


def test_check_of_a_good_folder(folder):
    assert [(f.what, f.state) for f in hub.check(folder)] == [
        (what, 'ok')
        for what in ('config', 'weights', 'tensors', 'values', 'runs', 'images', 'licence', 'card')
    ]
    assert found(folder, 'config')[1] == 'test_res2net_se, 5 classes, 64 px'
    assert found(folder, 'runs')[1] == 'an image gives 5 finite outputs'
    assert found(folder, 'images')[1] == (
        'interpolation bilinear, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]'
    )


def test_check_of_a_folder_without_weights(folder):
    (folder / 'model.safetensors').unlink()
    assert found(folder, 'weights') == ('error', 'There is no model.safetensors.')
    torch.save(tiny().state_dict(), folder / 'pytorch_model.bin')
    assert found(folder, 'weights') == (
        'error',
        'pytorch_model.bin is a pickle, and there is no model.safetensors. `timm-res2net convert` '
        'makes one of it.',
    )


def test_check_of_a_folder_with_pickles_beside(folder):
    torch.save(tiny().state_dict(), folder / 'pytorch_model.bin')
    state, text = found(folder, 'weights')
    assert state == 'warning'
    assert text.endswith('236 tensors; pytorch_model.bin beside it is not looked at')


def test_check_of_a_folder_without_card_and_licence(folder):
    (folder / 'README.md').write_text('---\nlicense: [\n---\n')
    assert found(folder, 'card')[0] == 'error'
    assert found(folder, 'card')[1].startswith('The metadata of the card cannot be read (')
    assert '\n' not in found(folder, 'card')[1]
    (folder / 'README.md').write_text('Words.')
    assert found(folder, 'card') == ('warning', 'README.md without metadata')
    (folder / 'README.md').unlink()
    assert found(folder, 'card') == ('warning', 'there is no README.md')
    assert found(folder, 'licence') == ('ok', 'mit')  # from the config
    config = json.loads((folder / 'config.json').read_text())
    del config['pretrained_cfg']['license']
    (folder / 'config.json').write_text(json.dumps(config))
    assert found(folder, 'licence') == (
        'error', 'None is named. `timm-res2net push --license` names one.'
    )  # fmt: skip


def test_check_of_weights_that_do_not_fit(folder):
    weights = load_file(folder / 'model.safetensors')
    weights['fc.bias'] = torch.zeros(6)
    del weights['bn1.weight']
    save_file(weights, folder / 'model.safetensors')
    state, text = found(folder, 'tensors')
    assert state == 'error'
    assert text == (
        'the weights lack, 1: bn1.weight; shapes do not fit, 1: fc.bias [6] for [5]. Config and '
        'weights are of different models: push again.'
    )


def test_check_of_empty_and_cut_weights(folder):
    weights = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(weights[:-100])
    assert found(folder, 'weights')[0] == 'error'
    assert 'model.safetensors is damaged (' in found(folder, 'weights')[1]
    save_file({}, folder / 'model.safetensors')
    assert found(folder, 'weights') == (
        'error', 'model.safetensors is empty. Push the model again.'
    )  # fmt: skip


def test_check_json_and_exit_code(folder, capsys):
    from timm_res2net.cli import main

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
    findings = hub.check('test_res2net_se')
    assert [(f.what, f.state) for f in findings] == [
        (what, 'ok') for what in ('tensors', 'values', 'pin', 'licence')
    ]
    assert findings[2].text.endswith(' as pinned')
    with pytest.raises(ValueError, match=r'The weights of res2net152d are not published, not from'):
        hub.check('res2net152d')
    with pytest.raises(ValueError, match=r'of res2net50_pd_26w_4s come from https://.*, not from'):
        hub.check('res2net50_pd_26w_4s')
    with pytest.raises(ValueError, match=r"no registered name, it is timm's own, whose repository"):
        hub.check('res2net50_26w_4s')
    with pytest.raises(FileNotFoundError, match=r'There is no folder \./nothing\.'):
        hub.check('./nothing')
    with pytest.raises(ValueError, match=r'test_hub.py is a file. Check a folder or repository; '):
        hub.check(__file__)
    with pytest.raises(
        ValueError, match=r"'nothing' is no folder, no repository \(OWNER/NAME\) and "
    ):
        hub.check('nothing')
    with pytest.raises(
        ValueError, match=r"'test_res2net_se.x' is no tag of test_res2net_se. Use one"
    ):
        hub.check('test_res2net_se.x')


@pytest.mark.parametrize(
    'note', ['revision: v1.0', 'sha256: ' + 'A' * 64, f'revision : {"a" * 64}', 'sha256: abc']
)
def test_notes_that_pin_nothing(note):
    with pytest.raises(ValueError, match=r"The note '.*' pins nothing: (revision|sha256) must be"):
        hub.pins_of(['A note.', note])


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (
            {'interpolation': 'cubicle'},
            'They cannot be prepared with interpolation cubicle, mean [',
        ),
        (
            {'mean': [0.5, 0.5]},
            'They cannot be prepared with interpolation bilinear, mean [0.5, 0.5]',
        ),
        ({'std': [0, 0, 0]}, 'std [0, 0, 0]'),
    ],
)
def test_check_of_images_that_cannot_be_prepared(change, text, folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg'].update(change)
    (folder / 'config.json').write_text(json.dumps(config))
    state, told = found(folder, 'images')
    assert state == 'error'
    assert text in told
    assert told.endswith('Push again with other values.')


def test_check_of_images_of_other_channels(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['input_size'] = [4, 64, 64]
    (folder / 'config.json').write_text(json.dumps(config))
    assert found(folder, 'images') == (
        'error',
        'interpolation bilinear, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225] do not suit '
        '4 channels. Push again with other values.',
    )


def test_an_error_of_no_known_kind():
    told = hub._explain(OSError('something odd.\nand more'), 'me/net', None)
    assert told == 'me/net: OSError: something odd. Run again.'


def test_check_of_outputs_that_are_not_finite(folder):
    save_file(overflowing().state_dict(), folder / 'model.safetensors')
    assert found(folder, 'values') == ('ok', 'all finite')
    assert found(folder, 'runs') == ('warning', 'an image gives outputs that are not finite')


def test_pins(world, tmp_path):
    """A tag that is registered from a repository may pin its commit and content."""
    server, client, _ = world
    save_file(tiny().state_dict(), tmp_path / 'w.safetensors')
    args = {'source': str(tmp_path / 'w.safetensors'), 'repo': 'me/pinned'}
    commit = client.run(PUSH, **args, kwargs={'license': 'mit'})[1]
    weights = server.repos['me/pinned'].files('main')[1]['model.safetensors']
    sha256 = hashlib.sha256(weights).hexdigest()
    code = """
import dataclasses
from timm.models import get_pretrained_cfg
cfg = dataclasses.replace(
    get_pretrained_cfg('res2net50_18w_4s'), hf_hub_id='me/pinned', notes=tuple(notes)
)
hub.get_pretrained_cfg = lambda name: cfg
hub.get_arch_pretrained_cfgs = lambda name: {name: cfg}
answer = [list(finding) for finding in hub.check(target)]
"""

    def pin(*notes: str, target: str = 'me/pinned') -> list[str]:
        findings = client.run(code, notes=notes, target=target)
        return next((f[1:] for f in findings if f[0] == 'pin'), [])

    assert pin('Just a note.') == []
    good = [f'sha256: {sha256}', f'revision: {commit}']
    assert pin(*good) == ['ok', f'sha256 {sha256[:12]}…, revision {commit[:12]}… as pinned']
    assert pin(*good, target='res2net50_18w_4s')[0] == 'ok'
    wrong = 'ab' * 32
    assert pin(f'sha256: {wrong}') == [
        'error',
        f'The weights have sha256 {sha256}, and {wrong} is pinned. They are not those that the tag '
        'was registered with.',
    ]
    # main moves on; the pinned commit is what is looked at
    save_file(tiny(num_classes=2).state_dict(), tmp_path / 'w.safetensors')
    client.run(PUSH, **args, kwargs={})
    assert pin(*good)[0] == 'ok'
    assert pin(f'sha256: {sha256}')[0] == 'error'


# --- cards and hub_configs ------------------------------------------------------------------------

WITH_WEIGHTS = [
    full
    for name in default_cfgs
    for full, cfg in get_arch_pretrained_cfgs(name).items()
    if cfg.has_weights
]


def test_hub_configs_are_what_the_command_writes(tmp_path, capsys):
    from timm_res2net.cli import main

    assert main(['hub-configs', '--out', str(tmp_path / 'new')]) == 0
    assert capsys.readouterr().out.count('\n') == len(WITH_WEIGHTS)
    folders = sorted(p.name for p in (ROOT / 'hub_configs').iterdir())
    assert folders == sorted(WITH_WEIGHTS)
    for name in WITH_WEIGHTS:
        for file in ('config.json', 'README.md'):
            made = (tmp_path / 'new' / name / file).read_text(encoding='utf-8')
            kept = (ROOT / 'hub_configs' / name / file).read_text(encoding='utf-8')
            assert kept == made, f'{name}/{file}: run `timm-res2net hub-configs --out hub_configs`'


@pytest.mark.parametrize('full', WITH_WEIGHTS)
def test_a_config_of_a_tag_makes_its_model(full):
    """The config, read as from the Hub, makes the model of the name, and says where it differs."""
    folder = ROOT / 'hub_configs' / full
    config = json.loads((folder / 'config.json').read_text())
    name, _, tag = full.partition('.')
    made: Any = timm.create_model(f'local-dir:{folder}', device='meta')
    own: Any = timm.create_model(full, device='meta')
    assert made.model_args == json.loads(json.dumps(own.model_args))
    assert [p.shape for p in made.parameters()] == [p.shape for p in own.parameters()]
    assert (config['architecture'], config['pretrained_cfg']['tag']) == (name, tag)
    for key in ('input_size', 'mean', 'std', 'crop_pct', 'interpolation', 'license'):
        value = own.pretrained_cfg[key]
        stored = made.pretrained_cfg[key]
        assert (list(stored) if isinstance(value, tuple) else stored) == (
            list(value) if isinstance(value, tuple) else value
        )
    card = ModelCard((folder / 'README.md').read_text())
    cfg = get_arch_pretrained_cfgs(name)[full]
    data = card.data.to_dict()
    assert data['license'] == cfg.license
    assert data['library_name'] == 'timm'
    assert data.get('base_model') == cfg.hf_hub_id
    figures = FIGURES[name]
    assert f'{figures.params / 1e6:.2f} M' in card.text
    assert f'{figures.gmacs:.2f} G' in card.text
    if tag in figures.top1:
        value, source = figures.top1[tag]
        assert card.data.eval_results[0].metric_value == value
        assert card.data.eval_results[0].source_name == source
        assert f'{value:g}' in card.text
    if cfg.license == 'unknown':
        assert 'CC BY-NC-SA 4.0 since 2021' in card.text
    assert f"timm.create_model('{full}', pretrained=True" in card.text


@pytest.mark.parametrize('channels', [3, 1, 2])
def test_the_code_on_a_card_runs(channels, tmp_path, monkeypatch):
    from PIL import Image

    text = (ROOT / 'hub_configs' / 'test_res2net_se.digits' / 'README.md').read_text()
    if channels != 3:
        model = tiny(in_chans=channels)
        done = dry(model)
        (tmp_path / 'net').mkdir()
        (tmp_path / 'net' / 'config.json').write_text(json.dumps(done.config))
        torch.save(model.state_dict(), tmp_path / 'net' / 'pytorch_model.bin')
        text = done.card.replace('hf-hub:me/net', 'local-dir:net')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(blocks) == (3 if channels in (1, 3) else 2)
    monkeypatch.chdir(tmp_path)
    Image.new('L', (8, 8)).save('image.png')
    for block in blocks:
        exec(compile(block, 'card', 'exec'), {})


def test_a_card_within_an_old_one():
    new = dry(tiny()).card
    assert merge_card(new, new) == merge_card(merge_card(new, new), new)
    old = '---\ntags:\n- birds\nlicense: cc-by-4.0\nco2_eq_emissions: 5\n---\nMy own words only.\n'
    merged = merge_card(new, old)
    data = ModelCard(merged).data.to_dict()
    assert data['tags'] == ['birds', 'image-classification', 'timm', 'res2net', 'transformers']
    assert data['license'] == 'mit'
    assert data['co2_eq_emissions'] == 5
    assert merged.endswith('---\nMy own words only.\n')
    with pytest.raises(ValueError, match=r'The metadata of the card cannot be read \(.*Mend what'):
        merge_card(new, '---\ntags: [\n---\n')


def test_a_network_without_a_head(tmp_path):
    model = tiny(num_classes=0)
    done = dry(model)
    assert ModelCard(done.card).data.pipeline_tag == 'image-feature-extraction'
    assert 'Classify:' not in done.card
    assert (
        relative_error(outputs(rebuilt(done, model, tmp_path), image()), outputs(model, image()))
        == 0
    )
