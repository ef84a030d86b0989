"""Push a model to the Hub: take it, adjust what its folder says, refuse or send."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from typing import Any

from huggingface_hub import EvalResult
from torch import nn

from ..files import sha256_of, temporary_folder
from ..folder.card import (
    ABOUT,
    PERCENT,
    accuracy,
    key_of,
    owners_text,
    read_card,
    results_of,
    with_card,
)
from ..folder.checks import checks, has_license, refuse
from ..folder.folder import CARD, FILES, WEIGHTS, ModelFolder, write
from ..folder.golden import GOLDEN, compare_golden
from ..folder.model import Model
from ..folder.take import take
from ..folder.target import Target, find_repository
from ..layers.text import list_some
from .repository import FileSent, Push, Remote, commit, look

_logger = logging.getLogger(__name__)


def push_to_hub(
    model: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    results: Mapping[str, float] | None = None,
    dataset: str | None = None,
    label_names: Sequence[str] | None = None,
    remote_code: bool | None = None,
    data: Mapping[str, Any] | None = None,
    architecture: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    card: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> Push:
    """Push a Res2Net to the Hugging Face Hub: config.json, model.safetensors and a card.

    Before anything is sent, timm loads what would be sent, and its outputs are compared with the
    model's. A noise image and the model's outputs for it are sent, too, so that `check` and `pull`
    can compare. Files that the Hub already has are not sent again.

    Args:
        model: A model in memory (of this package, or a Res2Net of timm), a folder, or a checkpoint
            file that `convert_checkpoint` reads, those of timm's train.py included.
        repo_id: Repository, as OWNER/NAME. It is created if it does not exist.
        license: Identifier of the license, such as 'apache-2.0'. It is required unless the folder
            or the card on the Hub names one.
        results: Accuracies by metric: 'top1', 'top5' and 'accuracy' in percent, others as they are.
        dataset: Name on the Hub of the data set on which they were measured.
        label_names: Names of the classes, in order; by default those of a folder. A model in memory
            has none, because it may have been trained for other classes than its weights.
        remote_code: Add a module of a few lines with which transformers loads the model without an
            import of this package: `from_pretrained(repo_id, trust_remote_code=True)`. By default
            it stays as the folder or the Hub has it, and a new repository gets none. Nobody expects
            a push of weights to publish code, and a repository without code passes where code is
            inspected or forbidden. timm loads both.
        data: How images are prepared: some of `input_size`, `img_size`, `mean`, `std`, `crop_pct`
            and `interpolation`; by default as the folder, train.py's arguments or the name say.
        architecture: Name of the model, for a checkpoint whose shapes do not tell it.
        semantics: Block semantics, for a checkpoint whose keys do not tell them.
        entry: Entry of the file that holds the weights, as in `convert_checkpoint`.
        prefix: What the Res2Net's keys start with in the file, as in `convert_checkpoint`.
        revision: Branch; it is created from main if it does not exist.
        private: Make the repository private if it is created.
        commit_message: Message of the commit.
        card: Which text stays if the author's text on the folder's card and on the Hub's card
            differ: 'folder' or 'hub'. By default that is an error.
        dry_run: Do everything that needs no network, and send nothing.
        token: Access token, by default that of the login; False for none.

    Returns:
        What was done. If `changed` is empty, the Hub already had everything.

    Raises:
        ValueError: `checks` finds an error, the model cannot be read, an argument does not fit, or
            the Hub refuses the metadata of the card.
        OSError: The Hub refuses, cannot be reached, or has changed in the meantime. All files are
            sent in one commit, so the repository never holds a part of a push.

    Example:
        >>> import timm, timm_res2net
        >>> model = timm.create_model('test_res2net_se', pretrained=True)
        >>> done = timm_res2net.push_to_hub(model, 'me/digits', license='mit', dry_run=True)
        >>> sorted(done.files)
        ['README.md', 'config.json', 'model.safetensors', 'test/rand_tensors.safetensors']
    """
    target = find_repository(repo_id)
    if target.revision:
        raise ValueError(
            f"'{repo_id}' names a branch. Pass it as revision='{target.revision}' (--revision)."
        )
    target = target._replace(revision=revision)
    measured = _results(results, dataset)
    if card not in (None, 'folder', 'hub'):
        raise ValueError(f"card must be 'folder', 'hub' or None, got {card!r}.")
    _logger.info('Reading the model')
    taken = take(model, model=architecture, semantics=semantics, entry=entry, prefix=prefix)
    remote = Remote() if dry_run else look(target, token, private)
    old = _author_card(taken.card, remote.folder.card, card, target.value)
    taken, notes = _described(taken, remote, old, license, label_names, remote_code, data)
    with temporary_folder() as scratch:
        folder = write(replace(taken, card=''), scratch / 'model')
        _keep_golden(taken, remote, folder)
        carded, more = _with_card(taken, old, remote, folder, target, measured)
        (folder.path / CARD).write_text(carded.card, encoding='utf-8')
        waived = [has_license] if license == 'unknown' else []
        unknown = taken.config.license in (None, 'unknown')
        asked = ' (a dry run does not ask the Hub for a license)' if dry_run and unknown else ''
        findings = checks(folder, 'push', waived)
        refuse(findings, f'{target.value} was not pushed{asked}')
        files = {
            name: FileSent(path.stat().st_size, sha256_of(path), remote.differs(name, path))
            for name in FILES
            if (path := folder.path / name).is_file()
        }
        branch = revision or 'main'
        done = Push(target.value, branch, files, carded.card, carded.config, (*notes, *more))
        if dry_run:
            return done
        return commit(done, remote, folder, token, private, commit_message)


def _results(values: Mapping[str, float] | None, dataset: str | None) -> list[EvalResult]:
    """Return the accuracies that a push states, checked."""
    if not values:
        if dataset:
            raise ValueError(f"Give the results on '{dataset}', such as top1=78.3.")
        return []
    if not dataset:
        raise ValueError(f'Name the data set on which {", ".join(values)} was measured.')
    bad = {
        key: value
        for key, value in values.items()
        if isinstance(value, bool)
        or not isinstance(value, int | float)
        or not isfinite(value)
        or (key in PERCENT and not 0 <= value <= 100)
    }
    if bad:
        raise ValueError(
            f'Results must be numbers, {", ".join(PERCENT)} in percent from 0 to 100; got {bad}.'
        )
    return [accuracy(metric, float(value), dataset) for metric, value in values.items()]


def _author_card(folder: str, hub: str, card: str | None, repo: str) -> str:
    """Return the card whose author's text stays: the folder's or the Hub's."""
    if card == 'folder' or not hub:
        return folder
    if card == 'hub' or not folder or owners_text(folder) in ('', owners_text(hub)):
        return hub
    raise ValueError(
        f"The author's text on the folder's card and on the card of {repo} differ. Say which one "
        "stays: card='folder' or card='hub' (--card)."
    )


