"""Tests of the kernels in Triton's interpreter, a process of their own: TRITON_INTERPRET=1.

Triton decides at a kernel's definition whether it is interpreted or compiled, so this folder is
skipped unless the variable is set: ``TRITON_INTERPRET=1 pytest tests/kernels/interpret``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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


def _widen(tensor: object) -> object:
    """bfloat16 as Triton's interpreter holds it (uint16 bits) as exact float32."""
    from triton.runtime.interpreter import TensorHandle, tl

    if tensor.dtype.scalar != tl.bfloat16:  # type: ignore[attr-defined]
        return tensor
    bits = tensor.data.astype(np.uint32) << 16  # type: ignore[attr-defined]
    return TensorHandle(bits.view(np.float32), tl.float32)


def _narrow(data: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, rounding to nearest, ties to even; NaN stays NaN."""
    bits = data.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


@pytest.fixture(scope="session", autouse=True)
def correct_bfloat16() -> Iterator[None]:
    """Mend the interpreter: it multiplies the bits of bfloat16 and truncates when it rounds."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def exact_dot(self, a, b, d, input_precision, max_num_imprecise_acc):  # type: ignore[no-untyped-def]
        return dot(self, _widen(a), _widen(b), d, input_precision, max_num_imprecise_acc)

    def rounding_cast(self, source, target):  # type: ignore[no-untyped-def]
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return TensorHandle(_narrow(source.data), tl.bfloat16)
        return cast(self, source, target)

    patch = pytest.MonkeyPatch()
    patch.setattr(InterpreterBuilder, "create_dot", exact_dot)
    patch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
    yield
    patch.undo()


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
