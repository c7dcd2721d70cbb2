"""Time limits nest, end where they say, and leave no trace."""

from __future__ import annotations

import time

import pytest

from einfuse.einsum.derivation.deadline import LateError, check_time, time_limit


def test_the_innermost_limit_counts() -> None:
    with time_limit(time.monotonic() - 1):
        with time_limit(None):
            check_time()
        with pytest.raises(LateError):
            check_time()
    check_time()


def test_a_limit_to_come_lets_work_go_on() -> None:
    with time_limit(time.monotonic() + 60):
        check_time()
