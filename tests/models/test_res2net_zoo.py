"""The models: figures, cfgs, parity with timm, weights and how they load."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import SEModule
from timm.models import get_pretrained_cfg, load_pretrained, save_for_hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.common import (
    NAMES,
    SE_NAMES,
    TINY,
    Reference,
    image,
    randomise,
    relative_error,
    slow_except,
)
from tests.fixtures import record_mindcv, values
from tests.hub.server import hub, serve
from timm_res2net import Res2Net, convert_checkpoint
from timm_res2net.convert import COUNTS, file_of
from timm_res2net.models.loading import checkpoint_filter_fn
from timm_res2net.models.res2net_zoo import default_cfgs

FIXTURES = Path(__file__).parents[1] / 'fixtures'
DEEP = {'stem_type': 'deep', 'stem_width': 32, 'avg_down': True}
# timm's names, with the arguments that make ours of them and the parameters, in millions, that the
# authors give for v1 (timm's results table has the same)
TIMM = {
    'res2net50_48w_2s': ({'base_width': 48, 'scale': 2}, 25.29),
    'res2net50_26w_4s': ({}, 25.70),
    'res2net50_14w_8s': ({'base_width': 14, 'scale': 8}, 25.06),
    'res2net50_26w_6s': ({'scale': 6}, 37.05),
    'res2net50_26w_8s': ({'scale': 8}, 48.40),
    'res2net101_26w_4s': ({'layers': (3, 4, 23, 3)}, 45.21),
    'res2next50': ({'base_width': 4, 'cardinality': 8}, 24.67),
    'res2net50d': (DEEP, 25.72),
    'res2net101d': ({'layers': (3, 4, 23, 3), **DEEP}, 45.23),
}


@pytest.mark.parametrize('name', slow_except([TINY], COUNTS))
def test_multiply_accumulates(name):
    model = timm.create_model(name, device='meta').eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *model.pretrained_cfg['input_size'], device='meta'))
    # the figures have two decimals, rounded either way at the half
    gmacs = counter.get_total_flops() / 2e9
    assert abs(gmacs - COUNTS[name].gmacs) < 0.0051, f'{name}: {gmacs:.2f} GMACs counted'


def test_the_article_counts_its_convolution_biases():
    """18.916424 M as its author's network has them; each stands before a BatchNorm."""
    model = timm.create_model('res2net50_16w_4s_se', device='meta')
    blocks = [m for m in model.modules() if type(m).__name__ == 'Bottle2neck']
    biases = sum(
        m.out_channels for block in blocks for m in block.modules() if isinstance(m, nn.Conv2d)
    ) - sum(m.out_channels for b in blocks for m in b.se.modules() if isinstance(m, nn.Conv2d))
    assert COUNTS['res2net50_16w_4s_se'].params + biases == 18_916_424


@pytest.mark.parametrize('name', NAMES)
def test_cfgs_are_filled(name):
    assert name in default_cfgs
    for tag in default_cfgs[name].tags:
        cfg = get_pretrained_cfg(f'{name}.{tag}')
        model = timm.create_model(f'{name}.{tag}', device='meta')
        assert sum(p.numel() for p in model.parameters()) == COUNTS[name].params
        assert cfg.architecture == name
        assert cfg.tag == tag
        for field in ('description', 'origin_url', 'paper_name', 'paper_ids', 'mean', 'std'):
            assert getattr(cfg, field), field
        assert bool(cfg.license) == bool(cfg.has_weights) == (tag != 'untrained')
        assert isinstance(model.get_submodule(cfg.first_conv), nn.Conv2d)
        assert model.get_submodule(cfg.first_conv).in_channels == cfg.input_size[0]
        assert model.get_submodule(cfg.classifier).out_features == cfg.num_classes
        assert model.get_submodule(cfg.classifier) is model.get_classifier()
        assert cfg.pool_size == tuple(side // 32 for side in cfg.input_size[1:])
        if cfg.num_classes == 1000 and cfg.has_weights:
            assert file_of(f'{name}.{tag}').top1


def pair(timm_name: str, layers: tuple[int, ...] | None = None) -> tuple[nn.Module, Res2Net]:
    kwargs = {} if layers is None else {'layers': layers}
    return timm.create_model(timm_name, **kwargs), Res2Net(**{**TIMM[timm_name][0], **kwargs})


@pytest.mark.parametrize('name', TIMM)
def test_official_parameter_count(name):
    ours = Res2Net(**TIMM[name][0], device='meta')
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 2) == TIMM[name][1]


