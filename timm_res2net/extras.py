"""Optional packages: the sentence that is printed if one is missing, with its extra."""

import importlib.util


def install(extra: str) -> str:
    """Return the command that installs an extra, in a clone and elsewhere."""
    return f"pip install 'timm-res2net[{extra}]'"


def require(what: str, extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        what: What needs them, the subject of the error's sentence.
        extra: An extra of this package.
        *packages: Packages by the names that are imported.

    Raises:
        ValueError: One of them is missing; the text names it and the extra.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'{what} needs {package}. Install it: {install(extra)}.')
