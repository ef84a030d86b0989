"""int8: what is measured, what is refused, and what NNCF makes of the digits model."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.common import TINY, image, needs, network
from timm_res2net.export import export_model, int8, load_exported
from timm_res2net.export.formats import Network
from timm_res2net.export.int8 import enclose, prepare_images
from timm_res2net.prediction import Images, walk_images

LOGITS = ['logits']
LEVELS = ['layer1', 'layer4']
tiny = functools.partial(network, layers=(1, 1, 1, 1), scale=2, channels=(8, 8, 8, 8))
needs_openvino = needs('int8', 'openvino', 'nncf')


def draw(folder: Path, number: int) -> Path:
    """Digits as PNG files, with their labels in the names."""
    folder.mkdir()
    digits = load_digits()
    for i in range(number):
        file = folder / f'{i:03}_{digits.target[i]}.png'
        Image.fromarray((digits.images[i] * 255 / 16).round().astype('uint8')).save(file)
    return folder


def test_which_images_are_used(tmp_path, caplog):
    """As the model's config says, at the size of the export, half of them for each purpose."""
    folder = draw(tmp_path / 'digits', 45)
    model = timm.create_model(TINY)
    model.pretrained_cfg['input_size'] = (3, 40, 48)

    def chosen(limit: int, batch: int) -> np.ndarray:
        return prepare_images(Network(model, TINY), folder, limit, batch, tmp_path / 'images.npy')

    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config)
    paths = list(walk_images([folder]))
    (folder / '000.png').write_text('no image')  # left out, and counted
    ordered = np.stack([transform(Image.open(path).convert('RGB')).numpy() for path in paths])
    images = chosen(1000, 1)
    assert images.shape == (44, 3, 40, 48)  # the same number calibrates and compares
    order = [int(np.abs(ordered - one).sum((1, 2, 3)).argmin()) for one in images]
    assert np.array_equal(images, ordered[order])
    assert len(set(order)) == 44
    assert order != sorted(order)  # files are often sorted by class
    assert np.array_equal(chosen(34, 1), images[:34])
    assert len(chosen(1000, 3)) == 42
    assert '1 images were left out' in caplog.text


# --- what is measured -----------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize('features', [False, True])
def test_what_is_measured(features, tmp_path, monkeypatch):
    """Outputs that are a tenth too large: no answer changes, and every level is off by 0.1."""

    def copy(plain, out, images, batch):
        for file in plain.parent.iterdir():
            shutil.copy(file, out.parent)

    class Larger(int8.Runner):
        def __init__(self, path):
            super().__init__(path)
            self.factor = 1.1 if path.parent.name == 'int8' else 1

        def forward(self, images):
            return [self.factor * output for output in int8.as_tuple(super().forward(images))]

    monkeypatch.setattr(int8, 'quantize_file', copy)  # instead of NNCF
    monkeypatch.setattr(int8, 'Runner', Larger)
    folder = draw(tmp_path / 'digits', 36)
    arguments = {'features_only': True, 'out_indices': (1, 4)} if features else {}
    out = tmp_path / '[net].xml'
    options = {'img_size': 33, 'max_images': 33, 'accept_loss': True}  # random: a single answer
    done = export_model(tiny(**arguments), out, int8=folder, **options)
    found = done.int8
    assert list(found.errors) == list(done.outputs) == (LEVELS if features else LOGITS)
    assert list(found.errors.values()) == pytest.approx([0.1] * len(found.errors))
    assert found.agreement == pytest.approx(0.9 if features else 1.0)
    assert (found.calibrated, found.compared) == (16, 16)
    size = out.stat().st_size + out.with_suffix('.bin').stat().st_size
    assert found.bytes == {'float32': size, 'int8': size}
    assert min(found.seconds.values()) > 0
    stored = json.loads(out.with_suffix('.json').read_text())
    assert stored.pop('versions').keys() == {'nncf', 'openvino'}
    assert stored == {
        **found._asdict(), 'model': 'FeatureListNet' if features else 'Res2Net',
        'file': '[net].xml', 'input_size': [3, 33, 33],
        'min_agreement': 0.8 if features else 0.98, 'preset': 'mixed',
    }  # fmt: skip
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ['[net].bin', '[net].json', '[net].xml', 'digits']


