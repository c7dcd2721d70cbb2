"""Linear attention with decay in chunks: Lightning attention and Mamba-2's SSD; both directions.

Inside a chunk tokens meet as in attention, with scores weighted by the decay between them; what
came before a chunk is one state [E, F]. Time and memory are linear in the number of tokens. The
states are kept transposed, [F, E], so that the tensor cores read both operands along E.
Sources: Qin et al., Lightning Attention-2 (2024); Dao and Gu, Mamba-2 (ICML 2024), section 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from einfuse.kernels.attention.online import load_tile, store_tile
from einfuse.kernels.calls.architecture import find_architecture
from einfuse.kernels.calls.arguments import check_tensors, check_values
from einfuse.kernels.calls.configuration import Configuration
from einfuse.kernels.calls.fallback import find_or_fall_back
from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import accumulator, padded, strides
from einfuse.kernels.compiled.examples import Example, sizes_and_dtypes

from .recurrence import RecurrenceProblem, attend_linearly, check_recurrence

_NAME = "linear-decay"


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return causal linear attention ``[B, H, N, F]`` and its final state ``[B, H, E, F]``.

    ``q`` and ``k`` are ``[B, G, N, E]``, ``v [B, H, N, F]`` with H a multiple of G. ``log_decay``
    is ``[H]``, one decay per head (Lightning attention), or ``[B, H, N]``, one per token
    (Mamba-2), finite and in float32. The state (float32) can be handed to the next call as
    ``initial_state``. Every tensor argument has a gradient.

    Raises KernelError (a ValueError) on bad arguments.
    """
    check_tensors(q=q, k=k, v=v, log_decay=log_decay)
    check_values({"scale": scale, "initial_state": initial_state})
    if log_decay.dim() == 1 and v.dim() == 4 and log_decay.shape[0] == v.shape[1]:
        log_decay = log_decay[None, :, None].expand(v.shape[:3])
    out, state = _attend(q, k, v, log_decay, initial_state, scale)
    return out, state