@pytest.mark.parametrize('name', TIMM)
def test_parity_with_timms_shallow_models(name):
    theirs, ours = pair(name, (1, 2, 1, 1))
    check_parity(theirs, ours, 'from timm')


@pytest.mark.slow
@pytest.mark.parametrize('name', TIMM)
@pytest.mark.parametrize('direction', ['from timm', 'to timm'])
def test_parity_with_timm(name, direction):
    theirs, ours = pair(name)
    check_parity(theirs, ours, direction)


def check_parity(theirs, ours, direction):
    """The same outputs, features and training step, bit for bit."""
    source, target = (theirs, ours) if direction == 'from timm' else (ours, theirs)
    target.load_state_dict(randomise(source).state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = image(size=65)
    theirs.eval(), ours.eval()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        for mine, other in zip(
            ours.forward_intermediates(x, intermediates_only=True),
            theirs.forward_intermediates(x, intermediates_only=True),
            strict=True,
        ):
            assert torch.equal(mine, other)
    theirs.train(), ours.train()
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        model(x).square().mean().backward()
        optimizer.step()
    stepped = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, stepped[key]), key
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize('output_stride', [8, 16])
def test_parity_with_timm_dilated(output_stride):
    kwargs = {'layers': (1, 2, 2, 2), 'output_stride': output_stride}
    theirs, ours = timm.create_model('res2net50_26w_4s', **kwargs), Res2Net(**kwargs)
    ours.load_state_dict(randomise(theirs).state_dict())
    with torch.no_grad():
        assert torch.equal(ours.eval()(image()), theirs.eval()(image()))


def test_same_seed_same_network_as_timm():
    torch.manual_seed(4)
    theirs = timm.create_model('res2net50_26w_4s').state_dict()
    torch.manual_seed(4)
    ours = Res2Net().state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize('width', [16, 48, 60])
def test_plain_stem_follows_the_channels(width):
    """The article's stem is as wide as its first stage; 64 s / s is exact for any s."""
    scale = 3
    model = Res2Net(
        channels=tuple(width * 2**i for i in range(4)), scale=scale, base_width=64 / scale
    )
    assert model.conv1.weight.shape == (width, 3, 7, 7)
    assert model.bn1.num_features == model.feature_info[0]['num_chs'] == width
    assert model.layer1[0].width == width // scale
    assert model(image()).shape == (2, 1000)
    # as timm initialises it: a normal of variance 2 / fan_out
    assert abs(float(model.conv1.weight.detach().std()) / (2 / (width * 49)) ** 0.5 - 1) < 0.1


