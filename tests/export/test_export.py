"""Exported files: what they compute, what their metadata says, and what is refused."""

import functools
import importlib.util
import json
import math
import re
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tests.common import (
    HRNETS,
    SMALL_HRNET,
    TINY,
    image,
    model_folder,
    needs,
    network,
    relative_error,
)
from timm_res2net import detection_backbone, export, load_exported, prediction
from timm_res2net.cli import main
from timm_res2net.export import FORMATS, export_model
from timm_res2net.export.formats import Network
from timm_res2net.prediction import Images

FREE = torch.__version__ >= '2.14'
FLOAT = 1e-5  # float32, and what runtimes reorder
NARROW = {'layers': (2, 1, 1, 1), 'channels': (16, 16, 16, 16)}
narrow = functools.partial(network, **NARROW)
needs_onnx = needs('export', 'onnxscript', 'onnxruntime')
needs_openvino = needs('export', 'openvino')
LEVELS = {'features_only': True, 'out_indices': (1, 4)}


def run(path: Path, kind: str, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of a file, read by the runtime's own means."""
    if kind == 'onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return [torch.from_numpy(a) for a in session.run(None, {'image': x.numpy()})]
    if kind == 'openvino':
        import openvino

        # by default it may compute in bfloat16
        compiled = openvino.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        found = compiled({'image': x.numpy()})
        return [torch.from_numpy(found[output]) for output in compiled.outputs]
    with torch.no_grad():
        if kind == 'pt2':
            return list(torch.export.load(path).module()(x))
        if kind == 'aoti':
            return list(torch._inductor.aoti_load_package(str(path))(x))
        return list(torch.jit.load(path)(x))


def compare(found: list[torch.Tensor], model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        out = model(x)
    expected = out if isinstance(out, list) else [out]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < FLOAT


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('pt2', {'static': True, 'deploy': True}),
        ('torchscript', {'features': True, 'deploy': True}),
        pytest.param('onnx', {'features': True}, marks=needs_onnx),
        pytest.param('openvino', {}, marks=needs_openvino),
        pytest.param('pt2', {}, marks=pytest.mark.slow),
    ],
)
def test_files_compute_what_the_model_does(kind, options, tmp_path):
    """A model in memory in its eval form; at sizes and batches that the export did not see."""
    features = 'features' in options
    model = narrow(**(LEVELS if features else {'num_classes': 7})).train()
    model.conv1.requires_grad_(False)
    model.double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    needs_grad = [parameter.requires_grad for parameter in model.parameters()]
    out = tmp_path / f'net{FORMATS[kind].suffix}'
    done = export_model(torch.compile(model), out, kind, **options)
    assert done.path == out
    assert done.outputs == (('layer1', 'layer4') if features else ('logits',))
    assert 0 <= done.error < FLOAT
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == needs_grad
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key]), key
    free, old = (3, 3, 69, 110), (3, 3, 96, 64)  # torch 2.6 takes multiples of 32
    x = torch.randn((1, 3, 64, 64) if 'static' in options else free if FREE else old)
    compare(run(out, kind, x), model.float().eval(), x)
    module = load_exported(out, threads=1)
    compare(export.as_tuple(module(x)), model, x)
    assert isinstance(module(x), list) if features else module(x).shape == (len(x), 7)
    # torch's own files also run on other devices, in torch 2.6 those of torch.export alone
    if kind == 'pt2' or (kind == 'torchscript' and FREE):
        for output in export.as_tuple(load_exported(out, 'meta')(x.to('meta'))):
            assert output.is_meta
    if features:
        keys = ['module', 'num_chs', 'reduction']
        assert module.feature_info.get_dicts(keys) == model.feature_info.get_dicts(keys)
    names = [out.name, *(f'net{suffix}' for suffix in FORMATS[kind].beside)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    meta, cfg = module.pretrained_cfg, timm.get_pretrained_cfg(TINY).to_dict()
    for key in ('architecture', 'tag', 'input_size', 'interpolation', 'crop_pct', 'license'):
        assert meta[key] == cfg[key]
    if not features:
        assert meta['num_classes'] == module.num_classes == 7
        assert 'label_names' not in meta  # those of ten digits
    model.pretrained_cfg = {**cfg, **options}
    assert torch.equal(*(Images(net).load(None) for net in (module, model)))


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('torchscript', {'static': True}),
        pytest.param('onnx', {}, marks=needs_onnx),
        pytest.param('openvino', {}, marks=needs_openvino),
        pytest.param('pt2', {'static': True}, marks=pytest.mark.slow),
        pytest.param('openvino', {'int8': 'images'}, marks=[needs_openvino, pytest.mark.slow]),
    ],
)
def test_with_preparation(kind, options, tmp_path, monkeypatch, capsys):
    """Pixels in, probabilities out; what prepares images itself is told so."""
    monkeypatch.chdir(tmp_path)
    if 'int8' in options:
        pytest.importorskip('nncf')
        for i in range(64):
            pixels = torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(i))
            (tmp_path / 'images').mkdir(exist_ok=True)
            Image.fromarray(pixels.byte().numpy()).save(tmp_path / 'images' / f'{i}.png')
        options = {**options, 'accept_loss': True, 'min_agreement': 0}
    model = narrow(num_classes=7)
    model.pretrained_cfg = {**model.pretrained_cfg, 'problem_type': None}
    if kind == 'onnx':
        model.pretrained_cfg['problem_type'] = 'multi_label_classification'
    colors = {'mean': [0.3, 0.5, 0.6], 'std': [0.1, 0.2, 0.3]}
    out = tmp_path / f'net{FORMATS[kind].suffix}'
    done = export_model(model, out, kind, with_preparation=True, **colors, **options)
    assert done.outputs == ('probabilities',)
    size = (1, 64, 64, 3) if 'static' in options else (3, 64, 96, 3)
    pixels = torch.randint(256, size, dtype=torch.uint8)
    mean, std = (torch.tensor(colors[key])[:, None, None] for key in ('mean', 'std'))
    with torch.no_grad():
        logits = model((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    expected = logits.sigmoid() if kind == 'onnx' else logits.softmax(1)
    module = load_exported(out, threads=1)
    limit = 0.3 if 'int8' in options else FLOAT
    for got in (run(out, kind, pixels)[0], module(pixels)):
        assert relative_error(got, expected) < limit
    assert main(['check', str(out)]) == 0
    assert 'probabilities of one image are finite' in capsys.readouterr().out
    assert not {'mean', 'std', 'divide_by'} & module.pretrained_cfg.keys()
    with pytest.raises(ValueError, match=r'uint8 \(B, H, W, C\).*got torch.float32'):
        module(torch.zeros(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'arguments', 'sizes'),
    [
        # shortcuts that round up take multiples of 32
        ('res2net50_v1d_26w_4s', NARROW, 'multiples of 32 px from 64 px'),
        ('res2net50_18w_4s', {**NARROW, 'attn_layer': 'eca', 'in_chans': 1}, 'any size from 33 px'),
        (HRNETS[0], SMALL_HRNET, 'multiples of 32 px from 64 px'),
    ],
)
def test_sizes(name, arguments, sizes, tmp_path):
    model = network(name, **arguments)
    done = export_model(model, tmp_path / 'net.pt2', 'pt2', img_size=64)
    assert done.sizes == f'any batch, {sizes}'
    assert done.error < FLOAT
    x = torch.randn(5, arguments.get('in_chans', 3), 128, 96)
    compare([load_exported(done.path)(x)], model, x)


@pytest.mark.slow
@needs_onnx
@needs_openvino
def test_a_network_of_full_depth(tmp_path):
    """timm's own, with fifty layers' worth of sums in another order; the file runs in OpenVINO."""
    model = network('res2net50_26w_4s')
    done = export_model(model, tmp_path / 'net.onnx', img_size=64, deploy=True)
    assert done.error < FLOAT
    x = torch.randn(3, 3, 97, 134)
    for kind in ('onnx', 'openvino'):
        compare(run(done.path, kind, x), model, x)


@pytest.mark.parametrize('in_memory', [False, True])
def test_static(in_memory, tmp_path):
    """Of gray images, with the number of images and a size that free files do not take."""
    shape = {'in_chans': 1, 'num_classes': 4, **NARROW}
    source = narrow(**shape) if in_memory else model_folder(tmp_path / 'net', **shape)
    out = tmp_path / 'net.pt'
    done = export_model(source, out, static=True, batch_size=3, img_size=32)
    assert (done.format, done.sizes) == ('torchscript', '(3, 1, 32, 32)')
    meta = load_exported(out).pretrained_cfg
    assert meta['input_size'] == (1, 32, 32)
    assert meta['mean'] == pytest.approx([0.449], abs=1e-6)  # of the mean of three colors
    assert load_exported(out)(image(3, 32, 1)).shape == (3, 4)
    # four images are a batch of three and one, which is filled
    photos = [torch.full((1, 32, 32), 60 * i, dtype=torch.uint8) for i in range(4)]
    static = list(prediction.predict(load_exported(out), photos))
    alone = [next(prediction.predict(load_exported(out), [photo])) for photo in photos]
    assert [row.top[0][0] for row in static] == [row.top[0][0] for row in alone]
    assert len({row.top for row in static}) == 4


@pytest.mark.slow
def test_aoti(tmp_path):
    """Compiled by a C++ compiler for this machine, with weights that are packed at that time."""
    model = narrow(features_only=True, out_indices=(1,), layers=(1, 1, 1, 1), scale=2)
    done = export_model(model, tmp_path / 'net.pt2', 'aoti', deploy=True, static=True)
    assert done.error < FLOAT
    x = image(1)
    compare(run(done.path, 'aoti', x), model, x)
    package = torch._inductor.aoti_load_package(str(done.path))
    assert json.loads(package.get_metadata()['timm_res2net'])['architecture'] == TINY
    with zipfile.ZipFile(done.path) as archive:
        code = b''.join(archive.read(name) for name in archive.namelist() if name.endswith('.cpp'))
    assert b'mkldnn__convolution_pointwise(' in code
    assert b'cpu_convolution(' not in code


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('target', 'file', 'kwargs', 'value'),
    [
        (TINY, 'x.bin', {'format': 'tflite'}, 'tflite'),
        (TINY, 'x.bin', {}, "'x.bin' as pt2"),
        (TINY, 'x.bin', {'format': None}, "'x.bin'"),
        (TINY, 'x.pt2', {'img_size': 32}, 'at least 33 unless static=True (--static), got 32'),
        (TINY, 'no/x.pt2', {}, "'{tmp}/no'"),
        (TINY, 'is.pt2', {}, 'is.pt2 already exists'),
        (TINY, 'is.xml', {'format': 'openvino'}, 'is.bin already exists'),
        ('res2next101', 'x.pt2', {}, "weights for 'res2next101'"),
        ('convnext_atto', 'x.pt2', {'features': True, 'pretrained': False}, '(1, 2, 3, 4)'),
        ('resnet18', 'x.pt2', {'deploy': True, 'pretrained': False}, 'no Res2Net block'),
        (lambda: nn.Conv2d(3, 4, 1), 'x.pt2', {}, 'Conv2d has no pretrained_cfg'),
        (narrow, 'x.pt2', {'label_names': ['a', 'b']}, '2 label names for 10 classes'),
        (narrow, 'x.pt2', {'label_names': 'abcdefghij'}, "'abcdefghij'"),
        (narrow, 'x.pt2', {'mean': [math.nan] * 3}, 'mean=[nan, nan, nan]'),
        (narrow, 'x.pt2', {'input_size': (5, 64, 64)}, '(2, 5, 64, 64)'),
        (narrow, 'x.pt2', {'features': True}, 'Res2Net returns no feature levels'),
        (
            lambda: nn.Conv2d(3, 4, 1),
            'x.pt2',
            {'input_size': (3, 64, 64), 'with_preparation': True, 'crop_pct': 0.9},
            'how images are prepared',
        ),
    ],
)
def test_refused(target, file, kwargs, value, tmp_path):
    kept = {name: (tmp_path / name).write_text('mine') for name in ('is.bin', 'is.pt2')}
    if file == 'is.xml' and importlib.util.find_spec('openvino') is None:
        pytest.skip('needs the extra export')
    target = target if isinstance(target, str) else target()
    with pytest.raises((ValueError, OSError)) as error:
        export_model(target, tmp_path / file, **{'format': 'pt2', **kwargs})
    assert value.format(tmp=tmp_path.resolve()) in str(error.value)
    assert {path.name: len(path.read_text()) for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ('package', 'extra'),
    [('onnx', 'export'), ('onnxscript', 'export'), ('onnxruntime', 'export'), ('nncf', 'int8')],
)
def test_a_missing_package(package, extra, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, 'find_spec', lambda name: name != package or None)
        with pytest.raises(ValueError, match=rf'{package} .*timm-res2net\[{extra}\]'):
            export_model(TINY, tmp_path / 'x.onnx', int8=tmp_path)


def test_an_exporter_that_fails(tmp_path, monkeypatch):
    """Its error comes in one sentence, with what may help, and nothing is left behind."""

    def refuse(*args, **kwargs):
        raise RuntimeError('\nUnsupported: aten::made_up\n  deep inside\n')

    monkeypatch.setattr(torch.jit, 'trace', refuse)
    with pytest.raises(ValueError, match=r'\(RuntimeError: Unsupported: aten::made_up\).*--static'):
        export_model(narrow(), tmp_path / 'x.pt')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('size', 'static', 'wrong'),
    [(33, True, 1e-3), (64, False, float('nan')), (96, False, 1e-3), (64, False, None)],
)
def test_a_file_with_other_outputs_is_not_written(size, static, wrong, tmp_path, monkeypatch):
    """At one of the sizes that are compared, and in the last level alone, which may be missing."""

    class Spoilt(export.Runner):
        def forward(self, images):
            *others, last = export.as_tuple(super().forward(images))
            if wrong is None:
                return others
            bad = wrong * last.abs().max() if images.shape[2] == size else 0
            return [*others, last + bad]

    monkeypatch.setattr(export, 'Runner', Spoilt)
    options = {'img_size': 33, 'static': True} if static else {}
    with pytest.raises(ValueError, match=r'inf|1\.0e-03|zip\(\)'):  # NaN is a difference
        export_model(narrow(layers=(1, 1, 1, 1), **LEVELS), tmp_path / 'x.pt', **options)
    assert list(tmp_path.iterdir()) == []


