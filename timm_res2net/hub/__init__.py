"""To the Hugging Face Hub and back: push, pull, check.

Loading from it needs nothing of this: `timm.create_model('hf-hub:REPO', pretrained=True)` after
`import timm_res2net`.
"""

import copy
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from timm.data import create_transform, resolve_data_config
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from timm.models.resnet import ResNet
from timm.utils import unwrap_model
from torch import nn

from .. import __version__
from ..card import (
    ABOUT,
    PERCENT,
    Result,
    card_of_tag,
    made_from_of,
    merge_card,
    owners_text,
    results_of,
    write_card,
)
from ..checkpoint import Conversion, fill, find_name, made_from, read
from ..convert import infer_arguments
from ..files import check_writable, new_folder, sha256_of, write_file
from ..folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    build,
    in_chans_of,
    load_model,
    model_config,
    read_config,
    save_folder,
    set_data,
    timms_names,
)
from ..layers.fused_block import FusedBottle2neck
from ..models.figures import FIGURES
from ..models.hrnet_res2net import HighResolutionRes2Net
from ..models.res2net_zoo import Res2Net, default_cfgs
from ..text import first_line, list_some

__all__ = ['Finding', 'Push', 'check', 'pull', 'push_to_hub', 'write_hub_configs']

_PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.tar')
_TOLERANCE = 1e-4  # relative, in float32: another memory format orders its sums otherwise
# What its HTTP library raises besides OSError (httpx2, httpx; all that requests raises is OSError)
_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]


