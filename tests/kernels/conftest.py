"""What tests of kernels in this folder and those below share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def attend_by_cascade() -> Callable[..., Any]:
    """Attention by running a cascade from its text: a second truth beside the formula."""
    pytest.importorskip("torch")
    from .by_cascade import attend_by_cascade

    return attend_by_cascade
