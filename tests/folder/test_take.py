"""Checkpoints of every source: each gives its own numbers, and a bad one leaves nothing."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from tests.common import TINY, Reference, image, randomise, relative_error, slow_except
from timm_res2net import authors, check, convert_checkpoint, push_to_hub
from timm_res2net.convert.sources import SOURCES
from timm_res2net.folder.folder import write
from timm_res2net.folder.model import Model
from timm_res2net.folder.take import take
from timm_res2net.layers.semantics import SEMANTICS

FIXTURES = Path(__file__).parents[1] / 'fixtures'
# float32; the references fold BatchNorm differently and have up to 150 layers to do so
FLOAT32 = 2e-4


def from_folder(path: Path, **kwargs) -> nn.Module:
    return timm.create_model(f'local-dir:{path}', pretrained=True, **kwargs).eval()


def save(tensors, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def random_weights(name: str, **kwargs) -> dict[str, torch.Tensor]:
    return randomise(timm.create_model(name, **kwargs)).state_dict()


# --- sources whose files are timm's in other words ----------------------------------------------


@pytest.mark.slow  # a network of full size, and another process
def test_the_authors_networks_load_in_plain_timm(tmp_path):
    path = save(random_weights('res2net50_48w_2s', in_chans=1), tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'out')
    code = (
        'import sys, timm; '
        f"timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True); "
        "assert 'timm_res2net' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)


SHAPES = ['res2net50_18w_4s', 'res2next101', 'res2net50_se']


@pytest.mark.parametrize('name', slow_except(SHAPES[:1], SHAPES))
def test_a_network_is_found_by_its_shapes(name, tmp_path):
    weights = random_weights(name, num_classes=7, in_chans=4)
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.config.architecture == name
    model = from_folder(tmp_path / 'out')
    assert (model.num_classes, model.in_chans) == (7, 4)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize('semantics', SEMANTICS)
def test_a_network_without_a_name(semantics, tmp_path):
    """All its arguments stand in the config."""
    official = semantics == 'official'
    arguments = dict(
        layers=(1, 2, 1, 3), channels=(24, 48, 56, 60), base_width=40, scale=3, cardinality=2,
        semantics=semantics, stem_type='deep_tiered', stem_width=16, avg_down=True, num_classes=5,
        replace_stem_pool=True,
    )  # fmt: skip
    model = randomise(timm.create_model('res2net50_se', **arguments)).eval()
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    found = convert_checkpoint(
        tmp_path / 'w.safetensors', tmp_path / 'out', semantics=None if official else semantics
    )
    assert (found.notes.source, found.config.semantics) == ('timm', semantics)
    with torch.no_grad():
        assert torch.equal(from_folder(tmp_path / 'out')(image()), model(image()))
        neck = from_folder(tmp_path / 'out', features_only=True, out_indices=(4,))
        assert torch.equal(neck(image())[0], model.forward_features(image()))
    if semantics in NAMED:
        with pytest.raises(ValueError, match=f"Name semantics='{semantics}'"):
            convert_checkpoint(tmp_path / 'w.safetensors', model=NAMED[semantics])


NAMED = {
    'mmdet': 'res2net50_v1d_26w_4s',
    'paddle': 'res2net50_pd_26w_4s',
    'caffe': 'res2net50_16w_4s_se',
}


def test_a_name_tells_the_semantics_that_keys_do_not(tmp_path):
    weights = random_weights('res2net50_pd_14w_8s')
    path = save(weights, tmp_path / 'w.pth')
    found = convert_checkpoint(path, tmp_path / 'out', model='res2net50_pd_14w_8s')
    assert found.config.semantics == 'paddle'
    reference = Reference(weights, 'paddle', (3, 4, 6, 3), 8)
    with torch.no_grad():
        expected = reference(image())
        assert relative_error(from_folder(tmp_path / 'out')(image()), expected) < FLOAT32
        convert_checkpoint(path, tmp_path / 'official')
        wrong = relative_error(from_folder(tmp_path / 'official')(image()), expected)
        assert wrong > 0.01  # what the name is for


# --- OpenMMLab and detectron2 -------------------------------------------------------------------


# --- Paddle -------------------------------------------------------------------------------------


# --- the article --------------------------------------------------------------------------------


# --- round trips, and what a layout cannot express ----------------------------------------------

CUSTOM = 'res2net_custom'
ROUND = {
    'official': 'res2next50',
    'mmpretrain': 'res2net50d',
    'mmdet': 'res2net50_v1d_26w_4s',
    'detectron2': 'res2net50_v1d_26w_4s',  # by its shapes; no name has these semantics
    'maskrcnn': 'res2net50_26w_4s',
    'paddle': 'res2net50_vd_26w_4s',
    'article': 'res2net50_16w_4s_se',
    '4uiiurz1': 'res2net50_16w_4s_se',
    'mindcv': 'res2net50d',
}


@pytest.mark.parametrize('to', slow_except(['official', 'mmdet', 'article', 'paddle'], ROUND))
def test_round_trip(to, tmp_path):
    """Every tensor comes back bit for bit."""
    kwargs = {'num_classes': 0} if to in ('mmdet', 'detectron2', 'maskrcnn') else {}
    weights = random_weights(ROUND[to], **kwargs)
    path = save(weights, tmp_path / 'w.pth')
    named = {'semantics': to} if to in ('detectron2', 'maskrcnn') else {'model': ROUND[to]}
    convert_checkpoint(path, tmp_path / 'theirs', to=to, **named)
    back = convert_checkpoint(tmp_path / 'theirs')
    assert (back.notes.source, back.config.architecture) == (
        to,
        ROUND[to] if 'model' in named else CUSTOM,
    )
    for key, value in back.net.state_dict().items():
        # maskrcnn's BatchNorm has no eps: it is added to the variance and subtracted again
        ulp = 2**-24 if to == 'maskrcnn' and key.endswith('running_var') else 0.0
        assert torch.allclose(value, weights[key], rtol=2 * ulp, atol=0), key


@pytest.mark.parametrize(
    ('name', 'to', 'text'),
    [
        (
            'res2net50_pd_26w_4s',
            'official',
            "semantics is 'paddle', and official builds 'official'.",
        ),
        ('res2net50_26w_4s', 'mmdet', "semantics is 'official', and mmdet builds 'mmdet'."),
        (
            'res2net50_se',
            'mmpretrain',
            "attn_layer is 'se', and mmpretrain builds ''.",
        ),
        ('res2net50_pd_26w_4s', 'article', "semantics is 'paddle', and article builds 'caffe'"),
    ],
)
def test_what_a_layout_cannot_express(name, to, text, tmp_path):
    path = save(random_weights(name), tmp_path / 'w.pth')
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out', to=to, model=name)
    assert f'w.pth cannot be written as {to}: its {text}' in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


def test_widths_that_the_article_has_not(tmp_path):
    model = randomise(timm.create_model('res2net50_16w_4s_se', base_width=26))
    found = convert_checkpoint(save(model.state_dict(), tmp_path / 'w.pth'))
    assert found.config.architecture == 'res2net50_se'  # the keys do not tell
    save_for_hf(model, tmp_path / 'f', model_args=model.model_args, safe_serialization=True)
    with pytest.raises(ValueError, match='base_width is 26, and article builds 16'):
        convert_checkpoint(tmp_path / 'f', to='article')


@pytest.mark.parametrize(
    'changed',
    [
        {'act_layer': 'silu'},
        {'norm_layer': 'groupnorm1'},
        {'global_pool': 'max'},
        {'output_stride': 16},
        {'aa_layer': 'avg'},
        {'replace_stem_pool': True},
    ],
)
def test_what_neither_keys_nor_shapes_tell(changed, tmp_path):
    """Written as another project's, it would be another network there."""
    model = timm.create_model('res2net50_18w_4s', **changed)
    save_for_hf(model, tmp_path / 'f', model_args=model.model_args, safe_serialization=True)
    with pytest.raises(ValueError) as error:
        convert_checkpoint(tmp_path / 'f', to='official')
    assert f'cannot express its {next(iter(changed))}'.removesuffix('replace_stem_pool') in str(
        error.value
    )