# --- what the Hub says --------------------------------------------------------------------------


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    """What went wrong with a repository, and what to do."""
    login = 'log in with `hf auth login`, or set HF_TOKEN'
    cause = error.__cause__ or error
    # a refusal may come wrapped in "not in the cache"
    response = getattr(error, 'response', None) or getattr(cause, 'response', None)
    status = getattr(response, 'status_code', None)
    number = getattr(error, 'errno', None)
    if isinstance(error, GatedRepoError):
        return f'{repo} is gated. Accept its conditions on the Hub, then {login}.'
    if isinstance(error, RepositoryNotFoundError):
        return f'There is no repository {repo}, or it is private. Check the name, or {login}.'
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision '{revision or 'main'}'. Name a branch, tag or commit of it."
    if isinstance(error, OfflineModeIsEnabled):
        return f'HF_HUB_OFFLINE keeps from asking the Hub for {repo}. Unset it, with a network.'
    if status in (401, 403):
        return (
            f'The Hub refuses {repo} ({status}: {first_line(cause)}). To read or write there '
            f'{login} with a token that may.'
        )
    if status == 412:
        return f'Somebody else has pushed to {repo} meanwhile. Nothing was changed; run again.'
    if status == 429:
        return f'The Hub limits how often it answers (429 for {repo}). Wait a while and run again.'
    if status is not None and status >= 500:
        return f'The Hub is in trouble ({status} for {repo}). Run again later.'
    if number == errno.ENOSPC or 'not enough free disk space' in str(error).lower():
        return (
            f'No space is left for {repo} in the cache. Make some, or set HF_HOME to another disk; '
            'nothing of it was kept.'
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f'{first_line(error)}. Set HF_HOME, where the cache is, to a folder of yours.'
    if 'Consistency check failed' in str(error):
        return (
            f'A file of {repo} came with another size than the Hub says. Nothing of it was kept; '
            'run again.'
        )
    what = f'{type(cause).__name__}: {first_line(cause)}'
    if status is not None:
        return f'The Hub answers {status} for {repo} ({first_line(cause)}). Run again.'
    unreachable = ConnectionError | TimeoutError | _HTTP_ERROR
    if isinstance(error, unreachable) or isinstance(cause, unreachable):
        return f'The Hub cannot be reached for {repo} ({what}). Check the network and run again.'
    return f'{repo}: {what}. Run again.'


@contextmanager
def _speaking(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into an OSError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, _HTTP_ERROR) as error:
        # uploads fail with a RuntimeError around what happened
        what = error.__cause__ if isinstance(error, RuntimeError) else None
        raise OSError(_explain(what or error, repo, revision)) from error


def _split(repo: str, revision: str | None = None) -> tuple[str, str | None]:
    """A repository and its revision, which may be written behind an @."""
    name, _, at = repo.removeprefix('hf-hub:').partition('@')
    problem = '' if name.count('/') == 1 else 'it has no owner'
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        problem = first_line(error)
    if problem:
        raise ValueError(
            f"'{name}' is no name of a repository ({problem}). Write it as OWNER/NAME."
        )
    if at and revision:
        raise ValueError(f"'{repo}' and revision='{revision}' name two revisions. Name one.")
    return name, revision or at or None


# --- push ---------------------------------------------------------------------------------------


class Push(NamedTuple):
    """What a push did.

    Attributes:
        repo: Repository, with its owner.
        revision: Branch.
        commit: Commit that the branch is at now; None after a dry run.
        url: Its page on the Hub; '' after a dry run.
        files: Size in bytes and sha256 by file.
        changed: The files that the Hub did not have like this; after a dry run, all.
        verified: Whether they were downloaded and compared.
        card: The text of the card.
        config: The content of config.json.
        notes: What the owner should know of it, a sentence each.
    """

    repo: str
    revision: str
    commit: str | None
    url: str
    files: dict[str, tuple[int, str]]
    changed: tuple[str, ...]
    verified: bool
    card: str
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def _from_module(model: nn.Module) -> Conversion:
    """A model in memory as if it had been read: its tensors in a model that its arguments make."""
    plain: Any = unwrap_model(model)
    kind = type(plain).__name__
    if any(isinstance(module, FusedBottle2neck) for module in plain.modules()):
        raise ValueError(
            f'{kind} is in its deploy form, which no config rebuilds. Push the model that it was '
            'made from.'
        )
    cfg = dict(getattr(plain, 'pretrained_cfg', None) or {})
    name = cfg.get('architecture')
    if isinstance(plain, Res2Net) or (
        type(plain) is HighResolutionRes2Net and name and hasattr(plain.global_pool, 'pool_type')
    ):
        arguments = plain.model_args
        semantics = arguments['semantics']
    elif isinstance(plain, ResNet) and name in timms_names():
        arguments = {
            'in_chans': in_chans_of(plain),
            'global_pool': plain.global_pool.pool_type,
            'output_stride': plain.feature_info[-1]['reduction'],
        }
        semantics = 'official'
    else:
        raise ValueError(
            f'{kind} is no whole Res2Net of timm_res2net or timm. Push the model that '
            '`timm.create_model` made, without features_only; for others there is '
            '`timm.models.push_to_hf_hub`.'
        )
    tensors = {
        key: value.detach().cpu().float() if value.is_floating_point() else value.detach().cpu()
        for key, value in plain.state_dict().items()
    }
    if name is None:  # made by its class; the arguments say all that another name does not
        name = find_name(infer_arguments(tensors), semantics) or 'res2net50_18w_4s'
    twin: Any = timm.create_model(name, device='meta', num_classes=plain.num_classes, **arguments)
    twin.pretrained_cfg = dict(
        {**twin.pretrained_cfg, **cfg},
        description=f'{name} with {plain.num_classes:,} classes.',
        tag='pushed', url='', file=None, hf_hub_id=None, notes=None, origin_url=None, license=None,
        label_names=None, label_descriptions=None, num_classes=plain.num_classes,
    )  # fmt: skip
    fill(twin, tensors)
    return Conversion('timm', name, arguments, semantics, twin.eval(), (), {'folder': False})


def _outputs(model: Any, size: Sequence[int]) -> torch.Tensor:
    # a size comes from a file that may not be trusted
    size = (size[0], *(min(n, 512) for n in size[1:]))
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(image)


def _compare(original: Any, folder: Path) -> None:
    """Raise a ValueError if what a folder makes is another model than the original."""
    loaded = load_model(folder).eval()
    size = loaded.pretrained_cfg['input_size']
    expected, got = _outputs(original, size), _outputs(loaded, size)
    if not expected.isfinite().all():
        raise ValueError('The model answers NaN or infinity. Push an earlier checkpoint.')
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= _TOLERANCE:
        raise ValueError(
            f'What was to be pushed answers otherwise than the model (by {error:.1e} of its '
            'largest output): it has parts that no noted argument describes, such as another '
            'activation. Nothing was pushed; `timm.models.push_to_hf_hub` takes models as they are.'
        )


def _not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The names of those with NaN or infinity, '' if there are none."""
    bad = [key for key, v in tensors if v.is_floating_point() and not v.isfinite().all()]
    return list_some(bad) if bad else ''


def _results(values: Mapping[str, float] | None, dataset: str | None) -> list[Result]:
    if not values:
        if dataset:
            raise ValueError(f"Say what was measured on '{dataset}', such as top1=78.3.")
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
    return [Result(metric, float(value), dataset) for metric, value in values.items()]


class _Remote(NamedTuple):
    """What the Hub has of a repository.

    Attributes:
        info: Of the branch, else of main; None if there is no such repository.
        on_branch: Whether the branch is there.
        card: Text of its card, '' without one.
        labels: Names of the classes that its config has.
    """

    info: Any = None
    on_branch: bool = False
    card: str = ''
    labels: list[str] | None = None

    def differs(self, path: Path) -> bool:
        """Whether the Hub has another file, or none, of a file's name."""
        siblings = self.info.siblings if self.info else ()
        there = next((s for s in siblings if s.rfilename == path.name), None)
        if there is None:
            return True
        if there.lfs:
            return bool(there.lfs.sha256 != sha256_of(path))
        return bool(there.blob_id != _git_sha1(path))


def _ask(api: HfApi, repo: str, branch: str | None, token: str | bool | None) -> _Remote:
    """Look at what the Hub has."""
    on_branch = True
    try:
        info = api.model_info(repo, revision=branch, files_metadata=True)
    except RevisionNotFoundError:
        info, on_branch = api.model_info(repo, files_metadata=True), False
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return _Remote()
    names = {s.rfilename for s in info.siblings or ()}
    card, labels = '', None
    if CARD in names:
        path = hf_hub_download(repo, CARD, revision=info.sha, token=token)
        card = Path(path).read_text(encoding='utf-8')
    if CONFIG in names:
        labels = _labels_of(Path(hf_hub_download(repo, CONFIG, revision=info.sha, token=token)))
    return _Remote(info, on_branch, card, labels)


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def push_to_hub(
    model: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    results: Mapping[str, float] | None = None,
    dataset: str | None = None,
    label_names: Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    architecture: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    card: str | None = None,
    verify: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> Push:
    """Push a Res2Net to the Hugging Face Hub: config.json, model.safetensors and a card.

    Before anything is sent, what is to be sent is loaded by timm and its outputs compared with the
    model's. What the Hub has already is not sent again.

    Args:
        model: A model in memory (of this package or timm's own Res2Nets), a folder, or a checkpoint
            file of any project that `convert_checkpoint` reads, timm's train.py among them.
        repo_id: Repository, as OWNER/NAME. It is made if there is none.
        license: Identifier of the licence, such as 'apache-2.0'. Needed unless the folder or the
            card on the Hub names one.
        results: Accuracies by metric: 'top1', 'top5' and 'accuracy' in percent, others as they are.
        dataset: Name on the Hub of the data set that they were measured on.
        label_names: Names of the classes, in order; by default a folder's. (A model in memory may
            have been trained for other classes than its weights came with.)
        data: How images are prepared: some of `input_size`, `img_size`, `mean`, `std`, `crop_pct`
            and `interpolation`; by default as the folder, train.py's arguments or the name say.
        architecture: Name of the model, for a checkpoint whose shapes do not tell it.
        semantics: Its block semantics, likewise.
        entry: Entry of the file that holds the weights, as in `convert_checkpoint`.
        revision: Branch; made from main if there is none.
        private: Make the repository private if it is made.
        commit_message: Message of the commit.
        card: Whose words on the card stay, where the folder's and the Hub's differ outside of the
            part that is written anew: 'folder' or 'hub'. By default that is an error.
        verify: Download what was pushed and compare it.
        dry_run: Do all that needs no network, send nothing.
        token: Access token, by default the one that is logged in; False for none.

    Returns:
        What was done. Without `changed`, the Hub had all of it.

    Raises:
        ValueError: No licence is known, the source does not convert, has weights that are not
            finite, is in its deploy form or is no Res2Net; what would be pushed is not what it
            loads as; an argument does not fit.
        OSError: The Hub refuses, cannot be reached or has changed meanwhile. Nothing is
            half-pushed: a commit holds all files, or there is none.
    """
    repo_id, at = _split(repo_id)
    if at:
        raise ValueError(f"Name the branch apart: revision='{at}' (--revision), not behind an @.")
    if license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise ValueError(
            f"'{license}' is no identifier of a licence. Use the Hub's, such as apache-2.0, mit, "
            'cc-by-nc-sa-4.0 or other.'
        )
    if card not in (None, 'folder', 'hub'):
        raise ValueError(f"card must be 'folder', 'hub' or None, got {card!r}.")
    measured = _results(results, dataset)
    found, original, old = _take(model, architecture, semantics, entry)
    network: Any = found.model
    set_data(network, data or {})
    api = HfApi(token=token, library_name='timm_res2net', library_version=__version__)
    remote = _Remote()
    if not dry_run:
        with _speaking(repo_id, revision):
            remote = _ask(api, repo_id, revision, token)
        if remote.info is not None and private and not remote.info.private:
            raise ValueError(
                f'{repo_id} is there already, and public. Push without private, or make it private '
                'on the Hub first.'
            )
    notes = []
    if found.file.get('entry'):
        notes.append(f"The weights are those of the entry '{found.file['entry']}'.")
    notes += _name_classes(network, label_names, remote.labels)
    base = _choose_card(old, remote.card, card, repo_id)
    licence = _licence(license, base, network.pretrained_cfg.get('license'), dry_run)
    network.pretrained_cfg = dict(network.pretrained_cfg, license=licence)

    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / 'model'
        save_folder(network, found.architecture, found.arguments, '', made)
        _compare(original, made)
        # results are of weights: those on the Hub hold as long as its weights stay
        keep = base == old or not remote.differs(made / WEIGHTS)
        shown = results_of(old)[1] if old else []
        if remote.card and not old:
            on_hub = results_of(remote.card)[1]
            shown = on_hub if keep else []
            if on_hub and not keep:
                notes.append('The results on the card were of other weights and were taken off.')
        anew = measured if keep else None
        text = _card(found, repo_id, revision, licence, [*shown, *measured], anew, old)
        if base:
            text = merge_card(text, base, keep_results=keep)
        (made / CARD).write_text(text, encoding='utf-8')
        paths = [made / name for name in (CONFIG, WEIGHTS, CARD)]
        done = Push(
            repo_id,
            revision or 'main',
            None,
            '',
            {path.name: (path.stat().st_size, sha256_of(path)) for path in paths},
            tuple(path.name for path in paths if remote.differs(path)),
            False,
            text,
            read_config(made / CONFIG),
            tuple(notes),
        )
        if dry_run:
            return done
        with _speaking(repo_id, revision):
            repo, commit = _send(api, done, remote, revision, private, commit_message, made)
        if verify:
            _verify(repo, commit, done.files, token)
    return done._replace(repo=repo, commit=commit, url=f'{api.endpoint}/{repo}', verified=verify)


def _name_classes(
    network: Any, given: Sequence[str] | None, on_hub: Sequence[str] | None
) -> list[str]:
    """Note the names of the classes; what the owner should know of it."""
    if given is not None:
        _set_labels(network, given)
    elif on_hub and not network.pretrained_cfg.get('label_names'):
        if len(on_hub) != network.num_classes:
            return ['The names of the classes on the Hub are of another number and go.']
        _set_labels(network, on_hub)
        return ['The names of the classes are those that the Hub had.']
    return []


def _choose_card(folder: str, hub: str, card: str | None, repo: str) -> str:
    """The card whose own words stay: the folder's or the Hub's."""
    if card == 'folder' or not hub:
        return folder
    if card == 'hub' or not folder or owners_text(folder) in ('', owners_text(hub)):
        return hub
    raise ValueError(
        f"The folder's card and that of {repo} differ in what their owner wrote. Say which stays: "
        "card='folder' or card='hub' (--card)."
    )


def _licence(given: str | None, card: str, config: str | None, dry_run: bool) -> str:
    """The licence to name."""
    known = given or (results_of(card)[0] if card else None) or config
    if known and (given or known != 'unknown'):
        return known
    raise ValueError(
        'No licence is known for these weights'
        + (', only that it is called unknown' if known else '')
        + (' (a dry run does not ask the Hub)' if dry_run else '')
        + ". Name it, such as license='cc-by-nc-sa-4.0' (--license); whoever made the weights that "
        'they start from has a say.'
    )


def _validate(card: str, licence: str) -> None:
    """Let the Hub look at the metadata before anything is made."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate()
    except ValueError as error:
        raise ValueError(
            f"The Hub refuses the card's metadata, with license '{licence}': {error}"
        ) from error


def _take(
    model: nn.Module | str | os.PathLike[str],
    architecture: str | None,
    semantics: str | None,
    entry: str | None,
) -> tuple[Conversion, Any, str]:
    """What is to be pushed, the model to compare it with, and the text of a folder's card."""
    card = ''
    if isinstance(model, nn.Module):
        if architecture or semantics or entry:
            raise ValueError(
                'A model in memory knows its architecture and semantics, and is all there is. '
                'Leave architecture, semantics and entry out.'
            )
        found = _from_module(model)
        original: Any = copy.deepcopy(unwrap_model(model)).cpu().float().eval()
    else:
        if not isinstance(model, str | os.PathLike):
            raise TypeError(
                f'model must be a model or the path of a checkpoint or folder, not a '
                f'{type(model).__name__}.'
            )
        path = Path(os.fspath(model).removeprefix('local-dir:')).expanduser()
        found = read(path, model=architecture, semantics=semantics, entry=entry)
        original = found.model
        if (path / CARD).is_file():
            card = (path / CARD).read_text(encoding='utf-8')
        # what `push` and `convert` wrote of a folder holds; what timm copies into one is said of
        # the weights that these started from
        if not path.is_dir() or original.pretrained_cfg.get('tag') not in ('pushed', 'converted'):
            layout = '' if found.source in ('timm', 'official') else f' of {found.source}'
            origin = '' if path.is_dir() else f', from `{path.name}`{layout}'
            text = f'{found.architecture} with {original.num_classes:,} classes{origin}.'
            original.pretrained_cfg = dict(
                original.pretrained_cfg, description=text, tag='pushed', notes=None, origin_url=None
            )
    bad = _not_finite(found.model.state_dict().items())
    if bad:
        raise ValueError(f'Weights are NaN or infinite: {bad}. Push an earlier checkpoint.')
    return found, original, card


def _labels_of(config: Path) -> list[str] | None:
    try:
        labels = read_config(config).get('label_names')
    except ValueError:
        return None  # another kind of model until now
    return labels if isinstance(labels, list) else None


def _set_labels(network: Any, label_names: Sequence[str]) -> None:
    names = list(label_names)
    if isinstance(label_names, str) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f'label_names must be a list of names, got {label_names!r}.')
    if len(names) != network.num_classes:
        raise ValueError(
            f'There are {len(names)} label names for {network.num_classes} classes. Give one for '
            'each, in order.'
        )
    network.pretrained_cfg = dict(
        network.pretrained_cfg,
        label_names=names,
        label_descriptions=None,
        num_classes=network.num_classes,
    )


def _card(
    found: Conversion,
    repo: str,
    revision: str | None,
    licence: str,
    results: Sequence[Result],
    anew: Sequence[Result] | None,
    old: str,
) -> str:
    """The card as it would be without an older one."""
    cfg: Any = found.model.pretrained_cfg
    last = {(r.metric, r.dataset): r for r in results}
    foreign = found.moves and found.source not in ('timm', 'official')
    return write_card(
        repo.rpartition('/')[2],
        f'{cfg.get("description") or found.architecture} {ABOUT}',
        f'hf-hub:{repo}@{revision}' if revision not in (None, 'main') else f'hf-hub:{repo}',
        found.model,
        found.architecture,
        found.arguments,
        found.semantics,
        licence=licence,
        licence_text=f'`{licence}`.',
        results=[*last.values()],
        anew=anew,
        # what `convert` wrote of a folder holds as long as it is that folder
        made_from=made_from(found) if foreign else made_from_of(old),
    )


def _send(
    api: HfApi,
    push: Push,
    remote: _Remote,
    revision: str | None,
    private: bool | None,
    message: str | None,
    folder: Path,
) -> tuple[str, str]:
    """Make repository, branch and commit, as far as they are needed; the repository and commit."""
    from huggingface_hub import CommitOperationAdd

    if push.changed:
        _validate(push.card, push.config['pretrained_cfg']['license'])
    repo, parent = push.repo, None
    if remote.info is None:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    else:
        repo, parent = remote.info.id, remote.info.sha
    if revision is not None and not remote.on_branch:
        api.create_branch(repo, branch=revision, exist_ok=True)
    if not push.changed:
        return repo, parent or ''
    done = api.create_commit(
        repo,
        [CommitOperationAdd(name, folder / name) for name in push.changed],
        commit_message=message or 'Push by timm_res2net',
        revision=revision,
        parent_commit=parent,
    )
    return repo, done.oid


def _verify(
    repo: str, commit: str, files: Mapping[str, tuple[int, str]], token: str | bool | None
) -> None:
    """Download what a commit holds, past the cache, and compare."""
    with tempfile.TemporaryDirectory() as cache:
        for name, (_, sha256) in files.items():
            with _speaking(repo, commit):
                path = hf_hub_download(repo, name, revision=commit, token=token, cache_dir=cache)
            if sha256_of(Path(path)) != sha256:
                raise OSError(
                    f'{name} of {repo} at {commit} comes back as something else than was pushed. '
                    'Look with `timm-res2net check`.'
                )


# --- check --------------------------------------------------------------------------------------


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
        return f'{self.state:<8} {self.what:<11} {self.text}'


def check(
    target: str | os.PathLike[str], revision: str | None = None, token: str | bool | None = None
) -> list[Finding]:
    """Look whether a model is whole: loadable, complete, safetensors, with a licence.

    Args:
        target: A folder, a repository of the Hub (`OWNER/NAME`, `@REVISION` may follow), or a
            registered name, with or without tag, whose weights are on the Hub or in the package.
        revision: Branch, tag or commit of a repository.
        token: Access token.

    Returns:
        A finding for each thing looked at. A tag's `notes` may pin its weights, by a line
        `revision: COMMIT` or `sha256: HEX`; then that is looked at, too.

    Raises:
        OSError: The Hub refuses, cannot be reached, or there is no such repository.
        ValueError: It is none of the three.
    """
    text = os.fspath(target)
    path = Path(text.removeprefix('local-dir:')).expanduser()
    if path.is_dir():
        return _check_folder(path)
    if path.is_file():
        raise ValueError(
            f'{text} is a file. Check a folder or repository; `timm-res2net convert --dry-run` '
            'looks at a checkpoint.'
        )
    if text.startswith(('.', '/', '~', 'local-dir:')):
        raise FileNotFoundError(f'There is no folder {text}.')
    name = text.partition('.')[0]
    if '/' in text:
        repo, at = _split(text, revision)
        return _check_repo(repo, at, _pins_of_repo(repo), token)
    if name not in FIGURES:
        whose = ", it is timm's own, whose repository is timm/NAME.TAG" * (name in timms_names())
        raise ValueError(
            f"'{text}' is no folder, no repository (OWNER/NAME) and no registered name{whose}. "
            '`timm-res2net list` shows these.'
        )
    cfgs = get_arch_pretrained_cfgs(name)
    if '.' in text and text not in cfgs:
        raise ValueError(f"'{text}' is no tag of {name}. Use one of {', '.join(cfgs)}.")
    cfg: Any = get_pretrained_cfg(text)
    if cfg.file:
        return _check_embedded(name, cfg)
    if not cfg.hf_hub_id:
        where = f'come from {cfg.url}' if cfg.url else 'are not published'
        raise ValueError(f'The weights of {text} {where}, not from the Hub.')
    return _check_repo(cfg.hf_hub_id, revision, pins_of(cfg.notes), token)


def pins_of(notes: Sequence[str] | None) -> dict[str, str]:
    """Pins of a cfg's notes: 'revision', a commit of 40 digits, and 'sha256', of 64.

    Raises:
        ValueError: A note that begins like a pin and is none.
    """
    found = {}
    for note in notes or ():
        match = re.match(r'(revision|sha256)\s*:\s*(.*)', note)
        if match is None:
            continue
        digits = {'revision': 40, 'sha256': 64}[match[1]]
        if not re.fullmatch(f'[0-9a-f]{{{digits}}}', match[2]):
            raise ValueError(
                f"The note '{note}' pins nothing: {match[1]} must be {digits} digits of 0-9a-f."
            )
        found[match[1]] = match[2]
    return found


def _pins_of_repo(repo: str) -> dict[str, str]:
    for name in default_cfgs:
        for cfg in get_arch_pretrained_cfgs(name).values():
            if cfg.hf_hub_id == repo and (pins := pins_of(cfg.notes)):
                return pins
    return {}


def _look(findings: list[Finding], what: str, look: Callable[[], tuple[str, str]]) -> bool:
    """Add what a look finds, or its error; whether it went well."""
    try:
        state, text = look()
    except (OSError, ValueError, RuntimeError) as error:
        state, text = 'error', str(error)
    findings.append(Finding(what, state, text))
    return state != 'error'


def _check_folder(folder: Path) -> list[Finding]:
    found: list[Finding] = []
    weights, config = folder / WEIGHTS, {}

    def look_at_config() -> tuple[str, str]:
        config.update(read_config(folder / CONFIG))
        size = config['pretrained_cfg'].get('input_size') or [3, 224, 224]
        return 'ok', f'{config["architecture"]}, {config["num_classes"]} classes, {size[-1]} px'

    _look(found, 'config', look_at_config)
    if _look(found, 'weights', lambda: _look_at_format(folder)) and config:
        tensors = _look(found, 'tensors', lambda: _look_at_tensors(weights, build(folder)))
        _look(found, 'values', lambda: _look_at_values(weights))
        if tensors:
            _look(found, 'runs', lambda: _look_at_outputs(folder))
    cfg = config.get('pretrained_cfg', {})
    if config:
        _look(found, 'images', lambda: _look_at_images(cfg))
    _look(found, 'licence', lambda: _look_at_licence(folder, cfg))
    _look(found, 'card', lambda: _look_at_card(folder))
    return found


def _look_at_images(cfg: Mapping[str, Any]) -> tuple[str, str]:
    """Whether images can be prepared as a `pretrained_cfg` says."""
    from PIL import Image

    data = resolve_data_config({}, pretrained_cfg=dict(cfg))
    told = ', '.join(f'{key} {data[key]}' for key in ('interpolation', 'mean', 'std'))
    try:
        transform: Any = create_transform(**data)
        channels = data['input_size'][0]
        mode = {1: 'L', 3: 'RGB'}.get(channels)
        if mode:
            image = transform(Image.new(mode, (64, 64)))
            fits = image.shape[0] == channels and bool(image.isfinite().all())
        else:
            fits = {len(data['mean']), len(data['std'])} <= {1, channels}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'They cannot be prepared with {told} ({type(error).__name__}: {error}). Push again '
            'with other values.'
        ) from error
    if not fits:
        raise ValueError(f'{told} do not suit {channels} channels. Push again with other values.')
    return 'ok', told