@pytest.mark.parametrize(
    ('kwargs', 'value', 'remedy'),
    [
        ({'layers': (3, 4, 6)}, '(3, 4, 6)', 'layers must be a list of 4 values, each a whole'),
        ({'channels': (64, 128)}, '(64, 128)', 'channels must be a list of 4 values, each a whole'),
        ({'layers': 3}, '3', 'layers must be a list of 4 values, each a whole number from 1 to'),
        ({'layers': (1, 1, 1, 0)}, '(1, 1, 1, 0)', 'each a whole number from 1 to 128'),
        ({'stem_width': 3}, 'got 3', 'stem_width must be a whole number from 4 to'),
        ({'output_stride': 4}, '4', 'output_stride must be one of 8, 16, 32'),
        ({'aa_layer': 'max'}, "'max'", 'one of avg, blur, or a module class'),
        ({'channels': (15, 30, 60, 120)}, 'channels[0]=15', 'must be even'),
        ({'scale': 0}, 'got 0', 'scale must be a whole number from 1 to 16'),
        ({'semantics': ''}, "''", 'official, mmdet, detectron2, maskrcnn, paddle, caffe'),
    ],
)
def test_impossible_values(kwargs, value, remedy):
    with pytest.raises(ValueError) as error:
        timm.create_model('res2net50_se', **kwargs)
    assert value in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize('unknown', ['scales', 'block_reduce_first', 'out_indices'])
def test_unknown_arguments(unknown):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
        timm.create_model('res2net50_se', **{unknown: 1})


def test_block_args_name_the_remedy():
    with pytest.raises(TypeError, match=r'block_args.*Pass scale, attn_layer and semantics'):
        timm.create_model('res2net50_se', block_args={'attn_layer': 'se'})


@pytest.mark.parametrize('aa_layer', ['avg', 'blur'])
def test_anti_aliasing_by_name(aa_layer):
    model = timm.create_model('test_res2net_se', aa_layer=aa_layer)
    assert not isinstance(model.maxpool, nn.MaxPool2d)
    assert model(image()).shape == (2, 10)


def test_arguments_survive_saving(tmp_path):
    changes = {
        'semantics': 'mmdet', 'scale': 3, 'base_width': 64 / 3, 'cardinality': 2,
        'attn_layer': 'eca', 'in_chans': 1, 'global_pool': 'max', 'avg_down': True,
        'output_stride': 16, 'channels': (24, 48, 72, 96), 'num_classes': 5,
    }  # fmt: skip
    model = randomise(timm.create_model('test_res2net_se', **changes)).eval()
    save_for_hf(model, tmp_path, model_args=model.model_args, safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    for key, value in changes.items():
        if key != 'num_classes':
            assert json.loads(json.dumps(value)) == config['model_args'][key]
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = image(channels=1)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    overridden = timm.create_model(f'local-dir:{tmp_path}', scale=2, attn_layer='', num_classes=3)
    assert overridden.layer1[0].scale == 2
    assert overridden.layer1[0].se is None
    assert overridden.layer1[0].width == model.layer1[0].width
    assert overridden.num_classes == 3


def test_recorded_arguments_follow_a_new_head():
    model = timm.create_model('test_res2net_se')
    assert 'num_classes' not in model.model_args
    model.reset_classifier(3, 'max')
    assert model.model_args['global_pool'] == 'max'


# --- squeeze-and-excitation at the identity ----------------------------------------------------


def plain_source(name: str) -> tuple[str, dict]:
    """The plain network that an SE model starts from: the Hub source of its cfg, and arguments."""
    if name == TINY:
        return name, {'attn_layer': ''}
    return get_pretrained_cfg(name).hf_hub_id.removeprefix('timm/'), {}


def plain_weights(name: str, folder: Path) -> tuple[nn.Module, Path]:
    """The plain network of an SE model, randomised, and its file."""
    source, kwargs = plain_source(name)
    plain = randomise(timm.create_model(source, **kwargs)).eval()
    path = folder / f'{source}.safetensors'
    save_file(plain.state_dict(), path)
    return plain, path


def from_file(name: str, path: Path, **kwargs) -> nn.Module:
    overlay = {'file': str(path)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.mark.parametrize('name', slow_except([TINY], [TINY, *SE_NAMES]))
def test_identity_gates_change_no_bit(name, tmp_path):
    plain, path = plain_weights(name, tmp_path)
    x = image(size=64)
    with torch.no_grad():
        model = from_file(name, path)
        assert all(isinstance(b.se, SEModule) for b in model.layer1)
        assert torch.equal(model(x), plain(x))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(model(x), plain(x))
        neck = from_file(name, path, features_only=True)
        for got, expected in zip(
            neck(x), plain.forward_intermediates(x, intermediates_only=True), strict=True
        ):
            assert torch.equal(got, expected)
        few = from_file(name, path, num_classes=5)
        assert few(x).shape == (2, 5)
        assert torch.equal(few.forward_features(x), plain.forward_features(x))
        grey = from_file(name, path, in_chans=1)
        source, kwargs = plain_source(name)
        grey_plain = from_file(source, path, in_chans=1, **kwargs)
        assert torch.equal(grey(image(channels=1)), grey_plain(image(channels=1)))
        # in training mode too
        assert torch.equal(model.train()(x), plain.train()(x))
        assert torch.equal(model.bn1.running_var, plain.bn1.running_var)


def test_identity_gates_learn(tmp_path):
    _, path = plain_weights(TINY, tmp_path)
    model = from_file(TINY, path, num_classes=5).train()
    model(image()).square().mean().backward()
    assert all(b.se.fc2.weight.grad.any() for b in model.layer4)
    for block in model.layer4:
        gate = block.se.gate(block.se.fc2(torch.rand(1, block.se.fc2.in_channels, 1, 1)))
        assert torch.equal(gate, torch.full_like(gate, 0.5))


def test_identity_for_a_name_that_is_given_se(tmp_path):
    name, layers = 'res2net50_v1d_26w_4s', (1, 2, 1, 1)
    plain = randomise(timm.create_model(name, layers=layers)).eval()
    save_file(plain.state_dict(), tmp_path / 'w.safetensors')
    model = from_file(name, tmp_path / 'w.safetensors', attn_layer='se', layers=layers)
    with torch.no_grad():
        assert torch.equal(model(image()), plain(image()))


def test_a_checkpoint_with_gates_passes_untouched(tmp_path):
    trained = randomise(timm.create_model('test_res2net_se')).eval()
    save_file(trained.state_dict(), tmp_path / 'w.safetensors')
    model = from_file('test_res2net_se', tmp_path / 'w.safetensors')
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key])


