"""How this package and its optional ones are installed, for the sentences that say so."""

import importlib.util

REPOSITORY = ''
"""Address of this project's git repository, for `pip install git+...`; '' until it has one."""


def how_to_install() -> str:
    """Return a sentence on how this package is installed, with the command."""
    if REPOSITORY:
        return f'Install it with `pip install git+{REPOSITORY}`.'
    return (
        'It is not on a package index yet: install it from a clone of its repository, with '
        '`pip install .`.'
    )


def require(extra: str, *packages: str) -> None:
    """Raise a ValueError if a package of an extra is missing. None of them is imported.

    Args:
        extra: An extra of this package.
        *packages: Packages by the names that are imported.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{package} is not installed. Install it: pip install 'timm-res2net[{extra}]'."
            )