def _look_at_format(folder: Path) -> tuple[str, str]:
    weights = folder / WEIGHTS
    others = sorted(p.name for p in folder.iterdir() if p.name.endswith(_PICKLES))
    if not weights.is_file():
        if others:
            raise ValueError(
                f'{others[0]} is a pickle, and there is no {WEIGHTS}. `timm-res2net convert` makes '
                'one of it.'
            )
        raise ValueError(f'There is no {WEIGHTS}.')
    try:
        with safe_open(weights, framework='pt') as file:
            count = len(file.keys())
            if not count:
                raise ValueError(f'{WEIGHTS} is empty. Push the model again.')
    except SafetensorError as error:
        raise ValueError(f'{WEIGHTS} is damaged ({error}). Fetch or write it again.') from error
    text = f'{WEIGHTS}, {weights.stat().st_size:,} bytes, {count} tensors'
    if others:
        return 'warning', f'{text}; {", ".join(others)} beside it is not looked at'
    return 'ok', text


def _look_at_tensors(weights: Path, model: nn.Module) -> tuple[str, str]:
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    with safe_open(weights, framework='pt') as file:
        given = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    missing, surplus = own.keys() - given.keys(), given.keys() - own.keys()
    wrong = [f'{k} {given[k]} for {own[k]}' for k in own if k in given and own[k] != given[k]]
    problems = [
        f'{what}, {list_some(keys)}'
        for what, keys in (
            ('the weights lack', missing), ('the config knows no', surplus),
            ('shapes do not fit', wrong),
        )
        if keys
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f'{"; ".join(problems)}. Config and weights are of different models: push again.'
        )
    return 'ok', f'all {len(own)} fit the config'


