"""Progress of work that takes long: a line on standard error that changes where it is a terminal.

Nothing is shown of work that ends soon. Where standard error is no terminal there is a line now and
then, for a log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")
SILENT_SECONDS = 5.0
_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 30.0  # from line to line
_WIDTH = 90


@contextmanager
def shown(what: str, silent_seconds: float = SILENT_SECONDS) -> Iterator[Callable[[str], None]]:
    """Show what is done and for how long, once that is longer than ``silent_seconds``.

    Yields:
        a function that says what is done now.

    >>> with shown("counting") as say:
    ...     say("counting to ten")
    """
    current, done, began = [what], threading.Event(), time.monotonic()

    def show() -> None:
        terminal, pause = sys.stderr.isatty(), silent_seconds
        while not done.wait(pause):
            line = f"{current[0][:_WIDTH]} ({time.monotonic() - began:.0f} s)"
            end = "" if terminal else "\n"
            print(f"\r\x1b[K{line}" if terminal else line, end=end, file=sys.stderr, flush=True)
            pause = _TERMINAL_SECONDS if terminal else _LOG_SECONDS
        if terminal and time.monotonic() - began > silent_seconds:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    if sys.stderr is None:
        yield lambda now: None
        return
    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        yield lambda now: current.__setitem__(0, now)
    finally:
        done.set()
        shower.join()


def track(items: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """Yield items, and show how many of them are done.

    Args:
        items: what takes long to work on, or to come.
        what: is being done.
        total: how many items there are, if they cannot tell.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    of = len(items) if total is None and isinstance(items, Sized) else total
    with shown(f"{what}: 0 of {of}") as say:
        for number, item in enumerate(items):
            yield item
            say(f"{what}: {number + 1} of {of}")


def progress() -> Callable[[str], None]:
    """Return what shows a line of progress; the empty line clears it away."""
    shown = [time.monotonic()]
    terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(line: str) -> None:
        if terminal:
            print(f"\r\x1b[K{line[:90]}", end="", file=sys.stderr, flush=True)
        elif line and time.monotonic() - shown[0] > SILENT_SECONDS:
            shown[0] = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    return show
