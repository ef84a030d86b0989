"""int8: what is measured, what is refused, and what NNCF makes of the digits model."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.common import TINY, image, randomise, slow_except
from timm_res2net.export import FORMATS, export_model, quantize
from timm_res2net.export.network import Network, load_network
from timm_res2net.export.quantize import enclose
from timm_res2net.prediction import find_images, image_loader

LOGITS = ['logits']
LEVELS = ['layer1', 'layer4']
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec('openvino') is None or importlib.util.find_spec('nncf') is None,
    reason='needs the extra int8',
)


def draw(folder: Path, number: int) -> Path:
    """Digits as PNG files, with their labels in the names."""
    folder.mkdir()
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if i < number:
            file = folder / f'{i:03}_{label}.png'
            Image.fromarray((pixels * 255 / 16).round().astype('uint8')).save(file)
    return folder


def tiny(**kwargs) -> torch.nn.Module:
    small = {'layers': (1, 1, 1, 1), 'scale': 2, 'channels': (8, 8, 8, 8)}
    return randomise(timm.create_model(TINY, **small, **kwargs)).eval()


# --- images -------------------------------------------------------------------------------------


def test_which_images_are_used(tmp_path):
    folder = draw(tmp_path / 'digits', 45)
    chosen = quantize.choose_images(folder, 1000, 1)
    assert len(chosen) == len(set(chosen)) == 44  # the same number calibrates and compares
    assert set(chosen) < set(find_images([folder]))
    assert quantize.choose_images(folder, 1000, 1) == chosen
    assert chosen != sorted(chosen)  # files are often sorted by class
    assert quantize.choose_images(folder, 34, 1) == chosen[:34]
    assert len(quantize.choose_images(folder, 1000, 3)) == 42


def test_images_are_prepared_as_for_predict(tmp_path):
    """As the model's config says, which has the size of the export."""
    (path,) = find_images([draw(tmp_path / 'digits', 1)])
    model = timm.create_model(TINY)
    model.pretrained_cfg['input_size'] = (3, 40, 48)
    config = timm.data.resolve_model_data_config(model)
    assert config['input_size'] == (3, 40, 48)
    expected = timm.data.create_transform(**config)(Image.open(path).convert('RGB'))
    assert torch.equal(image_loader(model)(path), expected)


# --- what is measured ---------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize('features', slow_except([False], [False, True]))
def test_what_is_measured(features, tmp_path, monkeypatch):
    """Outputs that are a tenth too large: no answer changes, and every level is off by 0.1."""

    def copy(plain, out, images, batch):
        for file in plain.parent.iterdir():
            shutil.copy(file, out.parent)

    def load(path, load=quantize.load_openvino):
        run = load(path)
        factor = 1.1 if path.parent.name == 'int8' else 1
        return lambda x: [factor * output for output in run(x)]

    monkeypatch.setattr(quantize, 'quantize_file', copy)  # instead of NNCF
    monkeypatch.setattr(quantize, 'load_openvino', load)
    folder = draw(tmp_path / 'digits', 36)
    arguments = {'features_only': True, 'out_indices': (1, 4)} if features else {}
    out = tmp_path / '[net].xml'
    done = export_model(tiny(**arguments), out, int8=folder, img_size=33, max_images=33)
    found = done.int8
    names = ('layer1', 'layer4') if features else ('logits',)
    assert tuple(found.errors) == done.outputs == names
    assert list(found.errors.values()) == pytest.approx([0.1] * len(names))
    assert found.agreement == pytest.approx(0.9 if features else 1.0)
    assert (found.calibrated, found.compared) == (16, 16)
    size = out.stat().st_size + out.with_suffix('.bin').stat().st_size
    assert found.bytes == {'float32': size, 'int8': size}
    assert min(found.seconds.values()) > 0
    told = json.loads(out.with_suffix('.json').read_text())
    assert {key: told[key] for key in found._fields} == found._asdict()
    assert told['model'] == ('FeatureListNet' if features else 'Res2Net')
    assert (told['file'], told['input_size']) == ('[net].xml', [3, 33, 33])
    assert told['min_agreement'] == (0.8 if features else 0.98)
    versions = {name: importlib.import_module(name).__version__ for name in ('nncf', 'openvino')}
    assert told['versions'] == versions
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ['[net].bin', '[net].json', '[net].xml', 'digits']