def _look_at_values(weights: Path) -> tuple[str, str]:
    with safe_open(weights, framework='pt') as file:
        names = file.keys()
        bad = _not_finite((name, file.get_tensor(name)) for name in names)
    return ('warning', f'NaN or infinite, {bad}') if bad else ('ok', 'all finite')


def _look_at_outputs(folder: Path) -> tuple[str, str]:
    model = load_model(folder).eval()
    out = _outputs(model, model.pretrained_cfg['input_size'])
    if not out.isfinite().all():
        return 'warning', 'an image gives outputs that are not finite'
    return 'ok', f'an image gives {out.shape[1]} finite outputs'


def _look_at_licence(folder: Path, cfg: Mapping[str, Any]) -> tuple[str, str]:
    card = folder / CARD
    licence = results_of(card.read_text(encoding='utf-8'))[0] if card.is_file() else None
    licence = licence or cfg.get('license')
    if not licence:
        raise ValueError('None is named. `timm-res2net push --license` names one.')
    return ('warning' if licence == 'unknown' else 'ok'), licence


def _look_at_card(folder: Path) -> tuple[str, str]:
    if not (folder / CARD).is_file():
        return 'warning', f'there is no {CARD}'
    text = (folder / CARD).read_text(encoding='utf-8')
    if not text.startswith('---'):
        return 'warning', f'{CARD} without metadata'
    results_of(text)
    return 'ok', f'{CARD} with valid metadata'


