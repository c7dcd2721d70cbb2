"""Triton's interpreter, mended where it is silently wrong about bfloat16.

Triton 3.6 to 3.8 multiply the bits of bfloat16 as if they were whole numbers (a product is off by
1e8, without an error) and cut instead of rounding when float32 becomes bfloat16.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt


@cache
def mend_interpreter() -> None:
    """Make the interpreter's matrix products and roundings of bfloat16 exact, once a process."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widen(tensor: Any) -> Any:
        if tensor.dtype.scalar != tl.bfloat16:
            return tensor
        return TensorHandle((tensor.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any, **options: Any) -> Any:
        return dot(self, widen(a), widen(b), *rest, **options)

    def rounding_cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        return cast(self, source, target)

    InterpreterBuilder.create_dot = exact_dot
    InterpreterBuilder.cast_impl = rounding_cast


def round_to_bfloat16(data: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 of float32 numbers, ties to even; NaN stays NaN.

    >>> [hex(bits) for bits in round_to_bfloat16(np.array([1.0, 1.00390625, 1.01171875], "f4"))]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    bits = data.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
