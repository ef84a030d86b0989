"""The models: figures, cfgs, parity with timm, weights and how they load."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import SEModule
from timm.models import get_pretrained_cfg, save_for_hf
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
from tests.hub.server import serve
from timm_res2net import Res2Net, convert_checkpoint
from timm_res2net.convert import COUNTS, file_of
from timm_res2net.models.res2net_zoo import default_cfgs

FIXTURES = Path(__file__).parents[1] / 'fixtures'
NARROW = {'layers': (1, 2, 1, 1), 'channels': (64, 32, 24, 40), 'num_classes': 7}
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


@pytest.mark.parametrize('name', slow_except([TINY, 'res2next50_se'], COUNTS))
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
def test_parity_with_timm(name):
    ours = Res2Net(**TIMM[name][0], device='meta')
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 2) == TIMM[name][1]
    for narrow in NARROW, {**NARROW, 'output_stride': 8}:
        if narrow is NARROW or 'd' not in name.removeprefix('res2net'):
            kwargs = {**TIMM[name][0], **narrow}
            check_parity(timm.create_model(name, **narrow), Res2Net(**kwargs))


@pytest.mark.slow
@pytest.mark.parametrize('name', TIMM)
def test_parity_with_timms_whole_networks(name):
    check_parity(timm.create_model(name), Res2Net(**TIMM[name][0]))


def check_parity(theirs, ours):
    """The same outputs, features and training step, bit for bit."""
    ours.load_state_dict(randomise(theirs).state_dict(), strict=True)
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


def test_same_seed_same_network_as_timm():
    torch.manual_seed(4)
    theirs = timm.create_model('res2net50_26w_4s', layers=(1, 2, 1, 1)).state_dict()
    torch.manual_seed(4)
    ours = Res2Net(layers=(1, 2, 1, 1)).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize('width', [48, 60])
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
        ({'aa_layer': 'max'}, "'max'", 'one of avg, blur, or a module class'),
        ({'channels': (15, 30, 60, 120)}, 'channels[0]=15', 'must be even'),
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


def from_file(name: str, path: Path, **kwargs) -> nn.Module:
    overlay = {'file': str(path)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.mark.parametrize('name', SE_NAMES)
def test_identity_gates_change_no_bit(name, tmp_path):
    """For the plain network of a name's cfg, with other heads, channels and features, too."""
    source, path = get_pretrained_cfg(name).hf_hub_id.removeprefix('timm/'), tmp_path / 'w'
    kwargs = {'layers': NARROW['layers'], 'channels': NARROW['channels']}
    plain = randomise(timm.create_model(source, **kwargs)).eval()
    torch.save(plain.state_dict(), path)
    x = image(1)
    with torch.no_grad():
        model = from_file(name, path, **kwargs)
        assert all(isinstance(b.se, SEModule) for b in model.layer1)
        assert torch.equal(model(x), plain(x))
        neck = from_file(name, path, features_only=True, **kwargs)
        levels = plain.forward_intermediates(x, intermediates_only=True)
        assert all(torch.equal(*pair) for pair in zip(neck(x), levels, strict=True))
        few = from_file(name, path, num_classes=5, **kwargs)
        assert torch.equal(few.forward_features(x), plain.forward_features(x))
        grey = from_file(name, path, in_chans=1, **kwargs)
        grey_plain = from_file(source, path, in_chans=1, **kwargs)
        assert torch.equal(grey(image(channels=1)), grey_plain(image(channels=1)))


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


SHALLOW = {'layers': (1, 2, 2, 1), 'channels': (24, 32, 40, 48)}  # the same code in fewer layers
PADDLE = [name for name in NAMES if '_vd_' in name or '_pd_' in name]


def paddle_reference(name: str, tensors: dict[str, torch.Tensor]) -> Reference:
    deep = '_vd_' in name
    by_timm = {**tensors, 'out.weight': tensors['out.weight'].t()}
    return Reference(
        by_timm,
        'paddle',
        SHALLOW['layers'],
        8 if '8s' in name else 4,
        deep=deep,
        avg_down=deep,
        names=lambda key: paddle_name(key, deep),
    )


@pytest.mark.parametrize('name', PADDLE)
def test_paddle_weights_give_paddles_numbers(name, tmp_path):
    """From a file, adapted like any of timm's, and from the folder that `convert` makes of it."""
    path, x = tmp_path / 'w.pdparams', image()
    tensors = paddle_file(name, path, **SHALLOW)
    kwargs = {'pretrained_cfg_overlay': {'file': path}, **SHALLOW}
    with torch.no_grad():
        expected = paddle_reference(name, tensors)(x)
        whole = timm.create_model(name, True, **kwargs).eval()
        # float32; the reference folds BatchNorm differently
        assert relative_error(whole(x), expected) < 2e-4
        neck = timm.create_model(name, True, features_only=True, out_indices=(-1,), **kwargs).eval()
        assert torch.equal(neck(x)[0], whole.forward_features(x))
        few = timm.create_model(name, True, num_classes=5, **kwargs).eval()
        assert torch.equal(few.forward_features(x), whole.forward_features(x))
        gated = timm.create_model(name, True, attn_layer='se', **kwargs).eval()
        assert torch.equal(gated(x), whole(x))
    if name == PADDLE[0]:
        convert_checkpoint(path, tmp_path / 'net')
        kwargs['pretrained_cfg_overlay'] = {'file': str(tmp_path / 'net' / 'model.safetensors')}
        with torch.no_grad():
            assert torch.equal(timm.create_model(name, True, **kwargs).eval()(x), whole(x))


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def from_url(name: str, url: str, cfg: dict | None = None, **kwargs) -> nn.Module:
    overlay = {'url': url, 'custom_load': True, **(cfg or {})}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


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
        from_url(name, f'{base}/{file}', **{**SHALLOW, 'layers': layers}, num_classes=5)
    assert (torch_home / file).exists()


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