def _check_embedded(name: str, cfg: Any) -> list[Finding]:
    found: list[Finding] = []
    weights = Path(cfg.file)
    model = timm.create_model(name, device='meta', num_classes=cfg.num_classes)
    _look(found, 'tensors', lambda: _look_at_tensors(weights, model))
    _look(found, 'values', lambda: _look_at_values(weights))
    if pins := pins_of(cfg.notes):
        _look(found, 'pin', lambda: _look_at_pins(pins, None, sha256_of(weights)))
    _look(found, 'licence', lambda: ('ok', str(cfg.license)))
    return found


def _look_at_pins(pins: Mapping[str, str], commit: str | None, sha256: str) -> tuple[str, str]:
    if commit and pins.get('revision', commit) != commit:
        raise ValueError(f'The revision is {commit}, and {pins["revision"]} is pinned.')
    if pins.get('sha256', sha256) != sha256:
        raise ValueError(
            f'The weights have sha256 {sha256}, and {pins["sha256"]} is pinned. They are not those '
            'that the tag was registered with.'
        )
    told = ', '.join(f'{key} {value[:12]}…' for key, value in pins.items())
    return 'ok', f'{told} as pinned'


class _Fetched(NamedTuple):
    """A model's files in the cache.

    Attributes:
        folder: Where they are.
        sha256: Of the weights, as the Hub announces it; '' if it does not.
        trouble: Why the weights are not what the Hub has; '' if they are.
        pickles: Weights of other formats in the repository.
    """

    folder: Path
    sha256: str
    trouble: str
    pickles: tuple[str, ...]


