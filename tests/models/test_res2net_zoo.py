"""The models: figures, cfgs, parity with timm, weights and how they load."""

import inspect
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import SEModule
from timm.models import get_pretrained_cfg, save_for_hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.common import (
    FIXTURES,
    HRNETS,
    NAMES,
    PADDLE,
    SE_NAMES,
    TINY,
    image,
    network,
    randomise,
    relative_error,
    slow_except,
)
from tests.fixtures import record_mindcv, values
from tests.hub.server import serve
from timm_res2net import Res2Net, detection_backbone
from timm_res2net.convert import COUNTS, file_of
from timm_res2net.models import hrnet_res2net
from timm_res2net.models.res2net_zoo import default_cfgs

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


@pytest.mark.parametrize('name', (*NAMES, *HRNETS))
def test_cfgs_are_filled(name):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name].params
    assert inspect.signature(timm.model_entrypoint(name)).parameters['pretrained'].default is False
    for tag in {**default_cfgs, **hrnet_res2net.default_cfgs}[name].tags:
        cfg = get_pretrained_cfg(f'{name}.{tag}')
        assert (cfg.architecture, cfg.tag) == (name, tag)
        for field in ('description', 'origin_url', 'paper_name', 'paper_ids', 'mean', 'std'):
            assert getattr(cfg, field), field
        assert bool(cfg.license) == bool(cfg.has_weights) == (tag != 'untrained')
        assert model.get_submodule(cfg.first_conv).in_channels == cfg.input_size[0]
        assert model.get_submodule(cfg.classifier).out_features == cfg.num_classes
        assert model.get_submodule(cfg.classifier) is model.get_classifier()
        assert 0.8 < cfg.crop_pct <= 1
        assert cfg.pool_size == tuple(side // 32 for side in cfg.input_size[1:])
        notes = ' '.join(cfg.notes or ())
        assert ('bit for bit' in notes) == tag.startswith('se_identity')
        assert ('names no license for the weights' in notes) == (cfg.license == 'unknown')
        if cfg.num_classes == 1000 and cfg.has_weights:
            assert file_of(f'{name}.{tag}').top1


@pytest.mark.parametrize('name', TIMM)
def test_parity_with_timm(name):
    ours = Res2Net(**TIMM[name][0], device='meta')
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 2) == TIMM[name][1]
    if '101' in name:  # which differ in depth
        return
    for narrow in NARROW, {**NARROW, 'output_stride': 8}:
        if narrow is NARROW or name != 'res2net50d':
            kwargs = {**TIMM[name][0], **narrow}
            check_parity(timm.create_model(name, **narrow), Res2Net(**kwargs))


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
    assert Res2Net(stem_type='deep', device='meta').bn1.num_features == 128  # twice stem_width
    # as timm initialises it: a normal of variance 2 / fan_out
    assert abs(float(model.conv1.weight.detach().std()) / (2 / (width * 49)) ** 0.5 - 1) < 0.1


@pytest.mark.parametrize(
    ('name', 'kwargs', 'kind', 'words'),
    [
        (TINY, {'channels': (15, 30, 60, 120)}, ValueError, r'channels\[0\]=15 must be even'),
        (TINY, {'scales': 1}, TypeError, "unexpected keyword argument 'scales'"),
        (TINY, {'out_indices': 1}, TypeError, "unexpected keyword argument 'out_indices'"),
        (TINY, {'block_args': 1}, TypeError, 'block_args.*Pass scale, attn_layer and semantics'),
        (HRNETS[0], {'head': 'pose'}, ValueError, "one of classification, incre, '', got 'pose'"),
        (HRNETS[0], {'wide': 1}, TypeError, "unexpected keyword argument.*'wide'"),
        (
            HRNETS[0],
            {'features_only': True, 'feature_cls': 'fx'},
            ValueError,
            "feature_cls='fx'.*use 'getter'",
        ),
    ],
)
def test_impossible_arguments(name, kwargs, kind, words):
    with pytest.raises(kind, match=words):
        timm.create_model(name, device='meta', **kwargs)


