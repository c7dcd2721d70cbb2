"""The optional packages, asked for by name before they are imported."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import MissingPackageError


def require_packages(purpose: str, *names: str) -> None:
    """Raise a MissingPackageError that says what to install unless all packages are there.

    >>> require_packages("counting", "numpy")
    >>> require_packages("counting", "no_such_package")
    Traceback (most recent call last):
    ...
    einfuse.kernels.errors.MissingPackageError: counting needs no_such_package: pip install \
'einfuse[gpu]'
    """
    for name in names:
        try:
            found = find_spec(name) is not None
        except (ImportError, ValueError):  # hidden, or half removed
            found = False
        if not found:
            raise MissingPackageError(f"{purpose} needs {name}: pip install 'einfuse[gpu]'")