# --- modules of any kind --------------------------------------------------------------------------


class Heads(nn.Module):
    """A network with a Res2Net inside, whose outputs have names or not."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.body, self.names = narrow(features_only=True, out_indices=(1, 2)), names
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, images):
        outputs = [self.head(level) for level in self.body(images)]
        return dict(zip(self.names, outputs, strict=True)) if self.names else outputs[0]


@pytest.mark.parametrize(
    ('kind', 'names'),
    [
        pytest.param('openvino', ('mask', 'edges'), marks=needs_openvino),
        ('torchscript', ()),
        pytest.param('onnx', ('mask', 'edges'), marks=[needs_onnx, pytest.mark.slow]),
        pytest.param('pt2', ('mask', 'edges'), marks=pytest.mark.slow),
    ],
)
def test_a_module_that_is_not_of_timm(kind, names, tmp_path):
    model, out = Heads(names).eval(), tmp_path / f'net{FORMATS[kind].suffix}'
    done = export_model(model, out, kind, input_size=(3, 64, 96))
    assert done.outputs == (names or ('output0',))
    module = load_exported(out)
    meta = module.pretrained_cfg
    assert meta['input_size'] == (3, 64, 96)
    assert not {'mean', 'resize_to', 'num_classes'} & meta.keys()  # nothing is made up
    x = torch.randn(3, 3, 96, 128)
    got, expected = module(x), model(x)
    assert isinstance(got, list) if names else torch.is_tensor(got)
    for one, other in zip(export.as_tuple(got), export.as_tuple(expected), strict=True):
        assert relative_error(one, other) < FLOAT


def test_the_limit_follows_the_rounding_of_the_network(monkeypatch, tmp_path):
    """Two outputs, of which one is a small difference of large numbers; the message names it."""

    class Cancelling(Heads):
        def forward(self, images):
            exact = super().forward(images)['mask']
            return {'exact': exact, 'rough': (exact + self.large) - self.large}

    class Off(export.Runner):
        def forward(self, images):
            outputs = dict(zip(self.outputs, super().forward(images), strict=True))
            outputs[name] += off * outputs[name].abs().max()
            return list(outputs.values())

    model = Cancelling(('mask', 'edges')).eval()
    model.register_buffer('large', torch.tensor(3e3))
    monkeypatch.setattr(export, 'Runner', Off)
    for name, off, passes in (('rough', 3e-4, True), ('rough', 0.1, False), ('exact', 3e-4, False)):
        out = tmp_path / f'{name} {off}.pt'
        if passes:
            assert export_model(model, out, input_size=(3, 64, 64)).error > 1e-4
        else:
            with pytest.raises(ValueError, match=f"'{name}'"):
                export_model(model, out, input_size=(3, 64, 64))


@pytest.mark.parametrize(('in_chans', 'interpolation'), [(1, 'bicubic'), (3, 'bilinear')])
def test_the_text_in_a_file_is_enough_to_prepare_images(in_chans, interpolation, tmp_path):
    """By NumPy and Pillow alone, as the README does; any size of photo."""
    page = (Path(export.__file__).parent / 'README.md').read_text()
    (code,) = (
        block for block in re.findall(r'```python\n(.*?)```', page, re.S) if 'def prep' in block
    )
    assert set(re.findall(r'(?:from|import) (\w+)', code)) == {'numpy', 'PIL', 'Image'}
    names: dict = {}
    exec(code, names)
    data = {'mean': [0.3] * in_chans, 'std': [0.2] * in_chans, 'crop_pct': 0.9}
    model, out = narrow(num_classes=2), tmp_path / 'net.pt'
    model.conv1.weight = nn.Parameter(model.conv1.weight[:, :in_chans])  # as if it was replaced
    data |= {'label_names': ['a', 'b'], 'interpolation': interpolation}
    export_model(model, out, img_size=64, **data)
    module = load_exported(out)
    meta = module.pretrained_cfg
    assert (meta['label_names'], meta['int8'], meta['crop_mode']) == (('a', 'b'), False, 'center')
    load = Images(module).load
    for width, height in ((201, 97), (97, 150), (65, 65), (40, 33)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'photo.png')
        prepared = names['prepare'](tmp_path / 'photo.png', meta)
        assert prepared.dtype == np.float32
        assert np.abs(prepared - load(tmp_path / 'photo.png')[None].numpy()).max() < 1e-5


def test_pixels_of_noise_are_noise():
    """What the comparison gives a file with preparation is what it gives the others."""
    whole, x = Network(narrow(), 'net'), image().clamp(-1, 1)
    whole.include_preparation()
    data = timm.data.resolve_model_data_config(whole.model)
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ('mean', 'std'))
    pixels = whole.as_input(x)
    assert (pixels.dtype, pixels.shape[-1]) == (torch.uint8, 3)
    normalized = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    assert (normalized - x).abs().max() < 0.51 / 255 / std.min()  # half a step


# --- loaded ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> dict[str, Path]:
    """The digits model in files; levels as TorchScript, and logits for one shape."""
    folder, files = tmp_path_factory.mktemp('exported'), {}
    for name, options in (('logits.pt', {}), ('levels.pt', {'features': True}),
                          ('static.pt', {'static': True}), ('logits.xml', {})):  # fmt: skip
        if name != 'logits.xml' or importlib.util.find_spec('openvino'):
            files[name] = export_model(TINY, folder / name, **options).path
    return files


def test_what_a_loaded_file_refuses(exported, tmp_path):
    module, static = load_exported(exported['logits.pt']), load_exported(exported['static.pt'])
    assert not module.eval().training and not list(module.parameters())
    assert module.to('cpu') is module.float()
    damaged = tmp_path / 'x.pt2'
    damaged.write_text('no model')
    (tmp_path / 'x.onnx').touch()
    torch.save({}, tmp_path / 'weights.pt')
    for refused, value in (
        (lambda: module(image(1).requires_grad_()), 'torch.no_grad'),
        (lambda: nn.Sequential(module).train(), 'cannot be trained'),
        (lambda: nn.Sequential(module).to('meta'), 'meta'),
        (lambda: module.half(), 'float16'),
        (lambda: static(image(2)), '(1, 3, 64, 64), got (2, 3, 64, 64)'),
        (lambda: load_exported(tmp_path / 'no.xml'), 'no.xml'),
        (lambda: load_exported(tmp_path / 'weights.pt'), 'weights.pt is not a file that'),
        (lambda: load_exported(tmp_path / 'x.onnx', 'cuda'), 'cuda'),
        (lambda: load_exported(damaged), 'x.pt2'),
        (lambda: detection_backbone(module), 'no feature levels'),
    ):
        with pytest.raises((ValueError, OSError)) as error:
            refused()
        assert value in str(error.value)
    with torch.no_grad():
        assert module(image(1).requires_grad_()).shape == (1, 10)


@pytest.mark.parametrize('name', ['logits.pt', pytest.param('logits.xml', marks=needs_openvino)])
def test_four_threads_get_the_results_of_one(name, exported):
    """Bit for bit, also after the outputs' memory could have been used again."""
    module = load_exported(exported[name], threads=1)
    images = [image(2, 64 + 8 * i) for i in range(4)]
    expected = [module(x).clone() for x in images]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(module, 10 * images))
    assert all(map(torch.equal, results, 10 * expected))