def test_the_filter_leaves_its_input_alone():
    plain = randomise(timm.create_model('test_res2net_se', attn_layer='')).state_dict()
    before = {key: value.clone() for key, value in plain.items()}
    out = checkpoint_filter_fn(plain, timm.create_model('test_res2net_se'))
    assert plain.keys() == before.keys() != out.keys()
    assert all(torch.equal(plain[key], before[key]) for key in plain)


class HardGate(SEModule):
    def __init__(self, channels, **kwargs):
        super().__init__(channels, gate_layer='tanh', **kwargs)


@pytest.mark.parametrize('features_only', [False, True])
@pytest.mark.parametrize('attn_layer', ['eca', 'cbam', HardGate])
def test_other_attention_missing_is_an_error(attn_layer, features_only, tmp_path):
    plain = randomise(timm.create_model('test_res2net_se', attn_layer=''))
    save_file(plain.state_dict(), tmp_path / 'w.safetensors')
    with pytest.raises(RuntimeError) as error:
        from_file(
            'test_res2net_se',
            tmp_path / 'w.safetensors',
            attn_layer=attn_layer,
            features_only=features_only,
        )
    assert 'no attention weights' in str(error.value)
    assert 'layer1.0.se.' in str(error.value)
    for remedy in ("attn_layer='se'", "attn_layer=''", 'pretrained=False'):
        assert remedy in str(error.value)


def test_some_gates_missing_is_an_error():
    model = timm.create_model('test_res2net_se')
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith('layer2.1.se.fc2')}
    with pytest.raises(RuntimeError, match=r'2: layer2.1.se.fc2.bias, layer2.1.se.fc2.w'):
        checkpoint_filter_fn(weights, model)