@pytest.mark.parametrize(
    ('change', 'names', 'least', 'values'),
    [
        # 8 of 16 images have another answer
        (lambda logits: logits * torch.tensor([-1, 1] * 8)[:, None], LOGITS, None,
         ['top-1 answers of 16 images is 0.500', 'min_agreement=0.98']),
        # argmax takes NaN for the largest
        (lambda logits: torch.nan * logits, LOGITS, 0.01, ['is 0.000']),
        # every answer stays, for other reasons
        (lambda logits: 1.3 * logits, LOGITS, None, ['off by 30.0%', '--accept-loss']),
        (lambda level: 1.3 * level, LEVELS, None, ['16 images is 0.700', 'min_agreement=0.8 ']),
        (lambda level: 1.1 * level, LEVELS, 0.95, ['16 images is 0.900', 'min_agreement=0.95']),
        (lambda level: torch.nan * level, LEVELS, 0, ['levels of 16 images is nan']),
    ],
)  # fmt: skip
def test_too_small_an_agreement(change, names, least, values, tmp_path, monkeypatch):
    def load(path):
        def run(images):
            outputs = [images.flatten(1)[:, :10].abs()] * len(names)
            outputs[-1] = change(outputs[0]) if path.name == 'int8' else outputs[0]
            return outputs

        return run

    monkeypatch.setattr(int8, 'quantize_file', lambda *args: None)
    monkeypatch.setattr(int8, 'Runner', load)
    network = Network(tiny(), 'net')
    network.outputs, network.is_classifier = names, names == LOGITS
    paths = tmp_path / 'float32', tmp_path / 'int8'
    with pytest.raises(ValueError) as error:
        int8.to_int8(*paths, image(32, 16).numpy(), 16, network, least, False)
    for value in values:
        assert value in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- refused --------------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize(
    ('arguments', 'value'),
    [
        ({'int8': 'none'}, 'none'),
        ({'int8': 'empty'}, 'empty'),
        ({'static': True, 'batch_size': 32}, 'at least 64 are needed'),
        ({'static': True, 'batch_size': 12}, 'digits has 33 images'),
        ({}, 'All 16 images have the same answer'),
        ({'out': 'net.pt'}, "'torchscript'"),
        ({'max_images': 31}, 'max_images=31'),
        ({'min_agreement': 98}, 'got 98'),
        ({'min_agreement': float('nan')}, 'got nan'),
        ({'in_chans': 5}, 'The model takes 5 channels'),
        ({'cfg': {'input_size': (3, 64, 64)}}, 'how images are prepared'),
        ({'out': 'is.xml'}, 'is.json already exists'),
    ],
)
def test_what_cannot_be_quantized(arguments, value, tmp_path):
    (tmp_path / 'empty').mkdir()
    draw(tmp_path / 'digits', 33).joinpath('999.png').write_text('no image')
    (tmp_path / 'is.json').write_text('mine')
    arguments = {'out': 'net.xml', 'int8': 'digits', **arguments}
    source = tiny(in_chans=arguments.pop('in_chans', 3))
    source.pretrained_cfg = arguments.pop('cfg', source.pretrained_cfg)
    before = sorted(tmp_path.iterdir())
    out, folder = tmp_path / arguments.pop('out'), tmp_path / arguments.pop('int8')
    with pytest.raises((ValueError, OSError)) as error:
        export_model(source, out, int8=folder, **arguments)
    assert value in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


# --- NNCF -----------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_openvino
def test_the_digits_model(tmp_path):
    """Read by OpenVINO as its users do, on digits that neither calibrated nor compared.

    ONNX Runtime runs all convolutions in int8 but the two of an SE gate.
    """
    import onnx
    import openvino

    out = tmp_path / 'net.onnx'
    options = {'static': True, 'batch_size': 4, 'deploy': True, 'accept_loss': True}
    found = export_model(TINY, out, int8=draw(tmp_path / 'digits', 80), **options).int8
    assert (found.calibrated, found.compared, found.runtime) == (40, 40, 'onnxruntime')
    assert found.agreement == 1 and found.answers > 5
    assert load_exported(out).pretrained_cfg['int8'] is True
    # 0.05 to 0.1 were measured; float32 would be off by 1e-6, another network by 1
    assert 0.01 < found.errors['logits'] < 0.15
    assert found.bytes['int8'] < 0.7 * found.bytes['float32']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['digits', 'net.json', 'net.onnx']
    quantizers = [op.get_type_name() for op in openvino.Core().read_model(out).get_ops()]
    assert quantizers.count('FakeQuantize') > 30  # one for nearly every convolution's input
    prepare = Images(timm.create_model(TINY)).load
    paths = sorted(draw(tmp_path / 'others', 120).iterdir())[80:]
    x = torch.stack([prepare(path) for path in paths]).numpy()
    compiled = openvino.compile_model(out, 'CPU')
    logits = np.concatenate([compiled(x[i : i + 4])['logits'] for i in range(0, 40, 4)])
    assert (logits.argmax(1) == load_digits().target[80:120]).mean() > 0.97
    outputs_of(out, x[:4], tmp_path / 'optimized.onnx')
    layers = [node.op_type for node in onnx.load(tmp_path / 'optimized.onnx').graph.node]
    assert sum(layer in ('Conv', 'FusedConv') for layer in layers) == 12  # gates of six blocks
    assert layers.count('QLinearConv') == 35


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
def test_the_default_agreement_tells_right_images_from_wrong_ones(tmp_path):
    """Digits calibrate, and digits half as bright; digits compare. Logits and levels at once."""
    model = timm.create_model(TINY, pretrained=True)
    levels = timm.create_model(TINY, pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
    prepare = Images(model).load
    paths = walk_images([draw(tmp_path / 'digits', 132)])
    images = torch.stack([prepare(path) for path in paths]).numpy()
    mean, std = (np.float32(model.pretrained_cfg[key])[:, None, None] for key in ('mean', 'std'))
    dark = ((images * std + mean) / 2 - mean) / std
    for one, limits in ((model, (1, 0.95)), (levels, (0.87, 0.6))):
        network, found = Network(one, 'digits'), []
        file = tmp_path / f'{limits[0]}.xml'
        export_model(one, file)
        for calibrating in (images[:32], dark[:32]):
            small = tmp_path / str(len(found)) / file.name
            small.parent.mkdir(exist_ok=True)
            int8.quantize_file(file, small, calibrating, 1)
            assert int8.Runner(small).pretrained_cfg['int8'] is True
            found.append(int8.compare_files(file, small, images[32:], 1, network).agreement)
        least = int8.LEAST['logits' if network.is_classifier else 'features']
        assert found[0] >= limits[0] and found[1] <= limits[1]
        assert found[1] < least < found[0]
