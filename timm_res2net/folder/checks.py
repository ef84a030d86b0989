"""Check a model's folder: a function for each question, and a table of what a problem means.

`push_to_hub` refuses what the table calls an error under `push`; `pull` writes nothing if there is
an error under `pull`; `check` prints everything.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from ..layers.text import list_some, printable
from .card import license_of, read_card
from .config import CONFIG, MODULE, data_of
from .folder import CARD, WEIGHTS, ModelFolder, is_module
from .golden import GOLDEN, differences, noise_image, outputs_of

_logger = logging.getLogger(__name__)

PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.tar')
"""Suffixes of weights that are not safetensors."""

_TOLERANCE = 1e-4  # relative, in float32: another memory format adds in another order


class Finding(NamedTuple):
    """One line of a check.

    Attributes:
        what: What was looked at.
        state: 'ok', 'warning' or 'error'.
        text: The result.
    """

    what: str
    state: str
    text: str

    def __str__(self) -> str:
        return f'{self.state:<8} {self.what:<11} {printable(self.text)}'


def _license(folder: ModelFolder) -> str | None:
    """Return the license that the card names, else the config's."""
    return license_of(folder.card) or folder.config.license


# --- the questions: each returns what is fine ('' if that is not worth a line), or raises ---------


def comes_from(folder: ModelFolder) -> str:
    """Which commit of which repository is it, and was the Hub asked?"""
    if folder.offline:
        raise ValueError(f'{folder.offline} Only the cache was checked.')
    # `hub.fetch` has compared the weights
    if not folder.repo:
        return ''
    return f'{folder.repo} at {folder.path.name}, weights as the Hub announces'


def has_config(folder: ModelFolder) -> str:
    """Is there a config that describes a Res2Net?"""
    config = folder.config
    return f'{config.architecture}, {config.num_classes} classes, {config.input_size[-1]} px'


def weights_fit(folder: ModelFolder) -> str:
    """Are there weights as safetensors, and do their names, shapes and types fit the config?"""
    weights = folder.path / WEIGHTS
    if not weights.is_file():
        pickles = _pickles_in(folder)
        instead = f'{pickles[0]} is a pickle, and there' if pickles else 'There'
        raise FileNotFoundError(
            f'{instead} is no {WEIGHTS}. `timm-res2net convert` writes one from a checkpoint file.'
        )
    try:
        count = folder.fitting
    except ValueError as error:
        if folder.original is None:
            raise
        raise ValueError(
            f'{error} The model has layers that no recorded argument describes. Nothing was '
            'pushed; `timm.models.push_to_hf_hub` takes models as they are.'
        ) from error
    return f'{WEIGHTS}, {weights.stat().st_size:,} bytes, all {count} tensors fit the config'


def has_no_pickles(folder: ModelFolder) -> str:
    """Are there weights of other formats, which are not checked?"""
    pickles = dict.fromkeys((*_pickles_in(folder), *folder.pickles))
    if pickles:
        raise ValueError(
            f'{", ".join(pickles)}: not checked. `timm-res2net convert` makes safetensors of them.'
        )
    return ''


def all_is_finite(folder: ModelFolder) -> str:
    """Are all weights finite and no variance negative, and does an image give finite outputs?"""
    check_values(folder.net)
    with torch.no_grad():
        out = folder.net(noise_image(folder.config.input_size))
    if not out.isfinite().all():
        raise ValueError('An image gives outputs that are NaN or infinite. Use another checkpoint.')
    return f'weights and the {out.shape[1]} outputs for an image are finite'


def check_values(model: nn.Module, start: str = '') -> None:
    """Check that all weights of a model are finite, and no variance is negative.

    Args:
        model: The model.
        start: What the error starts with, such as 'net.pth was not converted: '.

    Raises:
        ValueError: A weight is not finite, or a variance is negative.
    """
    tensors = model.state_dict()
    bad = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    negative = [
        key for key, tensor in tensors.items()
        if key.endswith('running_var') and key not in bad and (tensor < 0).any()
    ]  # fmt: skip
    kinds = {'NaN or infinite': bad, 'negative variances': negative}
    problems = [f'{what}, {list_some(keys)}' for what, keys in kinds.items() if keys]
    if problems:
        raise ValueError(f'{start}Weights are {"; ".join(problems)}. Use another checkpoint.')


def outputs_are_the_same(folder: ModelFolder) -> str:
    """Does the folder load as the model that it was written from?"""
    if folder.original is None:
        return ''
    image = noise_image(folder.config.input_size)
    errors = differences(*(outputs_of(net, image) for net in (folder.net, folder.original)))
    first = next((name for name, error in errors.items() if error > _TOLERANCE), None)
    if first:
        raise ValueError(
            f'The folder loads as another model: {first} differs first, by {errors[first]:.1e} of '
            'the largest value. A layer was replaced, or the model has other parts that no '
            'recorded argument describes. Undo the change. Nothing was pushed; '
            '`timm.models.push_to_hf_hub` takes models as they are.'
        )
    return f'same outputs, within {max(errors.values()):.0e}'


def outputs_are_golden(folder: ModelFolder) -> str:
    """Does the model give the outputs that are stored beside its weights?"""
    errors = folder.compare_golden(folder.net)
    if not errors:
        return ''
    name = max(errors, key=lambda key: errors[key])
    return f'as in {GOLDEN}, largest relative difference {errors[name]:.0e} ({name})'


