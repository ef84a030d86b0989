"""What is measured: pairs and suites read from their data files, models, and one step of work."""

import dataclasses
import difflib
import functools
import importlib.util
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from timm.models.res2net import Bottle2neck as TimmBottle2neck
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F

import timm_res2net
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.layers.fused_conv import fuse, fuse_sequential

from . import article, runtimes
from .results import cpu_has_bf16
from .runtimes import COMPILED, EXPORTED, MODES, Mode

__all__ = [
    'AXES', 'Cell', 'Work', 'build', 'check', 'deploy', 'find_pair', 'infer_step', 'load_pairs',
    'load_suite', 'plain_pairs', 'prepare', 'train_step',
]  # fmt: skip

HERE = Path(__file__).parent
SUITES = tuple(sorted(path.stem for path in (HERE / 'suites').glob('*.json')))
KINDS = ('time', 'attribution', 'memory')
# every axis with its values, if they are few, and its default
AXES: dict[str, tuple[tuple[str, ...], Any]] = {
    'task': (('infer', 'train'), 'infer'),
    'mode': (MODES, 'eager'),
    'precision': (('fp32', 'bf16', 'bf16-weights', 'fp16'), 'fp32'),
    'layout': (('channels_last', 'contiguous'), 'channels_last'),
    'batch': ((), 8),
    'size': ((), 224),
    'threads': ((), None),
}
DTYPES = {'bf16': torch.bfloat16, 'bf16-weights': torch.bfloat16, 'fp16': torch.float16}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One configuration to measure a pair in.

    Attributes:
        kind: 'time', 'attribution' or 'memory'.
        pair: Name of the pair.
        task: 'infer' (forward, in inference mode) or 'train' (forward, loss, backward, SGD step).
        mode: `[deploy+]RUNTIME`, both models' mode: 'eager', 'compiled' (torch.compile with its
            defaults), 'frozen' (with weights as constants), 'onnxruntime' or 'openvino' (exported
            to it), each with 'deploy+' in the deploy form, which is 'deploy' in eager mode; or
            'BASELINE->SUBJECT' where the pair has modes of its own.
        precision: 'fp32'; 'bf16' or 'fp16' by autocast over fp32 weights; 'bf16-weights' with
            weights and input in bfloat16.
        layout: Memory format of weights and input, 'channels_last' or 'contiguous'.
        batch: Images.
        size: Height and width of an image in pixels, the same for both models.
        threads: Torch's intra-op threads.
        device: 'cpu' or 'cuda'.
    """

    kind: str
    pair: str
    task: str
    mode: str
    precision: str
    layout: str
    batch: int
    size: int
    threads: int
    device: str

    @property
    def key(self) -> str:
        """The configuration as one string, unique in a file."""
        return '/'.join(map(str, dataclasses.astuple(self)))

    def __str__(self) -> str:
        return (
            f'{self.pair} {self.task} {self.mode} {self.precision} {self.layout} '
            f'b{self.batch} {self.size}px t{self.threads}'
        )


class Spec(NamedTuple):
    """A model: its name, its arguments, and the mode it runs in, the cell's when ''. A pair has
    modes of its own for both models or for none."""

    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    mode: str = ''


Pair = dict[str, Spec]


def _spec(value: Any) -> Spec:
    return Spec(value) if isinstance(value, str) else Spec(*value)


def label(spec: Spec) -> str:
    """A model as text: `resnet50`, or `resnet50(base_width=41)`, or `resnet50 [deploy]`."""
    inner = ', '.join(f'{k}={v!r}' for k, v in spec.arguments.items())
    mode = f' [{spec.mode}]' if spec.mode else ''
    return f'{spec.name}({inner}){mode}' if inner else f'{spec.name}{mode}'


def load_pairs() -> dict[str, dict[str, Any]]:
    """The pairs of pairs.json."""
    return json.loads((HERE / 'pairs.json').read_text())


def plain_pairs() -> list[str]:
    """Names of the pairs that run in a cell's mode, which '*' stands for."""
    return [name for name, pair in load_pairs().items() if not _spec(pair['baseline']).mode]


def own_mode(pair: Pair) -> str:
    """The modes of a pair that has its own, as 'BASELINE->SUBJECT', else ''."""
    modes = [spec.mode for spec in pair.values()]
    return '->'.join(modes) if all(modes) else ''


