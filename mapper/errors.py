"""What is wrong with an architecture, a mapping or a design."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from einfuse.einsum.errors import EinfuseError


class ArchitectureError(EinfuseError):
    """An architecture file, or a setting of one of its parameters, is wrong."""


class MappingError(EinfuseError):
    """A mapping, a design or the shape given to one is wrong."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known names closest to a wrong one.

    >>> closest("array_1d.lane", ["array_1d.lanes", "clock_hz"])
    '; did you mean array_1d.lanes?'
    >>> closest("x", ["array_1d.lanes"])
    '; known: array_1d.lanes'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}" if names else ""
