"""Progress of work that takes long, on standard error where that is a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")
SILENT_SECONDS = 5.0


def track(items: Sequence[_T], what: str) -> Iterator[_T]:
    """Yield items; under a bar as soon as they have taken five seconds.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=len(items))
    began = time.monotonic()
    try:
        for number, item in enumerate(items):
            if not bar.live.is_started and time.monotonic() - began > SILENT_SECONDS:
                bar.start()
            bar.update(task, completed=number)
            yield item
    finally:
        bar.stop()
