"""The launches of chunked linear attention, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.register import with_contiguous_rows
from einfuse.kernels.calls.registry import Configuration, Kernel
from einfuse.kernels.calls.tiles import accumulator, padded, rows
from einfuse.kernels.compiled.examples import Example, sizes_and_dtypes

from .chunks import grad_state_kernel, gradient_kernel, output_kernel, state_kernel
from .recurrence import RecurrenceProblem


def plan_forward(
    kernel: Kernel, problem: RecurrenceProblem, out: Tensor, state: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launches that fill ``out [B, H, N, F]`` and the final ``state [B, H, E, F]``."""
    row = kernel.configuration("output", architecture, **problem.sizes)
    chunk = dict(row.tiles)["block_n"]
    carry, states = _plan_states(kernel, problem, state, architecture, chunk)
    operands = {"q": problem.q, "k": problem.k, "v": problem.v, "out": out}
    return (carry, _plan_rows(output_kernel, row, problem, operands, {"states_ptr": states}))


def plan_backward(
    kernel: Kernel,
    problem: RecurrenceProblem,
    grad_out: Tensor,
    grad_state: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_initial: Tensor,
    reads: Tensor,
    writes: Tensor,
    architecture: str,
) -> tuple[Launch, ...]:
    """Return the launches that fill the gradients; those of q and k per head, ``[B, H, N, E]``.

    ``reads`` and ``writes [B, H, N]`` take ``q . grad_q`` and ``k . grad_k``. The states are
    computed again rather than kept.
    """
    row = kernel.configuration("backward", architecture, **problem.sizes)
    chunk = dict(row.tiles)["block_n"]
    output_row = kernel.configuration("output", architecture, **problem.sizes)
    output_row = replace(output_row, tiles=(*output_row.tiles, ("block_n", chunk)))
    grad_out = with_contiguous_rows(grad_out)
    final = grad_initial.new_empty(grad_initial.shape)
    carry, states = _plan_states(kernel, problem, final, architecture, chunk)
    carry_back, grad_states = _plan_grad_states(
        kernel, problem, grad_out, grad_state, grad_initial, architecture, chunk
    )
    q, k, v = problem.q, problem.k, problem.v
    return (
        carry,
        carry_back,
        _plan_rows(
            gradient_kernel, row, problem,
            {"q": q, "k": k, "v": v, "grad_out": grad_out, "grad_q": grad_q},
            {"states_ptr": states, "reads_ptr": reads},
        ),
        _plan_rows(
            gradient_kernel, row, problem,
            {"q": k, "k": q, "v": grad_out, "grad_out": v, "grad_q": grad_k},
            {"states_ptr": grad_states, "reads_ptr": writes},
            reverse=True,
        ),
        _plan_rows(
            output_kernel, output_row, problem,
            {"q": k, "k": q, "v": grad_out, "out": grad_v},
            {"states_ptr": grad_states},
            reverse=True,
        ),
    )  # fmt: skip


def examples(kernel: Kernel, architecture: str) -> Iterator[Example]:
    """Yield the launches of every shipped configuration, for each data type."""
    batch, heads, tokens = 2, 16, 4096
    for size, dtype in sizes_and_dtypes(kernel, architecture):
        q = torch.empty(batch, heads, tokens, size, dtype=dtype, device="meta")
        decay = torch.empty(batch, heads, tokens, dtype=torch.float32, device="meta")
        state = decay.new_empty(batch, heads, size, size)
        problem = RecurrenceProblem(q, q, q, decay, 1.0, state)
        label = f"head_size={size} {str(dtype).removeprefix('torch.')}"
        launches = (
            *plan_forward(kernel, problem, q, state, architecture),
            *plan_backward(kernel, problem, q, state, q, q, q, state, decay, decay, architecture)[
                1:
            ],
        )
        for launch in launches:
            way = " reverse" if launch.arguments.get("reverse") else ""
            yield Example(f"{launch.function.__name__} {label}{way}", launch)