@pytest.mark.parametrize(
    ('change', 'names', 'least', 'texts'),
    [
        # 8 of 16 images have another answer
        (lambda logits: logits * torch.tensor([-1, 1] * 8)[:, None], LOGITS, None,
         ['the agreement of the top-1 answers of 16 images is 0.500', 'min_agreement=0.98']),
        (lambda level: 1.3 * level, LEVELS, None, ['16 images is 0.700', 'min_agreement=0.8 ']),
        (lambda level: 1.1 * level, LEVELS, 0.95, ['16 images is 0.900', 'min_agreement=0.95']),
        (lambda level: torch.nan * level, LEVELS, 0, ['levels of 16 images is nan']),
    ],
)  # fmt: skip
def test_too_small_an_agreement(change, names, least, texts, tmp_path, monkeypatch):
    def load(path):
        def run(images):
            outputs = [images.flatten(1)[:, :10]] * len(names)
            outputs[-1] = change(outputs[0]) if path.name == 'int8' else outputs[0]
            return outputs

        return run

    monkeypatch.setattr(quantize, 'quantize_file', lambda *args: None)
    monkeypatch.setattr(quantize, 'load_openvino', load)
    paths = tmp_path / 'float32', tmp_path / 'int8'
    with pytest.raises(ValueError) as error:
        network = Network(timm.create_model(TINY), 'net')
        network.outputs, network.is_classifier = names, names == LOGITS
        quantize.to_int8(*paths, image(32, 16).numpy(), 16, network, least)
    for text in (*texts, '(--min-agreement). Nothing was written. Calibrate with images like'):
        assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- refused ------------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize(
    ('arguments', 'texts'),
    [
        ({'int8': 'none'}, ['There is no image or folder', 'none', 'Check the path']),
        ({'int8': 'empty'}, ['There are no images in', 'empty', '.png']),
        (
            {'static': True, 'batch_size': 32},
            ['digits has 34 images', 'at least 64 are needed', 'Add images'],
        ),
        ({'static': True, 'batch_size': 12}, ['digits has 34 images', 'at least 48 are needed']),
        (
            {'static': True, 'batch_size': 32, 'max_images': 40},
            ['digits has 34 images', 'max_images=40 is the limit', 'at least 64 are needed'],
        ),
        ({}, ['Cannot read', '999.png as an image', 'Give a PNG or JPEG file']),
        ({'out': 'net.pt'}, ["'torchscript' has no int8 form", 'Use onnx or openvino']),
        ({'max_images': 31}, ['max_images=31 is the limit', 'at least 32 are needed']),
        ({'min_agreement': 98}, ['min_agreement must be a share from 0 to 1, got 98']),
        ({'in_chans': 5}, ['The model takes 5 channels', 'Use a model of 1 or 3 channels']),
        ({'out': 'is.xml'}, ['is.json already exists', 'Choose another name']),
    ],
)
def test_what_cannot_be_quantized(arguments, texts, tmp_path):
    (tmp_path / 'empty').mkdir()
    draw(tmp_path / 'digits', 33).joinpath('999.png').write_text('no image')
    (tmp_path / 'is.json').write_text('mine')
    arguments = {'out': 'net.xml', 'int8': 'digits', **arguments}
    source = timm.create_model(TINY, in_chans=arguments.pop('in_chans', 3))
    before = sorted(tmp_path.iterdir())
    out, folder = tmp_path / arguments.pop('out'), tmp_path / arguments.pop('int8')
    with pytest.raises((ValueError, OSError)) as error:
        export_model(source, out, int8=folder, **arguments)
    for text in texts:
        assert text in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_package(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name != 'nncf' or None)
    with pytest.raises(ValueError) as error:
        export_model(TINY, tmp_path / 'net.xml', int8=tmp_path)
    monkeypatch.setattr(importlib.util, 'find_spec', find)
    assert (
        str(error.value) == "nncf is not installed. Install it: pip install 'timm-res2net[int8]'."
    )


