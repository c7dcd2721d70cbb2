"""The command line: one thin command per question; user errors exit with 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from einfuse.einsum import EinfuseError

from .commands import MODULES, load
from .printing import forsake_output, standard_streams

_SHOWN = 200  # characters of a name

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
        with standard_streams():
            _run(arguments)
    except EinfuseError as error:  # of the streams themselves
        _say(error)
        forsake_output()
        sys.exit(2)
    except BrokenPipeError:
        forsake_output()
        sys.exit(1)
    sys.exit(0)


def _run(arguments: Sequence[str] | None) -> None:
    code: object = 0
    try:
        app(None if arguments is None else list(arguments))
    except SystemExit as end:
        code = end.code
    except EinfuseError as error:
        _say(error)
        code = 2
    except OSError as error:
        if error.filename is None:  # no file that a user named; a reader that left
            raise
        _say(f"{str(error.filename)[:_SHOWN]}: {error.strerror}")
        code = 2
    if code:
        with suppress(EinfuseError):  # it was said
            sys.stdout.flush()
        forsake_output()
        raise SystemExit(code)


def _say(error: object) -> None:
    if sys.stderr is not None:
        print(f"error: {error}", file=sys.stderr)