def modes_of(cell: Cell) -> list[Mode]:
    """The modes of a cell's models, baseline first."""
    return [Mode.of(mode) for mode in cell.mode.split('->')]


def compiles(cell: Cell) -> bool:
    """Whether torch.compile is at work in a cell, so that a new build takes long."""
    return any(mode.runtime in COMPILED for mode in modes_of(cell))


def find_pair(name: str) -> Pair:
    """Baseline and subject of a pair, by its name or written as BASELINE:SUBJECT.

    Raises:
        ValueError: There is no such pair, model or mode.
    """
    pairs = load_pairs()
    if name in pairs:
        pair = {role: _spec(pairs[name][role]) for role in ('baseline', 'subject')}
    elif name.count(':') == 1:
        baseline, subject = name.split(':')
        pair = {'baseline': _spec(baseline), 'subject': _spec(subject)}
    else:
        raise ValueError(
            f"Unknown pair '{name}'. Use one of {', '.join(pairs)}, or BASELINE:SUBJECT with two "
            'model names.'
        )
    for model, _, mode in pair.values():
        if mode:
            Mode.of(mode)
        if model != 'article' and not timm.is_model(model):
            close = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.4)
            raise ValueError(
                f"Unknown model '{model}' in pair '{name}'."
                + (f' Did you mean {", ".join(close)}?' if close else '')
                + " `timm.list_models()` lists all; 'article' is the article's network."
            )
    return pair


def load_suite(
    name: str,
    given: Mapping[str, Sequence[Any]] | None = None,
    only: Sequence[str] = KINDS,
    budget: float | None = None,
    device: str | None = None,
) -> dict[Cell, float]:
    """The cells of a suite in order, each with its budget in seconds; one that two parts name once.

    Args:
        name: One of `SUITES`.
        given: Values by axis (`AXES`, and 'pairs') that stand in for the suite's own.
        only: Kinds to keep.
        budget: Seconds a cell, for the suite's own.
        device: Device, for the suite's own.

    Raises:
        ValueError: No such suite, pair, model or value; the given values leave no cell.
    """
    if name not in SUITES:
        raise ValueError(f"Unknown suite '{name}'. Use one of {', '.join(SUITES)}.")
    suite = json.loads((HERE / 'suites' / f'{name}.json').read_text())
    given = given or {}
    for axis, (choices, _) in AXES.items():
        for value in given.get(axis, ()):
            if choices and value not in choices:
                raise ValueError(f'{axis}={value!r} must be one of {", ".join(choices)}.')
            if not choices and value is not None and value < 1:
                raise ValueError(f'{axis}={value!r} must be at least 1.')
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f'budget={budget} must be a number of seconds above 0.')
    threads = torch.get_num_threads()
    cells: dict[Cell, float] = {}
    for part in suite['parts']:
        part = {**part, **given}
        pairs = [n for p in part['pairs'] for n in (plain_pairs() if p == '*' else [p])]
        if part['kind'] not in only:
            continue
        own = {pair: own_mode(find_pair(pair)) for pair in pairs}
        values = [part.get(axis, [default]) for axis, (_, default) in AXES.items()]
        for pair, *row in itertools.product(pairs, *values):
            axes = dict(zip(AXES, row, strict=True))
            axes['mode'] = own[pair] or axes['mode']
            if part['kind'] == 'attribution' and axes['task'] != 'infer':
                continue
            if part['kind'] == 'attribution' and axes['mode'] != 'eager':
                continue
            axes['threads'] = axes['threads'] or threads
            cell = Cell(part['kind'], pair, device=device or suite['device'], **axes)
            seconds = part.get('budget', suite['budget']) if budget is None else budget
            cells.setdefault(cell, seconds)
    if not cells:
        raise ValueError(
            f"Nothing of suite '{name}' is left. Attribution is for inference in eager mode; "
            'name other values or another --only.'
        )
    return cells


def _compiler() -> str | None:
    names = (os.environ.get('CXX'), 'g++', 'c++', 'clang++', 'cl')
    return next((name for name in names if name and shutil.which(name)), None)


