"""The commands, a module per room; each has ``register(app)`` and imports heavy things late."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

import typer

MODULES: tuple[str, ...] = (
    "cascades",
    "costs",
    "derive",
    "designs",
    "exchange",
    "gradient",
    "kernels",
    "map",
    "measure",
    "passes",
    "run",
    "simulate",
    "validate",
    "zoo",
)


class CommandModule(Protocol):
    """A module of commands."""

    def register(self, app: typer.Typer) -> None:
        """Add the module's commands to the application."""


def load(name: str) -> CommandModule:
    """Import a module of commands by its name."""
    return cast(CommandModule, importlib.import_module(f"{__name__}.{name}"))
