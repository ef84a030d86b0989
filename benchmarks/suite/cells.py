"""Cells, one pair in one configuration each, and the suites that list them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .modes import MODES, Mode, Modes
from .pairs import find_pair, pairs_without_modes

_FOLDER = Path(__file__).parent / 'suites'
SUITES = tuple(sorted(path.stem for path in _FOLDER.glob('*.json')))
KINDS = ('time', 'attribution', 'memory')
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
_DTYPES = {'bf16': torch.bfloat16, 'bf16-weights': torch.bfloat16, 'fp16': torch.float16}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A pair in one configuration.

    Attributes:
        kind: What is measured: 'time', 'attribution' or 'memory'.
        pair: Name of the pair.
        task: 'infer' (forward in inference mode) or 'train' (forward, loss, backward, SGD step).
        modes: How the two models run.
        precision: 'fp32'; 'bf16' or 'fp16' for autocast over float32 weights; 'bf16-weights' for
            weights and input in bfloat16; 'int8' for an exported model that is quantized.
        layout: Memory format of weights and input, 'channels_last' or 'contiguous'.
        batch: Number of images.
        size: Height and width of an image in pixels, the same for both models.
        threads: Number of torch's intra-op threads.
        device: 'cpu' or 'cuda'.
    """

    kind: str
    pair: str
    task: str
    modes: Modes
    precision: str
    layout: str
    batch: int
    size: int
    threads: int
    device: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> 'Cell':
        """Return the cell of a record in a result file, which holds the modes as text."""
        rest = {name: value for name, value in values.items() if name != 'mode'}
        return cls(modes=Modes.parse(values['mode']), **rest)

    def to_json(self) -> dict[str, Any]:
        """Return the cell as a result file holds it; the inverse of `from_json`."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **{name: found.pop(name) for name in ('kind', 'pair', 'task')},
            'mode': str(found.pop('modes')),
            **found,
        }

    @property
    def key(self) -> str:
        """The cell as one string that is unique within a result file."""
        return '/'.join(map(str, self.to_json().values()))

    def __str__(self) -> str:
        return (
            f'{self.pair} {self.task} {self.modes} {self.precision} {self.layout} '
            f'b{self.batch} {self.size}px t{self.threads}'
        )

    def describe(self, omit: Sequence[str] = ()) -> str:
        """Return the configuration as words.

        Args:
            omit: Axes to leave out. 'mode' stands for the modes.
        """
        words = {
            'device': '' if self.device == 'cpu' else self.device,
            'task': self.task,
            'mode': str(self.modes),
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
        """Type in which convolutions compute."""
        return _DTYPES.get(self.precision, torch.float32)

    @property
    def autocasts(self) -> bool:
        """Whether the step runs under autocast."""
        return self.compute_dtype != self.weight_dtype


def _check_given(given: Mapping[str, Sequence[Any]], budget: float | None) -> None:
    for axis, (choices, _) in AXES.items():
        for value in given.get(axis, ()):
            if choices and value not in choices:
                raise ValueError(f'{axis}={value!r} must be one of {", ".join(choices)}.')
            if not choices and value is not None and value < 1:
                raise ValueError(f'{axis}={value!r} must be at least 1.')
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f'budget={budget} must be a number of seconds above 0.')


def _cells_of(part: Mapping[str, Any], device: str) -> list[Cell]:
    """Return the cells of one part of a suite. Attribution is for inference in eager mode only."""
    names = [n for p in part['pairs'] for n in (pairs_without_modes() if p == '*' else [p])]
    values = [part.get(axis, [default]) for axis, (_, default) in AXES.items()]
    cells = []
    for name, row in itertools.product(names, itertools.product(*values)):
        axes = dict(zip(AXES, row, strict=True))
        modes = find_pair(name).modes(Mode.parse(axes.pop('mode')))
        axes['threads'] = axes['threads'] or torch.get_num_threads()
        cell = Cell(part['kind'], name, modes=modes, device=device, **axes)
        if cell.kind != 'attribution' or (cell.task, str(modes)) == ('infer', 'eager'):
            cells.append(cell)
    return cells


def load_suite(
    name: str,
    given: Mapping[str, Sequence[Any]] | None = None,
    only: Sequence[str] = KINDS,
    budget: float | None = None,
    device: str | None = None,
) -> dict[Cell, float]:
    """Return the cells of a suite in order, each with its budget in seconds.

    A cell that two parts of the suite name appears once, with the budget of the first.

    Args:
        name: One of `SUITES`.
        given: Values by axis (`AXES`, and 'pairs') that replace the suite's.
        only: Kinds to keep.
        budget: Seconds for a cell; None for the suite's.
        device: Device; None for the suite's.

    Raises:
        ValueError: There is no such suite, pair, model or value, or no cell is left.
    """
    if name not in SUITES:
        raise ValueError(f"Unknown suite '{name}'. Use one of {', '.join(SUITES)}.")
    given = given or {}
    _check_given(given, budget)
    suite = json.loads((_FOLDER / f'{name}.json').read_text())
    cells: dict[Cell, float] = {}
    for part in suite['parts']:
        if part['kind'] in only:
            seconds = part.get('budget', suite['budget']) if budget is None else budget
            for cell in _cells_of({**part, **given}, device or suite['device']):
                cells.setdefault(cell, seconds)
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
