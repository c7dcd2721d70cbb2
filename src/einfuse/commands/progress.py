"""Progress on standard error: a line that changes on a terminal, elsewhere one now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic

_QUIET = 5.0  # seconds between lines that do not go to a terminal, and before the first


def progress() -> Callable[[str], None]:
    """Return what shows a line of progress; the empty line clears it away."""
    shown = [monotonic()]
    terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(line: str) -> None:
        if terminal:
            print(f"\r\x1b[K{line[:90]}", end="", file=sys.stderr, flush=True)
        elif line and monotonic() - shown[0] > _QUIET:
            shown[0] = monotonic()
            print(line, file=sys.stderr, flush=True)

    return show
