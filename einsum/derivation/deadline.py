"""A time limit that long searches look at: work within it stops at the next check."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END: ContextVar[float | None] = ContextVar("end", default=None)


class LateError(Exception):
    """The time is over; what was found before it stands."""


@contextmanager
def time_limit(end: float | None) -> Iterator[None]:
    """Let `check_time` raise from ``end`` on, in seconds of ``time.monotonic``; None: never.

    >>> with time_limit(None):
    ...     check_time()
    """
    token = _END.set(end)
    try:
        yield
    finally:
        _END.reset(token)


def check_time() -> None:
    """Raise `LateError` if the time of the innermost `time_limit` is over."""
    end = _END.get()
    if end is not None and time.monotonic() >= end:
        raise LateError
