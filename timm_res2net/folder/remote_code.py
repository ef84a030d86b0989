"""A module in a repository, with which transformers loads its model without `import timm_res2net`.

transformers knows timm's models and builds them by name. The names of this package are registered
when it is imported, which a few lines in the repository can do: a `config.json` with `auto_map`
names a module beside it, and `AutoModelForImageClassification.from_pretrained(REPO,
trust_remote_code=True)` runs that. timm ignores both, and so does transformers without
`trust_remote_code`. Images need no code: `AutoImageProcessor` reads the same `config.json`.
"""

from pathlib import Path

INSTALL = (
    'It is not on a package index yet: install it from a clone of its repository, with '
    '`pip install .`.'
)
"""How this package is installed, for cards and errors."""
MODULE = 'modeling_timm_res2net.py'
"""File of the module, in a folder or repository."""
AUTO_MAP = {
    'AutoModel': 'modeling_timm_res2net.TimmWrapperModel',
    'AutoModelForImageClassification': 'modeling_timm_res2net.TimmWrapperForImageClassification',
}
"""The field `auto_map` of the config.json."""

# transformers looks for missing packages outside of `try` only, and would name them as packages of
# the index. It writes to the classes that it loads, so they must not be its own; their names must
# be, because its pipelines look for them.
MODULE_TEXT = f'''"""Loads this model in transformers: timm_res2net registers its network with timm.

timm_res2net wrote this file, and it is the same in every repository.
"""

import transformers

try:
    import timm_res2net  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'timm_res2net':
        raise
    raise ImportError(
        'The network of this model is in the package timm_res2net, which is not installed. '
        {INSTALL!r}
    ) from error


class TimmWrapperModel(transformers.TimmWrapperModel):
    """The network without its classifier."""


class TimmWrapperForImageClassification(transformers.TimmWrapperForImageClassification):
    """The network with its classifier."""
'''
"""The text of the module."""


def is_module(path: Path) -> bool:
    """Return whether a file is the module, as this version of the package writes it."""
    return path.is_file() and path.read_bytes() == MODULE_TEXT.encode()
