"""The profile of deployed and compiled models."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch

from benchmarks import deploy_profile
from benchmarks.suite.models import deploy


def test_a_step_is_profiled_by_kind():
    name = 'res2net50_26w_4s'
    model = deploy(timm.create_model(name).eval(), name).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(3):  # the second call packs weights
            seconds = deploy_profile.profile_step(lambda: model(x))
    assert seconds.keys() == set(deploy_profile.KINDS)
    for kind in (*deploy_profile.CONVOLUTIONS, 'add', 'copy/concat'):
        assert seconds[kind] > 0
    assert seconds['generated code'] == 0


@pytest.mark.slow  # compiles two whole models
def test_a_compiled_step_is_profiled_by_kind(tmp_path, capsys):
    out = tmp_path / 'profile.json'
    deploy_profile.main(['--mode', 'frozen', '--batch', '1', '--steps', '1', '--out', str(out)])
    (cell,) = json.loads(out.read_text())['cells'].values()
    for name in deploy_profile.NAMES:
        seconds = {kind: sum(values) for kind, values in cell[name]['seconds'].items()}
        for kind in (*deploy_profile.CONVOLUTIONS, 'generated code'):
            assert seconds[kind] > 0
        assert seconds['add'] == 0
    assert '| frozen, b1 | all convolutions |' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'shapes', 'kind'),
    [
        # input, weight, bias; with an add also the residual, in either order
        ('', [[8, 3, 224, 224], [64, 3, 7, 7], [64]], 'convolution 7×7'),
        ('', [[8, 512, 7, 7], [512, 512, 3, 3], [512]], 'convolution 3×3'),
        ('', [[8, 512, 7, 7], [8, 2048, 7, 7], [2048, 512, 1, 1], [2048]], 'convolution 1×1'),
        ('_', [[8, 2048, 7, 7], [8, 512, 7, 7], [2048, 512, 1, 1], []], 'convolution 1×1'),
    ],
)
def test_a_convolutions_kind_is_its_weights(name, shapes, kind):
    event = SimpleNamespace(name=f'mkldnn::_convolution_pointwise{name}', input_shapes=shapes)
    assert deploy_profile.kind_of(event) == kind


def test_macs_by_kernel_size():
    model = timm.create_model('resnet50', device='meta')
    found = deploy_profile.macs_of(model, 2)
    # 4.09 GMACs in all, of which the stem has 7 * 7 * 3 * 64 * 112 * 112
    assert found['convolution 7×7'] == 2 * 7 * 7 * 3 * 64 * 112 * 112
    assert round(sum(found.values()) / 2e9, 2) == 4.09