def _described(
    taken: Model,
    remote: Remote,
    card: str,
    license: str | None,
    label_names: Sequence[str] | None,
    remote_code: bool | None,
    data: Mapping[str, Any] | None,
) -> tuple[Model, list[str]]:
    """Return the model with what the arguments and the Hub say of it, and notes for the owner."""
    config, notes = taken.config, []
    if taken.notes.entry:
        notes.append(f"The weights are those of the entry '{taken.notes.entry}'.")
    if taken.notes.left_out:
        notes.append(
            f"The Res2Net has the prefix '{taken.notes.prefix}' in the file. Other tensors were "
            f'left out, {list_some(taken.notes.left_out)}.'
        )
    there = remote.config
    labels = there.label_names if there else None
    if label_names is None and isinstance(labels, list) and not config.label_names:
        if len(labels) == config.num_classes:
            label_names = labels
            notes.append('The names of the classes are those that the Hub had.')
        else:
            notes.append('The Hub had names for another number of classes; they were removed.')
    on_hub = bool(there and there.remote_code)
    if remote_code is None and on_hub and not config.remote_code:
        remote_code = True
        notes.append('The module for transformers stays, as the Hub has it.')
    license = license or (read_card(card).data.license if card else None)
    config = config.as_asked(taken.net, license, label_names, remote_code, data=data)
    return replace(taken, config=config), notes


def _keep_golden(taken: Model, remote: Remote, folder: ModelFolder) -> None:
    """Keep the Hub's golden tensors if the model returns them.

    Their last bits depend on the machine, so the same model would otherwise be pushed again.
    """
    golden = remote.folder.path / GOLDEN
    if golden.is_file() and (folder.path / GOLDEN).is_file():
        with suppress(ValueError):
            compare_golden(taken.net, golden)
            shutil.copyfile(golden, folder.path / GOLDEN)


def _with_card(
    taken: Model,
    old: str,
    remote: Remote,
    folder: ModelFolder,
    target: Target,
    measured: Sequence[EvalResult],
) -> tuple[Model, list[str]]:
    """Return the model with its card, and notes on what was removed from it.

    Results belong to weights: those on the Hub stay as long as its weights do.
    """
    keep = old == taken.card or not remote.differs(WEIGHTS, folder.path / WEIGHTS)
    shown, notes = results_of(taken.card or (remote.folder.card if keep else '')), []
    if not keep and not taken.card and results_of(remote.folder.card):
        notes.append('The results on the card were of other weights and were removed.')
    branch = '' if target.revision in (None, 'main') else f'@{target.revision}'
    carded = with_card(
        replace(taken, card=old),
        target.value.rpartition('/')[2],
        f'hf-hub:{target.value}{branch}',
        f'{taken.config.pretrained_cfg.get("description") or taken.config.architecture} {ABOUT}',
        license=taken.config.license,
        keep_results=keep,
        results=[*{key_of(result): result for result in (*shown, *measured)}.values()],
    )
    return carded, notes
