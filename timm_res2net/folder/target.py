"""What a text means: a registered name, a folder, a file, or a repository of the Hub."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from ..convert import COUNTS
from .config import CONFIG, is_res2net, timm_names


class Target(NamedTuple):
    """What a text means.

    Attributes:
        kind: What it names.
        value: Registered name with or without a tag, path, or OWNER/NAME.
        revision: Branch, tag or commit of a repository; None for main.
    """

    kind: Literal['name', 'folder', 'file', 'repository']
    value: str
    revision: str | None = None

    @property
    def architecture(self) -> str:
        """A registered name without its tag."""
        return self.value.partition('.')[0]

    @property
    def cfg(self) -> Any:
        """The `PretrainedCfg` of a registered name, of its default tag if none was given."""
        return get_pretrained_cfg(self.value)


def close_names(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean A, B?` for the known names closest to a misspelled one, or ''."""
    close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.4)
    return f' Did you mean {", ".join(close)}?' if close else ''


def find_name(text: str, any_of_timm: bool = False) -> Target:
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
    return Target('name', text)


def find_repository(text: str, revision: str | None = None) -> Target:
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
    return Target('repository', name, revision or at or None)


def find_target(text: str | os.PathLike[str], revision: str | None = None) -> Target:
    """Find out what a text means. A folder with a config.json comes before a name.

    Args:
        text: Registered name, with or without a tag; path of a folder or file; or OWNER/NAME, with
            or without @REVISION.
        revision: Branch, tag or commit of a repository.

    Raises:
        FileNotFoundError: It is a path, and there is nothing at it.
        ValueError: It is none of these.
    """
    is_path, text = isinstance(text, os.PathLike), os.fspath(text)
    if not text.strip():
        raise ValueError('The name of the model is empty. Give a name, a folder or OWNER/NAME.')
    path = Path(text.removeprefix('local-dir:')).expanduser()
    is_name = timm.is_model(text)
    if path.is_dir() and ((path / CONFIG).is_file() or not is_name):
        return Target('folder', str(path))
    if path.is_file() and not is_name:
        return Target('file', str(path))
    if is_path or text.startswith(('.', '/', '~', 'local-dir:')):
        raise FileNotFoundError(f'There is no file or folder {text}. Check the path.')
    if '/' in text:
        if text.count('/') > 1:
            raise FileNotFoundError(
                f'There is no file or folder {text}, and a repository is written as OWNER/NAME.'
            )
        return find_repository(text, revision)
    if not is_name:
        raise ValueError(
            _refusal(text, 'a registered model, a folder or a repository (OWNER/NAME)')
        )
    return find_name(text, any_of_timm=True)


def _refusal(text: str, what: str) -> str:
    tags = [tag for name in COUNTS for tag in get_arch_pretrained_cfgs(name)]
    close = close_names(text, [*COUNTS, *tags, *timm_names()])
    return f"'{text}' is not {what}.{close} `timm-res2net list` shows the models."