def check(cell: Cell) -> None:
    """Check that this machine can run the cell, and that the cell makes sense.

    Raises:
        ValueError: It has no GPU, no bfloat16 of its own, no compiler, no package of a runtime, or
            not so many cores; a mode or a precision does not go with another axis.
    """
    if cell.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            "Device 'cuda' needs a GPU and a torch built for it; torch sees none here. Run "
            '--suite cpu, or install the CUDA build of torch.'
        )
    if cell.precision.startswith('bf16'):
        has = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if cell.device == 'cuda'
            else cpu_has_bf16()
        )
        if not has:
            raise ValueError(
                f"Precision '{cell.precision}' would be emulated on this "
                f'{"GPU" if cell.device == "cuda" else "CPU"}: its time says nothing. Use '
                '--precision fp32.'
            )
    if cell.precision == 'bf16-weights' and cell.task == 'train':
        raise ValueError(
            "Precision 'bf16-weights' is for inference. Use --task infer, or --precision bf16."
        )
    if cell.precision == 'fp16' and cell.device == 'cpu':
        raise ValueError("Precision 'fp16' is for GPUs. Use --precision bf16 or fp32 on a CPU.")
    for text in cell.mode.split('->'):
        _check_mode(text, cell)
    cores = os.cpu_count() or 1
    if cell.threads > cores:
        raise ValueError(
            f'threads={cell.threads} is more than the {cores} cores of this machine. Use '
            f'--threads {cores} or fewer.'
        )


def _check_mode(text: str, cell: Cell) -> None:
    runtime = Mode.of(text).runtime
    if text not in ('eager', 'compiled'):
        if cell.task == 'train':
            raise ValueError(f"Mode '{text}' is for inference. Use --task infer.")
        if cell.kind != 'time':
            raise ValueError(
                f"Kind '{cell.kind}' does not see the weights that mode '{text}' packs for itself. "
                'Use --only time, or mode eager or compiled.'
            )
    if runtime in COMPILED:
        if cell.device == 'cpu' and _compiler() is None:
            raise ValueError(
                f"Mode '{text}' needs a C++ compiler, and none is on the path. Install g++, name "
                'one in CXX, or use --mode eager.'
            )
        if cell.device == 'cuda' and importlib.util.find_spec('triton') is None:
            raise ValueError(f"Mode '{text}' needs triton. Install it, or use --mode eager.")
    if runtime in EXPORTED:
        if cell.device != 'cpu':
            raise ValueError(f"Mode '{text}' runs on a CPU here. Use --device cpu.")
        if runtime == 'onnxruntime' and cell.precision != 'fp32':
            raise ValueError(
                f"Mode '{text}' does not run in bfloat16 on a CPU. Use --precision fp32, or "
                'openvino.'
            )
        runtimes.require(runtime)


def build(spec: Spec, device: str = 'cpu') -> nn.Module:
    """A model with random weights, in eval mode. Device may be 'meta'."""
    name, arguments, _ = spec
    torch.manual_seed(0)
    with torch.device(device):
        if name == 'article':
            model: nn.Module = article.Res2Net(**arguments)
        else:
            model = timm.create_model(name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and device != 'meta' and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)  # zeros would let a GPU draw less power
    return model.eval()


def memory_format(cell: Cell) -> torch.memory_format:
    """Torch's name of the cell's layout."""
    return torch.channels_last if cell.layout == 'channels_last' else torch.contiguous_format


def make_input(cell: Cell) -> torch.Tensor:
    """A batch of noise in the cell's layout, and in its type where weights have it too."""
    torch.manual_seed(1)
    x = torch.randn(cell.batch, 3, cell.size, cell.size, device=cell.device)
    return x.to(weight_type(cell)).contiguous(memory_format=memory_format(cell))


def weight_type(cell: Cell) -> torch.dtype:
    """The type of a cell's weights and input; autocast leaves them in fp32."""
    return torch.bfloat16 if cell.precision == 'bf16-weights' else torch.float32


def _autocast(cell: Cell) -> Any:
    if cell.precision in ('fp32', 'bf16-weights'):
        return nullcontext()
    return torch.autocast(cell.device, dtype=DTYPES[cell.precision])


def infer_step(
    model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, autocast: Any
) -> Callable[[], torch.Tensor]:
    """A call that runs the model forward on x, in inference mode."""

    def step() -> torch.Tensor:
        with torch.inference_mode(), autocast:
            return model(x)

    return step


