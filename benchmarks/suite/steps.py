"""One step of work: a model ready to run, its input, and a function that runs it once."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from timm_res2net.export.measure import freeze

from . import models, runtimes
from .cells import Cell
from .modes import Mode
from .pairs import Pair, Spec
from .runtimes import EXPORTED

_COMPILE = {'compiled': 'default', 'cudagraphs': 'reduce-overhead'}
"""Modes of torch.compile by runtime."""


class Work(NamedTuple):
    """A model ready to run.

    Attributes:
        model: The model in torch.
        step: Runs one step.
        held: Returns the tensors that stay in memory between steps.
    """

    model: nn.Module
    step: Callable[[], object]
    held: Callable[[], list[torch.Tensor]]


def make_input(cell: Cell) -> torch.Tensor:
    """Return a batch of noise, (batch, 3, size, size), in the cell's layout and weight type."""
    torch.manual_seed(1)
    x = torch.randn(cell.batch, 3, cell.size, cell.size, device=cell.device)
    return x.to(cell.weight_dtype).contiguous(memory_format=cell.memory_format)


def infer_step(
    model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, autocast: Any
) -> Callable[[], torch.Tensor]:
    """Return a function that runs the model forward on x in inference mode."""

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
    """Return a function that runs forward, cross entropy, backward and the optimizer's step."""

    def step() -> torch.Tensor:
        with autocast:
            loss = F.cross_entropy(model(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


# a model is built many times within a cell and exported once
@functools.lru_cache(maxsize=2)
def _exported(name: str, arguments: str, deploys: bool, batch: int, size: int, int8: bool) -> bytes:
    model = models.build(Spec(name, json.loads(arguments)))
    if deploys:
        model = models.deploy(model, name)
    return runtimes.export(model, torch.zeros(batch, 3, size, size), int8)


def prepare(spec: Spec, mode: Mode, cell: Cell, x: torch.Tensor) -> Work:
    """Build a model and the function that runs one step of the cell's task with it.

    Args:
        spec: The model.
        mode: How it runs.
        cell: Task, precision, layout, device and threads.
        x: Input from `make_input`.
    """
    if mode.runtime in EXPORTED:
        arguments = json.dumps(dict(spec.arguments))
        int8 = cell.precision == 'int8'
        file = _exported(spec.name, arguments, mode.deploys, cell.batch, cell.size, int8)
        bf16 = cell.precision.startswith('bf16')
        step = runtimes.load(mode.runtime, file, x, cell.threads, bf16)
        return Work(nn.Identity(), step, lambda: [x])
    model = models.build(spec, cell.device)
    if mode.deploys:
        model = models.deploy(model, spec.name)
    model = model.to(cell.weight_dtype).to(memory_format=cell.memory_format)
    held = [x, *model.parameters(), *model.buffers()]
    run: Callable[[torch.Tensor], Any] = model
    if mode.runtime in _COMPILE:
        run = torch.compile(model, mode=_COMPILE[mode.runtime])
    elif mode.runtime == 'frozen':
        run = freeze(model)
    autocast = (
        torch.autocast(cell.device, dtype=cell.compute_dtype) if cell.autocasts else nullcontext()
    )
    if cell.task == 'infer':
        return Work(model, infer_step(run, x, autocast), lambda: held)
    model.train()
    labels = torch.arange(cell.batch, device=cell.device) % 1000
    # with a step so small every number stays finite over hours on one batch
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    scaler = torch.amp.GradScaler(cell.device, enabled=cell.precision == 'fp16')
    train = train_step(run, x, labels, optimizer, autocast, scaler)

    def all_held() -> list[torch.Tensor]:
        states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        return held + states

    return Work(model, train, all_held)


def roles(pair: Pair, cell: Cell) -> Iterator[tuple[str, Spec, Mode]]:
    """Yield role, model and mode of each step in a round: baseline, subject, and the control, which
    is a second copy of the baseline.
    """
    yield 'baseline', pair.baseline, cell.modes.baseline
    yield 'subject', pair.subject, cell.modes.subject
    yield 'control', pair.baseline, cell.modes.baseline
