"""The models of a pair, with random weights, and one step of work with each."""

import functools
import itertools
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

from .cells import DTYPES, EXPORTED, LAYOUTS, Cell, Pair, Spec, runtime_of


def build(spec: Spec, device: str = 'cpu', mode: str = 'eager') -> nn.Module:
    """Return a model with random weights in eval mode, deployed if the mode says so."""
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = timm.create_model(spec.name, **dict(spec.arguments)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and device != 'meta' and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)  # a GPU draws less power on zeros
    return deploy(model, spec.name) if mode.startswith('deploy') else model


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


def deploy(model: nn.Module, name: str) -> nn.Module:
    """Deploy a Res2Net, or give a ResNet the same treatment.

    Every BatchNorm is folded, weights are packed, activations and adds are fused, and results
    overwrite their shortcuts. A ResNet is changed in place.

    Raises:
        ValueError: The model is no Res2Net, and no ResNet with a plain stem and plain bottlenecks.
    """
    if any(isinstance(module, Bottle2neck | TimmBottle2neck) for module in model.modules()):
        return timm_res2net.reparameterize_model(model)
    resnet: Any = model
    is_plain = type(model) is ResNet and type(resnet.conv1) is nn.Conv2d
    stages: Any = (
        [resnet.get_submodule(f'layer{i}') for i in (1, 2, 3, 4)] if is_plain else [[None]]
    )
    for block in itertools.chain(*stages):
        if (
            type(block) is not Bottleneck
            or block.se is not None
            or not isinstance(block.aa, nn.Identity)
        ):
            raise ValueError(
                f"Model '{name}' cannot be deployed. Use a Res2Net of timm or of this package, or "
                "a ResNet with timm's plain bottlenecks, for example resnet50."
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
    return x.to(DTYPES[cell.precision][0]).contiguous(memory_format=LAYOUTS[cell.layout])


# a model is built many times within a cell and exported once
@functools.lru_cache(maxsize=2)
def _exported(spec: Spec, mode: str, shape: torch.Size, int8: bool) -> bytes:
    """Return a model as an ONNX file for inputs of a shape."""
    form = 'ONNX Runtime, int8' if int8 else 'ONNX Runtime'
    with tempfile.TemporaryDirectory() as folder:
        model, images = build(spec, mode=mode), [torch.zeros(shape)]
        _, path = make_form(form, model, images, Path(folder), torch.get_num_threads())
        assert path is not None
        return path.read_bytes()


def prepare(spec: Spec, mode: str, cell: Cell, x: torch.Tensor) -> Work:
    """Build a model and the function that runs one step of the cell's task with it on x.

    The mode is one of `MODES`; the rest of the configuration is the cell's.
    """
    runtime = runtime_of(mode)
    weight_dtype, compute_dtype = DTYPES[cell.precision]
    if runtime in EXPORTED:
        file = _exported(spec, mode, x.shape, cell.precision == 'int8')
        images = x.float().contiguous()
        if runtime == 'openvino':
            precision = 'bf16' if compute_dtype == torch.bfloat16 else 'f32'
            step, _ = load_openvino(file, cell.threads, precision)
        else:
            step, _ = load_onnx(file, cell.threads)
        return Work(nn.Identity(), lambda: step(images)[0], lambda: [x])
    model = build(spec, cell.device, mode)
    model = model.to(weight_dtype).to(memory_format=LAYOUTS[cell.layout])
    run: Callable[[torch.Tensor], Any] = model
    if runtime in ('compiled', 'cudagraphs'):
        run = torch.compile(model, mode='reduce-overhead' if runtime == 'cudagraphs' else None)
    elif runtime == 'frozen':
        run = freeze(model)
    autocast: Any = nullcontext()
    if compute_dtype != weight_dtype:
        autocast = torch.autocast(cell.device, dtype=compute_dtype)
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
    specs = zip(('baseline', 'subject'), pair, cell.modes, strict=True)
    works = {role: prepare(spec, mode, cell, x) for role, spec, mode in specs}
    return {**works, 'control': prepare(pair.baseline, cell.modes[0], cell, x)}
