"""Check a model's folder: a function for each question, and a table of what a problem means.

`push_to_hub` refuses what the table calls an error under `push`; `pull` writes nothing if there is
an error under `pull`; `check` prints everything. `check_values` asks one of them of a model that is
no folder.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from timm.data import create_transform, resolve_data_config
from torch import nn

from ..layers.text import list_some, printable
from ..models.loading import fill
from .card import read_card
from .config import CONFIG, MODES
from .folder import CARD, WEIGHTS, ModelFolder
from .golden import GOLDEN, compare_golden, compare_models
from .remote_code import MODULE, is_module

_logger = logging.getLogger(__name__)

Command = Literal['push', 'check', 'pull']

PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.tar')
"""Suffixes of weights that are not safetensors."""

_TOLERANCE = 1e-4  # relative, in float32: another memory format adds in another order
_LARGEST = 512  # px; a config that is not trusted may claim any size


class Finding(NamedTuple):
    """One line of a check.

    Attributes:
        what: What was looked at.
        state: 'ok', 'warning' or 'error'.
        text: What was found.
    """

    what: str
    state: str
    text: str

    def __str__(self) -> str:
        return f'{self.state:<8} {self.what:<11} {printable(self.text)}'


class Subject:
    """What questions are asked about.

    Attributes:
        folder: The folder.
        original: The network that it was written from; None if nobody knows.
    """

    def __init__(self, folder: ModelFolder, original: nn.Module | None = None):
        self.folder = folder
        self.original = original

    @functools.cached_property
    def net(self) -> nn.Module:
        """The network that the folder loads as, in eval mode."""
        return self.folder.load().eval()

    @property
    def size(self) -> list[int]:
        """Channels, height and width of an image to try it with."""
        channels, *sides = self.folder.config.input_size
        return [channels, *(min(side, _LARGEST) for side in sides)]

    @property
    def license(self) -> str | None:
        """The license that the card names, else the config's."""
        card = self.folder.card
        return (read_card(card).data.license if card else None) or self.folder.config.license

    def path(self, name: str) -> Path:
        """Return the path of a file, which the cache may lack while the Hub is not asked."""
        path = self.folder.path / name
        if self.folder.offline and not path.is_file():
            raise FileNotFoundError(
                f'{name} is not in the cache, and the Hub was not asked for it. Run again when the '
                'Hub can be asked.'
            )
        return path


# --- the questions: each returns what is fine ('' if that is not worth a line), or raises ---------


def comes_from(subject: Subject) -> str:
    """Which commit of which repository is it, and was the Hub asked?"""
    folder = subject.folder
    if folder.offline:
        raise ValueError(f'{folder.offline} Only the cache was checked.')
    # `hub.fetch` has compared the weights
    if not folder.repo:
        return ''
    return f'{folder.repo} at {folder.path.name}, weights as the Hub announces'


def has_config(subject: Subject) -> str:
    """Is there a config that describes a Res2Net?"""
    subject.path(CONFIG)
    config = subject.folder.config
    return f'{config.architecture}, {config.num_classes} classes, {config.input_size[-1]} px'


def has_weights(subject: Subject) -> str:
    """Are there weights as safetensors, and can they be read?"""
    weights = subject.path(WEIGHTS)
    if not weights.is_file():
        others = _pickles_in(subject)
        if others:
            raise FileNotFoundError(
                f'{others[0]} is a pickle, and there is no {WEIGHTS}. `timm-res2net convert` '
                'writes one from a checkpoint file.'
            )
        raise FileNotFoundError(
            f'There is no {WEIGHTS}. `timm-res2net convert` writes one from a checkpoint file.'
        )
    try:
        with safe_open(weights, framework='pt') as file:
            count = len(file.keys())
    except SafetensorError as error:
        raise ValueError(f'{WEIGHTS} is damaged ({error}). Download or write it again.') from error
    if not count:
        raise ValueError(f'{WEIGHTS} is empty. Push the model again.')
    return f'{WEIGHTS}, {weights.stat().st_size:,} bytes, {count} tensors'


def has_no_pickles(subject: Subject) -> str:
    """Are there weights of other formats, which are not checked?"""
    there = (*_pickles_in(subject), *subject.folder.pickles)
    if there:
        names = ', '.join(dict.fromkeys(there))
        raise ValueError(f'{names}: not checked. `timm-res2net convert` makes safetensors of them.')
    return ''


def tensors_fit(subject: Subject) -> str:
    """Do the names and shapes of the weights fit the config?"""
    model = subject.folder.build()
    tensors = model.state_dict()
    with safe_open(subject.folder.path / WEIGHTS, framework='pt') as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        kinds = {key: part.get_dtype() for key, part in slices.items()}
        shapes = {key: part.get_shape() for key, part in slices.items()}
    try:  # without the numbers, the shapes are enough
        fill(model, {key: torch.empty(shape, device='meta') for key, shape in shapes.items()})
    except ValueError as error:
        if subject.original is not None:
            raise ValueError(
                f'{error}. The model has layers that no recorded argument describes. Nothing was '
                'pushed; `timm.models.push_to_hf_hub` takes models as they are.'
            ) from error
        raise ValueError(
            f'{error}. Config and weights are of different models: push again.'
        ) from error
    odd = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not kinds[key].startswith(('F', 'BF'))
    ]
    if odd:  # torch would load them all the same, and drop imaginary parts
        raise ValueError(
            f'Weights are {kinds[odd[0]]}, not floating-point numbers, {list_some(odd)}. Save them '
            'as float32.'
        )
    return f'all {len(tensors)} fit the config'


