"""What a text means: a registered name, a folder, a file, or a repository of the Hub."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import timm
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from ..convert.published import COUNTS
from ..layers.text import close_names
from .folder import CONFIG, is_res2net, timm_names


class Name(NamedTuple):
    """A registered model.

    Attributes:
        full: The name, with a tag if one was given.
        architecture: The name without a tag.
        cfg: Its `PretrainedCfg`, of the default tag if none was given.
    """

    full: str
    architecture: str
    cfg: Any


class Folder(NamedTuple):
    """A folder on the disk."""

    path: Path


class File(NamedTuple):
    """A file on the disk."""

    path: Path


class Repository(NamedTuple):
    """A repository of the Hub.

    Attributes:
        id: OWNER/NAME.
        revision: Branch, tag or commit; None for main.
    """

    id: str
    revision: str | None = None


def resolve_name(text: str, any_of_timm: bool = False) -> Name:
    """Find a registered model, of this package or a Res2Net of timm.

    Args:
        text: Its name, with or without a tag.
        any_of_timm: Whether other networks of timm will do as well.

    Raises:
        ValueError: There is no such model or tag.
    """
    architecture, dot, tag = text.partition('.')
    if not is_res2net(architecture) and not (any_of_timm and timm.is_model(architecture)):
        raise ValueError(_refusal(text, 'a registered Res2Net'))
    tags = get_arch_pretrained_cfgs(architecture)
    if dot and text not in tags:
        names = ', '.join(name.partition('.')[2] for name in tags)
        raise ValueError(f"'{architecture}' has no tag '{tag}'. Use one of {names}, or none.")
    return Name(text, architecture, get_pretrained_cfg(text))


def resolve_repository(text: str, revision: str | None = None) -> Repository:
    """Split OWNER/NAME or OWNER/NAME@REVISION.

    Raises:
        ValueError: It is not the name of a repository, or two revisions are named.
    """
    name = text.removeprefix('hf-hub:').removeprefix('hf_hub:')  # as timm takes it
    name, _, at = name.partition('@')
    try:
        validate_repo_id(name)
        is_one = name.count('/') == 1
    except HFValidationError:
        is_one = False
    if not is_one:
        raise ValueError(
            f"'{name}' is not the name of a repository. Write it as OWNER/NAME, with letters, "
            'digits, -, _ and .'
        )
    if at and revision:
        raise ValueError(f"'{text}' and revision='{revision}' name two revisions. Name one.")
    return Repository(name, revision or at or None)


def resolve(
    target: str | os.PathLike[str], revision: str | None = None
) -> Name | Folder | File | Repository:
    """Find out what a text means. A folder with a config.json comes before a name.

    Args:
        target: Registered name, with or without a tag; path of a folder or file; or OWNER/NAME,
            with or without @REVISION.
        revision: Branch, tag or commit of a repository.

    Raises:
        FileNotFoundError: It is a path, and there is nothing at it.
        ValueError: It is none of these.
    """
    text = os.fspath(target)
    if not text.strip():
        raise ValueError('The name of the model is empty. Give a name, a folder or OWNER/NAME.')
    path = Path(text.removeprefix('local-dir:')).expanduser()
    is_name = timm.is_model(text)
    if path.is_dir() and ((path / CONFIG).is_file() or not is_name):
        return Folder(path)
    if path.is_file() and not is_name:
        return File(path)
    if isinstance(target, os.PathLike) or text.startswith(('.', '/', '~', 'local-dir:')):
        raise FileNotFoundError(f'There is no file or folder {text}. Check the path.')
    if '/' in text:
        if text.count('/') > 1:
            raise FileNotFoundError(
                f'There is no file or folder {text}, and a repository is written as OWNER/NAME.'
            )
        return resolve_repository(text, revision)
    if not is_name:
        raise ValueError(
            _refusal(text, 'a registered model, a folder or a repository (OWNER/NAME)')
        )
    return resolve_name(text, any_of_timm=True)


def _refusal(text: str, what: str) -> str:
    tags = [tag for name in COUNTS for tag in get_arch_pretrained_cfgs(name)]
    return (
        f"'{text}' is not {what}.{close_names(text, [*COUNTS, *tags, *timm_names()])} "
        '`timm-res2net list` shows the models.'
    )