def test_a_stem_that_a_layout_has_not(tmp_path):
    weights = random_weights('res2net50_v1d_26w_4s', stem_type='')
    model = timm.create_model('res2net50_v1d_26w_4s', stem_type='')
    model.load_state_dict(weights)
    save_for_hf(model, tmp_path / 'f', model_args=model.model_args, safe_serialization=True)
    with pytest.raises(
        ValueError, match=r'cannot be written as mmdet: .* no rule for, 1: conv1.weight\.$'
    ):
        convert_checkpoint(tmp_path / 'f', to='mmdet')


# --- license and names of classes ---------------------------------------------------------------


def test_license_and_label_names(tmp_path):
    """What `check` warns of without them, it does not warn of with them."""
    path = save(random_weights('test_res2net_se', num_classes=3), tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'bare')
    assert {f.what for f in check(tmp_path / 'bare') if f.state != 'ok'} == {'license'}
    names = ['cat', 'dog', 'owl']
    convert_checkpoint(path, tmp_path / 'out', license='mit', label_names=names)
    assert {finding.state for finding in check(tmp_path / 'out')} == {'ok'}
    model = from_folder(tmp_path / 'out')
    assert model.pretrained_cfg['label_names'] == names
    assert model.pretrained_cfg['license'] == 'mit'
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'license: mit\n' in card
    assert 'does not know who published' not in card
    convert_checkpoint(tmp_path / 'out', tmp_path / 'again')  # a folder keeps them
    assert from_folder(tmp_path / 'again').pretrained_cfg['label_names'] == names
    assert from_folder(tmp_path / 'again').pretrained_cfg['license'] == 'mit'


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        ({'license': 'My License'}, r"'My License' is not the identifier.* apache-2\.0"),
        ({'label_names': ['a', 'b']}, '2 label names for 10 classes.*one name for each class'),
        ({'label_names': 'ab'}, "must be a list of names, got 'ab'"),
        ({'to': 'official', 'license': 'mit'}, r"official has no place.* \(to='timm'\)"),
        ({'to': 'official', 'label_names': ['a']}, r"official has no place.* \(to='timm'\)"),
    ],
)
def test_license_and_label_names_that_do_not_fit(arguments, text, tmp_path):
    path = save(tiny(), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=text):
        convert_checkpoint(path, tmp_path / 'out', **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


# --- errors, and nothing half-written -----------------------------------------------------------


def tiny() -> dict[str, torch.Tensor]:
    return random_weights('test_res2net_se')


def without(key):
    return lambda weights: weights.pop(key)


def with_(**tensors):
    return lambda weights: weights.update({k.replace('__', '.'): v for k, v in tensors.items()})


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (without('layer3.1.bn3.bias'), 'without a value, 1: layer3.1.bn3.bias.'),
        (without('layer2.0.convs.0.weight'), "It has no 'layer2.0.convs.0.weight', which every"),
        (
            with_(layer3__3__odd=torch.ones(1), extra=torch.ones(1)),
            'Keys that the timm table has no rule for, 1: layer3.3.odd.',
        ),
        (
            with_(layer1__0__conv1__weight=torch.ones(24, 63, 1, 1)),
            'size mismatch for layer1.0.conv1.weight: copying a param with '
            'shape torch.Size([24, 63, 1, 1]) from checkpoint, the shape in current model is '
            'torch.Size([24, 16, 1, 1]).',
        ),
        (
            with_(layer1__0__downsample__5__weight=torch.ones(24)),
            'weights that the model does not have, 1: layer1.0.downsample.5.weight.',
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit(change, text, tmp_path):
    weights = tiny()
    change(weights)
    path = save(weights, tmp_path / 'w.pth')
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, tmp_path / 'out')
    assert str(error.value).startswith(f'{path} does not convert: ')
    assert text in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


class Trap:
    """A pickle that calls something as it is read."""

    def __reduce__(self):
        return os.system, ('touch trap',)


def test_a_file_that_cannot_be_read_safely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save({'state_dict': tiny(), 'hook': Trap()}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'Cannot read .*it wants to load .*Nothing in it was run'):
        convert_checkpoint(path, tmp_path / 'out')
    assert [p.name for p in tmp_path.iterdir()] == ['w.pth']


def test_an_entry_by_name(tmp_path):
    zeros = {key: torch.zeros_like(value) for key, value in tiny().items()}
    path = save({'state_dict': zeros, 'state_dict_ema': tiny()}, tmp_path / 'w.pth')
    assert convert_checkpoint(path).notes.entry == 'state_dict_ema'
    found = convert_checkpoint(path, entry='state_dict')
    assert (found.notes.entry, found.notes.format) == ('state_dict', 'torch')
    assert not any(value.any() for value in found.net.state_dict().values())


def test_of_many_shapes_two_are_shown(tmp_path):
    """torch writes a line for each."""
    weights = random_weights('test_res2net_se', base_width=32)
    found = random_weights('test_res2net_se')
    first = 'layer1.0.convs.0.weight'  # from which the width is read
    changed = {**found, **{k: v for k, v in weights.items() if k[:7] == 'layer1.' and k != first}}
    with pytest.raises(ValueError, match=r'size mismatch .*; and \d+ more') as error:
        convert_checkpoint(save(changed, tmp_path / 'w.pth'))
    assert str(error.value).count('size mismatch') == 2
    assert len(str(error.value)) < 600


def test_the_first_ten_are_listed(tmp_path):
    weights = {**tiny(), **{f'layer1.odd{i:02d}': torch.ones(1) for i in range(12)}}
    with pytest.raises(ValueError, match=r'no rule for, 12: layer1.odd00, .*odd09, \.\.\.$'):
        convert_checkpoint(save(weights, tmp_path / 'w.pth'))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    path = save(tiny(), tmp_path / 'w.pth')
    monkeypatch.setattr('timm_res2net.folder.card.render_card', fail)
    with pytest.raises(OSError, match='No space left'):
        convert_checkpoint(path, tmp_path / 'out')
    broken = dataclasses.replace(SOURCES['official'], save=fail)
    monkeypatch.setitem(SOURCES, 'official', broken)
    plain = save(random_weights('res2net50_26w_4s'), tmp_path / 'v.pth')
    with pytest.raises(OSError, match='No space left'):
        convert_checkpoint(plain, tmp_path / 'out.pth', to='official')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['v.pth', 'w.pth']


def test_nothing_is_overwritten(tmp_path):
    path = save(tiny(), tmp_path / 'w.pth')
    out = tmp_path / 'out'
    out.mkdir()
    convert_checkpoint(path, out)  # an empty folder is as good as none
    with pytest.raises(
        FileExistsError, match=r'out already exists. Choose another name, or remove'
    ):
        convert_checkpoint(path, out)
    with pytest.raises(FileExistsError, match='already exists'):
        convert_checkpoint(out, path, to='official')
    with pytest.raises(FileExistsError, match='already exists'):
        convert_checkpoint(path, out, dry_run=True)
    with pytest.raises(FileNotFoundError, match=r"Cannot write .*: there is no folder '.*/no'"):
        convert_checkpoint(path, tmp_path / 'no' / 'out')


def test_where_a_folder_may_be_made(tmp_path, monkeypatch):
    path = save(tiny(), tmp_path / 'w.pth')
    real = tmp_path / 'real'
    real.mkdir()
    (tmp_path / 'link').symlink_to(real)
    convert_checkpoint(path, tmp_path / 'link')
    assert (real / 'config.json').is_file()
    monkeypatch.chdir(tmp_path)
    convert_checkpoint('w.pth', 'a name with spaces/')
    assert (tmp_path / 'a name with spaces' / 'config.json').is_file()
    empty = tmp_path / 'empty'
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(FileExistsError, match=r'\. already exists'):
        convert_checkpoint(path, '.')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    with pytest.raises(
        OSError, match=r'Cannot write .*/new \(Permission denied\). Choose a path in'
    ):
        convert_checkpoint(path, tmp_path / 'new')


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        ({'source': 'keras'}, "Unknown source 'keras'. Use auto, paddle, mindcv, article"),
        ({'to': 'onnx'}, "Unknown source 'onnx' to write. Use one of paddle, mindcv"),
        ({'model': 'resnet50'}, "'resnet50' is not a registered Res2Net."),
        (
            {'model': 'res2net50_se'},
            'it has layers=(1, 2, 2, 1) and res2net50_se has (3, 4, 6, 3), channels=(16, 32, 40, '
            '48) and res2net50_se has (64, 128, 256, 512). Use test_res2net_se.',
        ),
        ({'source': 'paddle'}, 'None of its keys belongs to a Res2Net of paddle'),
        (
            {'semantics': 'caffee'},
            "Unknown semantics 'caffee'. Use one of official, mmdet, detectron2",
        ),
        (
            {'model': 'test_res2net_se', 'semantics': 'paddle'},
            'test_res2net_se computes official, not paddle. Name one of the two.',
        ),
        ({'entry': 'ema'}, "it has no weights in an entry 'ema'. Leave the entry out."),
    ],
)
def test_arguments_that_cannot_be(kwargs, text, tmp_path):
    with pytest.raises(ValueError) as error:
        convert_checkpoint(save(tiny(), tmp_path / 'w.pth'), **kwargs)
    assert text in str(error.value)