@pytest.mark.parametrize('attn_layer', ['', 'eca'])
def test_gates_without_a_place_are_an_error(attn_layer):
    trained = timm.create_model('test_res2net_se').state_dict()
    model = timm.create_model('test_res2net_se', attn_layer=attn_layer)
    with pytest.raises(RuntimeError, match=r"24: layer1.*checkpoint's attn_layer"):
        checkpoint_filter_fn(trained, model)


def test_another_network_is_an_error():
    with pytest.raises(RuntimeError, match=r'lacks weights of the network.*stem\.weight.*convert'):
        checkpoint_filter_fn({'stem.weight': torch.ones(1)}, timm.create_model('test_res2net_se'))


LOAD = """
import sys, timm, torch, timm_res2net
from tests.common import image
model = timm.create_model(sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    torch.save(model(image()), sys.argv[2])
"""


def run_python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code, *args],
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_from_the_hub_then_offline(tmp_path):
    """The real client against a loopback server, then from its cache with the network off."""
    name = 'res2net50_48w_2s_se'
    plain, path = plain_weights(name, tmp_path)
    cache = {'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_DISABLE_XET': '1'}
    with hub() as server:
        server.add(get_pretrained_cfg(name).hf_hub_id, {'model.safetensors': path.read_bytes()})
        online = run_python(LOAD, name, str(tmp_path / 'online'), HF_ENDPOINT=server.url, **cache)
        assert online.returncode == 0, online.stderr
        assert server.count('GET /cdn/') == 1
    offline = run_python(LOAD, name, str(tmp_path / 'offline'), HF_HUB_OFFLINE='1', **cache)
    assert offline.returncode == 0, offline.stderr
    with torch.no_grad():
        expected = plain(image())
    assert torch.equal(torch.load(tmp_path / 'online'), expected)
    assert torch.equal(torch.load(tmp_path / 'offline'), expected)


# --- PaddleClas weights ------------------------------------------------------------------------


def paddle_name(name: str, deep: bool) -> str:
    """A timm name as PaddleClas spells it, written from its layout (not by the package's table)."""
    bn = {
        'weight': '_batch_norm.weight',
        'bias': '_batch_norm.bias',
        'running_mean': '_batch_norm._mean',
        'running_var': '_batch_norm._variance',
    }
    *path, leaf = name.split('.')
    if path[0] == 'fc':
        return f'out.{leaf}'
    if path[0] in ('conv1', 'bn1'):
        if not deep:
            return 'conv1._conv.weight' if path[0] == 'conv1' else f'conv1.{bn[leaf]}'
        place = 7 if path[0] == 'bn1' else int(path[1])  # conv, bn, relu, three times
        part = f'conv1_{place // 3 + 1}'
        return f'{part}._conv.weight' if place % 3 == 0 else f'{part}.{bn[leaf]}'
    stage, block = int(path[0][5:]) - 1, int(path[1])
    rest = path[2:]
    letter = chr(97 + block) if block < 26 else f'x{block}'  # any text: names are not unique here
    split = f'res{stage + 2}{letter}_branch2b_'
    split += str(int(rest[1]) + 1) if rest[0] in ('convs', 'bns') else ''
    module = {
        'convs': split,
        'bns': split,
        'conv1': 'conv0',
        'bn1': 'conv0',
        'conv3': 'conv2',
        'bn3': 'conv2',
        'downsample': 'short',
    }[rest[0]]
    is_conv = rest[0].startswith('conv') or rest == ['downsample', '1' if deep else '0']
    return f'bb_{stage}_{block}.{module}.{"_conv.weight" if is_conv else bn[leaf]}'


def paddle_file(name: str, path: Path, protocol: int = 2, **kwargs) -> dict[str, torch.Tensor]:
    """Write a .pdparams as `paddle.save` does and return its tensors by Paddle's names."""
    model = randomise(timm.create_model(name, **kwargs))
    deep = isinstance(model.conv1, nn.Sequential)
    arrays = {
        paddle_name(key, deep): (value.t() if key == 'fc.weight' else value).contiguous().numpy()
        for key, value in model.state_dict().items()
        if not key.endswith('num_batches_tracked')
    }
    table = {key: f'conv2d_{i}.w_0' for i, key in enumerate(arrays)}
    path.write_bytes(pickle.dumps({**arrays, 'StructuredToParameterName@@': table}, protocol))
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


