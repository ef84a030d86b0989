"""Files for other runtimes: what they compute, what they tell, and what is refused."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from tests.common import HRNETS, image, model_folder, randomise, relative_error, slow_except
from timm_res2net import detection_backbone, export, reparameterize_model
from timm_res2net.cli import main
from timm_res2net.export import FORMATS, export_model
from timm_res2net.hub.fetch import load_model

NAME = 'test_res2net_se'
FLOAT = 1e-5  # float32, and what runtimes reorder
ODD = (3, 69, 110)
QUICK = ('pt2', 'torchscript')
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec('onnxscript') is None
    or importlib.util.find_spec('onnxruntime') is None,
    reason='needs the extra export',
)
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec('openvino') is None, reason='needs the extra export'
)
every_format = pytest.mark.parametrize(
    'kind',
    [
        *QUICK,
        pytest.param('onnx', marks=needs_onnx),
        pytest.param('openvino', marks=[needs_openvino, pytest.mark.slow]),
    ],
)


def run(path: Path, kind: str, x: torch.Tensor) -> list[torch.Tensor]:
    """What a file answers, read by the runtime's own means."""
    if kind == 'onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return [torch.from_numpy(a) for a in session.run(None, {'image': x.numpy()})]
    if kind == 'openvino':
        import openvino

        # by default it may compute in bfloat16
        config = {'INFERENCE_PRECISION_HINT': 'f32'}
        compiled = openvino.compile_model(path, 'CPU', config)
        found = compiled({'image': x.numpy()})
        return [torch.from_numpy(found[output]) for output in compiled.outputs]
    with torch.no_grad():
        if kind == 'pt2':
            return list(torch.export.load(path).module()(x))
        if kind == 'aoti':
            return list(torch._inductor.aoti_load_package(str(path))(x))
        return list(torch.jit.load(path)(x))


def check(found: list[torch.Tensor], model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        out = model(x)
    expected = out if isinstance(out, list) else [out]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < FLOAT


@every_format
@pytest.mark.parametrize(
    ('features', 'deploy'),
    slow_except([(True, True)], itertools.product([False, True], repeat=2)),
)
def test_they_compute_what_the_model_does(kind, features, deploy, tmp_path):
    """SE's gates, at sizes and batches that the export did not see."""
    source = model_folder(tmp_path / 'net', num_classes=7)
    out = tmp_path / f'net{FORMATS[kind].suffix}'
    done = export_model(source, out, kind, features=features, deploy=deploy)
    levels = {'features_only': True, 'out_indices': (1, 2, 3, 4)} if features else {}
    model = load_model(source, **levels).eval()
    names = tuple(model.feature_info.module_name()) if features else ('logits',)
    assert done.path == out
    assert done.outputs == names
    assert 0 <= done.error < FLOAT
    any_size = 'any size' in done.sizes
    assert any_size or torch.__version__ < '2.14'  # 2.6 exports this model for multiples of 32
    for shape in (ODD if any_size else (3, 96, 64), (1, 64, 64)):
        x = torch.randn(shape[0], 3, *shape[1:])
        check(run(out, kind, x), model, x)
    written = [out.name, *(f'net{suffix}' for suffix in FORMATS[kind].beside)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['net', *written])
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in written} == {0o644}


