"""Checks of what a user passes to attention: which argument, what was given, what is accepted."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from einfuse.einsum import closest
from einfuse.kernels.errors import KernelError

from .problem import SIMILARITIES, Options, Problem

_TENSOR = (Tensor, "a tensor")
_NUMBER = (int, float)
_KINDS: dict[str, tuple[Any, str]] = {
    "causal": (bool, "True or False"),
    "window": (int, "a whole number of keys"),
    "sinks": (int, "a whole number of keys"),
    "similarity": (str, "a name"),
    "scale": (_NUMBER, "a number"),
    "bias": (_NUMBER, "a number"),
    "softcap": (_NUMBER, "a number"),
    "cu_seqlens": _TENSOR,
    "cu_seqlens_k": _TENSOR,
    "block_mask": _TENSOR,
    "block_size": (int, "a whole number"),
    "full_heads": _TENSOR,
    "kernel": (str, "a kernel's name"),
    "lengths": _TENSOR,
    "page_table": _TENSOR,
    "initial_state": _TENSOR,
    "splits": (int, "a whole number of programs"),
    "validate": (bool, "True or False"),
}
_OPTIONAL = frozenset(
    ("window", "sinks", "scale", "cu_seqlens", "cu_seqlens_k", "block_mask", "full_heads",
     "kernel", "lengths", "page_table", "initial_state", "splits")
)  # fmt: skip

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_problem(problem: Problem) -> None:
    """Raise a KernelError unless the tensors and options of a call belong together."""
    _check_tensors(problem)
    _check_shapes(problem)
    _check_options(problem.options)
    if problem.is_packed:
        _check_starts(problem)
    if problem.block_mask is not None:
        _check_block_mask(problem, problem.block_mask)
    if problem.full_heads is not None:
        _check_full_heads(problem, problem.full_heads)


def check_tensors(**tensors: object) -> None:
    """Raise a KernelError unless every argument is a dense tensor with dimensions."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            found = "a scalar tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise KernelError(f"{name}: expected a torch tensor with dimensions, found {found}")
        if tensor.layout != torch.strided:
            raise KernelError(f"{name}: expected a dense tensor, found {tensor.layout}")


def check_operands(*operands: tuple[str, Tensor, str]) -> None:
    """Raise a KernelError unless tensors have ranks like ``[B, H, P, E]`` and belong together.

    None may be empty; type and device are those of the first.
    """
    first, q, _ = operands[0]
    for name, tensor, ranks in operands:
        if tensor.dim() != ranks.count(",") + 1 or tensor.numel() == 0:
            raise KernelError(
                f"{name}: expected {ranks} without an empty dimension, found {_shape(tensor)}"
            )
        if tensor.dtype not in DTYPES or tensor.dtype != q.dtype:
            raise KernelError(
                f"{name}: expected float16, bfloat16 or float32, as {first}, found {tensor.dtype}"
            )
        if tensor.device != q.device:
            raise KernelError(
                f"{name}: expected it on {q.device} as {first}, found {tensor.device}"
            )


def check_key_heads(heads: int, key_heads: int) -> None:
    """Raise a KernelError unless the heads of q share those of k evenly."""
    if heads % key_heads:
        raise KernelError(
            f"k: expected a number of heads that divides the {heads} of q, found {key_heads}"
        )


def check_scale(scale: float) -> None:
    """Raise a KernelError unless a scale is positive and finite."""
    if not (math.isfinite(scale) and scale > 0):
        raise KernelError(f"scale: expected a positive finite number, found {scale}")


def check_values(choices: Mapping[str, Any]) -> None:
    """Raise a KernelError unless every keyword of a call is known and has a value of its kind."""
    for name, value in choices.items():
        if name not in _KINDS:
            raise KernelError(f"{name}: there is no such keyword{closest(name, _KINDS)}")
        kind, accepted = _KINDS[name]
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not right and (value is not None or name not in _OPTIONAL):
            raise KernelError(f"{name}: expected {accepted}, found {_shown(value)}")
        if kind == _NUMBER and isinstance(value, int) and abs(value) > sys.float_info.max:
            raise KernelError(f"{name}: expected a finite number, found one beyond 1e308")


def _check_tensors(problem: Problem) -> None:
    q = problem.q
    for name, tensor in (("q", q), ("k", problem.k), ("v", problem.v)):
        if not isinstance(tensor, Tensor):
            raise KernelError(f"{name}: expected a torch tensor, found {type(tensor).__name__}")
        ranks = "[P, H, E] with cu_seqlens" if problem.is_packed else "[B, H, P, E]"
        dimensions = 3 if problem.is_packed else 4
        if tensor.dim() != dimensions:
            raise KernelError(
                f"{name}: expected {dimensions} dimensions {ranks}, found {_shape(tensor)}"
            )
        if tensor.dtype not in DTYPES:
            raise KernelError(
                f"{name}: expected float16, bfloat16 or float32, found {_name(tensor.dtype)}"
            )
        if tensor.dtype != q.dtype:
            raise KernelError(
                f"{name}: expected {_name(q.dtype)} as q, found {_name(tensor.dtype)}"
            )
        if tensor.device != q.device:
            raise KernelError(f"{name}: expected it on {q.device} as q, found {tensor.device}")
        if tensor.layout != torch.strided:
            raise KernelError(f"{name}: expected a dense tensor, found {tensor.layout}")
        if tensor.numel() == 0:
            raise KernelError(f"{name}: expected no empty dimension, found {_shape(tensor)}")


