"""Sizes and types that every kernel's launch needs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

SMALLEST_DOT = 16
"""The smallest side of a matrix product that Triton takes."""


def padded(size: int) -> int:
    """Return the power of two that a dimension of a tile is padded to.

    >>> padded(80), padded(8)
    (128, 16)
    """
    return max(SMALLEST_DOT, int(triton.next_power_of_2(size)))


def accumulator(dtype: torch.dtype) -> Any:
    """Return the type to accumulate in: float32, or float64 for float64 tensors."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def strides(**tensors: torch.Tensor) -> dict[str, int]:
    """Name the strides of ``[batch, head, row, 1]`` tensors as the kernels' parameters do.

    >>> strides(q=torch.empty(2, 3, 5, 7))
    {'q_batch': 105, 'q_head': 35, 'q_row': 7}
    """
    return {
        f"{name}_{part}": tensor.stride(dimension)
        for name, tensor in tensors.items()
        for dimension, part in enumerate(("batch", "head", "row"))
    }
