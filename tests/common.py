"""Helpers of the tests: randomised models, their folders, and a plain reference of the network."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import torch as safetensors
from timm.models.hrnet import cfg_cls
from torch import nn
from torch.nn import functional as F

from timm_res2net import push_to_hub
from timm_res2net.convert import FILES
from timm_res2net.folder.config import CONFIG
from timm_res2net.folder.folder import CARD, WEIGHTS, write
from timm_res2net.folder.golden import GOLDEN
from timm_res2net.folder.model import Model
from timm_res2net.models import hrnet_res2net
from timm_res2net.models.res2net_zoo import default_cfgs

NAMES = tuple(default_cfgs)  # of Res2Nets
HRNETS = tuple(hrnet_res2net.default_cfgs)
TIMMS = tuple(timm.list_models(module='res2net'))  # timm's own
ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / 'tests' / 'fixtures'
PADDLE = FIXTURES / 'paddle.pdparams'  # a small network
HAS_GPU = torch.cuda.is_available()
DEVICES = ('cpu', pytest.param('cuda', marks=pytest.mark.skipif(not HAS_GPU, reason='no GPU')))
TINY = 'test_res2net_se'
SMALL_HRNET = {f'stage{i}': cfg_cls['hrnet_w18_small_v2'][f'stage{i}'] for i in (2, 3, 4)}
PUSHED = sorted([WEIGHTS, CONFIG, CARD, GOLDEN])  # the files of a push
SE_NAMES = tuple(
    tag.partition('.')[0]
    for file in FILES
    for tag in file.tags
    if tag.endswith('.se_identity_in1k')
)


def needs(extra: str, *packages: str) -> pytest.MarkDecorator:
    """Skip a test if a package of an extra is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f'needs the extra {extra}')


def slow_except(quick, values):
    """Values for `parametrize`, all but the quick ones slow. A tuple is several arguments."""
    values, slow = list(values), pytest.mark.slow
    assert all(value in values for value in quick), quick
    return [
        v if v in quick else pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=slow)
        for v in values
    ]


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter and every BatchNorm statistic a random value, in place.

    A fresh model has bn3.weight = 0 and running statistics of 0 and 1: its blocks are the identity
    and nothing about them would be tested.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor | None, low: float, high: float) -> None:
        if tensor is None:  # a norm without affine or statistics
            return
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            tensor.copy_(values * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            uniform(module.weight, 0.5, 1.0)
            uniform(module.bias, -0.2, 0.2)
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_var, 0.5, 1.5)
        else:
            for parameter in module.parameters(recurse=False):
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
                bound = (3 / fan_in) ** 0.5  # keeps the variance of what passes
                uniform(parameter, -bound, bound)
    return model


def network(name: str = TINY, seed: int = 1, **kwargs: Any) -> Any:
    """A model in eval mode, with random weights and statistics."""
    return randomise(timm.create_model(name, **kwargs), seed).eval()


def random_weights(name: str = TINY, **kwargs: Any) -> dict[str, torch.Tensor]:
    return network(name, **kwargs).state_dict()


def save(tensors: object, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def saved(tensors: object, **kwargs: Any) -> bytes:
    """The content of a file of torch."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer, **kwargs)
    return buffer.getvalue()


class Trap:
    """A pickle that calls something as it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


# --- folders and repositories ---------------------------------------------------------------------


def model_folder(path: Path, name: str = TINY, **kwargs: Any) -> Path:
    """A folder with random weights and statistics: those of the package would hide little."""
    return push_to_folder(network(name, **kwargs), path)


def dry(model: object, **kwargs: Any) -> Any:
    """What would be pushed."""
    return push_to_hub(model, 'me/net', **{'license': 'mit', 'dry_run': True, **kwargs})


def push_to_folder(model: nn.Module, path: Path, **kwargs: Any) -> Path:
    """Write the folder that a push of a model would send."""
    done = dry(model, **kwargs)
    return write(Model(model, done.config, done.card), path).path


def from_folder(path: Path, **kwargs: Any) -> Any:
    return timm.create_model(f'local-dir:{path}', pretrained=True, **kwargs).eval()


def change_config(folder: Path, part: str = '', **changes: object) -> None:
    """Write other values into a folder's config, at its top or in a part of it."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config))


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their paths in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def repository_files(repo: str, model: nn.Module) -> dict[str, bytes]:
    """The files that a push of a model to a repository would send."""
    done = push_to_hub(model, repo, license='mit', dry_run=True)
    return {
        'config.json': done.config.to_json().encode(),
        'model.safetensors': safetensors.save(model.state_dict(), {'format': 'pt'}),
        'README.md': done.card.encode(),
    }


def states(findings) -> dict[str, str]:
    """The state of each question of `check`."""
    return {finding.what: finding.state for finding in findings}


SHARED = {  # what every process gets: this checkout, and one thread
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    'OMP_NUM_THREADS': '1',
}


def python(*words: str, cwd: Path = ROOT, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a process, and wait for its end."""
    env = {**options.pop('env', os.environ), **SHARED}
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,  # a page takes up to a minute, and CI's machine may be slow
        **options,
    )


# --- tensors --------------------------------------------------------------------------------------


def image(batch: int = 2, size: int = 64, channels: int = 3, **kwargs) -> torch.Tensor:
    """A batch of noise images."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(2)).to(
        **kwargs
    )


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value expected."""
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max() / expected.abs().max())


