"""Push models to the Hugging Face Hub, pull and check them.

Loading needs none of this: `timm.create_model('hf-hub:OWNER/NAME', pretrained=True)` works after
`import timm_res2net`.
"""

import os
import shutil
from pathlib import Path

import timm

from ..files import check_writable, new_folder, temporary_folder
from ..folder.card import of_tag
from ..folder.checks import Finding as Finding
from ..folder.checks import checks, refuse
from ..folder.config import MODULE
from ..folder.folder import FILES, is_module, write
from ..folder.target import Target, find_repository, find_target
from ..models.loading import prepare_weights
from .fetch import fetch, weights_of
from .push import push_to_hub as push_to_hub
from .repository import Push as Push

__all__ = ['Finding', 'Push', 'check', 'pull', 'push_to_hub']


def check(
    target: str | os.PathLike[str],
    revision: str | None = None,
    token: str | bool | None = None,
) -> list[Finding]:
    """Check whether a model is in order: complete, loadable, finite, safetensors, with a license.

    Args:
        target: A folder, a repository of the Hub (OWNER/NAME, with or without @REVISION), or a
            registered name, with or without tag, whose weights are published.
        revision: Branch, tag or commit of a repository.
        token: Access token.

    Returns:
        A finding for each question of `timm_res2net.folder.checks.QUESTIONS` that has something to
        say.

    Raises:
        OSError: There is no such folder or repository, or the Hub refuses or cannot be reached.
        ValueError: `target` is none of the three, or the Hub sent other weights than it announces.

    Example:
        >>> import timm_res2net
        >>> {finding.state for finding in timm_res2net.check('test_res2net_se')}
        {'ok'}
    """
    named = find_target(target, revision)
    if revision and named.kind != 'repository':
        raise ValueError(f'{named.value} has no revisions. Leave the revision out.')
    if named.kind == 'file':
        raise ValueError(
            f'{named.value} is a file. Check a folder or a repository; `timm-res2net convert '
            '--dry-run` looks at a checkpoint.'
        )
    if named.kind == 'name':
        cfg = weights_of(named)
        if cfg.file or not cfg.hf_hub_id:  # in the package, or at the address of another project
            prepare_weights(cfg)
            model = of_tag(timm.create_model(named.value, pretrained=True).eval())
            with temporary_folder() as scratch:
                return checks(write(model, scratch / 'model'), 'check')
        named = Target('repository', cfg.hf_hub_id)
    return checks(fetch(named, token), 'check')


def pull(
    repo_id: str,
    out: str | os.PathLike[str],
    revision: str | None = None,
    token: str | bool | None = None,
) -> list[Finding]:
    """Download a model from the Hub into a folder, checked.

    Args:
        repo_id: Repository (OWNER/NAME, with or without @REVISION).
        out: New or empty folder, for `timm.create_model('local-dir:OUT', pretrained=True)`.
        revision: Branch, tag or commit.
        token: Access token.

    Returns:
        What `check` finds.

    Raises:
        FileExistsError: `out` already exists.
        OSError: The Hub refuses or cannot be reached.
        ValueError: The checks found an error, or the Hub sent other weights than it announces;
            nothing is written.

    Example:
        >>> import timm_res2net
        >>> timm_res2net.pull('me/my_res2net', 'my_res2net')  # doctest: +SKIP
    """
    named = find_repository(repo_id, revision)
    target = check_writable(Path(out), folder=True)
    folder = fetch(named, token)
    findings = checks(folder, 'pull')
    refuse(findings, f'{named.value} is not in order, and nothing was written')
    with new_folder(target) as made:
        for name in FILES:
            if name == MODULE and not is_module(folder.path / name):
                continue  # code of others is not pulled
            if (folder.path / name).is_file():
                (made / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder.path / name, made / name)
    return findings