# --- NNCF ---------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(
    ('file', 'arguments'),
    [
        ('net.xml', {}),
        ('net.onnx', {}),
        ('net.xml', {'features': True}),
        ('net.xml', {'static': True, 'batch_size': 4, 'deploy': True}),
    ],
)
def test_the_digits_model(file, arguments, tmp_path):
    """Read by OpenVINO as its users do, on digits that neither calibrated nor compared."""
    import openvino

    folder = draw(tmp_path / 'digits', 80)
    out = tmp_path / file
    done = export_model(TINY, out, int8=folder, **arguments)
    found = done.int8
    assert (found.calibrated, found.compared) == (40, 40)
    assert found.runtime == ('onnxruntime' if file.endswith('.onnx') else 'openvino')
    assert set(json.loads(out.with_suffix('.json').read_text())['versions']) == {
        'nncf',
        found.runtime,
    }
    # 0.05 to 0.1 were measured; float32 would be off by 1e-6, another network by 1
    assert all(0.01 < error < 0.15 for error in found.errors.values())
    assert found.bytes['int8'] < 0.7 * found.bytes['float32']
    names = [out.name, 'net.json', *(f'net{suffix}' for suffix in FORMATS[done.format].beside)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['digits', *names])
    file = openvino.Core().read_model(out)
    quantizers = [op for op in file.get_ops() if op.get_type_name() == 'FakeQuantize']
    assert len(quantizers) > 30  # one for nearly every convolution's input
    model = timm.create_model(TINY, pretrained=True).eval()
    prepare = image_loader(model)
    paths = sorted(draw(tmp_path / 'others', 120).iterdir())[80:]
    x = torch.stack([prepare(path) for path in paths])
    compiled = openvino.compile_model(out, 'CPU')
    answers = [compiled(x[i : i + 4].numpy()) for i in range(0, 40, 4)]
    if arguments.get('features'):
        assert [len(answer) for answer in answers] == [4] * 10
        levels = timm.create_model(TINY, pretrained=True, features_only=True, out_indices=(4,))
        with torch.no_grad():
            expected = levels.eval()(x)[0]
        last = torch.from_numpy(np.concatenate([answer['layer4'] for answer in answers]))
        assert float((last - expected).norm() / expected.norm()) < 0.15
    else:
        assert found.agreement == 1
        logits = np.concatenate([answer['logits'] for answer in answers])
        assert (logits.argmax(1) == load_digits().target[80:120]).mean() > 0.97