def values_are_finite(subject: Subject) -> str:
    """Are all weights finite, and all variances positive?"""
    problem = _values(_tensors(subject))
    if problem:
        raise ValueError(problem)
    return 'all finite'


def check_values(model: nn.Module, what: str) -> None:
    """Ask the same about a model in memory.

    Args:
        model: The model.
        what: What the error is about, such as 'net.pth was not converted'.

    Raises:
        ValueError: A weight is not finite, or a variance is negative.
    """
    problem = _values(model.state_dict().items())
    if problem:
        raise ValueError(f'{what}: {problem}')


def _values(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return which weights are not finite and which variances negative, '' if none."""
    bad, negative = [], []
    for key, tensor in tensors:
        if not tensor.isfinite().all():
            bad.append(key)
        elif key.endswith('running_var') and (tensor < 0).any():
            negative.append(key)
    problems = [
        f'{what}, {list_some(keys)}'
        for what, keys in (('NaN or infinite', bad), ('negative variances', negative))
        if keys
    ]
    return f'Weights are {"; ".join(problems)}. Use another checkpoint.' if problems else ''


def outputs_are_finite(subject: Subject) -> str:
    """Does an image give finite outputs?"""
    out = _outputs(subject.net, subject.size)
    if not out.isfinite().all():
        raise ValueError('An image gives outputs that are NaN or infinite. Use another checkpoint.')
    return f'an image gives {out.shape[1]} finite outputs'


def outputs_are_the_same(subject: Subject) -> str:
    """Does the folder load as the model that it was written from?"""
    if subject.original is None:
        return ''
    errors = compare_models(subject.original, subject.net, subject.size)
    first = next((name for name, error in errors.items() if error > _TOLERANCE), None)
    if first:
        raise ValueError(
            f'The folder loads as another model: {first} differs first, by {errors[first]:.1e} of '
            'the largest value. A layer was replaced, or the model has other parts that no '
            'recorded argument describes. Undo the change. Nothing was pushed; '
            '`timm.models.push_to_hf_hub` takes models as they are.'
        )
    return f'same outputs, within {max(errors.values()):.0e}'


def outputs_are_golden(subject: Subject) -> str:
    """Does the model give the outputs that are stored beside its weights?"""
    path = subject.folder.path / GOLDEN
    if not path.is_file():
        return ''
    errors = compare_golden(subject.net, path)
    name = max(errors, key=lambda key: errors[key])
    return f'as in {GOLDEN}, largest relative difference {errors[name]:.0e} ({name})'


def images_can_be_prepared(subject: Subject) -> str:
    """Can images be prepared as the config says?"""
    from PIL import Image

    config = subject.folder.config
    # an empty pretrained_cfg stands for timm's defaults
    given = {} if config.pretrained_cfg else {'input_size': tuple(config.input_size)}
    data = resolve_data_config(given, pretrained_cfg=config.pretrained_cfg)
    told = ', '.join(f'{key} {data[key]}' for key in ('interpolation', 'mean', 'std'))
    try:
        transform: Any = create_transform(**data)
        channels = data['input_size'][0]
        mode = MODES.get(channels)
        if mode:
            image = transform(Image.new(mode, (64, 64)))
            fits = image.shape[0] == channels and bool(image.isfinite().all())
        else:
            fits = {len(data['mean']), len(data['std'])} <= {1, channels}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'Images cannot be prepared with {told} ({type(error).__name__}: {error}). Push again '
            'with other values.'
        ) from error
    if not fits:
        raise ValueError(f'{told} do not suit {channels} channels. Push again with other values.')
    return told


def has_license(subject: Subject) -> str:
    """Is the license known?"""
    license = subject.license
    if not license or license == 'unknown':
        known = "The license is only known as 'unknown'" if license else 'No license is known'
        raise ValueError(
            f"{known}. Name it, for instance license='cc-by-nc-sa-4.0' (`timm-res2net push "
            '--license`, `timm-res2net convert --license`), or as license in the pretrained_cfg of '
            "the folder's config.json. It must be compatible with the license of the weights that "
            'training started from.'
        )
    return license


def license_is_free(subject: Subject) -> str:
    """Does the license allow use of any kind, without a text of its own?"""
    license = str(subject.license)
    if license == 'other':
        data = read_card(subject.folder.card).data
        link = f' ({data.license_link})' if data.license_link else ''
        named = str(data.license_name or "'other'") + link
        told = ' '.join(named.split())
        raise ValueError(f'The license is {told}. Read it before you use the weights.')
    if '-nc' in license:
        raise ValueError(
            f'{license} does not allow commercial use. Use other weights in a product.'
        )
    return ''


def code_is_known(subject: Subject) -> str:
    """Did this package write the code that transformers runs with `trust_remote_code=True`?"""
    if not subject.folder.config.auto_map:
        return ''
    if subject.folder.config.remote_code and is_module(subject.path(MODULE)):
        return f'{MODULE} as this version of timm_res2net writes it'
    raise ValueError(
        f'auto_map in {CONFIG} names code for transformers that this version of timm_res2net did '
        'not write. It was neither checked nor pulled: read it before you pass '
        'trust_remote_code=True, or push again with `timm-res2net push --remote-code`.'
    )


def has_card(subject: Subject) -> str:
    """Is there a card whose metadata can be read?"""
    subject.path(CARD)
    card = subject.folder.card
    if not card:
        raise FileNotFoundError(f'There is no {CARD}. `timm-res2net push` writes one.')
    if not card.startswith('---'):
        raise ValueError(f'{CARD} has no metadata. `timm-res2net push` writes it.')
    read_card(card)
    return f'{CARD} with valid metadata'


def _pickles_in(subject: Subject) -> list[str]:
    return sorted(
        path.name for path in subject.folder.path.iterdir() if path.name.endswith(PICKLES)
    )


def _tensors(subject: Subject) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of the model in memory, or else of the file."""
    if subject.original is not None:
        yield from subject.original.state_dict().items()
        return
    with safe_open(subject.folder.path / WEIGHTS, framework='pt') as file:
        yield from ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118


def _outputs(model: nn.Module, size: Sequence[int]) -> torch.Tensor:
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(image)


# --- the table ------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A row of the table.

    Attributes:
        what: What it looks at.
        ask: The question. It returns a text if all is well, and raises an error otherwise.
        needs: Questions without an error, before which this one cannot be asked.
        push: What a problem is for `push_to_hub`: 'error' refuses the push.
        check: What it is for `check`.
        pull: What it is for `pull`: 'error' keeps it from writing.
    """

    what: str
    ask: Callable[[Subject], str]
    needs: tuple[Callable[[Subject], str], ...]
    push: str
    check: str
    pull: str


_E, _W = 'error', 'warning'
# fmt: off
QUESTIONS = (
    # what, question, needs, and what a problem is for push, check and pull
    Question('repository', comes_from,             (),                        _E, _W, _W),
    Question('config',     has_config,             (),                        _E, _E, _E),
    Question('weights',    has_weights,            (),                        _E, _E, _E),
    Question('pickles',    has_no_pickles,         (),                        _W, _W, _W),
    Question('tensors',    tensors_fit,            (has_config, has_weights), _E, _E, _E),
    # a diverged model may be fetched and looked at; copies of it mislead, and so do its answers,
    # which can be plausible, because some kernels drop NaN
    Question('values',     values_are_finite,      (has_weights,),            _E, _W, _W),
    Question('outputs',    outputs_are_finite,     (tensors_fit,),            _E, _W, _W),
    Question('same',       outputs_are_the_same,   (outputs_are_finite,),     _E, _E, _E),
    # the network or the weights are not those whose outputs the owner stored
    Question('golden',     outputs_are_golden,     (outputs_are_the_same,),   _E, _E, _E),
    Question('images',     images_can_be_prepared, (has_config,),             _E, _E, _E),
    # one may have and fetch what one may not publish
    Question('license',    has_license,            (has_config,),             _E, _W, _W),
    Question('license',    license_is_free,        (has_license,),            _W, _W, _W),
    # nothing of this package runs it
    Question('code',       code_is_known,          (has_config,),             _W, _W, _W),
    Question('card',       has_card,               (),                        _E, _W, _W),
)
"""Every question with what a problem means for each command: 'warning' or 'error'."""
# fmt: on


def checks(
    folder: ModelFolder,
    command: Command,
    original: nn.Module | None = None,
    waive: Collection[Callable[[Subject], str]] = (),
) -> list[Finding]:
    """Ask all questions about a folder.

    Args:
        folder: The folder.
        command: Whose column of the table says what a problem means.
        original: The network that the folder was written from.
        waive: Questions that are not asked.

    Returns:
        A finding for each question that has something to say.
    """
    subject = Subject(folder, original)
    findings: list[Finding] = []
    failed: set[Callable[[Subject], str]] = set()
    for question in QUESTIONS:
        severity: str = getattr(question, command)
        if question.ask in waive:
            continue
        if failed.intersection(question.needs):
            failed.add(question.ask)
            continue
        _logger.info(f'Checking the {question.what}')
        try:
            text = question.ask(subject)
        except (OSError, ValueError, RuntimeError) as error:
            failed.add(question.ask)
            findings.append(Finding(question.what, severity, str(error)))
        else:
            if text:
                findings.append(Finding(question.what, 'ok', text))
    return findings


def refuse(findings: Sequence[Finding], what: str) -> None:
    """Raise a ValueError if there are errors among findings.

    Args:
        findings: From `checks`.
        what: What they are about, for the error.
    """
    errors = [finding for finding in findings if finding.state == 'error']
    if errors:
        raise ValueError(f'{what}: ' + ' '.join(finding.text for finding in errors))
