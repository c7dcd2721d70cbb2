"""Tests of the kernels in Triton's interpreter, a process of their own: TRITON_INTERPRET=1.

Triton decides at a kernel's definition whether it is interpreted or compiled, so this folder is
skipped unless the variable is set: ``TRITON_INTERPRET=1 pytest tests/kernels/interpret``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests, with the reason, where the interpreter is off."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    reason = "needs a process of its own: TRITON_INTERPRET=1 pytest tests/kernels/interpret"
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def empty_is_nan() -> Iterator[None]:
    """Fill ``torch.empty`` and its kin with NaN, so that an unwritten output shows."""
    torch = pytest.importorskip("torch")

    def poisoned(original):  # type: ignore[no-untyped-def]
        def allocate(*arguments, **options):  # type: ignore[no-untyped-def]
            tensor = original(*arguments, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate

    patch = pytest.MonkeyPatch()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        patch.setattr(owner, name, poisoned(getattr(owner, name)))
    yield
    patch.undo()
