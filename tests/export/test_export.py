"""Exported files: what they compute, what their metadata says, and what is refused."""

import importlib.util
import json
import warnings
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from timm.models.hrnet import cfg_cls
from torch import nn

from tests.common import HRNETS, TINY, image, model_folder, randomise, relative_error
from timm_res2net import detection_backbone, export
from timm_res2net.cli import main
from timm_res2net.export import FORMATS, export_model

FLOAT = 1e-5  # float32, and what runtimes reorder
NARROW = {'layers': (2, 1, 1, 1), 'channels': (16, 16, 16, 16)}
LEVELS = {'features_only': True, 'out_indices': (1, 4)}


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason='needs the extra export')


needs_onnx = needs('onnxscript', 'onnxruntime')
needs_openvino = needs('openvino')


def narrow(name: str = TINY, **kwargs) -> nn.Module:
    return randomise(timm.create_model(name, **{**NARROW, **kwargs})).eval()


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


def metadata(path: Path, kind: str) -> dict:
    """What a file says of its model, and the names of its input and outputs if it has them."""
    files = {'timm_res2net.json': ''}
    if kind == 'pt2':
        torch.export.load(path, extra_files=files)
    elif kind == 'torchscript':
        torch.jit.load(path, _extra_files=files)
    elif kind == 'onnx':
        import onnx

        model = onnx.load(path)
        (files['timm_res2net.json'],) = (entry.value for entry in model.metadata_props)
        assert [port.name for port in model.graph.input] == ['image']
        dims = model.graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == ['batch', 3, 'height', 'width']
    else:
        import openvino

        model = openvino.Core().read_model(path)
        files['timm_res2net.json'] = model.get_rt_info('timm_res2net').astype(str)
        assert [port.get_names() for port in model.inputs] == [{'image'}]
    return json.loads(files['timm_res2net.json'])