OTHERS = {
    # shortcuts that round up take multiples of 32
    'res2net50_18w_4s': ({'layers': (1, 1, 1, 1)}, 'any batch, any size from 33 px'),
    'res2net50_v1d_26w_4s': ({'layers': (2, 1, 1, 1)}, 'any batch, multiples of 32 px from 64 px'),
    'res2net50_vd_26w_4s': (
        {'layers': (1, 1, 1, 1), 'attn_layer': 'eca', 'in_chans': 1},
        'any batch, multiples of 32 px from 64 px',
    ),
    'res2net50_16w_4s_se': ({'layers': (1, 1, 1, 1)}, 'any batch, any size from 33 px'),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_sizes(name, tmp_path):
    arguments, sizes = OTHERS[name]
    source = model_folder(tmp_path / 'net', name, **arguments)
    done = export_model(source, tmp_path / 'net.pt2', 'pt2', features=True, img_size=96)
    assert done.sizes == sizes
    assert done.error < FLOAT
    model = load_model(source, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    x = torch.randn(5, arguments.get('in_chans', 3), 128, 64)
    check(run(tmp_path / 'net.pt2', 'pt2', x), model, x)


@pytest.mark.slow
@needs_onnx
def test_a_plain_network_of_full_depth_as_onnx(tmp_path):
    """timm's own, without attention, with fifty layers' worth of sums in another order."""
    source = tmp_path / 'net'
    model = randomise(timm.create_model('res2net50_26w_4s')).eval()
    save_for_hf(model, source, safe_serialization=True)
    done = export_model(source, tmp_path / 'net.onnx', img_size=96)
    assert done.error < FLOAT
    x = torch.randn(3, 3, 97, 134)
    check(run(done.path, 'onnx', x), model, x)


@pytest.mark.slow
def test_an_hrnet(tmp_path):
    from timm.models.hrnet import cfg_cls

    small = {f'stage{i}': cfg_cls['hrnet_w18_small_v2'][f'stage{i}'] for i in (2, 3, 4)}
    source = model_folder(tmp_path / 'net', HRNETS[0], **small)
    done = export_model(source, tmp_path / 'net.pt2', 'pt2', img_size=64)
    assert done.sizes == 'any batch, multiples of 32 px from 64 px'
    x = image(3, 96)
    check(run(tmp_path / 'net.pt2', 'pt2', x), load_model(source).eval(), x)


@pytest.mark.parametrize('kind', slow_except(['torchscript'], QUICK))
def test_static(kind, tmp_path):
    out = tmp_path / f'net{FORMATS[kind].suffix}'
    done = export_model(NAME, out, kind, static=True, batch_size=3, img_size=32)
    assert done.sizes == '(3, 3, 32, 32)'
    assert stored(out, kind)['input_size'] == [3, 32, 32]
    x = image(3, 32)
    check(run(out, kind, x), timm.create_model(NAME, pretrained=True).eval(), x)
    if kind == 'pt2':
        with pytest.raises(Exception, match='32'):  # torch's own guard
            run(out, kind, image(3, 64))


@pytest.mark.slow
def test_aoti(tmp_path):
    """Compiled by a C++ compiler for this machine: a small network, since that takes its time."""
    source = model_folder(tmp_path / 'net', layers=(1, 1, 1, 1), scale=2, channels=(16, 16, 16, 16))
    done = export_model(source, tmp_path / 'net.pt2', 'aoti', deploy=True, static=True)
    assert done.error < FLOAT
    x = image(1)
    check(run(done.path, 'aoti', x), load_model(source).eval(), x)
    package = torch._inductor.aoti_load_package(str(done.path))
    assert json.loads(package.get_metadata()['timm_res2net'])['architecture'] == NAME
    with zipfile.ZipFile(done.path) as archive:  # weights are packed when it is compiled
        code = b''.join(archive.read(name) for name in archive.namelist() if name.endswith('.cpp'))
    assert b'mkldnn__convolution_pointwise(' in code
    assert b'cpu_convolution(' not in code


@pytest.mark.slow
@needs_onnx
@needs_openvino
@pytest.mark.parametrize('features', [False, True])
def test_an_onnx_file_in_openvino(features, tmp_path):
    source = model_folder(tmp_path / 'net')
    export_model(source, tmp_path / 'net.onnx', features=features, deploy=True)
    levels = {'features_only': True, 'out_indices': (1, 2, 3, 4)} if features else {}
    x = torch.randn(ODD[0], 3, *ODD[1:])
    check(run(tmp_path / 'net.onnx', 'openvino', x), load_model(source, **levels).eval(), x)


@needs_openvino
def test_an_openvino_file(tmp_path):
    """From memory, of a size that multiples of 32 px do not suit, with its preparation."""
    import openvino

    arguments = {'layers': (1, 1, 1, 1), 'scale': 2, 'channels': (8, 8, 8, 8)}
    model = randomise(timm.create_model('test_res2net_se', in_chans=1, num_classes=4, **arguments))
    done = export_model(model.eval(), tmp_path / 'net.xml', img_size=33)
    assert done.format == 'openvino'
    assert done.sizes == 'any batch, any size that the model takes'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['net.bin', 'net.xml']
    x = torch.randn(2, 1, 45, 61)
    check(run(done.path, 'openvino', x), model, x)
    file = openvino.Core().read_model(done.path)
    assert [sorted(port.get_names()) for port in (*file.inputs, *file.outputs)] == [
        ['image'],
        ['logits'],
    ]
    meta = json.loads(file.get_rt_info('timm_res2net').astype(str))
    assert meta['input_size'] == [1, 33, 33]
    assert meta['mean'] == pytest.approx([0.449], abs=1e-6)  # of the mean of three colors
    assert meta['num_classes'] == 4
    assert 'label_names' not in meta  # those of ten digits


@needs_onnx
def test_what_an_onnx_file_tells(tmp_path):
    import onnx

    export_model(NAME, tmp_path / 'net.onnx')
    model = onnx.load(tmp_path / 'net.onnx')
    (entry,) = model.graph.input
    dims = [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
    assert (entry.name, dims) == ('image', ['batch', 3, 'height', 'width'])
    assert [o.name for o in model.graph.output] == ['logits']
    (meta,) = (json.loads(p.value) for p in model.metadata_props if p.key == 'timm_res2net')
    described(meta)


@pytest.mark.parametrize('kind', slow_except(['torchscript'], QUICK))
def test_what_other_files_tell(kind, tmp_path):
    out = tmp_path / f'net{FORMATS[kind].suffix}'
    export_model(NAME, out, kind)
    described(stored(out, kind))


def stored(path: Path, kind: str) -> dict:
    told = {'timm_res2net.json': ''}
    if kind == 'pt2':
        torch.export.load(path, extra_files=told)
    else:
        torch.jit.load(path, _extra_files=told)
    return json.loads(told['timm_res2net.json'])


def described(meta: dict) -> None:
    cfg = timm.get_pretrained_cfg(NAME).to_dict()
    assert meta['architecture'] == NAME
    assert meta['tag'] == 'digits'
    for key in ('mean', 'std', 'input_size', 'label_names'):
        assert meta[key] == list(cfg[key])
    for key in ('interpolation', 'crop_pct', 'num_classes', 'license'):
        assert meta[key] == cfg[key]


# --- models in memory ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'features'),
    slow_except([('torchscript', True)], itertools.product(QUICK, [False, True])),
)
def test_a_model_in_memory(kind, features, tmp_path):
    """Its eval form, whatever its mode; the caller's model stays as it was."""
    levels = {'features_only': True, 'out_indices': (2, 4)} if features else {}
    model = randomise(timm.create_model(NAME, **levels)).train()
    model.conv1.requires_grad_(False)
    model.double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    needs = [parameter.requires_grad for parameter in model.parameters()]
    done = export_model(
        torch.compile(model), tmp_path / f'net{FORMATS[kind].suffix}', kind, features=features
    )
    assert done.outputs == (('layer2', 'layer4') if features else ('logits',))
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key]), key
    x = image(2, 96)
    check(run(done.path, kind, x), model.float().eval(), x)