def test_a_semantics_that_a_source_has_not(tmp_path):
    path = FIXTURES / 'paddle.pdparams'
    with pytest.raises(ValueError) as error:
        convert_checkpoint(path, model='res2net50_26w_4s')
    assert str(error.value) == (
        f'{path} does not convert: paddle checkpoints have block semantics paddle, not official, '
        'which res2net50_26w_4s computes. Leave the model out.'
    )


def test_files_and_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no file or folder .*w\.pth\. Check the path'):
        convert_checkpoint(tmp_path / 'w.pth')
    with pytest.raises(FileNotFoundError, match=r'no .*config\.json.*`timm-res2net convert`'):
        convert_checkpoint(tmp_path)
    (tmp_path / 'config.json').write_text(config('"model_args": {}'))
    with pytest.raises(FileNotFoundError, match=r'no model\.safetensors.*`timm-res2net convert`'):
        convert_checkpoint(tmp_path)


def test_an_address_is_no_path():
    with pytest.raises(ValueError, match=r'https:/+host/w\.pth is an address. Download the file'):
        convert_checkpoint('https://host/w.pth')


def config(changed: str) -> str:
    """A config.json with a field changed; JSON takes the last of two alike."""
    return (
        f'{{"architecture": "res2net50_se", "num_classes": 10, "pretrained_cfg": {{}}, {changed}}}'
    )


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('{', 'JSONDecodeError'),
        ('{}', 'it lacks architecture, num_classes, pretrained_cfg. Write it again'),
        ('{"architecture": "vgg11", "pretrained_cfg": {}}', 'it lacks num_classes. Write it again'),
        ('[]', 'must contain a JSON object, not a list'),
        (config('"architecture": "vgg11"'), "'vgg11' is not a Res2Net of timm_res2net or timm"),
        (
            config('"architecture": 5'),
            'architecture must be a text of at most 1000 characters in one line, got 5.',
        ),
        (
            config('"num_classes": "ten"'),
            "num_classes must be a whole number from 0 to 1000000, got 'ten'.",
        ),
        (
            config('"num_classes": true'),
            'num_classes must be a whole number from 0 to 1000000, got True.',
        ),
        (
            config('"architecture": null'),
            'architecture must be a text of at most 1000 characters in one line, got None.',
        ),
        (
            config('"num_classes": null'),
            'num_classes must be a whole number from 0 to 1000000, got None.',
        ),
        (config('"pretrained_cfg": null'), 'pretrained_cfg must be a dictionary, got None.'),
        (config('"model_args": null'), 'model_args must be a dictionary, got None.'),
        (
            config('"pretrained_cfg": {"input_size": [3, 100000, 100000]}'),
            'pretrained_cfg.input_size must be a list of 3 values, each a whole number from 1',
        ),
        (config('"model_args": [1]'), 'model_args must be a dictionary, got [1].'),
        (config('"pretrained_cfg": []'), 'pretrained_cfg must be a dictionary, got [].'),
        (config('"label_names": ["a"]'), 'it has 1 label_names for 10 classes.'),
        (
            config('"model_args": {"scale": 0}'),
            'model_args.scale must be a whole number from 1 to 16, got 0.',
        ),
        (
            config('"model_args": {"scales": 4}'),
            "model_args has 'scales', which is not an argument of res2net50_se",
        ),
        (
            config('"pretrained_cfg": {"mean": "grey"}'),
            'pretrained_cfg.mean must be a list of 1 to 4096 values, each a number from ',
        ),
        (
            config('"pretrained_cfg": {"input_size": [3, 224]}'),
            'pretrained_cfg.input_size must be a list of 3 values, each a whole number from 1',
        ),
        (
            config('"pretrained_cfg": {"colour": 1}'),
            "unexpected keyword argument 'colour'",
        ),
    ],
)
def test_a_folder_with_another_config(content, text, tmp_path):
    save_file(tiny(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=r'config\.json does not describe a model: ') as error:
        convert_checkpoint(tmp_path)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'semantics'),
    [
        ('res2net50_16w_4s_se', {}, 'caffe'),
        ('test_res2net_se', {'semantics': 'mmdet'}, 'mmdet'),
        ('another_net', {'semantics': 'mmdet'}, 'official'),  # whose arguments they are not
    ],
)
def test_arguments_of_train_py_imply_the_semantics(name, kwargs, semantics, tmp_path):
    args = argparse.Namespace(model=name, model_kwargs=kwargs, gp=None, img_size=None)
    weights = tiny() if kwargs else random_weights(name)
    path = save({'arch': name, 'args': args, 'state_dict': weights}, tmp_path / 'c.pth')
    assert convert_checkpoint(path).config.semantics == semantics
    assert convert_checkpoint(path, semantics='paddle').config.semantics == 'paddle'