def outputs_of(file, images, optimized=None):
    """What ONNX Runtime computes layer by layer; or, given a path, with its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3  # such a file is for this machine
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: images})


@needs_openvino
def test_what_is_enclosed():
    """Moved values of one scale; not of two scales or of one a channel, and no floats."""
    import onnx

    text = """<ir_version: 10, opset_import: ["": 21]>
    net (float[N, 4, 8, 8] image) => (float[N, 4, 8, 8] same, float[N, 4, 8, 8] two,
                                      float[N, 4, 8, 8] floats, float[N, 4, 8, 8] channels)
    <float small = {0.02}, int8 low = {-5}, float large = {0.5}, int8 zero = {0},
     float[4] scales = {0.02, 0.03, 0.04, 0.05}, int8[4] zeros = {0, 1, 2, 3}>
    {
        q = QuantizeLinear (image, small, low)
        x = DequantizeLinear (q, small, low)
        left, right = Split <axis: int = 1, num_outputs: int = 2> (x)
        positive = Relu (left)
        q1 = QuantizeLinear (positive, small, low)
        one = DequantizeLinear (q1, small, low)
        q2 = QuantizeLinear (positive, large, zero)
        other = DequantizeLinear (q2, large, zero)
        both = Concat <axis: int = 1> (one, right)
        same = Relu (both)
        different = Concat <axis: int = 1> (other, right)
        two = Relu (different)
        mixed = Concat <axis: int = 1> (positive, right)
        floats = Relu (mixed)
        q3 = QuantizeLinear <axis: int = 1> (image, scales, zeros)
        by_channel = DequantizeLinear <axis: int = 1> (q3, scales, zeros)
        first, second = Split <axis: int = 1, num_outputs: int = 2> (by_channel)
        again = Concat <axis: int = 1> (first, second)
        channels = Relu (again)
    }"""
    model = onnx.parser.parse_model(text)
    images = image(2, 8, channels=4).numpy()
    expected = outputs_of(model.SerializeToString(), images)
    enclose(model.graph)
    onnx.checker.check_model(model, full_check=True)
    got = outputs_of(model.SerializeToString(), images)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(np.unique(a).size > 10 for a in got)
    made = {name: node for node in model.graph.node for name in node.output}
    assert made[made['same'].input[0]].op_type == 'DequantizeLinear'
    for output in ('two', 'floats', 'channels'):
        assert made[made[output].input[0]].op_type == 'Concat'
    assert made[made['again'].input[0]].op_type == 'Split'
    assert made[made['positive'].input[0]].op_type == 'DequantizeLinear'
    assert {x.data_type for x in model.graph.initializer} == {1, 2}  # float and uint8


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(
    ('name', 'built', 'arguments', 'floats'),
    [
        (TINY, {}, {}, 12),  # the gates of six blocks
        (TINY, {}, {'deploy': True}, 12),
        (TINY, {'features_only': True}, {}, 13),  # and the stem, whose output is a level
        ('res2net50_26w_4s', {}, {'static': True, 'img_size': 64}, 0),
        ('hrnet_w18_res2net', {}, {'static': True, 'img_size': 64}, 0),
    ],
)
def test_onnx_runtime_runs_layers_in_int8(name, built, arguments, floats, tmp_path, monkeypatch):
    """All convolutions but the two of an SE gate; and rewriting the graph changes no value."""
    import onnx

    model = randomise(timm.create_model(name, **built)).eval()
    plain = tmp_path / 'plain.onnx'
    export_model(model, plain, **arguments)
    images = image(4).numpy()
    files = [tmp_path / 'nncf.onnx', tmp_path / 'net.onnx']
    for file, change in zip(files, (lambda graph: None, enclose), strict=True):
        monkeypatch.setattr(quantize, 'enclose', change)
        quantize.quantize_file(plain, file, images, 1)
    one = image(1).numpy()
    others = [one] if arguments.get('static') else [one, image(3, 96).numpy()]
    for x in others:
        expected, got = (outputs_of(file, x) for file in files)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    convolutions = [node.op_type for node in onnx.load(plain).graph.node].count('Conv')
    left = []
    for file in files:
        outputs_of(file, one, tmp_path / 'optimized.onnx')
        layers = [node.op_type for node in onnx.load(tmp_path / 'optimized.onnx').graph.node]
        left.append(convolutions - layers.count('QLinearConv'))
    assert left[1] == floats < left[0]


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize('features', [False, True])
def test_the_default_agreement_tells_right_images_from_wrong_ones(features, tmp_path):
    """Digits calibrate, and digits half as bright; digits compare."""
    levels = {'features_only': True, 'out_indices': (1, 2, 3, 4)} if features else {}
    model = timm.create_model(TINY, pretrained=True, **levels)
    done = export_model(model, tmp_path / 'net.xml')
    prepare = image_loader(model)
    paths = find_images([draw(tmp_path / 'digits', 132)])
    images = torch.stack([prepare(path) for path in paths]).numpy()
    mean, std = (np.float32(model.pretrained_cfg[key])[:, None, None] for key in ('mean', 'std'))
    dark = ((images * std + mean) / 2 - mean) / std
    found = {}
    for name, calibrating in (('right', images[:32]), ('wrong', dark[:32])):
        (tmp_path / name).mkdir()
        small = tmp_path / name / 'net.xml'
        quantize.quantize_file(done.path, small, calibrating, 1)
        network = load_network(model)
        found[name] = quantize.compare_files(done.path, small, images[32:], 1, network).agreement
    least = quantize.LEAST['features' if features else 'logits']
    assert found['right'] >= (0.87 if features else 1)
    assert found['wrong'] <= (0.6 if features else 0.95)
    assert found['wrong'] < least < found['right']
