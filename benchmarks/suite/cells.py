"""Cells, one pair of models in one configuration each, the suites that list them, and the cells
that this machine cannot run.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from timm_res2net.files import require
from timm_res2net.folder.target import close_names

from ..script import cpu_has_bf16

_FOLDER = Path(__file__).parent
SUITES = {path.stem: json.loads(path.read_text()) for path in sorted(_FOLDER.glob('suites/*.json'))}
KINDS = ('time', 'attribution', 'memory')
COMPILED = ('compiled', 'frozen', 'cudagraphs')
"""Runtimes by torch.compile: with its defaults, with weights as constants, and with CUDA graphs
(`mode='reduce-overhead'`).
"""
EXPORTED = {
    'onnxruntime': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'openvino'),
}
"""Runtimes that read an ONNX file, with the packages that each needs."""
_RUNTIMES = (*COMPILED, *EXPORTED)
MODES = ('eager', *_RUNTIMES, 'deploy', *(f'deploy+{runtime}' for runtime in _RUNTIMES))
"""How a model runs: its runtime, with `deploy+` before it if the model is deployed; `deploy` alone
is the deployed model in eager mode."""
DTYPES = {
    'fp32': (torch.float32, torch.float32),
    'bf16': (torch.float32, torch.bfloat16),
    'bf16-weights': (torch.bfloat16, torch.bfloat16),
    'fp16': (torch.float32, torch.float16),
    'int8': (torch.float32, torch.float32),  # before an exported model is quantized
}
"""Types by precision: of weights and input, and in which convolutions compute. If they differ,
autocast casts."""
LAYOUTS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}
"""Memory formats of weights and input."""
AXES: dict[str, tuple[tuple[str, ...], Any]] = {
    'task': (('infer', 'train'), 'infer'),
    'mode': (MODES, 'eager'),
    'precision': (tuple(DTYPES), 'fp32'),
    'layout': (tuple(LAYOUTS), 'channels_last'),
    'batch': ((), 8),
    'size': ((), 224),
    'threads': ((), None),
}
"""Every axis of a configuration: its values (empty for any positive integer) and its default."""


def runtime_of(mode: str) -> str:
    """Return the runtime of a mode: 'eager', one of `COMPILED` or one of `EXPORTED`."""
    return mode.removeprefix('deploy').removeprefix('+') or 'eager'


class Spec(NamedTuple):
    """A model of a pair: a name of timm's registry, and arguments for the model."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    mode: str | None = None  # one of `MODES`; None for the cell's

    def __str__(self) -> str:
        inner = ', '.join(f'{k}={v!r}' for k, v in self.arguments)
        mode = f' [{self.mode}]' if self.mode else ''
        return f'{self.name}({inner}){mode}' if inner else f'{self.name}{mode}'


class Pair(NamedTuple):
    """Two models to compare. Either both have a mode of their own or neither has."""

    baseline: Spec
    subject: Spec

    def mode(self, mode: str) -> str:
        """Return `BASELINE->SUBJECT` if the pair has modes of its own, otherwise the given mode."""
        return f'{self.baseline.mode}->{self.subject.mode}' if self.baseline.mode else mode

    def labels(self) -> dict[str, str]:
        """Return the models as text, by role."""
        return {role: str(spec) for role, spec in self._asdict().items()}


@functools.cache
def load_pairs() -> Mapping[str, Pair]:
    """Return the pairs of pairs.json by name."""

    def spec(model: Any) -> Spec:
        if isinstance(model, str):
            return Spec(model)
        name, arguments, *mode = model
        return Spec(name, tuple(arguments.items()), *mode)

    lines: Any = json.loads((_FOLDER / 'pairs.json').read_text())
    return {name: Pair(spec(p['baseline']), spec(p['subject'])) for name, p in lines.items()}


def find_pair(name: str) -> Pair:
    """Return a pair by its name or from a text BASELINE:SUBJECT.

    Raises:
        ValueError: There is no such pair or no such model.
    """
    pairs = load_pairs()
    if name not in pairs and name.count(':') != 1:
        raise ValueError(
            f"Unknown pair '{name}'. Use one of {', '.join(pairs)}, or BASELINE:SUBJECT with two "
            'model names.'
        )
    pair = pairs[name] if name in pairs else Pair(*map(Spec, name.split(':')))
    for spec in pair:
        if not timm.is_model(spec.name):
            close = close_names(spec.name, timm.list_models())
            raise ValueError(f"Unknown model '{spec.name}' in pair '{name}'.{close}")
    return pair


@dataclasses.dataclass(frozen=True)
class Cell:
    """A pair in one configuration. A result file holds the fields as they are here."""

    kind: str  # what is measured, one of `KINDS`
    pair: str
    task: str  # 'infer' (forward in inference mode) or 'train' (forward, loss, backward, SGD step)
    mode: str  # one of `MODES`, or `BASELINE->SUBJECT` of a pair with modes of its own
    precision: str  # one of `DTYPES`
    layout: str  # one of `LAYOUTS`
    batch: int  # images
    size: int  # height and width of an image in pixels, the same for both models
    threads: int  # torch's intra-op threads
    device: str  # 'cpu' or 'cuda'

    @property
    def key(self) -> str:
        """The cell as one string that is unique within a result file."""
        return '/'.join(map(str, dataclasses.astuple(self)))

    def __str__(self) -> str:
        return f'{self.pair}: {self.words()}'

    @property
    def modes(self) -> tuple[str, str]:
        """Mode of the baseline and of the subject."""
        baseline, _, subject = self.mode.partition('->')
        return baseline, subject or baseline

    @property
    def of_pair(self) -> bool:
        """Whether the pair has modes of its own."""
        return '->' in self.mode

    @property
    def compiles(self) -> bool:
        """Whether torch.compile runs, so that building a model again takes long."""
        return any(runtime_of(mode) in COMPILED for mode in self.modes)

    def words(self, omit: Sequence[str] = ()) -> str:
        """Return the configuration as words, without the axes to omit."""
        words = {
            'device': '' if self.device == 'cpu' else self.device,
            **{axis: getattr(self, axis) for axis in ('task', 'mode', 'precision', 'layout')},
            'batch': f'batch {self.batch}',
            'size': f'{self.size} px',
            'threads': f'{self.threads} thread' + ('s' if self.threads > 1 else ''),
        }
        return ', '.join(text for axis, text in words.items() if text and axis not in omit)


