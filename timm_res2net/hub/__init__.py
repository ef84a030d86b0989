"""Push models to the Hugging Face Hub, pull and check them.

Loading needs none of this: `timm.create_model('hf-hub:OWNER/NAME', pretrained=True)` works after
`import timm_res2net`.
"""

import os
import shutil
from pathlib import Path

from ..convert import COUNTS
from ..files import check_writable, new_folder, temporary_folder
from ..folder.card import card_of_tag
from ..folder.checks import Finding as Finding
from ..folder.checks import checks, refuse
from ..folder.config import CONFIG, Config, timm_names
from ..folder.folder import FILES, WEIGHTS, ModelFolder
from ..folder.remote_code import MODULE, is_module
from ..folder.target import Target, find_repository, find_target
from .fetch import fetch
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
            registered name, with or without tag, whose weights are on the Hub or in the package.
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
    if named.kind == 'file':
        raise ValueError(
            f'{named.value} is a file. Check a folder or a repository; `timm-res2net convert '
            '--dry-run` looks at a checkpoint.'
        )
    if named.kind == 'name':
        if named.cfg.file and named.architecture in COUNTS:
            return _check_embedded(named)
        named = _repository_of(named, revision)
    return checks(fetch(named, token), 'check')


def _repository_of(named: Target, revision: str | None) -> Target:
    """Return the repository that holds the weights of a registered name."""
    cfg, name = named.cfg, named.value
    if named.architecture not in COUNTS:
        if named.architecture not in timm_names():
            raise ValueError(
                f"'{name}' is not a Res2Net, and nothing else is checked. `timm-res2net list` "
                'shows the models.'
            )
        raise ValueError(f"'{name}' is a model of timm. Check its repository, {cfg.hf_hub_id}.")
    if not cfg.hf_hub_id:
        where = f"There are no published weights for '{name}'."
        if cfg.url:
            where = (
                f'The weights of {name} are at {cfg.url}, and only those of the Hub are checked.'
            )
        raise ValueError(f'{where} Check a folder that `timm-res2net convert` wrote.')
    return Target('repository', cfg.hf_hub_id, revision)


def _check_embedded(named: Target) -> list[Finding]:
    """Check weights of the package in the folder that a push would write."""
    tag = named.cfg.tag or ''
    config = Config.of_tag(f'{named.architecture}.{tag}')
    with temporary_folder() as scratch:
        folder = ModelFolder(scratch)
        shutil.copyfile(named.cfg.file, folder.path / WEIGHTS)
        (folder.path / CONFIG).write_text(config.to_json(), encoding='utf-8')
        folder.write_card(card_of_tag(config, tag))
        return checks(folder, 'check')


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
