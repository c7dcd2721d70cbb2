"""What is wrong with an architecture, a mapping or a design."""

from __future__ import annotations

from einfuse.einsum import EinfuseError


class ArchitectureError(EinfuseError):
    """An architecture file, or a setting of one of its parameters, is wrong."""


class MappingError(EinfuseError):
    """A mapping, a design or the shape given to one is wrong."""