@pytest.mark.parametrize('name', ['test_res2net_se', 'res2net50_26w_4s'])
@pytest.mark.parametrize(
    ('notes', 'text'),
    [
        ({'model_kwargs': {'act_layer': 'os.system'}}, "act_layer must be .*, got 'os.system'"),
        ({'model_kwargs': {'norm_layer': 5}}, 'norm_layer must be .*, got 5'),
        ({'model_kwargs': {'output_stride': [8]}}, r'output_stride must be one of .*, got \[8\]'),
        ({'gp': 'nope'}, "global_pool must be one of avg, .*, got 'nope'"),
        ({'img_size': 10**9}, 'img_size must be a whole number from 1 to 4096, got 1000000000'),
        ({'std': [0, 1, 1]}, r'std must be a list of .* from 1e-06 .*, got \[0, 1, 1\]'),
    ],
)
def test_arguments_of_train_py_are_checked(name, notes, text, tmp_path):
    args = argparse.Namespace(model=name, **notes)
    path = save({'args': args, 'state_dict': tiny()}, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=text):
        convert_checkpoint(path, dry_run=True)


def test_a_name_of_train_py_that_is_not_a_text(tmp_path):
    args = argparse.Namespace(model=['res2net50_se'], model_kwargs=['act_layer'])
    path = save({'args': args, 'state_dict': tiny()}, tmp_path / 'c.pth')
    assert convert_checkpoint(path, dry_run=True).config.architecture == 'test_res2net_se'


