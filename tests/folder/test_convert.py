"""Checkpoints become folders with the same numbers, and a bad one leaves nothing."""

import argparse
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from tests.common import (
    TINY,
    from_folder,
    image,
    model_folder,
    network,
    push_to_folder,
    random_weights,
    randomise,
    save,
    slow_except,
)
from tests.folder.test_models import STAGES
from timm_res2net import check, convert_checkpoint, predict, push_to_hub
from timm_res2net.convert.sources import SOURCES
from timm_res2net.hub.fetch import load_model
from timm_res2net.layers.semantics import SEMANTICS

HRNET = 'hrnet_w18_res2net'


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize('semantics', slow_except(['official', 'paddle'], SEMANTICS))
def test_what_convert_writes_is_read(semantics, tmp_path):
    """By `check`, `predict`, `push` and `convert`, with its names, license, code and texts."""
    names = ['a' * 3000, 'ü 漢\n', '\t', "it's `code` | a cell", '---']
    model = timm.create_model(
        TINY, layers=(1, 2, 1, 3), base_width=40, scale=3, cardinality=2, semantics=semantics,
        stem_type='deep_tiered', stem_width=16, avg_down=True, num_classes=5,
    )  # fmt: skip
    weights = {f'net.{key}': value for key, value in randomise(model).state_dict().items()}
    entry = {'state_dict_ema': {**weights, 'head`|\n.x': torch.ones(1)}}
    path = save(entry, tmp_path / 'a `file` of mine|\n.pth')
    given = {} if semantics == 'official' else {'semantics': semantics}
    data = {'mean': [0.5], 'std': [0.5], 'img_size': 64, 'crop_pct': 1, 'interpolation': 'box'}
    taken = convert_checkpoint(
        path, tmp_path / 'net', license='mit', label_names=names, data=data, **given
    )
    assert (taken.notes.source, taken.config.semantics) == ('timm', semantics)
    assert (taken.notes.prefix, taken.notes.entry) == ('net.', 'state_dict_ema')
    convert_checkpoint(tmp_path / 'net', tmp_path / 'again', remote_code=True)
    push_to_hub(tmp_path / 'again', 'me/net', dry_run=True)
    for folder in (tmp_path / 'net', tmp_path / 'again'):
        assert {finding.state for finding in check(folder)} == {'ok'}
        loaded = from_folder(folder)
        with torch.no_grad():
            assert torch.equal(loaded(image()), model.eval()(image()))
        assert loaded.pretrained_cfg['label_names'] == names
        assert list(predict(load_model(folder).eval(), [None]))
        card = (folder / 'README.md').read_text()
        assert "(timm, entry 'state_dict_ema', prefix 'net.', sha256 " in card
        assert 'Left out, because they are not of the Res2Net, 1: ' in card


