"""What the Hub has of a repository before a push, and the commit that changes it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from ..compare import GOLDEN
from ..compat import HTTPError
from ..download import Unreadable, explaining, readable
from ..files import read_text, sha256_of, temporary_folder
from ..folder import CARD, CONFIG, Config, ModelFolder
from ..resolve import Repository
from .fetch import Remote, get_file, look


@dataclass(frozen=True)
class FileSent:
    """A file of a push.

    Attributes:
        bytes: Its size.
        sha256: Its sha256.
        changed: Whether the push changes this file on the Hub.
    """

    bytes: int
    sha256: str
    changed: bool


@dataclass(frozen=True)
class Push:
    """What a push did.

    Attributes:
        repo: Repository, with its owner.
        revision: Branch.
        files: The files by name.
        card: Text of the card.
        config: The config.
        notes: What the owner should know, a sentence each.
        commit: Commit that the branch is at; None after a dry run.
        url: Page of the repository; '' after a dry run.
        verified: Whether the files were downloaded again and compared.
    """

    repo: str
    revision: str
    files: Mapping[str, FileSent]
    card: str
    config: Config
    notes: tuple[str, ...] = ()
    commit: str | None = None
    url: str = ''
    verified: bool = False

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the files that the push changes; all files after a dry run."""
        return tuple(name for name, file in self.files.items() if file.changed)


@dataclass(frozen=True)
class Seen:
    """What the Hub has of a repository before a push.

    Attributes:
        remote: What the branch has, or main if there is no branch; None if there is no repository.
        on_branch: Whether the branch exists.
        card: Text of the card, '' without one.
        config: Its config; None without one, or if that is of another kind of model.
        golden: Its golden tensors in the cache; None without any.
    """

    remote: Remote | None = None
    on_branch: bool = False
    card: str = ''
    config: Config | None = None
    golden: Path | None = None

    def differs(self, name: str, path: Path) -> bool:
        """Return whether the Hub does not have a file of this name with this content."""
        there = self.remote.files.get(name) if self.remote else None
        return there is None or not there.fits(path)


def ask(api: HfApi, target: Repository, token: str | bool | None, private: bool | None) -> Seen:
    """Look at what the Hub has.

    Raises:
        ValueError: The push is to be private, and the repository is public.
        OSError: The Hub refuses or cannot be reached.
    """
    on_branch = True
    with explaining(target.id, target.revision):
        try:
            remote = look(api, target.id, target.revision)
        except RevisionNotFoundError:
            remote = look(api, target.id, None)
            on_branch = False
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return Seen()
    if private and not remote.private:
        raise ValueError(
            f'{target.id} exists and is public. Push without private, or make it private on the '
            'Hub first.'
        )
    remote.check_sizes((CARD, CONFIG, GOLDEN))
    card, config = '', None
    with explaining(target.id, target.revision), readable():
        get = partial(get_file, target.id, revision=remote.commit, token=token)
        if CARD in remote.files:
            card = read_text(get(CARD))
        path = get(CONFIG) if CONFIG in remote.files else None
        golden = get(GOLDEN) if GOLDEN in remote.files else None
    if path:
        with suppress(ValueError):  # until now the repository held another kind of model
            config = Config.read(path)
    return Seen(remote, on_branch, card, config, golden)


def send(
    api: HfApi,
    push: Push,
    seen: Seen,
    folder: ModelFolder,
    private: bool | None,
    message: str | None,
    verify: bool,
) -> Push:
    """Create repository, branch and commit as far as they are needed.

    Raises:
        ValueError: The Hub refuses the metadata of the card.
        OSError: The Hub refuses, cannot be reached, or does not hold what was sent.
    """
    repo, commit, lacking = push.repo, '', list[str]()
    with explaining(repo, push.revision):
        if push.changed:
            _validate(push.card, push.config.license)
        with readable():
            if seen.remote is None:
                repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            else:
                repo, commit = seen.remote.repo, seen.remote.commit
            if push.revision != 'main' and not seen.on_branch:
                api.create_branch(repo, branch=push.revision, exist_ok=True)
        if push.changed:
            sent = {name: folder.path / name for name in push.files}
            held = _commit(api, replace(push, repo=repo), sent, commit, message)
            commit, lacking = held.commit, _lacking(held, sent)
    if lacking:
        raise OSError(
            f'{", ".join(lacking)} of {repo} at {commit} is not what was sent: the Hub has left it '
            'out or changed it. Look for it in the .gitignore of the repository, then push again.'
        )
    if verify:
        _verify(api, repo, commit, push.files)
    url = f'{api.endpoint}/{repo}'
    return replace(push, repo=repo, commit=commit, url=url, verified=verify)


def _commit(
    api: HfApi, push: Push, sent: Mapping[str, Path], parent: str, message: str | None
) -> Remote:
    """Commit the files that change, and look at what the commit holds."""
    try:
        with readable():
            commit = api.create_commit(
                push.repo,
                [CommitOperationAdd(name, sent[name]) for name in push.changed],
                commit_message=message or 'Push by timm_res2net',
                revision=push.revision,
                parent_commit=parent or None,
            ).oid
            return look(api, push.repo, commit)
    except (OSError, HTTPError, Unreadable):
        # the answer may be lost and the commit made
        with suppress(OSError, HTTPError, Unreadable):
            held = look(api, push.repo, push.revision)
            if not _lacking(held, sent):
                return held
        raise


def _lacking(held: Remote, sent: Mapping[str, Path]) -> list[str]:
    """Return the names of files that the Hub does not hold as they were sent."""
    return [
        name
        for name, path in sent.items()
        if name not in held.files or not held.files[name].fits(path)
    ]


def _validate(card: str, license: str | None) -> None:
    """Let the Hub check the metadata before anything is created."""
    try:
        ModelCard(card).validate()
    except ValueError as error:
        raise ValueError(
            f"The Hub refuses the card's metadata, with license '{license}': "
            f'{" ".join(str(error).split())}'
        ) from error


def _verify(api: HfApi, repo: str, commit: str, files: Mapping[str, FileSent]) -> None:
    """Download what a commit holds, without the cache, and compare."""
    with temporary_folder() as cache:
        for name, file in files.items():
            with explaining(repo, commit), readable():
                path = get_file(repo, name, commit, api.token, cache_dir=cache)
            if sha256_of(path) != file.sha256:
                raise OSError(
                    f'{name} of {repo} at {commit} is not the file that was pushed. Look at it '
                    'with `timm-res2net check`.'
                )