def test_a_pyramid_takes_a_loaded_file(exported):
    backbone = detection_backbone(load_exported(exported['levels.pt']), norm='frozen')
    assert [level.shape[1] for level in backbone(image(1)).values()] == [256] * 5


def test_commands_take_a_file(exported, capsys):
    digits = str(prediction.DIGITS)
    for name in ('levels.pt', 'logits.pt', 'static.pt'):
        assert main(['check', str(exported[name])]) == 0
        assert capsys.readouterr().out.startswith('ok ')
        if name != 'levels.pt':
            assert main(['predict', str(exported[name]), digits, digits]) == 0
            of_file = capsys.readouterr().out
            assert main(['predict', TINY, digits, digits]) == 0
            assert of_file == capsys.readouterr().out


# --- the command ----------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    out = tmp_path / 'net.pt'
    command = ['export', TINY, '--format', 'torchscript', '--features', '--out', str(out)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert main(command) == 0
    assert not [warning for warning in caught if 'torch.jit' in str(warning.message)]
    first, second = capsys.readouterr().out.splitlines()
    assert f'{out}: image -> layer1, layer2, layer3, layer4; takes any batch' in first
    assert "match the model's to within " in second
    model = timm.create_model(TINY, pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
    compare(load_exported(out)(image(1, 96)), model.eval(), image(1, 96))
    assert main(command) == 1
    assert 'already exists' in capsys.readouterr().err
