"""Progress on standard error: a line that changes on a terminal, elsewhere one now and then."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

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


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield items; how many are done is shown as soon as they have taken five seconds.

    >>> list(track([1, 2], "counting", 2))
    [1, 2]
    """
    show, began = progress(), monotonic()
    try:
        for number, item in enumerate(items):
            if monotonic() - began > _QUIET:
                show(f"{what}: {number} of {total}")
            yield item
    finally:
        show("")


class ProgressHandler(logging.Handler):
    """Shows what studies log as progress."""

    def __init__(self) -> None:
        super().__init__()
        self.show = progress()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        self.show(record.getMessage())