@pytest.mark.parametrize(
    ('to', 'kwargs', 'words'),
    [
        ('official', {'semantics': 'paddle'}, "semantics is 'paddle', and official builds 'offi"),
        ('mmpretrain', {'attn_layer': 'se'}, "attn_layer is 'se', and mmpretrain builds ''"),
        ('article', {'in_chans': 1}, 'in_chans is 1, and article builds 3'),
        ('4uiiurz1', {'num_classes': 0}, 'num_classes is 0, and 4uiiurz1 builds 1'),
        ('article', {'channels': (16, 32, 48, 64)}, r'builds \(16, 32, 64, 128\)'),
        ('article', {'base_width': 26}, 'base_width is 26, and article builds 16.0'),
        ('article', {'scale': 1, 'base_width': 64}, 'scale is 1, and article builds 2'),
        ('mindcv', {'cardinality': 8}, 'cardinality is 8, and mindcv builds 1'),
        ('mindcv', {'channels': (32, 64, 128, 256)}, r'builds \(64, 128, 256, 512\)'),
        ('mindcv', {'stem_type': 'deep', 'stem_width': 16}, 'stem_width is 16, .* builds 32'),
        ('mindcv', {'stem_type': 'deep_tiered'}, "stem_type is 'deep_tiered', .* builds 'deep'"),
        ('official', {'act_layer': 'silu'}, 'its act_layer'),
        ('official', {'norm_layer': 'groupnorm1'}, 'its norm_layer'),
        ('official', {'global_pool': 'max'}, 'its global_pool'),
        ('official', {'output_stride': 16}, 'its output_stride'),
        ('official', {'aa_layer': 'avg'}, 'its aa_layer'),
        ('official', {'replace_stem_pool': True}, 'replace_stem_pool'),
        ('mmdet', {}, '1: conv1.weight'),
        ('mindcv', {}, ''),
        ('mindcv', {'stem_type': 'deep', 'stem_width': 32, 'avg_down': True}, ''),
        ('article', {}, ''),
        ('4uiiurz1', {'attn_layer': 'se'}, ''),
        ('paddle', {}, ''),
    ],
)
def test_networks_that_a_project_cannot_express(to, kwargs, words, tmp_path):
    """It is refused, because the project would build another network from the file."""
    channels = (64, 128, 256, 512) if to == 'mindcv' else (16, 32, 64, 128)
    usual = dict(attn_layer='', channels=channels, base_width=16, layers=(1, 1, 1, 1))
    usual['semantics'] = SOURCES[to].semantics[0]
    model = timm.create_model(TINY, **{**usual, **kwargs})
    save_for_hf(model, tmp_path / 'net', model_args=model.model_args, safe_serialization=True)
    if not words:
        convert_checkpoint(tmp_path / 'net', to=to, dry_run=True)
        return
    with pytest.raises(ValueError, match=f'net cannot be written as {to}.*{words}'):
        convert_checkpoint(tmp_path / 'net', tmp_path / 'out', to=to)
    assert os.listdir(tmp_path) == ['net']


# --- which network it is --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('name', ['res2net50_18w_4s', 'res2next101', 'res2net50_se'])
def test_a_network_is_found_by_its_shapes(name, tmp_path):
    weights = random_weights(name, num_classes=7, in_chans=4)
    taken = convert_checkpoint(save(weights, tmp_path / 'w.pth'))
    assert (taken.config.architecture, taken.config.num_classes) == (name, 7)
    assert taken.config.input_size[0] == 4
    for key, value in taken.net.state_dict().items():
        assert torch.equal(value, weights[key])


def test_a_network_without_a_name_is_not_called_by_anothers(tmp_path):
    """Whatever training started from: the name says the architecture, and the images stay."""
    arguments = {'layers': [1, 1, 2, 1]}
    name = f'{TINY}.digits'
    args = argparse.Namespace(model=name, model_kwargs=arguments, gp=None, img_size=None)
    model = timm.create_model(TINY, num_classes=4, **arguments)
    path = save({'state_dict': model.state_dict(), 'args': args}, tmp_path / 'c.pth')
    config = convert_checkpoint(path).config
    assert config.network.startswith('res2net_custom(layers=[1, 1, 2, 1], ')
    assert config.input_size == list(model.pretrained_cfg['input_size'])
    assert config.pretrained_cfg['mean'] == list(model.pretrained_cfg['mean'])


HRNETS = {  # arguments of the network
    'narrow branches of a larger model': dict(head='', **STAGES),
    'a classifier': dict(num_classes=7, in_chans=1),
    'groups, max pooling': dict(cardinality=2, semantics='paddle', global_pool='max'),
}


