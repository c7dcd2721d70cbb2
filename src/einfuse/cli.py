"""The command line: one thin command per question; user errors exit with 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from einfuse.einsum import EinfuseError

from .commands import MODULES, load

app = typer.Typer(
    help="Attention algorithms as Einsum cascades: mapped, simulated, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _module in MODULES:
    load(_module).register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (on the process's own arguments if none are given)."""
    try:
        app(None if arguments is None else list(arguments))
    except EinfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