@pytest.mark.slow
def test_a_deployed_model_in_memory(tmp_path):
    model = randomise(timm.create_model(NAME)).eval()
    done = export_model(reparameterize_model(model), tmp_path / 'net.pt', 'torchscript')
    x = image(2, 96)
    check(run(done.path, 'torchscript', x), model, x)


def test_a_replaced_head(tmp_path):
    """timm's cfg still describes ten digits."""
    model = timm.create_model(NAME, pretrained=True)
    model.fc = nn.Linear(model.fc.in_features, 3)
    model.num_classes = 3
    export_model(model, tmp_path / 'net.pt', 'torchscript')
    meta = stored(tmp_path / 'net.pt', 'torchscript')
    assert meta['num_classes'] == 3
    assert 'label_names' not in meta


def two_outputs() -> nn.Module:
    model = detection_backbone(NAME)
    model.pretrained_cfg = {'input_size': (3, 64, 64)}
    return model


@pytest.mark.parametrize(
    ('model', 'features', 'texts'),
    [
        (
            lambda: nn.Conv2d(3, 4, 1),
            False,
            [
                'Conv2d has no pretrained_cfg',
                'model.pretrained_cfg = {"input_size": (3, 224, 224)}',
            ],
        ),
        (
            lambda: timm.create_model(NAME),
            True,
            ['Res2Net returns no feature levels', 'features_only=True'],
        ),
        (two_outputs, False, ['returns 5 outputs', 'features_only=True']),
    ],
)
def test_a_model_in_memory_that_is_refused(model, features, texts, tmp_path):
    with pytest.raises(ValueError) as error:
        export_model(model(), tmp_path / 'net.pt', 'torchscript', features=features)
    for text in texts:
        assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('target', 'file', 'kwargs', 'text'),
    [
        (
            NAME,
            'x.bin',
            {'format': 'tflite'},
            "Cannot write 'x.bin' as tflite. Choose a format (--format), and its suffix for the "
            'file: onnx (*.onnx), openvino (*.xml), pt2 (*.pt2), aoti (*.pt2), torchscript (*.pt).',
        ),
        (NAME, 'x.bin', {}, "Cannot write 'x.bin' as pt2. Choose a format (--format)"),
        (NAME, 'x.bin', {'format': None}, "Cannot write 'x.bin'. Choose a format (--format)"),
        (
            NAME,
            'x.pt2',
            {'img_size': 32},
            'img_size must be a whole number of at least 33, got 32.',
        ),
        ('./none', 'x.pt2', {}, 'There is no file or folder ./none.'),
        ('a/b/c', 'x.pt2', {}, 'There is no file or folder a/b/c,'),
        (
            'res2net50_se.nope',
            'x.pt2',
            {},
            "'res2net50_se' has no tag 'nope'. Use one of se_identity_in1k",
        ),
        (
            'convnext_atto',
            'x.pt2',
            {'features': True, 'pretrained': False},
            'convnext_atto has no feature levels (1, 2, 3, 4). Use a network with five levels',
        ),
        (
            NAME,
            'x.pt2',
            {'img_size': 0, 'static': True},
            'img_size must be a whole number of at least 1, got 0.',
        ),
        (
            NAME,
            'x.pt2',
            {'batch_size': 1.5},
            'batch_size must be a whole number of at least 1, got 1.5.',
        ),
        (NAME, 'no/x.pt2', {}, "there is no folder '{tmp}/no'. Create it first."),
        (NAME, 'is.pt2', {}, 'is.pt2 already exists. Choose another name, or remove it first.'),
        (
            'resnet',
            'x.pt2',
            {},
            "'resnet' is not a registered model, a folder or a repository (OWNER/NAME).",
        ),
        (
            'res2next101',
            'x.pt2',
            {},
            "There are no published weights for 'res2next101'. Give a folder that `timm-res2net",
        ),
        (
            'resnet18',
            'x.pt2',
            {'deploy': True, 'pretrained': False},
            'Cannot reparameterize ResNet, because it has no Res2Net block',
        ),
    ],
)
def test_refused(target, file, kwargs, text, tmp_path):
    (tmp_path / 'is.pt2').write_text('mine')
    with pytest.raises((ValueError, OSError)) as error:
        export_model(target, tmp_path / file, **{'format': 'pt2', **kwargs})
    assert text.format(tmp=tmp_path.resolve()) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['is.pt2']
    assert (tmp_path / 'is.pt2').read_text() == 'mine'


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package(package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True if name != package else None)
    with pytest.raises(ValueError) as error:
        export_model(NAME, tmp_path / 'x.onnx')
    monkeypatch.setattr(importlib.util, 'find_spec', find)
    assert str(error.value) == (
        f"{package} is not installed. Install it: pip install 'timm-res2net[export]'."
    )


