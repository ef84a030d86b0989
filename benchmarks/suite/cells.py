"""Cells, one pair of models in one configuration each, and the suites that list them."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch

from timm_res2net.layers.text import close_names

_FOLDER = Path(__file__).parent / 'suites'
SUITES = tuple(sorted(path.stem for path in _FOLDER.glob('*.json')))
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
RUNTIMES = ('eager', *COMPILED, *EXPORTED)
MODES = (*RUNTIMES, 'deploy', *(f'deploy+{runtime}' for runtime in RUNTIMES[1:]))
"""How a model runs: its runtime, with `deploy+` before it if the model is deployed; `deploy` alone
is the deployed model in eager mode."""
AXES: dict[str, tuple[tuple[str, ...], Any]] = {
    'task': (('infer', 'train'), 'infer'),
    'mode': (MODES, 'eager'),
    'precision': (('fp32', 'bf16', 'bf16-weights', 'fp16', 'int8'), 'fp32'),
    'layout': (('channels_last', 'contiguous'), 'channels_last'),
    'batch': ((), 8),
    'size': ((), 224),
    'threads': ((), None),
}
"""Every axis of a configuration: its values (empty for any positive integer) and its default."""


def deploys(mode: str) -> bool:
    """Return whether the model is deployed."""
    return mode.startswith('deploy')


def runtime_of(mode: str) -> str:
    """Return the runtime of a mode, one of `RUNTIMES`."""
    return mode.removeprefix('deploy').removeprefix('+') or 'eager'


class Spec(NamedTuple):
    """A model of a pair: a name of timm's registry, and arguments for the model."""

    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    mode: str | None = None  # one of `MODES`; None for the cell's

    def __str__(self) -> str:
        inner = ', '.join(f'{k}={v!r}' for k, v in self.arguments.items())
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
        return {'baseline': str(self.baseline), 'subject': str(self.subject)}


@functools.cache
def load_pairs() -> Mapping[str, Pair]:
    """Return the pairs of pairs.json by name."""
    found = json.loads(Path(__file__).with_name('pairs.json').read_text())

    def spec(model: Any) -> Spec:
        return Spec(model) if isinstance(model, str) else Spec(*model)

    return {n: Pair(spec(pair['baseline']), spec(pair['subject'])) for n, pair in found.items()}


def pairs_without_modes() -> list[str]:
    """Return the names of the pairs that run in a cell's mode; '*' stands for them."""
    return [name for name, pair in load_pairs().items() if pair.baseline.mode is None]


def find_pair(name: str) -> Pair:
    """Return a pair by its name or from a text BASELINE:SUBJECT.

    Raises:
        ValueError: There is no such pair or no such model.
    """
    pairs = load_pairs()
    if name in pairs:
        pair = pairs[name]
    elif name.count(':') == 1:
        pair = Pair(*map(Spec, name.split(':')))
    else:
        raise ValueError(
            f"Unknown pair '{name}'. Use one of {', '.join(pairs)}, or BASELINE:SUBJECT with two "
            'model names.'
        )
    for spec in pair:
        if not timm.is_model(spec.name):
            raise ValueError(
                f"Unknown model '{spec.name}' in pair '{name}'."
                f'{close_names(spec.name, timm.list_models())}'
            )
    return pair


@dataclasses.dataclass(frozen=True)
class Cell:
    """A pair in one configuration. A result file holds the fields as they are here."""

    kind: str  # what is measured: 'time', 'attribution' or 'memory'
    pair: str
    task: str  # 'infer' (forward in inference mode) or 'train' (forward, loss, backward, SGD step)
    mode: str  # one of `MODES`, or `BASELINE->SUBJECT` of a pair with modes of its own
    # 'fp32'; 'bf16' or 'fp16' for autocast over float32 weights; 'bf16-weights' for weights and
    # input in bfloat16; 'int8' for an exported model that is quantized
    precision: str
    layout: str  # memory format of weights and input, 'channels_last' or 'contiguous'
    batch: int  # images
    size: int  # height and width of an image in pixels, the same for both models
    threads: int  # torch's intra-op threads
    device: str  # 'cpu' or 'cuda'

    @property
    def key(self) -> str:
        """The cell as one string that is unique within a result file."""
        return '/'.join(map(str, dataclasses.astuple(self)))

    def __str__(self) -> str:
        return f'{self.pair}: {self.describe()}'

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

    def describe(self, omit: Sequence[str] = ()) -> str:
        """Return the configuration as words.

        Args:
            omit: Axes to leave out.
        """
        words = {
            'device': '' if self.device == 'cpu' else self.device,
            'task': self.task,
            'mode': self.mode,
            'precision': self.precision,
            'layout': self.layout,
            'batch': f'batch {self.batch}',
            'size': f'{self.size} px',
            'threads': f'{self.threads} thread' + ('s' if self.threads > 1 else ''),
        }
        return ', '.join(text for axis, text in words.items() if text and axis not in omit)

    @property
    def memory_format(self) -> torch.memory_format:
        """Torch's name of the layout."""
        return torch.channels_last if self.layout == 'channels_last' else torch.contiguous_format

    @property
    def weight_dtype(self) -> torch.dtype:
        """Type of weights and input. Autocast leaves them in float32."""
        return torch.bfloat16 if self.precision == 'bf16-weights' else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type in which convolutions compute. If it is not that of the weights, autocast casts."""
        types = {'bf16': torch.bfloat16, 'bf16-weights': torch.bfloat16, 'fp16': torch.float16}
        return types.get(self.precision, torch.float32)


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
    suite = json.loads((_FOLDER / f'{name}.json').read_text())
    cells: dict[Cell, float] = {}
    for part in ({**part, **given} for part in suite['parts'] if part['kind'] in only):
        names = [n for p in part['pairs'] for n in (pairs_without_modes() if p == '*' else [p])]
        values = [part.get(axis, [default]) for axis, (_, default) in AXES.items()]
        for pair, row in itertools.product(names, itertools.product(*values)):
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


def minutes(seconds: float) -> str:
    """Return a duration as text."""
    return f'{seconds:.0f} s' if seconds < 90 else f'{seconds / 60:.0f} min'


def describe_suite(name: str) -> str:
    """Return what a suite measures, and the most time that its cells take."""
    about = json.loads((_FOLDER / f'{name}.json').read_text())['about']
    return f'{about} Up to {minutes(sum(load_suite(name).values()))}, plus building models.'