@pytest.mark.parametrize('case', slow_except([*HRNETS][:1], HRNETS))
def test_hrnets(case, tmp_path):
    """By the record of train.py; a file without one needs the name."""
    kwargs = HRNETS[case]
    model = network(HRNET, **kwargs)
    beside = {'joints.weight': torch.zeros(17, 18, 1, 1), 'step': torch.zeros(1)}
    keys = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    further = {key: value for key, value in kwargs.items() if key != 'global_pool'}
    args = argparse.Namespace(model=HRNET, gp=kwargs.get('global_pool'), model_kwargs=further)
    path = save({'state_dict': {**keys, **beside}, 'args': args}, tmp_path / 'w.pth')
    taken = convert_checkpoint(path, tmp_path / 'out')
    assert taken.config.architecture == HRNET
    assert (taken.notes.prefix, sorted(taken.notes.left_out)) == ('backbone.', sorted(beside))
    x = image(1, channels=kwargs.get('in_chans', 3))
    with torch.no_grad():
        got, expected = (
            m.forward_intermediates(x)[1] for m in (from_folder(tmp_path / 'out'), model)
        )
    assert all(map(torch.equal, got, expected))
    if case == 'a classifier':
        named = convert_checkpoint(save(model.state_dict(), path), model=HRNET, semantics='paddle')
        assert (named.config.num_classes, named.config.semantics) == (7, 'paddle')


# --- what a file may be ---------------------------------------------------------------------------


def test_what_timm_copied_of_other_weights_is_not_repeated(tmp_path):
    """A model that was trained further is not the file that its training started from."""
    convert_checkpoint(save(random_weights(), tmp_path / 'w.pth'), tmp_path / 'net')
    model = from_folder(tmp_path / 'net')
    trained = tmp_path / 'trained'
    save_for_hf(model, trained, model_args=model.model_args, safe_serialization=True)
    assert 'w.pth' in (trained / 'config.json').read_text()
    done = push_to_hub(trained, 'me/net', license='mit', dry_run=True)
    assert 'w.pth' not in done.card + done.config.to_json()
    assert done.config.pretrained_cfg['tag'] == 'converted'
    assert not {'notes', 'origin_url'} & done.config.pretrained_cfg.keys()


# --- errors, and nothing half-written -------------------------------------------------------------


def tiny(**changes) -> dict[str, torch.Tensor]:
    """Weights with other tensors under some keys (`__` for a dot); None removes one."""
    weights = random_weights() | {k.replace('__', '.'): v for k, v in changes.items()}
    return {key: value for key, value in weights.items() if value is not None}


def recorded(**record) -> dict:
    return {'args': argparse.Namespace(**{'model': TINY, **record}), 'state_dict': tiny()}


def hrnet() -> dict[str, torch.Tensor]:
    return timm.create_model(HRNET, head='', **STAGES).state_dict()