# The table of semantics, as their sources have it: for the first block of a stage with
# stride 1 and with a stride, whether it adds the previous split, and what its last split does.
TABLE = {
    'official': {'first': ('no', 'pool'), 'strided': ('no', 'pool'), 'dilated': ('no', 'pool')},
    'mmdet': {'first': ('no', 'pass'), 'strided': ('no', 'pool'), 'dilated': ('no', 'pass')},
    'detectron2': {'first': ('no', 'pass'), 'strided': ('no', 'pass'), 'dilated': ('no', 'pass')},
    'maskrcnn': {'first': ('no', 'pool'), 'strided': ('no', 'pool'), 'dilated': ('no', 'pool')},
    'paddle': {'first': ('yes', 'pass'), 'strided': ('no', 'pool'), 'dilated': ('no', 'pool')},
    'caffe': {'first': ('yes', 'pass'), 'strided': ('yes', 'pass'), 'dilated': ('yes', 'pass')},
}
STRIDE_IN_CONV1 = ('caffe', 'detectron2', 'maskrcnn')
DILATES_FIRST = ('mmdet', 'detectron2')  # as the rest of the stage, not as the stage before


class Reference:
    """Res2Net in plain loops over a dictionary of tensors; shares no code with the package.

    Args:
        weights: Tensors by name.
        names: From a name here to the dictionary's (another project's spelling).
        eps: What BatchNorms add to the variance.
    """

    def __init__(
        self, weights, semantics, layers, scale, groups=1, deep=False, avg_down=False, se=False,
        names=str, eps=1e-5,
    ):  # fmt: skip
        self.weights, self.semantics, self.layers = weights, semantics, layers
        self.scale, self.groups, self.names, self.eps = scale, groups, names, eps
        self.deep, self.avg_down, self.se = deep, avg_down, se

    def get(self, name):
        return self.weights[self.names(name)]

    def conv_bn(self, x, conv, bn, stride=1, dilation=1, groups=1):
        weight = self.get(f'{conv}.weight')
        pad = dilation * (weight.shape[-1] // 2)
        bias = self.weights.get(self.names(f'{conv}.bias'))
        x = F.conv2d(x, weight, bias, stride, pad, dilation, groups)
        scale = self.get(f'{bn}.weight') / (self.get(f'{bn}.running_var') + self.eps).sqrt()
        shift = self.get(f'{bn}.bias') - self.get(f'{bn}.running_mean') * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def stem(self, x):
        if self.deep:
            x = self.conv_bn(x, 'conv1.0', 'conv1.1', 2).relu()
            x = self.conv_bn(x, 'conv1.3', 'conv1.4').relu()
            x = self.conv_bn(x, 'conv1.6', 'bn1').relu()
        else:
            x = self.conv_bn(x, 'conv1', 'bn1', 2).relu()
        return F.max_pool2d(x, 3, 2, 1)

    def cascade(self, x, name, kind, stride, dilation):
        """What becomes of the splits of x."""
        adds, last = TABLE[self.semantics].get(kind, ('yes', 'pass'))
        splits, outs = x.chunk(self.scale, 1), []
        for i in range(max(1, self.scale - 1)):
            z = splits[i] + outs[-1] if adds == 'yes' and i > 0 else splits[i]
            z = self.conv_bn(
                z, f'{name}.convs.{i}', f'{name}.bns.{i}', stride, dilation, self.groups
            )
            outs.append(z.relu())
        if self.scale > 1 and last == 'pool':
            pads = self.semantics != 'paddle'
            outs.append(F.avg_pool2d(splits[-1], 3, stride, 1, count_include_pad=pads))
        elif self.scale > 1:
            outs.append(splits[-1])
        return outs

    def block(self, x, name, kind, stride, dilation):
        strides = (stride, 1) if self.semantics in STRIDE_IN_CONV1 else (1, stride)
        y = self.conv_bn(x, f'{name}.conv1', f'{name}.bn1', strides[0]).relu()
        outs = self.cascade(y, name, kind, strides[1], dilation)
        y = self.conv_bn(torch.cat(outs, 1), f'{name}.conv3', f'{name}.bn3')
        if self.se:
            gate = y.mean((2, 3), keepdim=True)
            for fc in ('fc1', 'fc2'):
                gate = F.conv2d(
                    gate, self.get(f'{name}.se.{fc}.weight'), self.get(f'{name}.se.{fc}.bias')
                )
                gate = gate.relu() if fc == 'fc1' else gate.sigmoid()
            y = y * gate
        if self.avg_down and kind:
            if stride > 1:
                x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
            x = self.conv_bn(x, f'{name}.downsample.1', f'{name}.downsample.2')
        elif kind:
            x = self.conv_bn(x, f'{name}.downsample.0', f'{name}.downsample.1', stride)
        return (x + y).relu()

    def levels(self, x, output_stride=32):
        """What the four stages answer."""
        x, levels = self.stem(x), []
        net_stride, dilation = 4, 1
        for stage, blocks in enumerate(self.layers):
            stride, before = (1 if stage == 0 else 2), dilation
            if stride == 2 and net_stride >= output_stride:
                stride, dilation = 1, dilation * 2
            net_stride *= stride
            first = dilation if self.semantics in DILATES_FIRST else before
            for i in range(blocks):
                kind = None
                if i == 0:
                    kind = 'strided' if stride > 1 else 'dilated' if dilation > before else 'first'
                x = self.block(
                    x,
                    f'layer{stage + 1}.{i}',
                    kind,
                    stride if i == 0 else 1,
                    first if i == 0 else dilation,
                )
            levels.append(x)
        return levels

    def __call__(self, x, output_stride=32):
        pooled = self.levels(x, output_stride)[-1].mean((2, 3))
        return F.linear(pooled, self.get('fc.weight'), self.get('fc.bias'))


def noisy(rng, rounds: int, outliers: float = 0.05):
    """Seconds of `rounds` steps of 1 s with log-normal noise of 3 %; some take 1.5 s."""
    seconds = np.exp(rng.normal(0, 0.03, rounds))
    return seconds * np.where(rng.random(rounds) < outliers, 1.5, 1.0)