def _fetch(repo: str, revision: str | None, token: str | bool | None) -> _Fetched:
    """Download a model's config, weights and card into the cache.

    The client compares the size of a file with what the Hub announces, and not its content. Weights
    that differ are fetched once more, and then not kept.
    """
    get = partial(hf_hub_download, repo, revision=revision, token=token)
    there, commit, offline = None, None, None
    with _speaking(repo, revision):
        try:
            info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
            there, commit = {s.rfilename: s for s in info.siblings or []}, info.sha
        except HfHubHTTPError:
            raise
        except (OSError, _HTTP_ERROR) as error:  # no network: what the cache has
            offline, get = error, partial(get, local_files_only=True)
    sha256, trouble, folder = '', '', None
    for name in (CONFIG, WEIGHTS, CARD):
        if there is not None and name not in there:
            continue
        try:
            with _speaking(repo, revision):
                path = Path(get(name))
        except OSError as error:
            if offline is None or not isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
            if folder is None:
                text = _explain(offline, repo, revision)
                raise OSError(f'{text} It is not in the cache either.') from error
            continue  # the card is not fetched by who loads the model
        if path.parent.name != (commit or path.parent.name):
            raise OSError(f'{repo} has changed meanwhile. Run again.')
        folder = path.parent
        if name == WEIGHTS:
            lfs = there[name].lfs if there else None
            # the cache names what it keeps of LFS by its sha256
            sha256 = lfs.sha256 if lfs else path.resolve().name
            if len(sha256) != 64:
                sha256 = ''
            elif not _is_kept(path, sha256):
                with _speaking(repo, revision):
                    again = None if offline else Path(get(name))
                if again is None or not _is_kept(again, sha256):
                    trouble = (
                        f'{name} is not what the Hub announces (sha256 {sha256[:12]}…): damaged on '
                        'its way, or there. It was taken out of the cache; run again.'
                    )
    if folder is None:
        raise OSError(f'{repo} has neither {CONFIG} nor {WEIGHTS}. It is no model of timm.')
    pickles = sorted(name for name in there or () if name.endswith(_PICKLES))
    return _Fetched(folder, sha256, trouble, tuple(pickles))