def test_a_network_without_a_name_is_not_called_by_anothers(tmp_path):
    """Whatever training started from: the name says the architecture, and the images stay."""
    model = timm.create_model('test_res2net_se', layers=(1, 1, 2, 1), num_classes=4)
    args = argparse.Namespace(
        model='test_res2net_se', model_kwargs={'layers': [1, 1, 2, 1]}, gp=None, img_size=None
    )
    path = save({'args': args, 'state_dict': model.state_dict()}, tmp_path / 'c.pth')
    found = convert_checkpoint(path, tmp_path / 'out')
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert found.config.architecture == config['architecture'] == CUSTOM
    assert config['model_args']['layers'] == [1, 1, 2, 1]
    assert found.config.network.startswith(f'{CUSTOM}(layers=[1, 1, 2, 1], ')
    assert f'`{found.config.network}`' in (tmp_path / 'out/README.md').read_text()
    assert found.config.input_size == list(model.pretrained_cfg['input_size'])
    assert found.config.pretrained_cfg['mean'] == list(model.pretrained_cfg['mean'])


def test_a_101_layer_backbone_of_a_detector(tmp_path):
    model = timm.create_model('res2net101_vd_26w_4s', avg_down=False, num_classes=0)
    path = save(model.state_dict(), tmp_path / 'w.pth')
    found = convert_checkpoint(path, semantics='paddle')
    assert found.config.network == (
        f"{CUSTOM}(layers=[3, 4, 23, 3], semantics='paddle', stem_width=32, stem_type='deep')"
    )