def _plan_rows(
    function: Any,
    row: Configuration,
    problem: RecurrenceProblem,
    operands: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    *,
    reverse: bool = False,
) -> Launch:
    """The launch that computes rows of tokens, chunk by chunk, all chunks at once.

    With ``reverse`` tokens meet those after them, and the states are gradients of those after
    each chunk.
    """
    tiles = dict(row.tiles)
    sequences = problem.v.shape[0] * problem.heads
    parts = triton.cdiv(problem.value_size, tiles["block_f"]) if function is output_kernel else 1
    return Launch(
        function=function,
        grid=(triton.cdiv(problem.tokens, tiles["block_n"]) * sequences, parts),
        arguments={
            **{f"{name}_at": rows(tensor) for name, tensor in operands.items()},
            **others,
            **_shared_arguments(problem),
            **tiles,
            "reverse": reverse,
        },
        options=row.options,
        tile={
            "P": tiles["block_n"],
            "M": tiles["block_n"],
            "E": padded(problem.key_size),
            "F": tiles["block_f"],
        },
    )


def _plan_states(
    kernel: Kernel, problem: RecurrenceProblem, final: Tensor, architecture: str, chunk: int
) -> tuple[Launch, Tensor]:
    """The launch that carries the state through the chunks, and where it leaves each, [F, E]."""
    row = kernel.configuration("state", architecture, **problem.sizes)
    tiles = dict(row.tiles)
    states = _new_states(problem, final, chunk)
    initial = problem.initial_state
    launch = Launch(
        function=state_kernel,
        grid=(
            triton.cdiv(problem.key_size, tiles["block_e"]),
            triton.cdiv(problem.value_size, tiles["block_f"]),
            final.shape[0] * problem.heads,
        ),
        arguments={
            "k_at": rows(problem.k),
            "v_at": rows(problem.v),
            "initial_ptr": None if initial is None else initial.contiguous(),
            "states_ptr": states,
            "final_ptr": final,
            **_shared_arguments(problem, with_scale=False, with_block_e=False),
            "block_n": chunk,
            **tiles,
        },
        options=row.options,
        tile={"M": chunk, "E": tiles["block_e"], "F": tiles["block_f"]},
    )
    return launch, states


def _plan_grad_states(
    kernel: Kernel,
    problem: RecurrenceProblem,
    grad_out: Tensor,
    grad_state: Tensor,
    grad_initial: Tensor,
    architecture: str,
    chunk: int,
) -> tuple[Launch, Tensor]:
    """The launch that carries the state's gradient back, and that of the state after each chunk."""
    row = kernel.configuration("backward_state", architecture, **problem.sizes)
    tiles = dict(row.tiles)
    grad_states = _new_states(problem, grad_initial, chunk)
    launch = Launch(
        function=grad_state_kernel,
        grid=(
            triton.cdiv(problem.key_size, tiles["block_e"]),
            triton.cdiv(problem.value_size, tiles["block_f"]),
            grad_initial.shape[0] * problem.heads,
        ),
        arguments={
            "q_at": rows(problem.q),
            "grad_out_at": rows(grad_out),
            "grad_state_ptr": grad_state.contiguous(),
            "grad_states_ptr": grad_states,
            "grad_initial_ptr": grad_initial,
            **_shared_arguments(problem, with_block_e=False),
            "block_n": chunk,
            **tiles,
        },
        options=row.options,
        tile={"M": chunk, "E": tiles["block_e"], "F": tiles["block_f"]},
    )
    return launch, grad_states


def _new_states(problem: RecurrenceProblem, like: Tensor, chunk: int) -> Tensor:
    chunks = triton.cdiv(problem.tokens, chunk)
    return like.new_empty((*like.shape[:2], chunks, problem.value_size, problem.key_size))


def _shared_arguments(
    problem: RecurrenceProblem, with_scale: bool = True, with_block_e: bool = True
) -> dict[str, Any]:
    arguments = {
        "log_decay_at": rows(problem.log_decay),
        "tokens": problem.tokens,
        "heads": problem.heads,
        "group": problem.heads // problem.q.shape[1],
        "head_e": problem.key_size,
        "head_f": problem.value_size,
        "accumulator": accumulator(problem.q.dtype),
    }
    if with_scale:
        arguments["scale"] = problem.scale
    if with_block_e:
        arguments["block_e"] = padded(problem.key_size)
    return arguments