def _check_shapes(problem: Problem) -> None:
    q, k, v = problem.q, problem.k, problem.v
    if not problem.is_packed and not q.shape[0] == k.shape[0] == v.shape[0]:
        raise KernelError(
            f"k, v: expected the batch of q, {q.shape[0]}, found {k.shape[0]} and {v.shape[0]}"
        )
    if q.shape[-1] != k.shape[-1]:
        raise KernelError(f"k: expected the head size of q, {q.shape[-1]}, found {k.shape[-1]}")
    if k.shape[:-1] != v.shape[:-1]:
        raise KernelError(f"v: expected the heads and length of k, {_shape(k)}, found {_shape(v)}")
    check_key_heads(problem.heads, problem.key_heads)


def _check_options(options: Options) -> None:
    check_scale(options.scale)
    if options.similarity not in SIMILARITIES:
        raise KernelError(
            f"similarity: expected one of {', '.join(SIMILARITIES)}, found '{options.similarity}'"
        )
    if options.window is not None and options.window < 1:
        raise KernelError(f"window: expected at least 1 key, found {options.window}")
    if options.sinks < 0:
        raise KernelError(f"sinks: expected a number of keys, at least 0, found {options.sinks}")
    if options.sinks and options.window is None:
        raise KernelError(f"sinks: expected a window with them, found sinks={options.sinks} alone")
    if not (math.isfinite(options.softcap) and options.softcap >= 0):
        raise KernelError(f"softcap: expected a finite number, at least 0, found {options.softcap}")
    if not math.isfinite(options.bias):
        raise KernelError(f"bias: expected a finite number, found {options.bias}")
    if options.bias and options.similarity != "sigmoid":
        raise KernelError(
            f"bias: expected with similarity='sigmoid' only, found bias={options.bias} with "
            f"'{options.similarity}'"
        )


def _check_starts(problem: Problem) -> None:
    pairs = (
        ("cu_seqlens", problem.starts_q, problem.q.shape[0], "rows_q"),
        ("cu_seqlens_k", problem.starts_k, problem.k.shape[0], "rows_k"),
    )
    for name, starts, rows, values in pairs:
        if not isinstance(starts, Tensor):
            raise KernelError(f"{name}: expected a tensor, found {type(starts).__name__}")
        if starts.dim() != 1 or starts.numel() < 2 or starts.dtype != torch.int32:
            raise KernelError(
                f"{name}: expected an int32 vector of at least 2 row numbers, found "
                f"{_name(starts.dtype)} {_shape(starts)}"
            )
        if starts.device != problem.q.device:
            raise KernelError(
                f"{name}: expected it on {problem.q.device} as q, found {starts.device}"
            )
        bounds = getattr(problem, values)
        if bounds[0] != 0 or bounds[-1] != rows:
            raise KernelError(
                f"{name}: expected row numbers from 0 to {rows}, found {bounds[0]} to {bounds[-1]}"
            )
        if any(later <= first for first, later in itertools.pairwise(bounds)):
            raise KernelError(
                f"{name}: expected sequences of at least one row, found {list(bounds)}"
            )
    assert problem.starts_q is not None and problem.starts_k is not None
    if problem.starts_q.numel() != problem.starts_k.numel():
        raise KernelError(
            f"cu_seqlens_k: expected the {problem.starts_q.numel() - 1} sequences of cu_seqlens, "
            f"found {problem.starts_k.numel() - 1}"
        )


def _check_block_mask(problem: Problem, mask: Tensor) -> None:
    if problem.is_packed:
        raise KernelError("block_mask: expected without cu_seqlens, found both")
    if problem.block_size < 1:
        raise KernelError(f"block_size: expected at least 1, found {problem.block_size}")
    tiles = tuple(-(-length // problem.block_size) for length in (problem.queries, problem.keys))
    fits = (
        mask.dim() == 4
        and mask.shape[0] in (1, problem.batch)
        and mask.shape[1] in (1, problem.heads)
        and tuple(mask.shape[2:]) == tiles
    )
    if not fits or mask.dtype != torch.bool:
        raise KernelError(
            f"block_mask: expected bool [{problem.batch} or 1, {problem.heads} or 1, {tiles[0]}, "
            f"{tiles[1]}], found {_name(mask.dtype)} {_shape(mask)}"
        )
    if mask.device != problem.q.device:
        raise KernelError(
            f"block_mask: expected it on {problem.q.device} as q, found {mask.device}"
        )


def _check_full_heads(problem: Problem, full: Tensor) -> None:
    if problem.options.window is None:
        raise KernelError("full_heads: expected a window with them, found none")
    if tuple(full.shape) != (problem.heads,) or full.dtype != torch.bool:
        raise KernelError(
            f"full_heads: expected bool [{problem.heads}], one for each head of q, found "
            f"{_name(full.dtype)} {_shape(full)}"
        )
    if full.device != problem.q.device:
        raise KernelError(f"full_heads: expected it on {problem.q.device}, found {full.device}")


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