def load_suite(
    name: str,
    given: Mapping[str, Sequence[Any]] | None = None,
    only: Sequence[str] = KINDS,
    budget: float | None = None,
) -> dict[Cell, float]:
    """Return the cells of a suite in order, each with its budget in seconds.

    A cell that two parts of the suite name appears once, with the budget of the first. Attribution
    is for inference in eager mode only.

    Args:
        name: One of `SUITES`.
        given: Values by axis (`AXES`, and 'pairs') that replace the suite's.
        only: Kinds to keep.
        budget: Seconds for a cell; None for the suite's.

    Raises:
        ValueError: There is no such pair, model or value, or no cell is left.
    """
    given = given or {}
    for axis in ('batch', 'size', 'threads'):
        for value in given.get(axis, ()):
            if value < 1:
                raise ValueError(f'{axis}={value} must be at least 1.')
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f'budget={budget} must be a number of seconds above 0.')
    suite = SUITES[name]
    every = [pair for pair, specs in load_pairs().items() if specs.baseline.mode is None]
    cells: dict[Cell, float] = {}
    for part in ({**part, **given} for part in suite['parts'] if part['kind'] in only):
        pairs = [pair for word in part['pairs'] for pair in (every if word == '*' else [word])]
        values = [part.get(axis, [default]) for axis, (_, default) in AXES.items()]
        for pair, row in itertools.product(pairs, itertools.product(*values)):
            axes = dict(zip(AXES, row, strict=True))
            axes['mode'] = find_pair(pair).mode(axes['mode'])
            axes['threads'] = axes['threads'] or torch.get_num_threads()
            cell = Cell(kind=part['kind'], pair=pair, device=suite['device'], **axes)
            if cell.kind != 'attribution' or (cell.task, cell.mode) == ('infer', 'eager'):
                cells.setdefault(cell, budget or part.get('budget', suite['budget']))
    if not cells:
        raise ValueError(
            f"Nothing of suite '{name}' is left. Attribution is for inference in eager mode; "
            'use other values or another --only.'
        )
    return cells


def compiler() -> str | None:
    """Return the name of a C++ compiler on the path, or None."""
    names = (os.environ.get('CXX'), 'g++', 'c++', 'clang++', 'cl')
    return next((name for name in names if name and shutil.which(name)), None)


def _problems(cell: Cell, mode: str) -> Iterator[str]:
    """Yield why a cell cannot run here or makes no sense, with the remedy."""
    on_gpu, runtime = cell.device == 'cuda', runtime_of(mode)
    packs = mode.startswith('deploy') or runtime not in ('eager', 'compiled', 'cudagraphs')
    if on_gpu and not torch.cuda.is_available():
        yield "Device 'cuda' needs a GPU, and torch sees none. Use --suite cpu."
    if cell.precision.startswith('bf16') and not (
        torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
    ):
        yield (
            f"Precision '{cell.precision}' would be emulated here, so its time means nothing. Use "
            '--precision fp32.'
        )
    if cell.precision == 'int8' and runtime not in EXPORTED:
        yield "Precision 'int8' is for exported models. Use --mode openvino or onnxruntime."
    if (packs or cell.precision == 'bf16-weights') and cell.task == 'train':
        yield f"Mode '{mode}' with '{cell.precision}' is for inference. Use --task infer."
    if packs and cell.kind != 'time':
        yield (
            f"Kind '{cell.kind}' does not see the weights that mode '{mode}' packs. Use "
            '--only time, or mode eager or compiled.'
        )
    if runtime == 'cudagraphs' and not on_gpu:
        yield f"Mode '{mode}' needs a GPU. Use --mode compiled on a CPU."
    if runtime in COMPILED and not on_gpu and compiler() is None:
        yield f"Mode '{mode}' needs a C++ compiler. Install g++, set CXX, or use --mode eager."
    if runtime in EXPORTED and on_gpu:
        yield f"Mode '{mode}' runs on a CPU only. Use another mode, or --suite deploy."
    if runtime == 'onnxruntime' and cell.precision.startswith('bf16'):
        yield f"Mode '{mode}' does not run in bfloat16 on a CPU. Use --precision fp32, or openvino."
    if cell.threads > (cores := os.cpu_count() or 1):
        yield f'threads={cell.threads} is more than the {cores} cores here. Use --threads {cores}.'


def refuse_impossible(cell: Cell) -> None:
    """Raise ValueError if this machine cannot run a cell, or if its axes do not go together."""
    for mode in cell.modes:
        for problem in _problems(cell, mode):
            raise ValueError(problem)
        require('export', *EXPORTED.get(runtime_of(mode), ()))
    if cell.precision == 'int8':
        require('int8', 'nncf')
