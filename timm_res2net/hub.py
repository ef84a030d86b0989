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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
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
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from timm.models.resnet import ResNet
from timm.utils import unwrap_model
from torch import nn

from . import __version__
from .bottle2neck import FusedBottle2neck
from .cards import ABOUT, Result, card_of_tag, merge_card, results_of, write_card
from .checkpoints import Conversion, fill, made_from, read
from .convert import list_some
from .folders import (
    CARD,
    CONFIG,
    WEIGHTS,
    build,
    check_new,
    model_config,
    read_config,
    save_folder,
    set_data,
    sha256_of,
    timms_names,
    write_new,
)
from .res2net_zoo import FIGURES, Res2Net, default_cfgs

__all__ = ['Finding', 'Push', 'check', 'pull', 'push_to_hub', 'write_hub_configs']

_PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.tar')
_TOLERANCE = 1e-4  # relative, in float32: another memory format orders its sums otherwise
# What the client raises besides OSError: its HTTP library's own base (httpx2's, httpx's, requests')
_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]


# --- what the Hub says --------------------------------------------------------------------------


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    """What went wrong with a repository, and what to do."""
    login = 'log in with `hf auth login`, or set HF_TOKEN'
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    number = getattr(error, 'errno', None)
    cause = error.__cause__ or error
    if isinstance(error, GatedRepoError):
        return f'{repo} is gated. Accept its conditions on the Hub, then {login}.'
    if isinstance(error, RepositoryNotFoundError):
        return f'There is no repository {repo}, or it is private. Check the name, or {login}.'
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision '{revision or 'main'}'. Name a branch, tag or commit of it."
    if isinstance(error, OfflineModeIsEnabled) or isinstance(cause, OfflineModeIsEnabled):
        return (
            f'{repo} is not in the cache, and HF_HUB_OFFLINE keeps from fetching it. Unset it '
            'once, with a network.'
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f'The Hub cannot be reached ({type(cause).__name__}: {_first_line(cause)}) and {repo} '
            'is not in the cache. Check the network and run again.'
        )
    if isinstance(error, EntryNotFoundError):
        return f'{repo} lacks a file: {_first_line(error)}'
    if status in (401, 403):
        return (
            f'The Hub refuses {repo} ({status}: {_first_line(error)}). To read or write there '
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
        return (
            f'The cache cannot be written to ({_first_line(error)}). Set HF_HOME to a folder of '
            'yours.'
        )
    if 'Consistency check failed' in str(error):
        return (
            f'A file of {repo} came with another size than the Hub says. Nothing of it was kept; '
            'run again.'
        )
    return f'{repo}: {type(error).__name__}: {_first_line(error)}. Run again.'


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip('.') if lines else type(error).__name__


@contextmanager
def _speaking(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into an OSError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, _HTTP_ERROR) as error:
        # uploads fail with a RuntimeError around what happened
        what = error.__cause__ if isinstance(error, RuntimeError) else None
        raise OSError(_explain(what or error, repo, revision)) from error


def _check_repo_id(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(
            f"'{repo}' is no name of a repository ({_first_line(error)}). Write it as OWNER/NAME."
        ) from error


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
    if isinstance(plain, Res2Net):
        name = name or 'res2net50_18w_4s'  # the arguments say all
        arguments = plain.model_args
        semantics = arguments['semantics']
    elif isinstance(plain, ResNet) and name in timms_names():
        first: Any = plain.conv1[0] if isinstance(plain.conv1, nn.Sequential) else plain.conv1
        arguments = {
            'in_chans': first.weight.shape[1],
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
    tensors = {}
    for key, value in plain.state_dict().items():
        value = value.detach().cpu()
        narrow = value.is_floating_point() and value.element_size() < 4
        tensors[key] = value.float() if narrow else value
    twin: Any = timm.create_model(name, device='meta', num_classes=plain.num_classes, **arguments)
    twin.pretrained_cfg = dict(
        {**twin.pretrained_cfg, **cfg},
        description=f'{name} with {plain.num_classes:,} classes.',
        tag='pushed', url='', file=None, hf_hub_id=None, notes=None, origin_url=None, license=None,
        num_classes=cfg.get('num_classes', plain.num_classes),
    )  # fmt: skip
    fill(twin, tensors)
    return Conversion('timm', name, arguments, semantics, twin.eval(), (), {'folder': False})


def _load(folder: Path) -> Any:
    """A folder's model as timm makes it, on every timm and torch (`local-dir:` reads safetensors
    from timm 1.0.26 on)."""
    overlay = {'source': 'file', 'file': str(folder / WEIGHTS)}
    model: Any = timm.create_model(
        f'local-dir:{folder}', pretrained=True, pretrained_cfg_overlay=overlay
    )
    return model.eval()


def _outputs(model: Any, size: Sequence[int]) -> torch.Tensor:
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(image)


def _compare(original: Any, folder: Path) -> None:
    """Raise a ValueError if what a folder makes is another model than the original."""
    loaded = _load(folder)
    own = loaded.state_dict()
    wrong = [
        key
        for key, value in original.state_dict().items()
        if key not in own or not torch.equal(own[key], value)
    ]
    if wrong:
        raise ValueError(
            f'What was to be pushed loads with other weights: {list_some(wrong)}. If they are not '
            'finite, train again; nothing was pushed.'
        )
    size = loaded.pretrained_cfg['input_size']
    expected, got = _outputs(original, size), _outputs(loaded, size)
    if not expected.isfinite().all():
        raise ValueError('The model answers NaN or infinity. Push an earlier checkpoint.')
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= _TOLERANCE:
        raise ValueError(
            f'What was to be pushed answers otherwise than the model (by {error:.1e} of its '
            'largest output): it has parts that no argument describes. Give them to '
            '`timm.create_model` as arguments; nothing was pushed.'
        )


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ValueError(
            f'Weights are NaN or infinite: {list_some(bad)}. Push an earlier checkpoint.'
        )


def _results(values: Mapping[str, float] | None, dataset: str | None) -> list[Result]:
    if not values:
        if dataset:
            raise ValueError(f"Say what was measured on '{dataset}', such as top1=78.3.")
        return []
    if not dataset:
        raise ValueError(f'Name the data set on which {", ".join(values)} was measured.')
    bad = {k: v for k, v in values.items() if not isinstance(v, int | float) or not isfinite(v)}
    if bad:
        raise ValueError(f'Results must be numbers, got {bad}.')
    return [Result(metric, float(value), dataset) for metric, value in values.items()]


def _remote(api: HfApi, repo: str, branch: str | None) -> tuple[Any, bool]:
    """What the Hub has: of the branch, else of main; None if there is no such repository. And
    whether the branch is there."""
    try:
        return api.model_info(repo, revision=branch, files_metadata=True), True
    except RevisionNotFoundError:
        return api.model_info(repo, files_metadata=True), False
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None, False


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def _differs(path: Path, siblings: Mapping[str, Any]) -> bool:
    """Whether the Hub has another file, or none, of this name."""
    there = siblings.get(path.name)
    if there is None:
        return True
    if there.lfs:
        return bool(there.lfs.sha256 != sha256_of(path))
    return bool(there.blob_id != _git_sha1(path))


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
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    verify: bool = False,
    dry_run: bool = False,
    token: str | None = None,
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
        label_names: Names of the classes, in order.
        data: How images are prepared: some of `input_size`, `img_size`, `mean`, `std`, `crop_pct`
            and `interpolation`; by default as the folder, train.py's arguments or the name say.
        architecture: Name of the model, for a checkpoint whose shapes do not tell it.
        semantics: Its block semantics, likewise.
        revision: Branch; made from main if there is none.
        private: Make the repository private if it is made.
        message: Message of the commit.
        verify: Download what was pushed and compare it.
        dry_run: Do all that needs no network, send nothing.
        token: Access token, by default the one that is logged in.

    Returns:
        What was done. Without `changed`, the Hub had all of it.

    Raises:
        ValueError: No licence is known, the source does not convert, has weights that are not
            finite, is in its deploy form or is no Res2Net; what would be pushed is not what it
            loads as; an argument does not fit.
        OSError: The Hub refuses, cannot be reached or has changed meanwhile. Nothing is
            half-pushed: a commit holds all files, or there is none.
    """
    _check_repo_id(repo_id)
    if license is not None and not re.fullmatch(r'[a-z0-9][a-z0-9.+-]*', license):
        raise ValueError(
            f"'{license}' is no identifier of a licence. Use the Hub's, such as apache-2.0, mit, "
            'cc-by-nc-sa-4.0 or other.'
        )
    measured = _results(results, dataset)
    found, original, old = _take(model, architecture, semantics)
    network: Any = found.model
    set_data(network, data or {})
    if label_names is not None:
        _set_labels(network, label_names)

    api = HfApi(token=token, library_name='timm_res2net', library_version=__version__)
    remote, on_branch = None, False
    if not dry_run:
        with _speaking(repo_id, revision):
            remote, on_branch = _remote(api, repo_id, revision)
            there = {s.rfilename for s in remote.siblings} if remote else set()
            if not old and CARD in there:
                path = hf_hub_download(repo_id, CARD, revision=remote.sha, token=token)
                old = Path(path).read_text(encoding='utf-8')
        if remote is not None and private and not remote.private:
            raise ValueError(
                f'{repo_id} is there already, and public. Push without private, or make it private '
                'on the Hub first.'
            )
    text, licence = _card(found, repo_id, license, measured, old)
    network.pretrained_cfg = dict(network.pretrained_cfg, license=licence)

    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / 'model'
        save_folder(network, found.architecture, found.arguments, text, made)
        _compare(original, made)
        paths = [made / name for name in (CONFIG, WEIGHTS, CARD)]
        files = {path.name: (path.stat().st_size, sha256_of(path)) for path in paths}
        config = read_config(made / CONFIG)
        siblings = {s.rfilename: s for s in remote.siblings} if remote else {}
        changed = tuple(path.name for path in paths if _differs(path, siblings))
        branch = revision or 'main'
        if dry_run:
            return Push(repo_id, branch, None, '', files, changed, False, text, config)
        with _speaking(repo_id, revision):
            commit = _send(
                api, repo_id, revision, private, message, made, changed, remote, on_branch
            )
        if verify:
            _verify(commit[0], commit[1], files, token)
    repo, oid = commit
    url = f'{api.endpoint}/{repo}'
    return Push(repo, branch, oid, url, files, changed, verify, text, config)


def _take(
    model: nn.Module | str | os.PathLike[str], architecture: str | None, semantics: str | None
) -> tuple[Conversion, Any, str]:
    """What is to be pushed, the model to compare it with, and the text of a folder's card."""
    card = ''
    if isinstance(model, nn.Module):
        if architecture or semantics:
            raise ValueError(
                'A model in memory knows its architecture and semantics. Leave them out.'
            )
        found = _from_module(model)
        original: Any = copy.deepcopy(unwrap_model(model)).cpu().float().eval()
    else:
        path = Path(model)
        found = read(path, model=architecture, semantics=semantics)
        original = found.model
        if (path / CARD).is_file():
            card = (path / CARD).read_text(encoding='utf-8')
        if not path.is_dir():
            classes = f'{original.num_classes:,} classes'
            layout = '' if found.source in ('timm', 'official') else f' of {found.source}'
            original.pretrained_cfg = dict(
                original.pretrained_cfg,
                description=f'{found.architecture} with {classes}, from `{path.name}`{layout}.',
                tag='pushed',
            )
    _check_finite(found.model.state_dict())
    return found, original, card


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
    found: Conversion, repo: str, license: str | None, results: list[Result], old: str
) -> tuple[str, str]:
    """The card, and the licence that it names."""
    kept, kept_results = results_of(old) if old else (None, [])
    cfg = found.model.pretrained_cfg
    known = license or kept or cfg.get('license')  # type: ignore[operator, union-attr]
    if not known or (known == 'unknown' and license is None and kept is None):
        raise ValueError(
            'No licence is known for these weights'
            + (", only that timm's card says unknown" if known else '')
            + ". Name it, such as license='cc-by-nc-sa-4.0' (--license); whoever made the weights "
            'that they start from has a say.'
        )
    title = repo.rpartition('/')[2]
    foreign = found.moves and found.source not in ('timm', 'official') and not old
    text = write_card(
        title,
        f'{cfg.get("description") or found.architecture} {ABOUT}',  # type: ignore[operator, union-attr]
        f'hf-hub:{repo}',
        found.model,
        found.architecture,
        found.arguments,
        found.semantics,
        licence=known,
        licence_text=f'`{known}`.',
        results=results or kept_results,
        rest=made_from(found) if foreign else '',
    )
    return (merge_card(text, old) if old else text), known


def _send(
    api: HfApi,
    repo: str,
    revision: str | None,
    private: bool | None,
    message: str | None,
    folder: Path,
    changed: Sequence[str],
    remote: Any,
    on_branch: bool,
) -> tuple[str, str]:
    """Make repository, branch and commit, as far as they are needed; the repository and commit."""
    from huggingface_hub import CommitOperationAdd

    parent = None
    if remote is None:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    else:
        repo, parent = remote.id, remote.sha
    if revision is not None and not on_branch:
        api.create_branch(repo, branch=revision, exist_ok=True)
    if not changed:
        return repo, parent or ''
    done = api.create_commit(
        repo,
        [CommitOperationAdd(name, folder / name) for name in changed],
        commit_message=message or 'Push by timm_res2net',
        revision=revision,
        parent_commit=parent,
    )
    return repo, done.oid


def _verify(
    repo: str, commit: str, files: Mapping[str, tuple[int, str]], token: str | None
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


def check(
    target: str | os.PathLike[str], revision: str | None = None, token: str | None = None
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
    if Path(text).is_dir():
        return _check_folder(Path(text))
    name = text.partition('.')[0]
    if '/' not in text and name in FIGURES:
        cfg: Any = get_pretrained_cfg(text)
        if cfg.file:
            return _check_embedded(name, cfg)
        if not cfg.hf_hub_id:
            where = f'come from {cfg.url}' if cfg.url else 'are not published'
            raise ValueError(f'The weights of {text} {where}, not from the Hub.')
        text = cfg.hf_hub_id
    repo, _, at = text.partition('@')
    _check_repo_id(repo)
    return _check_repo(repo, revision or at or None, token)


def pins_of(notes: Sequence[str] | None) -> dict[str, str]:
    """Pins of a cfg's notes: 'revision', a commit of 40 digits, and 'sha256', of 64."""
    found = {}
    for note in notes or ():
        match = re.fullmatch(r'(revision|sha256): *([0-9a-f]{40}|[0-9a-f]{64})', note)
        if match:
            found[match[1]] = match[2]
    return found


def _pins_of_repo(repo: str) -> dict[str, str]:
    for name in default_cfgs:
        for cfg in get_arch_pretrained_cfgs(name).values():
            if cfg.hf_hub_id == repo and (pins := pins_of(cfg.notes)):
                return pins
    return {}


def _look(findings: list[Finding], what: str, look: Callable[[], str]) -> bool:
    """Add what a look finds, or its error; whether it went well."""
    try:
        text = look()
    except (OSError, ValueError, RuntimeError) as error:
        findings.append(Finding(what, 'error', str(error)))
        return False
    state, _, rest = text.partition(': ') if text.startswith('warning: ') else ('ok', '', text)
    findings.append(Finding(what, state, rest))
    return True


def _check_folder(folder: Path) -> list[Finding]:
    found: list[Finding] = []
    weights = folder / WEIGHTS

    def config() -> str:
        known = read_config(folder / CONFIG)
        size = known['pretrained_cfg'].get('input_size', [3, 224, 224])
        return f'{known["architecture"]}, {known["num_classes"]} classes, {size[-1]} px'

    has_config = _look(found, 'config', config)
    if _look(found, 'weights', lambda: _look_at_format(folder)) and has_config:
        tensors = _look(found, 'tensors', lambda: _look_at_tensors(weights, build(folder)))
        _look(found, 'values', lambda: _look_at_values(weights))
        if tensors:
            _look(found, 'runs', lambda: _look_at_outputs(folder))
    _look(found, 'licence', lambda: _look_at_licence(folder))
    _look(found, 'card', lambda: _look_at_card(folder))
    return found


def _look_at_format(folder: Path) -> str:
    weights = folder / WEIGHTS
    others = sorted(
        p.name for p in folder.iterdir() if p.suffix in ('.bin', '.pth', '.pt', '.ckpt')
    )
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
    return f'warning: {text}; {", ".join(others)} beside it is not looked at' if others else text


def _look_at_tensors(weights: Path, model: nn.Module) -> str:
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
    return f'all {len(own)} fit the config'


def _look_at_values(weights: Path) -> str:
    with safe_open(weights, framework='pt') as file:
        bad = [
            key
            for key in file.keys()  # noqa: SIM118
            if (value := file.get_tensor(key)).is_floating_point() and not value.isfinite().all()
        ]
    return f'warning: NaN or infinite, {list_some(bad)}' if bad else 'all finite'


def _look_at_outputs(folder: Path) -> str:
    model = _load(folder)
    size = model.pretrained_cfg['input_size']
    out = _outputs(model, size)
    shape = ' × '.join(map(str, size))
    if not out.isfinite().all():
        return f'warning: an image of {shape} gives outputs that are not finite'
    return f'an image of {shape} gives {out.shape[1]} finite outputs'


def _look_at_licence(folder: Path) -> str:
    card = folder / CARD
    licence = results_of(card.read_text(encoding='utf-8'))[0] if card.is_file() else None
    if not licence and (folder / CONFIG).is_file():
        licence = read_config(folder / CONFIG)['pretrained_cfg'].get('license')
    if not licence:
        raise ValueError('None is named. `timm-res2net push --license` names one.')
    return f'warning: {licence}' if licence == 'unknown' else licence


def _look_at_card(folder: Path) -> str:
    if not (folder / CARD).is_file():
        return f'warning: there is no {CARD}'
    results_of((folder / CARD).read_text(encoding='utf-8'))
    return f'{CARD} with valid metadata'


def _check_embedded(name: str, cfg: Any) -> list[Finding]:
    found: list[Finding] = []
    weights, pins = Path(cfg.file), pins_of(cfg.notes)
    model = timm.create_model(name, device='meta', num_classes=cfg.num_classes)
    _look(found, 'tensors', lambda: _look_at_tensors(weights, model))
    _look(found, 'values', lambda: _look_at_values(weights))
    if pins:
        _look(found, 'pin', lambda: _look_at_pins(pins, None, sha256_of(weights)))
    _look(found, 'licence', lambda: str(cfg.license))
    return found


def _look_at_pins(pins: Mapping[str, str], commit: str | None, sha256: str) -> str:
    if commit and pins.get('revision', commit) != commit:
        raise ValueError(f'The revision is {commit}, and {pins["revision"]} is pinned.')
    if pins.get('sha256', sha256) != sha256:
        raise ValueError(
            f'The weights have sha256 {sha256}, and {pins["sha256"]} is pinned. They are not those '
            'that the tag was registered with.'
        )
    return ', '.join(f'{key} {value[:12]}…' for key, value in pins.items()) + ' as pinned'


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


def _fetch(repo: str, revision: str | None, token: str | None) -> _Fetched:
    """Download a model's config, weights and card into the cache.

    The client compares the size of a file with what the Hub announces, and not its content. Weights
    that differ are fetched once more, and then not kept.
    """
    get = partial(hf_hub_download, repo, revision=revision, token=token)
    with _speaking(repo, revision):
        try:
            info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
            there = {s.rfilename: s for s in info.siblings or []}
        except OfflineModeIsEnabled:
            there = None
        sha256, trouble = '', ''
        folders: list[Path] = []
        for name in (CONFIG, WEIGHTS, CARD):
            if there is not None and name not in there:
                continue
            try:
                path = Path(get(name))
            except LocalEntryNotFoundError:
                if there is None and folders:  # offline: the card may not have been asked for
                    continue
                raise
            folders.append(path.parent)
            if name == WEIGHTS:
                lfs = there[name].lfs if there else None
                # the cache names what it keeps of LFS by its sha256
                sha256 = lfs.sha256 if lfs else path.resolve().name
                if len(sha256) != 64:
                    sha256 = ''
                elif not (_is_kept(path, sha256) or (there and _is_kept(Path(get(name)), sha256))):
                    trouble = (
                        f'{name} is not what the Hub announces (sha256 {sha256[:12]}…): damaged on '
                        'its way, or there. It was taken out of the cache; run again.'
                    )
    if not folders:
        raise OSError(f'{repo} has neither {CONFIG} nor {WEIGHTS}. It is no model of timm.')
    if len(set(folders)) > 1:
        raise OSError(f'{repo} has changed meanwhile. Run again.')
    pickles = sorted(name for name in there or () if name.endswith(_PICKLES))
    return _Fetched(folders[0], sha256, trouble, tuple(pickles))


def _is_kept(path: Path, sha256: str) -> bool:
    """Whether a file of the cache is whole; another is taken out of it."""
    whole = sha256_of(path) == sha256
    if not whole:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    return whole


def _check_repo(repo: str, revision: str | None, token: str | None) -> list[Finding]:
    pins = _pins_of_repo(repo)
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
    if pins and fetched.sha256:
        _look(found, 'pin', lambda: _look_at_pins(pins, commit, fetched.sha256))
    return found


# --- pull ---------------------------------------------------------------------------------------


def pull(
    repo_id: str,
    out: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
) -> list[Finding]:
    """Fetch a model from the Hub into a folder, checked.

    Args:
        repo_id: Repository (`OWNER/NAME`, `@REVISION` may follow).
        out: New or empty folder, for `timm.create_model('local-dir:OUT', pretrained=True)`.
        revision: Branch, tag or commit.
        token: Access token.

    Returns:
        What `check` finds, without errors.

    Raises:
        FileExistsError: `out` is there already.
        OSError: The Hub refuses, cannot be reached, or what came is not what it announces.
        ValueError: What came is not whole; nothing is written.
    """
    target = check_new(Path(out), folder=True)
    repo, _, named = repo_id.partition('@')
    _check_repo_id(repo)
    fetched = _fetch(repo, revision or named or None, token)
    if fetched.trouble:
        raise OSError(fetched.trouble)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}-'))
    try:
        for name in (CONFIG, WEIGHTS, CARD):
            if (fetched.folder / name).is_file():
                shutil.copyfile(fetched.folder / name, made / name)
        at = Finding('repository', 'ok', f'{repo} at {fetched.folder.name}')
        found = [at, *_check_folder(made)]
        errors = [
            f'{f.what}: {f.text}' for f in found if f.state == 'error' and f.what != 'licence'
        ]
        if errors:
            raise ValueError(f'{repo} is not whole, and nothing was written. {" ".join(errors)}')
        made.chmod(0o755)
        os.replace(made, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
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
            write_new(folder / CONFIG, partial(_write, config))
            write_new(folder / CARD, partial(_write, card))
            made.append(folder)
    return made


def _write(text: str, file: Any) -> None:
    file.write(text.encode())


def table(findings: Sequence[Finding]) -> str:
    """Findings as lines: state, what was looked at, and what was found."""
    return '\n'.join(f'{f.state:<8} {f.what:<11} {f.text}' for f in findings)
