"""What every kernel's launch needs: tensors with their strides, sizes, types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl

from .launch import Launch
from .problem import Problem
from .registry import Kernel

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


class Rows(NamedTuple):
    """A tensor ``[batch, head, row, 1]`` as a kernel takes it: its pointer and its strides."""

    ptr: Any
    batch: Any
    head: Any
    row: Any


def rows(tensor: torch.Tensor) -> Rows:
    """Return a tensor ``[batch, head, row, ...]``, the last dimension contiguous, for a kernel.

    >>> rows(torch.empty(2, 3, 5, 7))[1:]
    (105, 35, 7)
    """
    return Rows(tensor, tensor.stride(0), tensor.stride(1), tensor.stride(2))


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


def attention_launch(
    function: Any,
    kernel: Kernel,
    launch: str,
    problem: Problem,
    architecture: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    over: Literal["queries", "keys", "both"] = "queries",
    needs_scratch: bool = False,
    **others: Any,
) -> Launch:
    """Return a launch with a program for each head's tile of queries, of keys, or of both.

    ``launch`` is a name of the kernel's configurations; ``tensors`` are those ``[batch, head, row,
    1]`` beside q, k and v. Of what all kernels have in common the function is given what it has
    parameters for; ``others`` are arguments that it alone has, or has otherwise.
    """
    row = kernel.configuration(launch, architecture, **problem.sizes)
    shared = {
        "q_at": rows(problem.q),
        "k_at": rows(problem.k),
        "v_at": rows(problem.v),
        **{f"{name}_at": rows(tensor) for name, tensor in tensors.items()},
        "queries": problem.queries,
        "keys": problem.keys,
        "heads": problem.heads,
        "causal": problem.options.causal,
        **head_arguments(problem),
    }
    known = {name: value for name, value in shared.items() if name in function.arg_names}
    arguments = {**known, **dict(row.tiles), **others}
    programs = problem.batch * (problem.key_heads if over == "keys" else problem.heads)
    if over != "keys":
        programs *= triton.cdiv(problem.queries, arguments["block_p"])
    if over != "queries":
        programs *= triton.cdiv(problem.keys, arguments["block_m"])
    return Launch(function, (programs,), arguments, row.options, needs_scratch=needs_scratch)