@pytest.mark.parametrize('aa_layer', ['avg', 'blur'])
def test_anti_aliasing_by_name(aa_layer):
    model = timm.create_model('test_res2net_se', aa_layer=aa_layer)
    assert not isinstance(model.maxpool, nn.MaxPool2d)
    assert model(image()).shape == (2, 10)


def test_arguments_of_a_folder_can_be_changed(tmp_path):
    """And `model_args`, which a saved folder gets, follow what was changed in memory."""
    model = timm.create_model(TINY, semantics='mmdet', attn_layer='eca', num_classes=5)
    save_for_hf(model, tmp_path, model_args=model.model_args, safe_serialization=True)
    changed = timm.create_model(f'local-dir:{tmp_path}', scale=2, attn_layer='', num_classes=3)
    assert (changed.layer1[0].scale, changed.layer1[0].se, changed.num_classes) == (2, None, 3)
    assert changed.model_args['semantics'] == 'mmdet'
    model.reset_classifier(3, 'avg')
    assert model.model_args['global_pool'] == 'avg' and 'num_classes' not in model.model_args


# --- squeeze-and-excitation at the identity ----------------------------------------------------


def from_file(name: str, path: Path, **kwargs) -> nn.Module:
    overlay = {'file': str(path)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


SE_QUICK = ('res2net50_14w_8s_se', 'res2next50_se', 'res2net50d_se')  # the others differ in figures


@pytest.mark.parametrize('name', slow_except(SE_QUICK, SE_NAMES))
def test_identity_gates_change_no_bit(name, tmp_path):
    """For the plain network of a name's cfg, with other heads, channels and features, too."""
    source, path = get_pretrained_cfg(name).hf_hub_id.removeprefix('timm/'), tmp_path / 'w'
    kwargs = {'layers': NARROW['layers'], 'channels': NARROW['channels']}
    plain = network(source, **kwargs)
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


# --- weights of PaddleClas and MindCV ----------------------------------------------------------


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def from_url(name: str, url: str, cfg: dict | None = None, **kwargs) -> nn.Module:
    overlay = {'url': url, 'custom_load': True, **(cfg or {})}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


VD = 'res2net50_vd_26w_4s'
RECORDED = json.loads((FIXTURES / 'paddle.json').read_text())
OF_PADDLE = {**RECORDED['arguments'], 'cfg': {'num_classes': 10}}


OF_MINDCV = {
    'layers': record_mindcv.LAYERS,
    'channels': tuple(record_mindcv.PLANES << i for i in range(4)),
    'base_width': record_mindcv.BASE_WIDTH,
    'num_classes': record_mindcv.CLASSES,
    'cfg': {'num_classes': record_mindcv.CLASSES},
}


@pytest.mark.parametrize(
    ('name', 'with_gates', 'file'),
    [
        (VD, VD, 'paddle.pdparams'),
        ('res2net50_ms_26w_4s', 'res2net50_se.se_identity_mindcv_in1k', 'mindcv.ckpt'),
        ('res2net50d_ms_26w_4s', 'res2net50d_se.se_identity_mindcv_in1k', 'mindcv_v1b.ckpt'),
    ],
)
def test_a_file_of_another_project_by_url(name, with_gates, file, torch_home):
    """As Paddle 3.3.1 and MindSpore 2.10.0 wrote it, and what PaddleClas's block in Paddle and
    MindCV 0.3.0 answered: record_paddle.py and record_mindcv.py in tests/fixtures."""
    is_paddle = name == VD
    kwargs = OF_PADDLE if is_paddle else OF_MINDCV
    case = RECORDED if is_paddle else json.loads((FIXTURES / 'mindcv.json').read_text())
    case = case if is_paddle else case['files'][file]
    with serve({f'/{file}': FIXTURES / file}) as base:
        kwargs = {'url': f'{base}/{file}', **kwargs}
        model = from_url(name, **kwargs).eval()
    x = torch.from_numpy(values.image() if is_paddle else values.image(1, record_mindcv.SIZE))
    stem = model.pretrained_cfg['first_conv']
    with torch.no_grad():
        assert relative_error(model(x), torch.tensor(case['logits'])) < 1e-5  # float32
        # the server is gone: from the cache, with gates and other heads, channels and features
        assert torch.equal(from_url(with_gates, attn_layer='se', **kwargs).eval()(x), model(x))
        neck = from_url(name, features_only=True, out_indices=(-1,), **kwargs).eval()
        assert torch.equal(neck(x)[0], model.forward_features(x))
        kwargs['num_classes'] = 3
        few = from_url(name, **kwargs).eval()
        assert torch.equal(few.forward_features(x), model.forward_features(x))
        gray = from_url(name, in_chans=1, **kwargs).get_submodule(stem).weight
        assert torch.equal(gray, model.get_submodule(stem).weight.sum(1, keepdim=True))


@pytest.mark.parametrize('feature_cls', ['list', 'getter'])
def test_features_of_a_paddle_file_without_a_classifier(feature_cls, tmp_path):
    path = tmp_path / 'body.pdparams'
    arrays = pickle.loads(PADDLE.read_bytes())
    path.write_bytes(pickle.dumps({k: v for k, v in arrays.items() if not k.startswith('out.')}))
    kwargs = {**RECORDED['arguments'], 'pretrained_cfg_overlay': {'file': str(path)}}
    x = torch.from_numpy(values.image())
    with torch.no_grad():
        body = timm.create_model(VD, True, **{**kwargs, 'num_classes': 0}).eval()
        neck = timm.create_model(VD, True, features_only=True, feature_cls=feature_cls, **kwargs)
        assert torch.equal(neck.eval()(x)[-1], body.forward_features(x))
        backbone = detection_backbone(VD, pretrained=True, **kwargs)
        levels = backbone.eval().body(x)
        torch.testing.assert_close(levels[-1], neck(x)[-1])  # frozen norms round differently
    kwargs['pretrained_cfg_overlay']['num_classes'] = 10
    with pytest.raises(RuntimeError, match=r'no classifier.*num_classes=0'):
        timm.create_model(VD, True, **kwargs)


@pytest.mark.parametrize('content', [PADDLE.read_bytes()[:-1000], b'<html>Not found</html>'])
def test_a_bad_download_is_put_aside(content, tmp_path, torch_home):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(content)
    with serve({'/w.pdparams': path}) as base:
        with pytest.raises(RuntimeError) as error:
            from_url(VD, f'{base}/w.pdparams', **OF_PADDLE)
        assert f'kept as {torch_home}/w.pdparams.broken. Run again' in str(error.value)
        assert (torch_home / 'w.pdparams.broken').exists()
        assert not (torch_home / 'w.pdparams').exists()
        path.write_bytes(PADDLE.read_bytes())
        from_url(VD, f'{base}/w.pdparams', **OF_PADDLE)  # the next call downloads again


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        ({'layers': (1, 2, 3, 1)}, 'lacks weights of the network .*with the layers and the scale'),
        ({'layers': (1, 2, 1, 1)}, 'does not fit: .*with the layers, scale'),
        # the keys and shapes fit, and the outputs would be wrong
        ({'semantics': 'official'}, 'are paddle, and the model computes official.*semantics'),
    ],
)
def test_a_sound_file_that_does_not_fit_stays(more, words, torch_home):
    kwargs = {**OF_PADDLE, 'num_classes': 5, **more}
    with (
        serve({'/w.pdparams': PADDLE}) as base,
        pytest.raises(RuntimeError, match=words),
    ):
        from_url(VD, f'{base}/w.pdparams', **kwargs)
    assert (torch_home / 'w.pdparams').exists()


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
