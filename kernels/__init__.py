"""The same algorithms on a real GPU; names are loaded on first use so that torch stays optional."""

from __future__ import annotations

from typing import Any

from einfuse.lazy import attach

_find, __dir__, __all__ = attach(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _find(name)
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "triton"}:
            raise
        from .errors import MissingPackageError

        raise MissingPackageError(
            f"einfuse.kernels.{name} needs {error.name}: pip install 'einfuse[gpu]'"
        ) from None
