"""What the Hub's client raises, as one sentence that says what to do."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..compat import HTTPError
from ..text import first_line

_LOGIN = 'log in with `hf auth login`, or set HF_TOKEN'
_UNREACHABLE = (ConnectionError, TimeoutError, HTTPError)


class _Failure:
    """An error of the client, taken apart.

    Attributes:
        error: The error.
        cause: Its cause, or itself.
        repo: The repository.
        revision: The revision that was asked for.
        status: HTTP status; 0 if there was no answer.
        number: Number of the operating system's error.
        kind: Name of the type of the cause.
        what: The first line of the cause.
    """

    def __init__(self, error: BaseException, repo: str, revision: str | None):
        self.error, self.repo, self.revision = error, repo, revision or 'main'
        self.cause = error.__cause__ or error
        # a refusal may be the cause of "not in the cache"
        response = getattr(error, 'response', None) or getattr(self.cause, 'response', None)
        self.status: int = getattr(response, 'status_code', None) or 0
        self.number = getattr(error, 'errno', None)
        self.kind = type(self.cause).__name__
        self.what = first_line(self.cause)

    def is_a(self, *kinds: type[BaseException]) -> bool:
        """Return whether the error or its cause is of these types."""
        return isinstance(self.error, kinds) or isinstance(self.cause, kinds)

    def says(self, text: str) -> bool:
        """Return whether the error's text contains a text in lower case."""
        return text in str(self.error).lower()


_TABLE: tuple[tuple[Callable[[_Failure], bool], str], ...] = (
    (
        lambda f: isinstance(f.error, GatedRepoError),
        f'{{f.repo}} is gated. Accept its conditions on the Hub, then {_LOGIN}.',
    ),
    (
        lambda f: isinstance(f.error, RepositoryNotFoundError),
        f'There is no repository {{f.repo}}, or it is private. Check the name, or {_LOGIN}.',
    ),
    (
        lambda f: isinstance(f.error, RevisionNotFoundError),
        "{f.repo} has no revision '{f.revision}'. Name one of its branches, tags or commits.",
    ),
    (
        lambda f: isinstance(f.error, OfflineModeIsEnabled),
        'HF_HUB_OFFLINE is set, so the Hub was not asked for {f.repo}. Unset it to ask the Hub.',
    ),
    (
        lambda f: f.status in (401, 403),
        'The Hub refuses access to {f.repo} ({f.status}: {f.what}). For this access '
        f'{_LOGIN} with a token that has it.',
    ),
    (
        lambda f: f.status == 412,
        'Someone else has pushed to {f.repo} in the meantime. Nothing was changed; run again.',
    ),
    (
        lambda f: f.status == 429,
        'The Hub limits the number of requests (429 for {f.repo}). Wait a while and run again.',
    ),
    (
        lambda f: f.status >= 500,
        'The Hub has a problem ({f.status} for {f.repo}). Run again later.',
    ),
    (
        lambda f: f.number == errno.ENOSPC or f.says('not enough free disk space'),
        'There is no space left in the cache for {f.repo}. Free some, or set HF_HOME to a folder '
        'on another disk; no part of the download was kept.',
    ),
    (
        lambda f: f.number in (errno.EROFS, errno.EACCES, errno.EPERM),
        'The cache is not writable ({f.what}). Set HF_HOME to a folder you can write to.',
    ),
    (
        lambda f: f.says('consistency check failed'),
        'A file of {f.repo} arrived with another size than the Hub announces. It was not kept; run '
        'again.',
    ),
    (lambda f: f.status > 0, 'The Hub answers {f.status} for {f.repo} ({f.what}). Run again.'),
    (
        lambda f: f.is_a(*_UNREACHABLE),
        'The Hub cannot be reached for {f.repo} ({f.kind}: {f.what}). Check the network and run '
        'again.',
    ),
    (lambda f: True, '{f.repo}: {f.kind}: {f.what}. Run again.'),
)
"""Kinds of failure in the order in which they are tried, each with its text."""


def explain(error: BaseException, repo: str, revision: str | None = None) -> str:
    """Say what went wrong with a repository, and what to do.

    Args:
        error: What the client raised.
        repo: The repository.
        revision: The revision that was asked for.
    """
    failure = _Failure(error, repo, revision)
    text = next(text for is_it, text in _TABLE if is_it(failure))
    return text.format(f=failure)


@contextmanager
def explaining(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's errors into an OSError with the text of `explain`; the cause is kept."""
    try:
        yield
    except (OSError, RuntimeError, HTTPError) as error:
        # an upload fails with a RuntimeError around the error itself
        inner = error.__cause__ if isinstance(error, RuntimeError) else None
        raise OSError(explain(inner or error, repo, revision)) from error