def _is_kept(path: Path, sha256: str) -> bool:
    """Whether a file of the cache is whole; another is taken out of it."""
    whole = sha256_of(path) == sha256
    if not whole:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    return whole


def _check_repo(
    repo: str, revision: str | None, pins: Mapping[str, str], token: str | bool | None
) -> list[Finding]:
    if revision is not None:
        pins = {}  # they are of what is loaded by the name
    fetched = _fetch(repo, revision or pins.get('revision'), token)
    commit = fetched.folder.name
    found = [Finding('repository', 'ok', f'{repo} at {commit}')]
    if fetched.trouble:
        return [*found, Finding('content', 'error', fetched.trouble)]
    if fetched.sha256:
        found.append(Finding('content', 'ok', f'sha256 {fetched.sha256} as the Hub announces'))
    if fetched.pickles:
        text = f'{", ".join(fetched.pickles)}: not looked at. `convert` makes safetensors of them.'
        found.append(Finding('pickles', 'warning', text))
    found += _check_folder(fetched.folder)
    if pins and (fetched.folder / WEIGHTS).is_file():
        sha256 = fetched.sha256 or sha256_of(fetched.folder / WEIGHTS)
        _look(found, 'pin', lambda: _look_at_pins(pins, commit, sha256))
    return found


# --- pull ---------------------------------------------------------------------------------------


