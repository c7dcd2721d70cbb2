"""The launches of every shipped configuration, on tensors without data: what a compiler checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.operators import empty_gradients, empty_outputs
from einfuse.kernels.calls.problem import Options, Problem
from einfuse.kernels.calls.registry import Configuration, Kernel

_HEAD_SIZE = 128
_BATCH, _HEADS, _KEY_HEADS, _LENGTH, _BLOCK = 2, 8, 2, 4096, 128


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A launch of a kernel, and in words the call it stands for."""

    label: str
    launch: Launch


def list_examples(kernel: Kernel, architecture: str) -> Iterator[Example]:
    """Yield a launch for each shipped configuration of a kernel, data type, mask and bias.

    A kernel whose calls are not a :class:`Problem` makes them itself, in ``examples`` of its
    module; one without launches yields nothing.
    """
    if not kernel.configurations:
        return
    try:
        own = kernel.function("examples")
    except AttributeError:
        yield from _examples(kernel, architecture)
    else:
        yield from own(kernel, architecture)


def example_problem(
    kernel: Kernel, head_size: int, dtype: torch.dtype, causal: bool, bias: float = 0.0
) -> Problem:
    """Return a call with all that the kernel requires, large enough for every tile."""
    asked = kernel.requires
    key_heads = _KEY_HEADS if "gqa" in kernel.features else _HEADS
    length = dict((name, most) for name, _, most in kernel.limits).get("keys", _LENGTH)
    packed = "varlen" in asked
    tiles = -(-length // _BLOCK)
    starts = _empty(_BATCH + 1, dtype=torch.int32) if packed else None
    return Problem(
        q=_rows(_HEADS, length, head_size, dtype, packed),
        k=_rows(key_heads, length, head_size, dtype, packed),
        v=_rows(key_heads, length, head_size, dtype, packed),
        options=Options(
            scale=head_size**-0.5,
            causal=causal,
            window=1024 if "window" in asked else None,
            sinks=4 if "sinks" in asked else 0,
            similarity="sigmoid" if "sigmoid" in asked else "softmax",
            bias=bias,
        ),
        starts_q=starts,
        starts_k=starts,
        block_mask=_empty(1, 1, tiles, tiles, dtype=torch.bool) if "block_mask" in asked else None,
        block_size=_BLOCK if "block_mask" in asked else 0,
    )


def list_launches(kernel: Kernel, problem: Problem, architecture: str) -> Iterator[Launch]:
    """Yield the launches of a call, forward and, if the kernel has it, backward."""
    out, lse = empty_outputs(problem)
    yield from kernel.function("plan_forward")(kernel, problem, out, lse, architecture)
    if "backward" in kernel.features:
        grad_out, grad_lse = empty_outputs(problem)
        gradients = empty_gradients(problem)
        yield from kernel.function("plan_backward")(
            kernel, problem, out, lse, grad_out, grad_lse, *gradients, architecture
        )


def sizes_and_dtypes(kernel: Kernel, architecture: str) -> Iterator[tuple[int, torch.dtype]]:
    """Yield each head size and data type that a kernel's rows for an architecture are for."""
    found: dict[tuple[int, torch.dtype], None] = {}
    for row in kernel.configurations:
        if row.architecture == architecture:
            size = dict(row.when).get("head_size", _HEAD_SIZE)
            found |= {(size, dtype): None for dtype in _dtypes(kernel, row)}
    yield from found


def _examples(kernel: Kernel, architecture: str) -> Iterator[Example]:
    seen: set[tuple[object, ...]] = set()
    rows = [row for row in kernel.configurations if row.architecture == architecture]
    masks = (False, True) if "causal" in kernel.features else (False,)
    biases = (0.0, -math.log(_LENGTH)) if "bias" in kernel.features else (0.0,)
    for row, causal, bias in itertools.product(rows, masks, biases):
        for dtype in _dtypes(kernel, row):
            problem = example_problem(
                kernel, dict(row.when).get("head_size", _HEAD_SIZE), dtype, causal, bias
            )
            label = f"head_size={problem.head_size} {_name(dtype)}{' causal' * causal}"
            label += " bias" * bool(bias)
            for launch in list_launches(kernel, problem, architecture):
                key = (launch.function, label)
                if key not in seen:
                    seen.add(key)
                    yield Example(f"{launch.function.__name__} {label}", launch)


def _rows(heads: int, length: int, size: int, dtype: torch.dtype, packed: bool) -> Tensor:
    if packed:
        return _empty(_BATCH * length, heads, size, dtype=dtype)
    return _empty(_BATCH, heads, length, size, dtype=dtype)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _dtypes(kernel: Kernel, row: Configuration) -> Iterator[torch.dtype]:
    """The data types of the kernel that a row is for."""
    widest = dict(row.when).get("itemsize", 4)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if _name(dtype) in kernel.dtypes and dtype.itemsize <= widest:
            yield dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