def train_step(
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    autocast: Any,
    scaler: torch.amp.GradScaler,
) -> Callable[[], torch.Tensor]:
    """A call that runs forward, cross entropy, backward and the optimizer's step."""

    def step() -> torch.Tensor:
        with autocast:
            loss = F.cross_entropy(model(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


class _FusedBottleneck(nn.Module):
    """timm's ResNet bottleneck, treated as `reparameterize_model` treats a Res2Net block."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv1 = fuse(block.conv1, block.bn1, block.act1)
        self.conv2 = fuse(block.conv2, block.bn2, block.act2)
        self.conv3 = fuse(block.conv3, block.bn3, block.act3)
        self.downsample = None if block.downsample is None else fuse_sequential(block.downsample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        # in a network x is this block's alone, so that the result may lie in its place
        return self.conv3(self.conv2(self.conv1(x)), shortcut, True)


def _is_plain_resnet(model: nn.Module) -> bool:
    """Whether every layer of a model is one that `_FusedBottleneck` and `deploy` know."""
    if type(model) is not ResNet or type(model.conv1) is not nn.Conv2d:
        return False
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    return all(
        type(block) is Bottleneck and block.se is None and isinstance(block.aa, nn.Identity)
        for stage in stages
        for block in stage
    )


def deploy(model: nn.Module, name: str) -> nn.Module:
    """The deploy form of a Res2Net, or of a ResNet treated alike: every BatchNorm folded, weights
    packed, activations and adds fused, and results written over their shortcuts.

    Args:
        model: A Res2Net of timm or this package, or a ResNet with a plain stem and plain
            bottlenecks, which is changed.
        name: What to call it in an error.

    Raises:
        ValueError: It is neither.
    """
    if any(isinstance(module, Bottle2neck | TimmBottle2neck) for module in model.modules()):
        return timm_res2net.reparameterize_model(model)
    if not _is_plain_resnet(model):
        raise ValueError(
            f"Model '{name}' has no deploy form. Use a Res2Net of timm or of this package, or a "
            "ResNet of timm's plain bottlenecks such as resnet50."
        )
    resnet: Any = model
    stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1)
    resnet.conv1, resnet.bn1, resnet.act1 = fuse_sequential(stem)
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for i, block in enumerate(stage):
            stage[i] = _FusedBottleneck(block)
    return resnet.eval()


@functools.lru_cache(maxsize=2)  # a pair's models are built anew many times, and exported once
def _exported(name: str, arguments: str, deploys: bool, batch: int, size: int) -> bytes:
    model = build(Spec(name, json.loads(arguments)))
    if deploys:
        model = deploy(model, name)
    return runtimes.export(model, torch.zeros(batch, 3, size, size))


class Work(NamedTuple):
    """A model ready to run: the model in torch, a call that does one step, and the tensors that
    stay in memory between steps."""

    model: nn.Module
    step: Callable[[], object]
    held: Callable[[], list[torch.Tensor]]


def prepare(spec: Spec, cell: Cell, x: torch.Tensor) -> Work:
    """A new model on the cell's device and a call that does one step of the cell's task with it."""
    deploys, runtime = Mode.of(spec.mode or cell.mode)
    if runtime in EXPORTED:
        key = spec.name, json.dumps(dict(spec.arguments)), deploys, cell.batch, cell.size
        bf16 = cell.precision != 'fp32'
        step = runtimes.load(runtime, _exported(*key), x, cell.threads, bf16)
        return Work(nn.Identity(), step, lambda: [x])
    model = build(spec, cell.device)
    if deploys:
        model = deploy(model, spec.name)
    model = model.to(weight_type(cell)).to(memory_format=memory_format(cell))
    held = [x, *model.parameters(), *model.buffers()]
    run = torch.compile(model) if runtime == 'compiled' else model
    if cell.task == 'infer':
        step = infer_step(run, x, _autocast(cell))
        if runtime == 'frozen':
            runtimes.freeze(model, step)
        return Work(model, step, lambda: held)
    model.train()
    labels = torch.arange(cell.batch, device=cell.device) % 1000
    # a step so small that hours of them on one batch keep every number finite
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    scaler = torch.amp.GradScaler(cell.device, enabled=cell.precision == 'fp16')
    train = train_step(run, x, labels, optimizer, _autocast(cell), scaler)

    def all_held() -> list[torch.Tensor]:
        states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        return held + states

    return Work(model, train, all_held)


def roles(pair: Pair) -> Iterator[tuple[str, Spec]]:
    """What runs in a round: baseline, subject, and the baseline's twin as the control."""
    yield 'baseline', pair['baseline']
    yield 'subject', pair['subject']
    yield 'control', pair['baseline']