ONE = torch.ones(1)
REFUSED = {  # a checkpoint, arguments, and what the error names
    'a tensor too few': (lambda: tiny(layer3__1__bn3__bias=None), {}, '1: layer3.1.bn3.bias'),
    'no split': (
        lambda: tiny(layer2__0__convs__0__weight=None), {}, "'layer2.0.convs.0.weight'",
    ),
    'a key without a rule': (lambda: tiny(layer3__3__odd=ONE), {}, '1: layer3.3.odd.'),
    'a key too many': (lambda: tiny(layer1__0__downsample__5__weight=ONE), {}, 'downsample.5'),
    'many keys': (
        lambda: tiny(**{f'layer1__odd{i:02d}': ONE for i in range(12)}), {}, 'odd09, ...',
    ),
    'another shape': (
        lambda: tiny(layer1__0__conv1__weight=torch.ones(24, 63, 1, 1)), {}, '[24, 63, 1, 1]',
    ),
    'NaN': (lambda: tiny(fc__bias=torch.full((10,), torch.nan)), {}, '1: fc.bias'),
    'a negative variance': (
        lambda: tiny(bn1__running_var=torch.full((16,), -0.1)), {}, '1: bn1.running_var',
    ),
    'an HRNet without a name': (hrnet, {}, 'model=hrnet_w18_res2net'),
    'an HRNet as a Res2Net': (hrnet, {'model': 'res2net50_se'}, 'an HRNet'),
    "timm's own HRNet": (
        lambda: timm.create_model('hrnet_w18_small').state_dict(), {'model': HRNET}, 'plain HRNet',
    ),
    'a Res2Net as an HRNet': (tiny, {'model': HRNET}, 'size mismatch'),
    'another source': (tiny, {'source': 'paddle'}, 'paddle'),
    'no source': (tiny, {'source': 'keras'}, "'keras'"),
    'no project': (tiny, {'to': 'onnx'}, "'onnx'"),
    'no model': (tiny, {'model': 'resnet50'}, "'resnet50'"),
    'another model': (tiny, {'model': 'res2net50_se'}, f'Use {TINY}.'),
    'no semantics': (tiny, {'semantics': 'caffee'}, "'caffee'"),
    'two semantics': (tiny, {'model': TINY, 'semantics': 'paddle'}, 'official, not paddle'),
    'no entry': (tiny, {'entry': 'ema'}, "'ema'"),
    'a name that nothing has': (tiny, {'rename': {'encoder1': 'layer1'}}, "'encoder1.'"),
    'a license elsewhere': (tiny, {'to': 'official', 'license': 'mit'}, 'official'),
    'an act_layer with code': (
        lambda: recorded(model_kwargs={'act_layer': 'os.system'}), {}, "'os.system'",
    ),
    'a pool': (lambda: recorded(gp='nope'), {}, "'nope'"),
    'a size': (lambda: recorded(img_size=10**9), {}, '1000000000'),
    'a std': (lambda: recorded(std=[0, 1, 1]), {}, 'std=[0, 1, 1]'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, tmp_path, monkeypatch):
    """Before anything is written, or any code in the file is run."""
    make, kwargs, text = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    path = save(make(), tmp_path / 'w.pth')
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out', **kwargs)
    assert text in str(error.value)
    assert len(str(error.value)) < 1000
    assert os.listdir(tmp_path) == ['w.pth']


def test_where_it_is_written(tmp_path, monkeypatch):
    """Into a new or empty folder, by a link, too; never over something."""
    path = save(random_weights(), tmp_path / 'w.pth')
    real = tmp_path / 'a real folder'
    real.mkdir()
    (tmp_path / 'link').symlink_to(real)
    convert_checkpoint(path, tmp_path / 'link/')
    before = load_file(real / 'model.safetensors')
    for out, kwargs in ((real, {}), (real, {'dry_run': True}), (path, {'to': 'official'})):
        with pytest.raises(FileExistsError, match='already exists'):
            convert_checkpoint(path, out, **kwargs)
    monkeypatch.chdir(tmp_path)
    for out in ('.', 'no/out'):
        with pytest.raises(OSError, match=r'already exists|no folder'):
            convert_checkpoint(path, out)
    assert load_file(real / 'model.safetensors').keys() == before.keys()
    assert sorted(os.listdir(tmp_path)) == ['a real folder', 'link', 'w.pth']


def test_what_is_no_checkpoint(tmp_path, monkeypatch):
    """Paths; a dot is the current folder, and an empty path is none."""
    for text in ('', 'https://host/w.pth', tmp_path / 'w.pth', tmp_path):
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            convert_checkpoint(text)
        assert Path(text).name in str(error.value)
    folder = model_folder(tmp_path / 'net')
    monkeypatch.chdir(folder)
    assert convert_checkpoint('.', dry_run=True).config.architecture == TINY
    with pytest.raises(ValueError, match=r'config\.json names the model'):
        convert_checkpoint(folder, model=TINY)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=r'no model\.safetensors'):
        convert_checkpoint(folder)


def test_a_folder_without_an_image_size(tmp_path):
    """It has timm's default; no class count stands among the arguments, as timm writes it."""
    model = network(num_classes=3)
    folder = push_to_folder(model, tmp_path / 'net')
    text = (folder / 'config.json').read_text()
    changed = text.replace('"input_size"', '"size"').replace('"scale"', '"num_classes": 3, "scale"')
    (folder / 'config.json').write_text(changed.replace('"size": [', '"test_input_size": ['))
    config = convert_checkpoint(folder).config
    assert config.input_size == [3, 224, 224]
    assert 'num_classes' not in config.model_args