def test_a_folder_names_its_model(tmp_path):
    convert_checkpoint(save(tiny(), tmp_path / 'w.pth'), tmp_path / 'out')
    with pytest.raises(
        ValueError, match=r'names the model. Leave model, semantics and prefix out\.'
    ):
        convert_checkpoint(tmp_path / 'out', model='test_res2net_se')


# --- what a file may be -------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_floats_are_widened(dtype, tmp_path):
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in tiny().items()
    }
    found = convert_checkpoint(save(weights, tmp_path / 'w.pth'), tmp_path / 'out')
    assert found.notes.widened == sum(v.is_floating_point() for v in weights.values())
    with safe_open(tmp_path / 'out' / 'model.safetensors', 'pt') as stored:
        for key, value in weights.items():
            assert stored.get_tensor(key).dtype in (torch.float32, torch.int64)
            assert torch.equal(stored.get_tensor(key).to(value.dtype), value)


def test_a_readme_says_what_it_was_made_from(tmp_path):
    import hashlib

    path = save(tiny(), tmp_path / 'w.pth')
    convert_checkpoint(path, tmp_path / 'my_net')
    text = (tmp_path / 'my_net' / 'README.md').read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert '# my_net' in text
    assert "timm.create_model('local-dir:my_net', pretrained=True)" in text
    assert 'The converter does not know who published the file.' in text
    assert text.startswith('---\n')
    convert_checkpoint(tmp_path / 'my_net', tmp_path / 'again')
    assert 'converted from a folder, whose card' in (tmp_path / 'again' / 'README.md').read_text()


