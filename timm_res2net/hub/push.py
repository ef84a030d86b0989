"""Push a model to the Hub: take it, adjust what its folder says, refuse or send."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from huggingface_hub import EvalResult
from torch import nn

from ..files import sha256_of, temporary_folder
from ..folder.card import PERCENT, accuracy, authors_card, license_of, updated_card
from ..folder.checks import checks, has_license, refuse
from ..folder.folder import CARD, FILES, WEIGHTS, write
from ..folder.golden import GOLDEN, keep_golden
from ..folder.model import described
from ..folder.take import take
from ..folder.target import find_repository
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
    there = remote.folder
    old = authors_card(taken.card, there.card, card, target.value)
    known = license or license_of(old)
    taken, notes = described(taken, remote.config, known, label_names, remote_code, data)
    with temporary_folder() as scratch:
        folder = write(replace(taken, card=''), scratch / 'model')
        keep_golden(taken.net, there.path / GOLDEN, folder.path / GOLDEN)
        keeps_weights = not remote.differs(WEIGHTS, folder.path / WEIGHTS)
        carded, more = updated_card(taken, old, there.card, keeps_weights, target, measured)
        (folder.path / CARD).write_text(carded.card, encoding='utf-8')
        waived = has_license if license == 'unknown' else None
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
        more += [finding.text for finding in findings if finding.state == 'warning']
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
        if type(value) not in (int, float)
        or not isfinite(value)
        or (key in PERCENT and not 0 <= value <= 100)
    }
    if bad:
        raise ValueError(
            f'Results must be numbers, {", ".join(PERCENT)} in percent from 0 to 100; got {bad}.'
        )
    return [accuracy(metric, float(value), dataset) for metric, value in values.items()]