SHALLOW = {'layers': (1, 2, 2, 1)}  # the same code in fewer layers
PADDLE = [name for name in NAMES if '_vd_' in name or '_pd_' in name]


def paddle_reference(name: str, tensors: dict[str, torch.Tensor], layers=None) -> Reference:
    deep = '_vd_' in name
    depth = name.removeprefix('res2net').split('_')[0]
    depths = {'50': (3, 4, 6, 3), '101': (3, 4, 23, 3), '200': (3, 12, 48, 3)}
    by_timm = {**tensors, 'out.weight': tensors['out.weight'].t()}
    return Reference(
        by_timm,
        'paddle',
        layers or depths[depth],
        8 if '8s' in name else 4,
        deep=deep,
        avg_down=deep,
        names=lambda key: paddle_name(key, deep),
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', PADDLE)
def test_paddle_weights_give_paddles_numbers(name, tmp_path):
    tensors = paddle_file(name, tmp_path / 'w.pdparams')
    overlay = {'file': str(tmp_path / 'w.pdparams'), 'custom_load': True}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        expected = paddle_reference(name, tensors)(image())
        # float32; the reference folds BatchNorm differently
        assert relative_error(model(image()), expected) < 2e-4


def test_paddle_weights_adapt_like_any_of_timms(tmp_path):
    name = 'res2net50_vd_26w_4s'
    tensors = paddle_file(name, tmp_path / 'w.pdparams', **SHALLOW)
    overlay = {'file': str(tmp_path / 'w.pdparams'), 'custom_load': True}
    kwargs = {'pretrained': True, 'pretrained_cfg_overlay': overlay, **SHALLOW}
    whole = timm.create_model(name, **kwargs).eval()
    x = image()
    with torch.no_grad():
        neck = timm.create_model(name, features_only=True, out_indices=(-1,), **kwargs).eval()
        assert torch.equal(neck(x)[0], whole.forward_features(x))
        few = timm.create_model(name, num_classes=5, **kwargs).eval()
        assert torch.equal(few.forward_features(x), whole.forward_features(x))
        assert few(x).shape == (2, 5)
        gated = timm.create_model(name, attn_layer='se', **kwargs).eval()
        assert torch.equal(gated(x), whole(x))
        grey = timm.create_model(name, in_chans=1, **kwargs).eval()
        summed = tensors['conv1_1._conv.weight'].sum(1, keepdim=True)  # how timm makes one of three
        torch.testing.assert_close(grey.conv1[0].weight, summed)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def from_url(name: str, url: str, cfg: dict | None = None, **kwargs) -> nn.Module:
    overlay = {'url': url, 'custom_load': True, **(cfg or {})}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_paddle_weights_by_url(tmp_path, torch_home):
    name, file = 'res2net50_vd_26w_4s', 'Res2Net50_vd_26w_4s_ssld_pretrained.pdparams'
    assert get_pretrained_cfg(name).url.endswith(f'/dygraph/{file}')
    assert get_pretrained_cfg(name).custom_load is True
    tensors = paddle_file(name, tmp_path / file, **SHALLOW)
    with serve({f'/{file}': tmp_path / file}) as (base, requests):
        model = from_url(name, f'{base}/{file}', **SHALLOW).eval()
        from_url(name, f'{base}/{file}', **SHALLOW)
        assert len(requests) == 1  # the second came from the cache
    with torch.no_grad():
        expected = paddle_reference(name, tensors, **SHALLOW)(image())
        assert relative_error(model(image()), expected) < 2e-4
    assert (torch_home / file).exists()


def test_a_file_that_paddle_wrote_by_url(torch_home):
    """By paddle.save, and what Paddle 3.3.1 answered: tests/fixtures/record_paddle.py."""
    recorded = json.loads((FIXTURES / 'paddle.json').read_text())
    with serve({'/paddle.pdparams': FIXTURES / 'paddle.pdparams'}) as (base, _):
        kwargs = {'url': f'{base}/paddle.pdparams', 'cfg': {'num_classes': 10}}
        kwargs.update(recorded['arguments'])
        model = from_url('res2net50_vd_26w_4s', **kwargs).eval()
    x = torch.from_numpy(values.image())
    with torch.no_grad():
        assert relative_error(model(x), torch.tensor(recorded['logits'])) < 1e-5  # float32
    # the server is gone: from the cache, with other heads, channels and features
    neck = from_url('res2net50_vd_26w_4s', features_only=True, out_indices=(-1,), **kwargs).eval()
    with torch.no_grad():
        assert torch.equal(neck(x)[0], model.forward_features(x))
    kwargs['num_classes'] = 3
    few = from_url('res2net50_vd_26w_4s', in_chans=1, **kwargs).eval()
    assert few(x[:, :1]).shape == (2, 3)


@pytest.mark.parametrize(
    ('name', 'file'),
    [('res2net50_ms_26w_4s', 'mindcv.ckpt'), ('res2net50d_ms_26w_4s', 'mindcv_v1b.ckpt')],
)
def test_a_file_that_mindspore_wrote_by_url(name, file, torch_home):
    """The plain network gives what MindCV 0.3.0 answered (tests/fixtures/record_mindcv.py), and the
    one with SE modules the same, bit for bit."""
    assert get_pretrained_cfg(name).url.startswith('https://download.mindspore.cn/')
    assert get_pretrained_cfg(name).url.endswith('.ckpt')
    case = json.loads((FIXTURES / 'mindcv.json').read_text())['files'][file]
    kwargs = dict(
        layers=record_mindcv.LAYERS,
        channels=tuple(record_mindcv.PLANES << i for i in range(4)),
        base_width=record_mindcv.BASE_WIDTH,
        num_classes=record_mindcv.CLASSES,
    )
    with serve({f'/{file}': FIXTURES / file}) as (base, _):
        cfg = {'num_classes': record_mindcv.CLASSES}
        model = from_url(name, f'{base}/{file}', cfg, **kwargs).eval()
        se = f'{name.removesuffix("_ms_26w_4s")}_se.se_identity_mindcv_in1k'
        assert get_pretrained_cfg(se).url == get_pretrained_cfg(name).url
        with_se = from_url(se, f'{base}/{file}', cfg, **kwargs).eval()
    x = torch.from_numpy(values.image(1, record_mindcv.SIZE))
    with torch.no_grad():
        assert relative_error(model(x), torch.tensor(case['logits'])) < 1e-5  # float32
        assert torch.equal(with_se(x), model(x))


def test_weights_of_other_semantics_do_not_load(torch_home):
    """The keys and shapes fit, and the outputs would be wrong."""
    overlay = {'file': str(FIXTURES / 'mindcv_v1b.ckpt'), 'num_classes': 10}
    kwargs = dict(layers=(1, 2, 1, 1), channels=(4, 8, 16, 32), base_width=32, num_classes=10)
    with pytest.raises(RuntimeError, match=r'official, and the model computes paddle.*semantics'):
        timm.create_model('res2net50_vd_26w_4s', True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.mark.parametrize('damage', ['cut short', 'another file'])
def test_a_bad_download_is_put_aside(damage, tmp_path, torch_home):
    name, file = 'res2net50_pd_26w_4s', 'Res2Net50_26w_4s_pretrained.pdparams'
    path = tmp_path / file
    paddle_file(name, path, **SHALLOW)
    good = path.read_bytes()
    if damage == 'cut short':
        path.write_bytes(good[:-1000])
    else:
        path.write_text('<html>Not found</html>')
    with serve({f'/{file}': path}) as (base, _):
        with pytest.raises(RuntimeError) as error:
            from_url(name, f'{base}/{file}', **SHALLOW)
        assert f'kept as {torch_home / file}.broken' in str(error.value)
        assert 'Run again' in str(error.value)
        assert (torch_home / f'{file}.broken').exists()
        assert not (torch_home / file).exists()
        path.write_bytes(good)
        from_url(name, f'{base}/{file}', **SHALLOW)  # the next call downloads again


@pytest.mark.parametrize(
    ('layers', 'words'),
    [
        ((1, 2, 3, 1), 'lacks weights of the network .*with the layers and the scale'),
        ((1, 2, 1, 1), 'does not fit: .*with the layers, scale'),
    ],
)
def test_a_sound_file_that_does_not_fit_stays(layers, words, tmp_path, torch_home):
    name, file = 'res2net50_pd_26w_4s', 'Res2Net50_26w_4s_pretrained.pdparams'
    paddle_file(name, tmp_path / file, **SHALLOW)
    with (
        serve({f'/{file}': tmp_path / file}) as (base, _),
        pytest.raises(RuntimeError, match=words),
    ):
        from_url(name, f'{base}/{file}', layers=layers, num_classes=5)
    assert (torch_home / file).exists()


@pytest.mark.parametrize('as_text', [str, Path])
def test_paddle_weights_of_the_disk(as_text, tmp_path):
    """A file of PaddleClas and what `convert` made of it load with the same words."""
    name = 'res2net50_vd_26w_4s'
    paddle_file(name, tmp_path / 'w.pdparams', **SHALLOW)
    convert_checkpoint(tmp_path / 'w.pdparams', tmp_path / 'net')

    def load(file: Path) -> nn.Module:
        overlay = {'file': as_text(file)}
        return timm.create_model(name, True, pretrained_cfg_overlay=overlay, **SHALLOW).eval()

    with torch.no_grad():
        expected = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()(
            image()
        )
        assert torch.equal(load(tmp_path / 'w.pdparams')(image()), expected)
        assert torch.equal(load(tmp_path / 'net' / 'model.safetensors')(image()), expected)


@pytest.mark.parametrize('file', ['w.pdparams', 'w.safetensors'])
def test_a_file_that_is_not_there(file, tmp_path):
    overlay = {'file': str(tmp_path / file)}
    with pytest.raises(FileNotFoundError, match=rf'There is no .*{file}. Check the path'):
        timm.create_model('res2net50_pd_26w_4s', True, pretrained_cfg_overlay=overlay)


def test_a_bad_local_file_stays_where_it_is(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_text('nothing')
    overlay = {'file': str(path), 'custom_load': True}
    with pytest.raises(RuntimeError, match=r'Cannot read .*w\.pdparams as a checkpoint: '):
        timm.create_model('res2net50_pd_26w_4s', True, pretrained_cfg_overlay=overlay, **SHALLOW)
    assert path.read_text() == 'nothing'


# --- the embedded model ------------------------------------------------------------------------


def test_the_embedded_model_loads_offline():
    path = Path(get_pretrained_cfg('test_res2net_se').file)
    assert path.stat().st_size < 1_000_000
    model = timm.create_model('test_res2net_se', pretrained=True)
    stored = load_file(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[key])
    assert model.pretrained_cfg['label_names'] == tuple('0123456789')
    assert timm.create_model('test_res2net_se.digits', True, num_classes=3).num_classes == 3


def test_no_weights_is_an_error():
    with pytest.raises(RuntimeError, match='No pretrained weights exist for res2net50_18w_4s'):
        timm.create_model('res2net50_18w_4s', pretrained=True)
    model = timm.create_model('res2net50_18w_4s', device='meta')
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        load_pretrained(model)