def test_a_folder_of_timms_own_model(tmp_path):
    """`save_for_hf` of timm 1.0.31 records the class count among the arguments as well."""
    model = randomise(timm.create_model('res2net50_48w_2s', num_classes=3)).eval()
    save_for_hf(model, str(tmp_path / 'net'), safe_serialization=True)
    found = convert_checkpoint(tmp_path / 'net', tmp_path / 'out')
    assert (found.config.architecture, found.config.num_classes) == ('res2net50_48w_2s', 3)
    assert 'num_classes' not in found.config.model_args
    assert found.notes.file == 'net'
    made = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(made(image()), model(image()))


def test_a_folder_of_a_converted_file(tmp_path):
    """The card goes on saying where it comes from; the file that was read is the folder's."""
    weights = {f'net.{key}': value for key, value in tiny().items()} | {'head.x': torch.ones(1)}
    torch.save({'state_dict_ema': weights}, tmp_path / 'c.pth')
    convert_checkpoint(tmp_path / 'c.pth', tmp_path / 'net')
    found = convert_checkpoint(tmp_path / 'net', tmp_path / 'again')
    assert (found.notes.file, found.notes.entry, found.notes.format) == ('net', '', 'safetensors')
    for folder in ('net', 'again'):
        text = (tmp_path / folder / 'README.md').read_text()
        assert ", from `c.pth` (timm, entry 'state_dict_ema', prefix 'net.', sha256 " in text
        assert 'Left out, because they are not of the Res2Net, 1: head.x.' in text
    done = push_to_hub(tmp_path / 'again', 'me/net', license='mit', dry_run=True)
    assert ', from `c.pth` (timm' in done.card


def test_what_timm_copied_of_other_weights_is_not_repeated(tmp_path):
    """A model that was trained further is not the file that its training started from."""
    convert_checkpoint(save(tiny(), tmp_path / 'w.pth'), tmp_path / 'net')
    model = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    save_for_hf(model, tmp_path / 'trained', model_args=model.model_args, safe_serialization=True)
    assert 'w.pth' in (tmp_path / 'trained' / 'config.json').read_text()
    done = push_to_hub(tmp_path / 'trained', 'me/net', license='mit', dry_run=True)
    assert 'w.pth' not in done.card + done.config.to_json()
    assert 'test_res2net_se with 10 classes.' in done.card


def test_a_folder_without_an_image_size(tmp_path):
    convert_checkpoint(save(tiny(), tmp_path / 'w.pth'), tmp_path / 'net')
    path = tmp_path / 'net' / 'config.json'
    config = json.loads(path.read_text())
    del config['pretrained_cfg']['input_size']
    path.write_text(json.dumps(config))
    found = convert_checkpoint(tmp_path / 'net', tmp_path / 'out')
    assert found.config.input_size == [3, 224, 224]  # timm's default


# --- models in memory whose layers were replaced --------------------------------------------------


def test_a_replaced_head_and_stem(tmp_path):
    """The numbers of classes and channels are those of the layers."""
    model = timm.create_model(TINY)
    model.fc = nn.Linear(192, 5)
    model.conv1 = nn.Conv2d(1, 16, 7, stride=2, padding=3, bias=False)
    randomise(model).eval()
    done = push_to_hub(model, 'me/net', license='mit', dry_run=True)
    assert (done.config.num_classes, done.config.input_size[0]) == (5, 1)
    folder = write(Model(model, done.config, done.card), tmp_path / 'net').path
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = image(channels=1)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert {finding.state for finding in check(folder)} == {'ok'}
    assert (model.num_classes, model.model_args['in_chans']) == (10, 3)  # not changed

    model.fc = nn.Identity()
    assert take(model).config.num_classes == 0


