"""Sizes and types that every kernel's launch needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from .problem import Problem

LOG2_E = math.log2(math.e)
"""What turns a natural exponent into one of two: ``exp(x) = exp2(x * LOG2_E)``."""

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


def head_arguments(problem: Problem) -> dict[str, Any]:
    """Return the arguments of a kernel that follow from its heads and their sizes."""
    return {
        "group": problem.heads // problem.key_heads,
        "head_e": problem.head_size,
        "head_f": problem.value_size,
        "block_e": padded(problem.head_size),
        "block_f": padded(problem.value_size),
        "accumulator": accumulator(problem.q.dtype),
    }


def score_arguments(problem: Problem) -> dict[str, Any]:
    """Return the arguments of a kernel that turn products into scores in powers of two.

    A soft cap bounds the scaled scores before: ``cap * tanh(cap_slope * product)``.
    """
    scale, softcap = problem.options.scale, problem.options.softcap
    return {
        "scale_log2": LOG2_E if softcap else scale * LOG2_E,
        "cap": softcap,
        "cap_slope": scale / softcap if softcap else 0.0,
        "capped": softcap > 0.0,
    }


def loop_tile(problem: Problem, tiles: Mapping[str, int]) -> dict[str, int]:
    """Return what one turn of the main loop covers, by rank."""
    return {
        "P": tiles["block_p"],
        "M": tiles["block_m"],
        "E": padded(problem.head_size),
        "F": padded(problem.value_size),
    }