def test_what_a_format_cannot_do(tmp_path, monkeypatch):
    """An exporter's own error comes in one sentence, and nothing is left behind."""

    def refuse(*args, **kwargs):
        raise RuntimeError('\nUnsupported: aten::made_up\n  deep inside\n')

    monkeypatch.setattr(torch.export, 'save', refuse)
    with pytest.raises(ValueError) as error:
        export_model(NAME, tmp_path / 'x.pt2', 'pt2')
    assert str(error.value) == (
        'Exporting test_res2net_se as pt2 for images of 64 x 64 px failed (RuntimeError: '
        'Unsupported: aten::made_up). Try another size (a multiple of 32 px), a fixed size '
        '(static=True, --static), or another format.'
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_one_format_really_cannot_do(tmp_path):
    """A dilated stage of an avg_down network pads by a rounded-up quotient of the size, which
    torch.export.save has no word for; a fixed size has none of it."""
    arguments = {'layers': (1, 1, 1, 1), 'output_stride': 16}
    source = model_folder(tmp_path / 'net', 'res2net50d_se', **arguments)
    with pytest.raises(ValueError, match=r'failed \(SerializeError: .*ceil.* a fixed size'):
        export_model(source, tmp_path / 'net.pt2', 'pt2', img_size=64)
    done = export_model(source, tmp_path / 'net.pt2', 'pt2', img_size=64, static=True)
    assert done.error < FLOAT


@needs_openvino
@pytest.mark.parametrize('which', ['net.xml', 'net.bin'])
def test_two_files_or_none(which, tmp_path, monkeypatch):
    """One of the two exists, or cannot be moved to its place."""
    (tmp_path / which).write_text('mine')
    with pytest.raises(FileExistsError, match=f'{which} already exists. Choose another name'):
        export_model(NAME, tmp_path / 'net.xml')
    assert [p.name for p in tmp_path.iterdir()] == [which]
    (tmp_path / which).unlink()

    networks = []

    def write(network, images, static, meta, file):
        file.write_text('')
        file.with_suffix('.bin').write_text('')
        networks.append(network)

    def place(made, path, place=export.place):
        if path.name == which:
            raise OSError('refused')
        place(made, path)

    kind = FORMATS['openvino']._replace(write=write, load=lambda file: networks[0])
    monkeypatch.setitem(FORMATS, 'openvino', kind)
    monkeypatch.setattr(export, 'place', place)
    with pytest.raises((ValueError, OSError), match='refused'):
        export_model(NAME, tmp_path / 'net.xml')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('wrong', [1e-3, float('nan')])
@pytest.mark.parametrize('size', [64, 96])
def test_a_file_that_answers_otherwise_is_not_written(size, wrong, tmp_path, monkeypatch):
    """At one of the sizes that are looked at, and in the last level alone."""
    load = FORMATS['torchscript'].load

    def spoilt(file):
        answer = load(file)

        def run(x):
            *others, last = answer(x)
            bad = wrong * last.abs().max() if x.shape[2] == size else 0
            return [*others, last + bad]

        return run

    monkeypatch.setitem(FORMATS, 'torchscript', FORMATS['torchscript']._replace(load=spoilt))
    with pytest.raises(ValueError) as error:
        export_model(NAME, tmp_path / 'x.pt', 'torchscript', features=True)
    by = 'inf' if wrong != wrong else f'{wrong:.1e}'  # NaN is a difference
    assert f'outputs differ from the model by {by}' in str(error.value)
    assert 'Nothing was written; use another format.' in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- the command --------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    out = tmp_path / 'net.pt'
    command = ['export', NAME, '--format', 'torchscript', '--features', '--out', str(out)]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        f'Written to {out}: image -> layer1, layer2, layer3, layer4; takes any batch, any size '
        'that the model takes.'
    )
    assert second.startswith("Run and compared: the outputs differ from the model's by at most ")
    x = image(1, 96)
    model = timm.create_model(NAME, pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
    check(run(out, 'torchscript', x), model.eval(), x)
    assert main(command) == 1
    assert capsys.readouterr().err == (
        f'timm-res2net export: {out} already exists. Choose another name, or remove it first.\n'
    )


@pytest.mark.slow
def test_the_command_is_quiet(tmp_path):
    """Nothing of torch's on the screen, TorchScript's deprecation included."""
    done = subprocess.run(
        [sys.executable, '-m', 'timm_res2net', 'export', 'res2next101', '--random', '--format',
         'torchscript', '--img-size', '64', '--static', '--out', str(tmp_path / 'net.pt')],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # an old timm warns on a new torch
    timms = subprocess.run([sys.executable, '-c', 'import timm'], capture_output=True, text=True)
    ours = 'timm-res2net export: '  # what takes more than a second
    others = [line for line in done.stderr.splitlines() if not line.startswith(ours)]
    assert others == timms.stderr.splitlines()
    assert 'takes (1, 3, 64, 64).' in done.stdout