@pytest.mark.parametrize(
    ('name', 'module', 'replacement', 'words'),
    [
        (TINY, 'act1', nn.SiLU(), 'level 0 differs first'),
        (TINY, 'maxpool', nn.Identity(), 'level 1 differs first, by inf'),
        (TINY, 'layer1.0.relu', nn.SiLU(), 'level 1 differs first'),
        (TINY, 'layer1.0.bn1', nn.BatchNorm2d(24, eps=1e-2), 'level 1 differs first'),
        (TINY, 'layer4.0.relu', nn.SiLU(), 'level 4 differs first'),
        (TINY, 'global_pool.pool', nn.AdaptiveMaxPool2d(1), 'the output differs first'),
        pytest.param(
            'hrnet_w18_res2net', 'act2', nn.SiLU(), 'level 1 differs first', marks=pytest.mark.slow
        ),
        (TINY, 'conv1', nn.Conv2d(3, 16, 3, padding=1, bias=False), 'size mismatch for conv1'),
        (
            TINY,
            'fc',
            nn.Sequential(nn.Dropout(), nn.Linear(192, 10)),
            'weights that the model does not have, 2: fc.1.bias',
        ),
        (TINY, 'aux', nn.Linear(3, 3), 'the model does not have, 2: aux.bias, aux.weight'),
        (
            'res2net50d',
            'conv1',
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            'the model does not have, 1',
        ),
    ],
)
def test_a_layer_that_no_argument_describes(name, module, replacement, words):
    """The folder would load as another network: its outputs say which layer, or its keys do."""
    model = timm.create_model(name)
    parent, _, child = module.rpartition('.')
    setattr(model.get_submodule(parent), child, replacement)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        push_to_hub(randomise(model), 'me/net', license='mit', dry_run=True)
    assert 'no recorded argument describes. ' in str(error.value)
    assert 'Nothing was pushed' in str(error.value)


@pytest.mark.parametrize(
    'changes', [{'drop_path_rate': 0.2, 'drop_rate': 0.3}, {'drop_block_rate': 0.1}]
)
def test_what_only_training_sees_makes_no_difference(changes):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model(TINY, **changes))
    assert push_to_hub(model, 'me/net', license='mit', dry_run=True).config.num_classes == 10


def test_the_current_folder(tmp_path, monkeypatch):
    """It is written as a dot; an empty path is none."""
    done = push_to_hub(timm.create_model(TINY), 'me/net', license='mit', dry_run=True)
    model = timm.create_model(TINY).eval()
    monkeypatch.chdir(write(Model(model, done.config), tmp_path / 'net').path)
    assert convert_checkpoint('.', dry_run=True).config.architecture == TINY
    assert push_to_hub('.', 'me/net', license='mit', dry_run=True).config.architecture == TINY
    for use in (convert_checkpoint, lambda path: push_to_hub(path, 'me/net', dry_run=True)):
        with pytest.raises(ValueError, match='is empty') as error:
            use('')
        assert 'Give a file or a folder' in str(error.value)


AUTHORS = [
    name for name, function in vars(authors).items() if getattr(function, '__module__', '') ==
    authors.__name__ and name.startswith('res2ne')
]  # fmt: skip


@pytest.mark.parametrize('name', slow_except(['res2net50_48w_2s', 'res2net50_v1b'], AUTHORS))
def test_a_model_of_the_authors_functions_is_pushed_and_loads(name, tmp_path):
    """Their names are timm's, whose constructors do not take their arguments."""
    model = randomise(getattr(authors, name)(num_classes=3)).eval()
    done = push_to_hub(model, 'me/net', license='mit', dry_run=True)
    folder = write(Model(model, done.config), tmp_path / 'net').path
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image()), model(image()))


@pytest.mark.parametrize(('of', 'wanted'), [(1, 3), (13, 3), (13, 26), (3, 1)])
@pytest.mark.parametrize('features', [False, True])
def test_a_folder_loads_for_other_channels(of, wanted, features, tmp_path):
    """timm repeats or sums the weights of the first convolution, as for its own weights."""
    model = randomise(timm.create_model(TINY, in_chans=of)).eval()
    folder = write(take(model), tmp_path / 'net').path
    other = timm.create_model(
        f'local-dir:{folder}', pretrained=True, in_chans=wanted, features_only=features
    )
    weight, own = other.conv1.weight, model.conv1.weight
    assert weight.shape[1] == wanted
    if of == 1:  # each of the three has a third of it
        assert torch.allclose(weight, own.repeat(1, 3, 1, 1) / 3)
    if wanted == 1:
        assert torch.allclose(weight, own.sum(1, keepdim=True))