@torch.library.custom_op("einfuse::linear_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    problem = _problem(q, k, v, log_decay, initial_state, scale)
    check_recurrence(problem)
    out, state = _empty_outputs(v, log_decay, q)
    architecture = find_architecture(q.device)
    kernel = find_or_fall_back(_NAME, problem.traits(architecture))
    if kernel is None:
        plain_out, plain_state = attend_linearly(problem, state.dtype)
        return out.copy_(plain_out), state.copy_(plain_state)
    for launch in plan_forward(kernel, problem, out, state, architecture):
        launch.run()
    return out, state


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(v, log_decay, q)


@torch.library.custom_op("einfuse::linear_attention_backward", mutates_args=())
def _differentiate(
    grad_out: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(q, k, v, log_decay, initial_state, scale)
    architecture = find_architecture(q.device)
    kernel = find_or_fall_back(_NAME, problem.traits(architecture))
    if kernel is None:
        return _differentiate_plainly(problem, grad_out, grad_state, state)
    group = problem.heads // q.shape[1]
    per_head = (v.shape[0], problem.heads, *q.shape[2:])
    grad_q, grad_k, grad_v = q.new_empty(per_head), k.new_empty(per_head), v.new_empty(v.shape)
    reads, writes = (log_decay.new_empty(log_decay.shape) for _ in range(2))
    grad_initial = state.new_empty(state.shape)
    launches = plan_backward(
        kernel, problem, grad_out, grad_state, grad_q, grad_k, grad_v, grad_initial,
        reads, writes, architecture,
    )  # fmt: skip
    for launch in launches:
        launch.run()
    # A token's decay reaches everything after it, the final state included.
    grad_total = reads - writes
    grad_total[..., -1] += (grad_state * state).sum((-1, -2))
    grad_decay = grad_total.flip(-1).cumsum(-1).flip(-1)
    if group > 1:
        groups = (v.shape[0], q.shape[1], group, *q.shape[2:])
        grad_q, grad_k = (grad.view(groups).sum(2) for grad in (grad_q, grad_k))
    return grad_q, grad_k, grad_v, grad_decay, grad_initial


@_differentiate.register_fake
def _(
    grad_out: Tensor, grad_state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor,
    initial_state: Tensor | None, state: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shapes = ((q, q.shape), (k, k.shape), (v, v.shape), (log_decay, log_decay.shape))
    grads = tuple(tensor.new_empty(shape) for tensor, shape in (*shapes, (state, state.shape)))
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def _differentiate_plainly(
    problem: RecurrenceProblem, grad_out: Tensor, grad_state: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    initial = torch.zeros_like(state) if problem.initial_state is None else problem.initial_state
    tensors = (problem.q, problem.k, problem.v, problem.log_decay, initial)

    def compute(*wide: Tensor) -> tuple[Tensor, Tensor]:
        again = RecurrenceProblem(wide[0], wide[1], wide[2], wide[3], problem.scale, wide[4])
        return attend_linearly(again, state.dtype)

    # torch.func works inside an operator, where autograd itself records nothing.
    pull_back = torch.func.vjp(compute, *(t.detach().to(state.dtype) for t in tensors))[1]
    found = pull_back((grad_out.to(state.dtype), grad_state))
    grads = [grad.to(t.dtype).contiguous() for grad, t in zip(found, tensors, strict=True)]
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.scale = scale


def _backward(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    *grads, grad_initial = _differentiate(grad_out, grad_state, *ctx.saved_tensors, ctx.scale)
    has_initial = ctx.saved_tensors[4] is not None
    return (*grads, grad_initial if has_initial else None, None)


_attend.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.einfuse.linear_attention)
def _count_forward(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Two operations per multiply-add of the recurrence: a token writes the state and reads it."""
    return 2 * 2 * math.prod(v) * q[3]


@register_flop_formula(torch.ops.einfuse.linear_attention_backward)
def _count_backward(
    grad_out: Sequence[int], grad_state: Sequence[int], q: Sequence[int], *_: Any, **__: Any
) -> int:
    # The state again and its gradient, and what either gives to the four gradients of a token.
    return 2 * 5 * math.prod(grad_out) * q[3]


def _problem(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None, scale: float
) -> RecurrenceProblem:
    q, k, v = (t if t.dim() == 0 or t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    return RecurrenceProblem(q, k, v, log_decay, scale, initial_state)


def _empty_outputs(v: Tensor, log_decay: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    state = (*v.shape[:2], q.shape[-1], v.shape[-1])
    return v.new_empty(v.shape), log_decay.new_empty(state)


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
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
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
            **{f"{name}_ptr": tensor for name, tensor in operands.items()},
            **others,
            **strides(**operands),
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
            "k_ptr": problem.k,
            "v_ptr": problem.v,
            "initial_ptr": None if initial is None else initial.contiguous(),
            "states_ptr": states,
            "final_ptr": final,
            **strides(k=problem.k, v=problem.v),
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
            "q_ptr": problem.q,
            "grad_out_ptr": grad_out,
            "grad_state_ptr": grad_state.contiguous(),
            "grad_states_ptr": grad_states,
            "grad_initial_ptr": grad_initial,
            **strides(q=problem.q, grad_out=grad_out),
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
    decay = problem.log_decay
    arguments = {
        "log_decay_ptr": decay,
        "decay_batch": decay.stride(0),
        "decay_head": decay.stride(1),
        "decay_row": decay.stride(2),
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


@triton.jit
def state_kernel(
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    log_decay_ptr: tl.tensor,
    initial_ptr: tl.tensor,  # [batch, heads, e, f] or None
    states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    final_ptr: tl.tensor,  # [batch, heads, e, f]
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    decay_batch: tl.tensor,
    decay_head: tl.tensor,
    decay_row: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_n: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Carry a [block_f, block_e] part of one head's state through its chunks."""
    e = tl.program_id(0) * block_e + tl.arange(0, block_e)
    f = tl.program_id(1) * block_f + tl.arange(0, block_f)
    sequence = tl.program_id(2).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head * v_head
    log_decay_ptr += batch * decay_batch + head * decay_head
    chunks = tl.cdiv(tokens, block_n)
    states_ptr += sequence * chunks * head_f * head_e
    inside = (f < head_f)[:, None] & (e < head_e)[None, :]
    outer = sequence * head_e * head_f + e[None, :] * head_f + f[:, None]
    state = tl.zeros([block_f, block_e], accumulator)
    if initial_ptr is not None:
        state += tl.load(initial_ptr + outer, mask=inside, other=0.0)
    for start in range(0, tokens, block_n):
        tl.store(states_ptr + f[:, None] * head_e + e[None, :], state, mask=inside)
        states_ptr += head_f * head_e
        n = start + tl.arange(0, block_n)
        total, last = _decays(log_decay_ptr, n, tokens, decay_row, accumulator)
        k = tl.load(
            k_ptr + n[:, None].to(tl.int64) * k_row + e[None, :],
            mask=(n < tokens)[:, None] & (e < head_e)[None, :],
            other=0.0,
        )  # [n, e]
        v = tl.load(
            v_ptr + n[:, None].to(tl.int64) * v_row + f[None, :],
            mask=(n < tokens)[:, None] & (f < head_f)[None, :],
            other=0.0,
        )  # [n, f]
        left = (k.to(accumulator) * tl.math.exp2(last - total)[:, None]).to(k.dtype)
        state = tl.dot(
            tl.trans(v),
            left,
            state * tl.math.exp2(last),
            input_precision="ieee",
            out_dtype=accumulator,
        )
    tl.store(final_ptr + outer, state, mask=inside)


@triton.jit
def output_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    log_decay_ptr: tl.tensor,
    states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    out_ptr: tl.tensor,
    q_batch: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    out_batch: tl.tensor,
    out_head: tl.tensor,
    out_row: tl.tensor,
    decay_batch: tl.tensor,
    decay_head: tl.tensor,
    decay_row: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
    scale: tl.tensor,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_n: tl.constexpr,
    accumulator: tl.constexpr,
    reverse: tl.constexpr,
) -> None:
    """The outputs of one chunk of one head, ``block_f`` columns of them.

    With ``reverse`` it is the gradient of v that k (given as q) reads from q (given as k), the
    gradients of the outputs (as v) and those of the states.
    """
    chunks = tl.cdiv(tokens, block_n)
    chunk = tl.program_id(0) % chunks
    sequence = (tl.program_id(0) // chunks).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    first_f = tl.program_id(1) * block_f
    start = chunk * block_n
    log_decay_ptr += batch * decay_batch + head * decay_head
    q_ptr += batch * q_batch + head // group * q_head
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head * v_head
    out_ptr += batch * out_batch + head * out_head
    states_ptr += (sequence * chunks + chunk) * head_f * head_e

    n = start + tl.arange(0, block_n)
    total, last = _decays(log_decay_ptr, n, tokens, decay_row, accumulator)
    q = load_tile(q_ptr, start, tokens, q_row, block_n, block_e, head_e, True)  # [n, e]
    k = load_tile(k_ptr, start, tokens, k_row, block_n, block_e, head_e, True)  # [n, e]
    v = _load_columns(v_ptr, n, tokens, v_row, first_f, head_f, block_f)  # [n, f]
    state = load_tile(states_ptr, first_f, head_f, head_e, block_f, block_e, head_e, True)
    reach = _reach(total, last, scale, reverse)
    before = _times_state(q, tl.trans(state), accumulator) * reach[:, None]
    scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")  # [n, n]
    weights = (scores * _between(n, total, reverse)).to(v.dtype)
    out = tl.dot(weights, v, input_precision="ieee", out_dtype=accumulator) * scale + before
    f = first_f + tl.arange(0, block_f)
    tl.store(
        out_ptr + n[:, None].to(tl.int64) * out_row + f[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=(n < tokens)[:, None] & (f < head_f)[None, :],
    )


@triton.jit
def grad_state_kernel(
    q_ptr: tl.tensor,
    grad_out_ptr: tl.tensor,
    log_decay_ptr: tl.tensor,
    grad_state_ptr: tl.tensor,  # [batch, heads, e, f]
    grad_states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    grad_initial_ptr: tl.tensor,  # [batch, heads, e, f]
    q_batch: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    grad_out_batch: tl.tensor,
    grad_out_head: tl.tensor,
    grad_out_row: tl.tensor,
    decay_batch: tl.tensor,
    decay_head: tl.tensor,
    decay_row: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
    scale: tl.tensor,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_n: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Carry a [block_f, block_e] part of the gradient of one head's state back through its chunks.

    What is stored for a chunk is the gradient of the state after it.
    """
    e = tl.program_id(0) * block_e + tl.arange(0, block_e)
    f = tl.program_id(1) * block_f + tl.arange(0, block_f)
    sequence = tl.program_id(2).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    q_ptr += batch * q_batch + head // group * q_head
    grad_out_ptr += batch * grad_out_batch + head * grad_out_head
    log_decay_ptr += batch * decay_batch + head * decay_head
    chunks = tl.cdiv(tokens, block_n)
    grad_states_ptr += sequence * chunks * head_f * head_e
    inside = (f < head_f)[:, None] & (e < head_e)[None, :]
    outer = sequence * head_e * head_f + e[None, :] * head_f + f[:, None]
    grad_state = tl.load(grad_state_ptr + outer, mask=inside, other=0.0).to(accumulator)
    for step in range(0, chunks):
        chunk = chunks - 1 - step
        tl.store(
            grad_states_ptr + tl.cast(chunk, tl.int64) * head_f * head_e
            + f[:, None] * head_e + e[None, :],
            grad_state,
            mask=inside,
        )  # fmt: skip
        n = chunk * block_n + tl.arange(0, block_n)
        total, last = _decays(log_decay_ptr, n, tokens, decay_row, accumulator)
        q = tl.load(
            q_ptr + n[:, None].to(tl.int64) * q_row + e[None, :],
            mask=(n < tokens)[:, None] & (e < head_e)[None, :],
            other=0.0,
        )  # [n, e]
        grad_out = tl.load(
            grad_out_ptr + n[:, None].to(tl.int64) * grad_out_row + f[None, :],
            mask=(n < tokens)[:, None] & (f < head_f)[None, :],
            other=0.0,
        )  # [n, f]
        reached = (q.to(accumulator) * (tl.math.exp2(total) * scale)[:, None]).to(q.dtype)
        grad_state = tl.dot(
            tl.trans(grad_out),
            reached,
            grad_state * tl.math.exp2(last),
            input_precision="ieee",
            out_dtype=accumulator,
        )
    tl.store(grad_initial_ptr + outer, grad_state, mask=inside)


@triton.jit
def gradient_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    grad_out_ptr: tl.tensor,
    log_decay_ptr: tl.tensor,
    states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    grad_q_ptr: tl.tensor,
    reads_ptr: tl.tensor,  # [batch, heads, tokens]
    q_batch: tl.tensor,
    q_head: tl.tensor,
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_row: tl.tensor,
    grad_out_batch: tl.tensor,
    grad_out_head: tl.tensor,
    grad_out_row: tl.tensor,
    grad_q_batch: tl.tensor,
    grad_q_head: tl.tensor,
    grad_q_row: tl.tensor,
    decay_batch: tl.tensor,
    decay_head: tl.tensor,
    decay_row: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
    scale: tl.tensor,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_n: tl.constexpr,
    accumulator: tl.constexpr,
    reverse: tl.constexpr,
) -> None:
    """The gradient of q in one chunk of one head, and what it says of the decay a token reads by.

    The cumulative decay of a token multiplies all that the token reads, so that its gradient has
    ``q . grad_q`` in it. With ``reverse`` it is the gradient of k: q and k, v and grad_out are
    exchanged, the states are gradients of those after each chunk; the cumulative decay of a token
    divides all that the token writes.
    """
    chunks = tl.cdiv(tokens, block_n)
    chunk = tl.program_id(0) % chunks
    sequence = (tl.program_id(0) // chunks).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    start = chunk * block_n
    log_decay_ptr += batch * decay_batch + head * decay_head
    q_ptr += batch * q_batch + head // group * q_head
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head * v_head
    grad_out_ptr += batch * grad_out_batch + head * grad_out_head
    grad_q_ptr += batch * grad_q_batch + head * grad_q_head
    states_ptr += (sequence * chunks + chunk) * head_f * head_e

    n = start + tl.arange(0, block_n)
    total, last = _decays(log_decay_ptr, n, tokens, decay_row, accumulator)
    grad_weights = tl.zeros([block_n, block_n], accumulator)
    grad_q = tl.zeros([block_n, block_e], accumulator)
    for first_f in range(0, head_f, block_f):
        v = _load_columns(v_ptr, n, tokens, v_row, first_f, head_f, block_f)  # [n, f]
        grad_out = _load_columns(grad_out_ptr, n, tokens, grad_out_row, first_f, head_f, block_f)
        state = load_tile(states_ptr, first_f, head_f, head_e, block_f, block_e, head_e, True)
        grad_weights = tl.dot(
            grad_out, tl.trans(v), grad_weights, input_precision="ieee", out_dtype=accumulator
        )
        grad_q += _times_state(grad_out, state, accumulator)
    q = load_tile(q_ptr, start, tokens, q_row, block_n, block_e, head_e, True)  # [n, e]
    k = load_tile(k_ptr, start, tokens, k_row, block_n, block_e, head_e, True)  # [n, e]
    grad_scores = (grad_weights * _between(n, total, reverse) * scale).to(k.dtype)
    grad_q = tl.dot(
        grad_scores,
        k,
        grad_q * _reach(total, last, scale, reverse)[:, None],
        input_precision="ieee",
        out_dtype=accumulator,
    )
    reads = tl.sum(q.to(accumulator) * grad_q, 1)
    tl.store(reads_ptr + sequence * tokens + n, reads, mask=n < tokens)
    store_tile(grad_q_ptr, grad_q, start, tokens, grad_q_row, block_n, block_e, head_e)


@triton.jit
def _decays(
    log_decay_ptr: tl.tensor,
    n: tl.tensor,
    tokens: tl.tensor,
    decay_row: tl.tensor,
    accumulator: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the cumulative log-decay of a chunk's tokens and that of the chunk, in base 2."""
    decay = tl.load(log_decay_ptr + n.to(tl.int64) * decay_row, mask=n < tokens, other=0.0)
    decay = decay.to(accumulator) * 1.4426950408889634
    return tl.cumsum(decay, 0), tl.sum(decay, 0)


@triton.jit
def _between(n: tl.tensor, total: tl.tensor, reverse: tl.constexpr) -> tl.tensor:
    """Return the decay from token j to token i as [i, j], 0 where j comes after i.

    With ``reverse`` it is the decay from i to j, 0 where j comes before i.
    """
    if reverse:
        seen = n[:, None] <= n[None, :]
        since = total[None, :] - total[:, None]
    else:
        seen = n[:, None] >= n[None, :]
        since = total[:, None] - total[None, :]
    return tl.math.exp2(tl.where(seen, since, float("-inf")))


@triton.jit
def _reach(total: tl.tensor, last: tl.tensor, scale: tl.tensor, reverse: tl.constexpr) -> tl.tensor:
    """Return what a token makes of the state before its chunk (after it, if ``reverse``).

    The scale is in a gradient of the state already.
    """
    return tl.math.exp2(last - total) if reverse else tl.math.exp2(total) * scale


@triton.jit
def _times_state(rows: tl.tensor, state: tl.tensor, accumulator: tl.constexpr) -> tl.tensor:
    """Return the product of a tile with a state rounded to the tile's type.

    A state sums over all tokens so far: where float16 could not hold it, it is scaled to.
    """
    if rows.dtype == tl.float16:
        peak = tl.max(tl.max(tl.abs(state), 1), 0)
        factor = tl.where(peak > 0.0, peak / 16384.0, 1.0)
        rounded = (state * (1.0 / factor)).to(rows.dtype)
        product = tl.dot(rows, rounded, out_dtype=accumulator) * factor
    else:
        product = tl.dot(rows, state.to(rows.dtype), out_dtype=accumulator, input_precision="ieee")
    return product


@triton.jit
def _load_columns(
    pointer: tl.tensor,
    n: tl.tensor,
    tokens: tl.tensor,
    row: tl.tensor,
    first: tl.tensor,
    width: tl.constexpr,
    columns: tl.constexpr,
) -> tl.tensor:
    """Load ``columns`` columns from ``first`` on of a chunk's rows, zero where absent."""
    f = first + tl.arange(0, columns)
    return tl.load(
        pointer + n[:, None].to(tl.int64) * row + f[None, :],
        mask=(n < tokens)[:, None] & (f < width)[None, :],
        other=0.0,
    )
