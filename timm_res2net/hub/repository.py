"""What the Hub has of a repository before a push, and the commit that changes it."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash

from ..files import VERSION, sha256_of
from ..folder.config import CONFIG, Config
from ..folder.folder import CARD, ModelFolder
from ..folder.golden import GOLDEN
from ..folder.target import Target
from ..models.loading import ask_hub


def siblings_of(info: ModelInfo) -> dict[str, RepoSibling]:
    """Return the files of a repository by name."""
    return {sibling.rfilename: sibling for sibling in info.siblings or ()}


def is_same(path: Path, there: RepoSibling) -> bool:
    """Return whether a file has the content that the Hub announces."""
    if there.lfs is not None:
        return sha256_of(path) == there.lfs.sha256
    return git_hash(path.read_bytes()) == there.blob_id


class FileSent(NamedTuple):
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
    """

    repo: str
    revision: str
    files: Mapping[str, FileSent]
    card: str
    config: Config
    notes: tuple[str, ...] = ()
    commit: str | None = None
    url: str = ''

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the files that the push changes; all files after a dry run."""
        return tuple(name for name, file in self.files.items() if file.changed)


@dataclass(frozen=True)
class Remote:
    """What the Hub has of a repository before a push.

    Attributes:
        info: What the branch has, or main if there is no branch; None if there is no repository.
        on_branch: Whether the branch exists.
        folder: Its card, config and golden tensors in the cache; a path without files if none.
    """

    info: ModelInfo | None = None
    on_branch: bool = False
    folder: ModelFolder = field(default_factory=lambda: ModelFolder(Path(os.devnull)))

    @property
    def config(self) -> Config | None:
        """Its config; None without one, or if that is of another kind of model."""
        with suppress(FileNotFoundError, ValueError):
            return self.folder.config
        return None

    def differs(self, name: str, path: Path) -> bool:
        """Return whether the Hub does not have a file of this name with this content."""
        there = siblings_of(self.info).get(name) if self.info else None
        return there is None or not is_same(path, there)


def look(target: Target, token: str | bool | None, private: bool | None) -> Remote:
    """Look at what the Hub has.

    Raises:
        ValueError: The push is to be private, and the repository is public.
        OSError: The Hub refuses or cannot be reached.
    """
    on_branch = True
    try:
        info = ask_hub(target.value, target.revision, token)
    except RevisionNotFoundError:
        info = ask_hub(target.value, token=token)
        on_branch = False
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return Remote()
    if private and not info.private:
        raise ValueError(
            f'{target.value} exists and is public. Push without private, or make it private on the '
            'Hub first.'
        )
    path = snapshot_download(
        target.value, revision=info.sha, allow_patterns=[CARD, CONFIG, GOLDEN], token=token
    )
    return Remote(info, on_branch, ModelFolder(Path(path)))


def commit(
    push: Push,
    remote: Remote,
    folder: ModelFolder,
    token: str | bool | None,
    private: bool | None,
    message: str | None,
) -> Push:
    """Create repository, branch and commit as far as they are needed.

    Raises:
        ValueError: The Hub refuses the metadata of the card.
        OSError: The Hub refuses or cannot be reached.
    """
    api = HfApi(token=token, library_name='timm_res2net', library_version=VERSION)
    repo, sha = push.repo, ''
    if push.changed:
        ModelCard(push.card).validate()  # before anything is created
    if remote.info is None:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    else:
        repo, sha = remote.info.id, remote.info.sha or ''
    if push.revision != 'main' and not remote.on_branch:
        api.create_branch(repo, branch=push.revision, exist_ok=True)
    if push.changed:
        sha = api.create_commit(
            repo,
            [CommitOperationAdd(name, folder.path / name) for name in push.files],
            commit_message=message or 'Push by timm_res2net',
            revision=push.revision,
            parent_commit=sha or None,
        ).oid
    return replace(push, repo=repo, commit=sha, url=f'{api.endpoint}/{repo}')