def compare(found: list[torch.Tensor], model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        out = model(x)
    expected = out if isinstance(out, list) else [out]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < FLOAT


@pytest.mark.parametrize(
    ('kind', 'features', 'deploy'),
    [
        ('pt2', False, True),
        ('torchscript', True, True),
        pytest.param('onnx', True, False, marks=needs_onnx),
        pytest.param('openvino', False, False, marks=needs_openvino),
    ],
)
def test_files_compute_what_the_model_does(kind, features, deploy, tmp_path):
    """A model in memory in its eval form; at sizes and batches that the export did not see."""
    model = narrow(**(LEVELS if features else {'num_classes': 7})).train()
    model.conv1.requires_grad_(False)
    model.double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    needs_grad = [parameter.requires_grad for parameter in model.parameters()]
    out = tmp_path / f'net{FORMATS[kind].suffix}'
    done = export_model(torch.compile(model), out, kind, features=features, deploy=deploy)
    assert done.path == out
    assert done.outputs == (('layer1', 'layer4') if features else ('logits',))
    assert 0 <= done.error < FLOAT
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == needs_grad
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key]), key
    assert 'any size' in done.sizes or torch.__version__ < '2.14'  # 2.6: multiples of 32
    x = torch.randn(3, 3, *((69, 110) if 'any size' in done.sizes else (96, 64)))
    compare(run(out, kind, x), model.float().eval(), x)
    names = [out.name, *(f'net{suffix}' for suffix in FORMATS[kind].beside)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    meta, cfg = metadata(out, kind), timm.get_pretrained_cfg(TINY).to_dict()
    for key in ('mean', 'std', 'input_size'):
        assert meta[key] == list(cfg[key])
    for key in ('architecture', 'tag', 'interpolation', 'crop_pct', 'license'):
        assert meta[key] == cfg[key]
    if not features:
        assert meta['num_classes'] == 7
        assert 'label_names' not in meta  # those of ten digits


def small_hrnet() -> dict:
    return {f'stage{i}': cfg_cls['hrnet_w18_small_v2'][f'stage{i}'] for i in (2, 3, 4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'arguments', 'sizes'),
    [
        # shortcuts that round up take multiples of 32
        ('res2net50_v1d_26w_4s', NARROW, 'multiples of 32 px from 64 px'),
        ('res2net50_18w_4s', {**NARROW, 'attn_layer': 'eca', 'in_chans': 1}, 'any size from 33 px'),
        (HRNETS[0], small_hrnet(), 'multiples of 32 px from 64 px'),
    ],
)
def test_sizes(name, arguments, sizes, tmp_path):
    model = randomise(timm.create_model(name, **arguments)).eval()
    done = export_model(model, tmp_path / 'net.pt2', 'pt2', img_size=64)
    assert done.sizes == f'any batch, {sizes}'
    assert done.error < FLOAT
    x = torch.randn(5, arguments.get('in_chans', 3), 128, 96)
    compare(run(tmp_path / 'net.pt2', 'pt2', x), model, x)


@pytest.mark.slow
@needs_onnx
@needs_openvino
def test_a_network_of_full_depth(tmp_path):
    """timm's own, with fifty layers' worth of sums in another order; the file runs in OpenVINO."""
    model = randomise(timm.create_model('res2net50_26w_4s')).eval()
    done = export_model(model, tmp_path / 'net.onnx', img_size=64, deploy=True)
    assert done.error < FLOAT
    x = torch.randn(3, 3, 97, 134)
    for kind in ('onnx', 'openvino'):
        compare(run(done.path, kind, x), model, x)


def test_static(tmp_path):
    """A folder, with the number of images and a size that free files do not take."""
    source = model_folder(tmp_path / 'net', in_chans=1, num_classes=4, **NARROW)
    out = tmp_path / 'net.pt'
    done = export_model(source, out, static=True, batch_size=3, img_size=32)
    assert (done.format, done.sizes) == ('torchscript', '(3, 1, 32, 32)')
    meta = metadata(out, 'torchscript')
    assert meta['input_size'] == [1, 32, 32]
    assert meta['mean'] == pytest.approx([0.449], abs=1e-6)  # of the mean of three colors
    assert run(out, 'torchscript', image(3, 32, 1))[0].shape == (3, 4)


@pytest.mark.slow
def test_aoti(tmp_path):
    """Compiled by a C++ compiler for this machine, with weights that are packed at that time."""
    model = narrow(layers=(1, 1, 1, 1), scale=2)
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


def pyramid() -> nn.Module:
    model = detection_backbone(TINY)
    model.pretrained_cfg = {'input_size': (3, 64, 64)}
    return model


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
        (narrow, 'x.pt2', {'features': True}, 'Res2Net returns no feature levels'),
        (pyramid, 'x.pt2', {}, 'DetectionBackbone returns 5 outputs'),
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


@pytest.mark.parametrize('wrong', [1e-3, float('nan')])
@pytest.mark.parametrize(('size', 'static'), [(33, True), (64, False), (96, False)])
def test_a_file_with_other_outputs_is_not_written(size, static, wrong, tmp_path, monkeypatch):
    """At one of the sizes that are compared, and in the last level alone."""

    class Spoilt(export.Runner):
        def forward(self, images):
            *others, last = super().forward(images)
            bad = wrong * last.abs().max() if images.shape[2] == size else 0
            return [*others, last + bad]

    monkeypatch.setattr(export, 'Runner', Spoilt)
    options = {'img_size': 33, 'static': True} if static else {}
    with pytest.raises(ValueError, match=r'inf|1\.0e-03'):  # NaN is a difference
        export_model(narrow(layers=(1, 1, 1, 1), **LEVELS), tmp_path / 'x.pt', **options)
    assert list(tmp_path.iterdir()) == []


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
    assert "differ from the model's by at most " in second
    x = image(1, 96)
    model = timm.create_model(TINY, pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
    compare(run(out, 'torchscript', x), model.eval(), x)
    assert main(command) == 1
    assert 'already exists' in capsys.readouterr().err
