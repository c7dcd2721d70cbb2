"""Triton functions of linear attention: a chunk at a time, states between chunks.

Inside a chunk tokens meet as in attention, with scores weighted by the decay between them; what
came before a chunk is one state. States are kept transposed, [F, E], so that the tensor cores
read both operands along E.
"""

from __future__ import annotations

import triton
import triton.language as tl

from einfuse.kernels.attention.online import find_head, load_tile, store_tile
from einfuse.kernels.calls.tiles import Rows


@triton.jit
def state_kernel(
    k_at: Rows, v_at: Rows, log_decay_at: Rows,
    initial_ptr: tl.tensor,  # [batch, heads, e, f] or None
    states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    final_ptr: tl.tensor,  # [batch, heads, e, f]
    tokens: tl.tensor, heads: tl.tensor, group: tl.tensor,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_n: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Carry a [block_f, block_e] part of one head's state through its chunks."""
    e = tl.program_id(0) * block_e + tl.arange(0, block_e)
    f = tl.program_id(1) * block_f + tl.arange(0, block_f)
    sequence = tl.program_id(2).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head)
    log_decay_ptr = find_head(log_decay_at, batch, head)
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
        total, last = _decays(log_decay_ptr, n, tokens, log_decay_at.row, accumulator)
        k = tl.load(
            k_ptr + n[:, None].to(tl.int64) * k_at.row + e[None, :],
            mask=(n < tokens)[:, None] & (e < head_e)[None, :],
            other=0.0,
        )  # [n, e]
        v = tl.load(
            v_ptr + n[:, None].to(tl.int64) * v_at.row + f[None, :],
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
    q_at: Rows, k_at: Rows, v_at: Rows, log_decay_at: Rows,
    states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    out_at: Rows,
    tokens: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_n: tl.constexpr, accumulator: tl.constexpr, reverse: tl.constexpr,
) -> None:  # fmt: skip
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
    log_decay_ptr = find_head(log_decay_at, batch, head)
    q_ptr = find_head(q_at, batch, head // group)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head)
    out_ptr = find_head(out_at, batch, head)
    states_ptr += (sequence * chunks + chunk) * head_f * head_e

    n = start + tl.arange(0, block_n)
    total, last = _decays(log_decay_ptr, n, tokens, log_decay_at.row, accumulator)
    q = load_tile(q_ptr, start, tokens, q_at.row, block_n, block_e, head_e, True)  # [n, e]
    k = load_tile(k_ptr, start, tokens, k_at.row, block_n, block_e, head_e, True)  # [n, e]
    v = _load_columns(v_ptr, n, tokens, v_at.row, first_f, head_f, block_f)  # [n, f]
    state = load_tile(states_ptr, first_f, head_f, head_e, block_f, block_e, head_e, True)
    reach = _reach(total, last, scale, reverse)
    before = _times_state(q, tl.trans(state), accumulator) * reach[:, None]
    scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")  # [n, n]
    weights = (scores * _between(n, total, reverse)).to(v.dtype)
    out = tl.dot(weights, v, input_precision="ieee", out_dtype=accumulator) * scale + before
    f = first_f + tl.arange(0, block_f)
    tl.store(
        out_ptr + n[:, None].to(tl.int64) * out_at.row + f[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=(n < tokens)[:, None] & (f < head_f)[None, :],
    )


@triton.jit
def grad_state_kernel(
    q_at: Rows, grad_out_at: Rows, log_decay_at: Rows,
    grad_state_ptr: tl.tensor,  # [batch, heads, e, f]
    grad_states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    grad_initial_ptr: tl.tensor,  # [batch, heads, e, f]
    tokens: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_n: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Carry a [block_f, block_e] part of the gradient of one head's state back through its chunks.

    What is stored for a chunk is the gradient of the state after it.
    """
    e = tl.program_id(0) * block_e + tl.arange(0, block_e)
    f = tl.program_id(1) * block_f + tl.arange(0, block_f)
    sequence = tl.program_id(2).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    q_ptr = find_head(q_at, batch, head // group)
    grad_out_ptr = find_head(grad_out_at, batch, head)
    log_decay_ptr = find_head(log_decay_at, batch, head)
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
        total, last = _decays(log_decay_ptr, n, tokens, log_decay_at.row, accumulator)
        q = tl.load(
            q_ptr + n[:, None].to(tl.int64) * q_at.row + e[None, :],
            mask=(n < tokens)[:, None] & (e < head_e)[None, :],
            other=0.0,
        )  # [n, e]
        grad_out = tl.load(
            grad_out_ptr + n[:, None].to(tl.int64) * grad_out_at.row + f[None, :],
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
    q_at: Rows, k_at: Rows, v_at: Rows, grad_out_at: Rows, log_decay_at: Rows,
    states_ptr: tl.tensor,  # [batch, heads, chunks, f, e]
    grad_q_at: Rows,
    reads_ptr: tl.tensor,  # [batch, heads, tokens]
    tokens: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_n: tl.constexpr, accumulator: tl.constexpr, reverse: tl.constexpr,
) -> None:  # fmt: skip
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
    log_decay_ptr = find_head(log_decay_at, batch, head)
    q_ptr = find_head(q_at, batch, head // group)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head)
    grad_out_ptr = find_head(grad_out_at, batch, head)
    grad_q_ptr = find_head(grad_q_at, batch, head)
    states_ptr += (sequence * chunks + chunk) * head_f * head_e

    n = start + tl.arange(0, block_n)
    total, last = _decays(log_decay_ptr, n, tokens, log_decay_at.row, accumulator)
    grad_weights = tl.zeros([block_n, block_n], accumulator)
    grad_q = tl.zeros([block_n, block_e], accumulator)
    for first_f in range(0, head_f, block_f):
        v = _load_columns(v_ptr, n, tokens, v_at.row, first_f, head_f, block_f)  # [n, f]
        grad_out = _load_columns(grad_out_ptr, n, tokens, grad_out_at.row, first_f, head_f, block_f)
        state = load_tile(states_ptr, first_f, head_f, head_e, block_f, block_e, head_e, True)
        grad_weights = tl.dot(
            grad_out, tl.trans(v), grad_weights, input_precision="ieee", out_dtype=accumulator
        )
        grad_q += _times_state(grad_out, state, accumulator)
    q = load_tile(q_ptr, start, tokens, q_at.row, block_n, block_e, head_e, True)  # [n, e]
    k = load_tile(k_ptr, start, tokens, k_at.row, block_n, block_e, head_e, True)  # [n, e]
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
    store_tile(grad_q_ptr, grad_q, start, tokens, grad_q_at.row, block_n, block_e, head_e)


@triton.jit
def _decays(
    log_decay_ptr: tl.tensor, n: tl.tensor, tokens: tl.tensor, decay_row: tl.tensor,
    accumulator: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
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
    pointer: tl.tensor, n: tl.tensor, tokens: tl.tensor, row: tl.tensor, first: tl.tensor,
    width: tl.constexpr, columns: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load ``columns`` columns from ``first`` on of a chunk's rows, zero where absent."""
    f = first + tl.arange(0, columns)
    return tl.load(
        pointer + n[:, None].to(tl.int64) * row + f[None, :],
        mask=(n < tokens)[:, None] & (f < width)[None, :],
        other=0.0,
    )
