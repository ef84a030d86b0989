"""The models of a pair, with random weights, and one step of work with each."""

import functools
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F

import timm_res2net
from timm_res2net import Bottle2neck
from timm_res2net.export.measure import freeze, make_form
from timm_res2net.export.run import load_onnx, load_openvino
from timm_res2net.layers.fused_conv import fuse, fuse_sequential

from .cells import EXPORTED, Cell, Pair, Spec, deploys, runtime_of

_COMPILE = {'compiled': 'default', 'cudagraphs': 'reduce-overhead'}
"""Modes of torch.compile by runtime."""


def build(spec: Spec, device: str = 'cpu') -> nn.Module:
    """Return a model with random weights in eval mode.

    Args:
        spec: The model.
        device: Where to build it, for example 'meta'.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = timm.create_model(spec.name, **spec.arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and device != 'meta' and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)  # a GPU draws less power on zeros
    return model.eval()


class _FusedBottleneck(nn.Module):
    """timm's ResNet bottleneck with the treatment that a deployed Res2Net block gets."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv1 = fuse(block.conv1, block.bn1, block.act1)
        self.conv2 = fuse(block.conv2, block.bn2, block.act2)
        self.conv3 = fuse(block.conv3, block.bn3, block.act3)
        self.downsample = None if block.downsample is None else fuse_sequential(block.downsample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        # no other layer of the network reads x, so the result may overwrite it
        return self.conv3(self.conv2(self.conv1(x)), shortcut, True)


def _is_plain(block: Any) -> bool:
    """Return whether `_FusedBottleneck` has every layer of a block."""
    return type(block) is Bottleneck and block.se is None and isinstance(block.aa, nn.Identity)


def deploy(model: nn.Module, name: str) -> nn.Module:
    """Deploy a Res2Net, or give a ResNet the same treatment.

    Every BatchNorm is folded, weights are packed, activations and adds are fused, and results
    overwrite their shortcuts.

    Args:
        model: A Res2Net of timm or of this package, or a ResNet with a plain stem and plain
            bottlenecks. A ResNet is changed in place.
        name: Name of the model for error texts.

    Raises:
        ValueError: The model is neither.
    """
    if any(isinstance(module, Bottle2neck | TimmBottle2neck) for module in model.modules()):
        return timm_res2net.reparameterize_model(model)
    resnet: Any = model
    is_resnet = type(model) is ResNet and type(resnet.conv1) is nn.Conv2d
    stages = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4) if is_resnet else ()
    if not is_resnet or not all(_is_plain(block) for stage in stages for block in stage):
        raise ValueError(
            f"Model '{name}' cannot be deployed. Use a Res2Net of timm or of this package, or a "
            "ResNet with timm's plain bottlenecks, for example resnet50."
        )
    stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1)
    resnet.conv1, resnet.bn1, resnet.act1 = fuse_sequential(stem)
    for stage in stages:
        for i, block in enumerate(stage):
            stage[i] = _FusedBottleneck(block)
    return resnet.eval()


class Work(NamedTuple):
    """A model in torch that is ready to run."""

    model: nn.Module
    step: Callable[[], object]  # runs one step
    held: Callable[[], list[torch.Tensor]]  # returns the tensors that stay between steps


def make_input(cell: Cell) -> torch.Tensor:
    """Return a batch of noise, (batch, 3, size, size), in the cell's layout and weight type."""
    torch.manual_seed(1)
    x = torch.randn(cell.batch, 3, cell.size, cell.size, device=cell.device)
    return x.to(cell.weight_dtype).contiguous(memory_format=cell.memory_format)


# a model is built many times within a cell and exported once
@functools.lru_cache(maxsize=2)
def _exported(spec: str, mode: str, batch: int, size: int, int8: bool) -> bytes:
    """Return a model, given as JSON, as an ONNX file for inputs (batch, 3, size, size)."""
    name, arguments = json.loads(spec)
    model = build(Spec(name, arguments))
    if deploys(mode):
        model = deploy(model, name)
    x = torch.zeros(batch, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        form = 'ONNX Runtime, int8' if int8 else 'ONNX Runtime'
        _, path = make_form(form, model, [x], Path(folder), torch.get_num_threads())
        assert path is not None
        return path.read_bytes()


def _prepare_exported(spec: Spec, mode: str, cell: Cell, x: torch.Tensor) -> Work:
    """Export a model and return the function that runs its file on x on the CPU."""
    text = json.dumps([spec.name, dict(spec.arguments)])
    file = _exported(text, mode, cell.batch, cell.size, cell.precision == 'int8')
    if runtime_of(mode) == 'openvino':
        precision = 'bf16' if cell.precision.startswith('bf16') else 'f32'
        run = load_openvino(file, cell.threads, precision)
    else:
        run = load_onnx(file, cell.threads)
    images = x.float().contiguous()
    return Work(nn.Identity(), lambda: run(images)[0], lambda: [x])


def prepare(spec: Spec, mode: str, cell: Cell, x: torch.Tensor) -> Work:
    """Build a model and the function that runs one step of the cell's task with it.

    Args:
        spec: The model.
        mode: How it runs, one of `MODES`.
        cell: Task, precision, layout, device and threads.
        x: Input from `make_input`.
    """
    runtime = runtime_of(mode)
    if runtime in EXPORTED:
        return _prepare_exported(spec, mode, cell, x)
    model = build(spec, cell.device)
    if deploys(mode):
        model = deploy(model, spec.name)
    model = model.to(cell.weight_dtype).to(memory_format=cell.memory_format)
    run: Callable[[torch.Tensor], Any] = model
    if runtime in _COMPILE:
        run = torch.compile(model, mode=_COMPILE[runtime])
    elif runtime == 'frozen':
        run = freeze(model)
    autocast: Any = nullcontext()
    if cell.compute_dtype != cell.weight_dtype:
        autocast = torch.autocast(cell.device, dtype=cell.compute_dtype)
    labels = torch.arange(cell.batch, device=cell.device) % 1000
    # with a step so small every number stays finite over hours on one batch
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    scaler = torch.amp.GradScaler(cell.device, enabled=cell.precision == 'fp16')

    def infer() -> torch.Tensor:
        with torch.inference_mode(), autocast:
            return run(x)

    def train() -> torch.Tensor:
        with autocast:
            loss = F.cross_entropy(run(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def held() -> list[torch.Tensor]:
        states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        return [x, *model.parameters(), *model.buffers(), *states]

    model.train(cell.task == 'train')
    return Work(model, train if cell.task == 'train' else infer, held)


def prepare_pair(pair: Pair, cell: Cell, x: torch.Tensor) -> dict[str, Work]:
    """Return what runs in a round: baseline, subject, and a second copy of the baseline."""
    baseline, subject = cell.modes
    return {
        'baseline': prepare(pair.baseline, baseline, cell, x),
        'subject': prepare(pair.subject, subject, cell, x),
        'control': prepare(pair.baseline, baseline, cell, x),
    }
