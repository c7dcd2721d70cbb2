"""Packages whose names are loaded on first use; the stub beside them says where each one is."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package, from its ``__init__.pyi``.

    The stub is what type checkers read, so that each name stands in one place.

    >>> import einfuse.einsum as room
    >>> find, list_names, offered = attach("einfuse.einsum", room.__file__)
    >>> "parse" in offered, find("parse").__module__
    (True, 'einfuse.einsum.language.parser')
    """
    stub = Path(file).with_suffix(".pyi").read_text(encoding="utf-8")
    places = {
        alias.asname or alias.name: (
            f"{package}.{node.module}" if node.level else str(node.module),
            alias.name,
        )
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = places[name]
        return getattr(importlib.import_module(module), attribute)

    return find, lambda: sorted(places), sorted(places)