def pull(
    repo_id: str,
    out: str | os.PathLike[str],
    revision: str | None = None,
    token: str | bool | None = None,
) -> list[Finding]:
    """Fetch a model from the Hub into a folder, checked.

    Args:
        repo_id: Repository (`OWNER/NAME`, `@REVISION` may follow).
        out: New or empty folder, for `timm.create_model('local-dir:OUT', pretrained=True)`.
        revision: Branch, tag or commit.
        token: Access token.

    Returns:
        What `check` finds, without errors: a missing licence is a warning here.

    Raises:
        FileExistsError: `out` is there already.
        OSError: The Hub refuses, cannot be reached, or what came is not what it announces.
        ValueError: What came is not whole; nothing is written.
    """
    repo, at = _split(repo_id, revision)
    target = check_writable(Path(out), folder=True)
    fetched = _fetch(repo, at, token)
    if fetched.trouble:
        raise OSError(fetched.trouble)
    with new_folder(target) as made:
        for name in (CONFIG, WEIGHTS, CARD):
            if (fetched.folder / name).is_file():
                shutil.copyfile(fetched.folder / name, made / name)
        found = [Finding('repository', 'ok', f'{repo} at {fetched.folder.name}')]
        for f in _check_folder(made):
            # one may pull what one may not push on
            found.append(f._replace(state='warning') if f.what == 'licence' else f)
        errors = [f'{f.what}: {f.text}' for f in found if f.state == 'error']
        if errors:
            raise ValueError(f'{repo} is not whole, and nothing was written. {" ".join(errors)}')
    return found


# --- what stands on the Hub beside the weights ----------------------------------------------------


def write_hub_configs(out: str | os.PathLike[str]) -> list[Path]:
    """Write config.json and card of every registered tag that has weights.

    Args:
        out: Folder that gets a folder `<architecture>.<tag>` for each; it is made if need be, and
            what is there is replaced.

    Returns:
        The folders.
    """
    if Path(out).is_file():
        raise FileExistsError(f'{out} is a file. Name a folder.')
    made = []
    for name in default_cfgs:
        for full, cfg in get_arch_pretrained_cfgs(name).items():
            if not cfg.has_weights:
                continue
            model: Any = timm.create_model(full, device='meta', num_classes=cfg.num_classes)
            config = json.dumps(model_config(model, name, model.model_args), indent=2) + '\n'
            folder = Path(out) / full
            folder.mkdir(parents=True, exist_ok=True)
            card = card_of_tag(name, cfg.tag or '', model)
            write_file(folder / CONFIG, partial(_write, config))
            write_file(folder / CARD, partial(_write, card))
            made.append(folder)
    return made


def _write(text: str, file: Any) -> None:
    file.write(text.encode())