def images_are_known(folder: ModelFolder) -> str:
    """Is it recorded how images are prepared?"""
    data = data_of(folder.config.pretrained_cfg)
    if folder.config.assumed:
        raise ValueError(
            f'{", ".join(folder.config.assumed)} were not recorded with the weights, and are '
            'assumed to be those of the architecture. Give them when converting or pushing, as '
            '--img-size, --mean, --std, --crop-pct and --interpolation.'
        )
    return ', '.join(f'{key} {data[key]}' for key in ('interpolation', 'mean', 'std'))


def has_license(folder: ModelFolder) -> str:
    """Is the license known?"""
    license = _license(folder)
    if not license or license == 'unknown':
        known = "The license is only known as 'unknown'" if license else 'No license is known'
        raise ValueError(
            f"{known}. Name it, for instance license='cc-by-nc-sa-4.0' (`timm-res2net push "
            '--license`, `timm-res2net convert --license`), or as license in the pretrained_cfg of '
            "the folder's config.json. It must be compatible with the license of the weights that "
            'training started from.'
        )
    return license


def license_is_free(folder: ModelFolder) -> str:
    """Does the license allow use of any kind, without a text of its own?"""
    license = str(_license(folder))
    if license == 'other':
        data = read_card(folder.card).data
        link = f' ({data.license_link})' if data.license_link else ''
        named = ' '.join(f'{data.license_name or "other"}{link}'.split())
        raise ValueError(f'The license is {named}. Read it before you use the weights.')
    if '-nc' in license:
        raise ValueError(
            f'{license} does not allow commercial use. Use other weights in a product.'
        )
    return ''


def code_is_known(folder: ModelFolder) -> str:
    """Did this package write the code that transformers runs with `trust_remote_code=True`?"""
    if not folder.config.auto_map:
        return ''
    if folder.config.remote_code and is_module(folder.path / MODULE):
        return f'{MODULE} as this version of timm_res2net writes it'
    raise ValueError(
        f'auto_map in {CONFIG} names code for transformers that this version of timm_res2net did '
        'not write. It was neither checked nor pulled: read it before you pass '
        'trust_remote_code=True, or push again with `timm-res2net push --remote-code`.'
    )


def has_card(folder: ModelFolder) -> str:
    """Is there a card whose metadata can be read?"""
    card = folder.card
    if not card:
        where = ' in the cache' if folder.offline else ''
        raise FileNotFoundError(f'There is no {CARD}{where}. `timm-res2net push` writes one.')
    if not card.startswith('---'):
        raise ValueError(f'{CARD} has no metadata. `timm-res2net push` writes it.')
    read_card(card)
    return f'{CARD} with valid metadata'


def _pickles_in(folder: ModelFolder) -> list[str]:
    return sorted(p.name for p in folder.path.iterdir() if p.name.endswith(PICKLES))


# --- the table ------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A row of the table.

    Attributes:
        what: What it looks at.
        ask: The question. It returns a text if all is well, and raises an error otherwise.
        needs: Questions without an error, before which this one cannot be asked.
        push: What a problem is for `push_to_hub`: 'error' refuses the push.
        check: What it is for `check`.
        pull: What it is for `pull`: 'error' writes nothing.
    """

    what: str
    ask: Callable[[ModelFolder], str]
    needs: tuple[Callable[[ModelFolder], str], ...]
    push: str
    check: str
    pull: str


_E, _W = 'error', 'warning'
# fmt: off
QUESTIONS = (
    # what, question, needs, and what a problem is for push, check and pull
    Question('repository', comes_from,             (),                        _E, _W, _W),
    Question('config',     has_config,             (),                        _E, _E, _E),
    Question('weights',    weights_fit,            (has_config,),             _E, _E, _E),
    Question('pickles',    has_no_pickles,         (),                        _W, _W, _W),
    # a diverged model may be fetched and looked at; copies of it mislead, and so do its answers,
    # which can be plausible, because some kernels drop NaN
    Question('values',     all_is_finite,          (weights_fit,),            _E, _W, _W),
    Question('same',       outputs_are_the_same,   (all_is_finite,),          _E, _E, _E),
    # the network or the weights are not those whose outputs the owner stored
    Question('golden',     outputs_are_golden,     (outputs_are_the_same,),   _E, _E, _E),
    Question('images',     images_are_known,       (has_config,),             _W, _W, _W),
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
    command: Literal['push', 'check', 'pull'],
    waive: Callable[[ModelFolder], str] | None = None,
) -> list[Finding]:
    """Ask all questions about a folder.

    Args:
        folder: The folder.
        command: Whose column of the table says what a problem means.
        waive: A question that is not asked.

    Returns:
        A finding for each question that has something to say.
    """
    findings: list[Finding] = []
    failed: set[Callable[[ModelFolder], str]] = set()
    for question in QUESTIONS:
        severity: str = getattr(question, command)
        if question.ask is waive:
            continue
        if failed.intersection(question.needs):
            failed.add(question.ask)
            continue
        _logger.info(f'Checking the {question.what}')
        try:
            text = question.ask(folder)
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
