"""Gradients of softmax attention from its log-sum-exp (FlashAttention-2), without atomics.

With the weights ``A[m, p] = exp(S[m, p] - lse[p])`` computed again, the gradient of a score is
``A * (dO . V - delta)`` where ``delta[p] = dO[p] . O[p]``, less the gradient of ``lse[p]`` if that
was used. One launch for delta, one over tiles of keys for dK and dV, one over queries for dQ.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import Rows, attention_launch, score_arguments

from .online import cap_scores, find_head, find_keys, find_tile, load_tile, store_tile


def plan_backward(
    kernel: Kernel,
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    architecture: str,
) -> tuple[Launch, ...]:
    """Return the launches that fill the gradients of q, k and v."""
    delta = lse.new_empty(lse.shape)
    find_delta = attention_launch(
        delta_kernel, kernel, "backward_delta", problem, architecture,
        {"out": out, "grad_out": grad_out}, grad_lse_ptr=grad_lse, delta_ptr=delta,
    )  # fmt: skip
    others = {
        "lse_ptr": lse,
        "delta_ptr": delta,
        "scale": problem.options.scale,
        **score_arguments(problem),
    }
    find_grad_kv = attention_launch(
        backward_kv_kernel, kernel, "backward_kv", problem, architecture,
        {"grad_out": grad_out, "grad_k": grad_k, "grad_v": grad_v}, over="keys", **others,
    )  # fmt: skip
    find_grad_q = attention_launch(
        backward_q_kernel, kernel, "backward_q", problem, architecture,
        {"grad_out": grad_out, "grad_q": grad_q}, **others,
    )  # fmt: skip
    return find_delta, find_grad_kv, find_grad_q


@triton.jit
def delta_kernel(
    out_at: Rows, grad_out_at: Rows, grad_lse_ptr: tl.tensor, delta_ptr: tl.tensor,
    queries: tl.tensor, heads: tl.tensor,
    head_f: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store ``dO . O`` less the gradient of the log-sum-exp for ``block_p`` queries of a head."""
    first, batch, head = find_tile(queries, heads, False, block_p)
    out_ptr = find_head(out_at, batch, head)
    grad_out_ptr = find_head(grad_out_at, batch, head)
    out = load_tile(out_ptr, first, queries, out_at.row, block_p, block_f, head_f, True)
    grad = load_tile(grad_out_ptr, first, queries, grad_out_at.row, block_p, block_f, head_f, True)
    rows = (batch * heads + head) * queries + first + tl.arange(0, block_p)
    present = first + tl.arange(0, block_p) < queries
    grad_lse = tl.load(grad_lse_ptr + rows, mask=present, other=0.0)
    delta = tl.sum(out.to(accumulator) * grad.to(accumulator), 1) - grad_lse
    tl.store(delta_ptr + rows, delta, mask=present)


@triton.jit
def backward_kv_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, grad_out_at: Rows, lse_ptr: tl.tensor, delta_ptr: tl.tensor,
    grad_k_at: Rows, grad_v_at: Rows,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    scale_log2: tl.tensor, cap: tl.tensor, cap_slope: tl.tensor,
    causal: tl.constexpr, capped: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store dK and dV of ``block_m`` keys of one key head, from the queries of all its heads."""
    tiles = tl.cdiv(keys, block_m)
    first = tl.program_id(0) % tiles * block_m
    key_heads = heads // group
    batch = (tl.program_id(0) // tiles // key_heads).to(tl.int64)
    key_head = (tl.program_id(0) // tiles % key_heads).to(tl.int64)
    k_ptr = find_head(k_at, batch, key_head)
    v_ptr = find_head(v_at, batch, key_head)
    k = load_tile(k_ptr, first, keys, k_at.row, block_m, block_e, head_e, True)  # [m, e]
    v = load_tile(v_ptr, first, keys, v_at.row, block_m, block_f, head_f, True)  # [m, f]
    grad_k = tl.zeros([block_m, block_e], accumulator)
    grad_v = tl.zeros([block_m, block_f], accumulator)

    # Query p sees the keys up to p + offset: from `start` a query sees some, from `full` all.
    offset = keys - queries
    start = 0
    full = 0
    if causal:
        start = tl.maximum(first - offset, 0) // block_p * block_p
        full = tl.cdiv(tl.maximum(first + block_m - 1 - offset, 0), block_p) * block_p
    for member in range(0, group):
        head = key_head * group + member
        q_of_head = find_head(q_at, batch, head)
        grad_of_head = find_head(grad_out_at, batch, head)
        row = (batch * heads + head) * queries
        if causal:
            grad_k, grad_v = _sweep_queries(
                grad_k, grad_v, k, v, q_of_head, grad_of_head, lse_ptr + row, delta_ptr + row,
                q_at.row, grad_out_at.row, first, start, tl.minimum(full, queries), queries, offset,
                scale_log2, cap, cap_slope, True, capped, head_e, head_f, block_e, block_f,
                block_p, block_m,
            )  # fmt: skip
        grad_k, grad_v = _sweep_queries(
            grad_k, grad_v, k, v, q_of_head, grad_of_head, lse_ptr + row, delta_ptr + row,
            q_at.row, grad_out_at.row, first, full, queries, queries, offset, scale_log2,
            cap, cap_slope, False, capped, head_e, head_f, block_e, block_f, block_p, block_m,
        )  # fmt: skip

    grad_k_ptr = find_head(grad_k_at, batch, key_head)
    grad_v_ptr = find_head(grad_v_at, batch, key_head)
    store_tile(grad_k_ptr, grad_k * scale, first, keys, grad_k_at.row, block_m, block_e, head_e)
    store_tile(grad_v_ptr, grad_v, first, keys, grad_v_at.row, block_m, block_f, head_f)


@triton.jit
def _sweep_queries(
    grad_k: tl.tensor,  # [m, e]
    grad_v: tl.tensor,  # [m, f]
    k: tl.tensor,  # [m, e]
    v: tl.tensor,  # [m, f]
    q_ptr: tl.tensor, grad_out_ptr: tl.tensor, lse_ptr: tl.tensor, delta_ptr: tl.tensor,
    q_row: tl.tensor, grad_out_row: tl.tensor, first_key: tl.tensor, start: tl.tensor,
    stop: tl.tensor, queries: tl.tensor, offset: tl.tensor, scale_log2: tl.tensor, cap: tl.tensor,
    cap_slope: tl.tensor, diagonal: tl.constexpr, capped: tl.constexpr, head_e: tl.constexpr,
    head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr,
    block_m: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Add what the queries from ``start`` to ``stop`` contribute; some see no key if ``diagonal``.

    A key past the end has its own row of the results, which is not stored; a query past the end
    has weight 0, like one that sees no key.
    """
    for first in range(start, stop, block_p):
        q = load_tile(q_ptr, first, queries, q_row, block_p, block_e, head_e, True)
        lse_log2, delta = _load_rows(lse_ptr, delta_ptr, first, queries, block_p)
        scores = tl.dot(k, tl.trans(q), out_dtype=grad_k.dtype, input_precision="ieee")  # [m, p]
        if capped:
            bounded, slope = cap_scores(scores, cap_slope)
            scores = bounded * cap
        weights = tl.math.exp2(scores * scale_log2 - lse_log2[None, :])
        if diagonal:
            key = first_key + tl.arange(0, block_m)
            last_key = first + tl.arange(0, block_p) + offset
            weights = tl.where(key[:, None] <= last_key[None, :], weights, 0.0)
        grad = load_tile(grad_out_ptr, first, queries, grad_out_row, block_p, block_f, head_f, True)
        grad_v = tl.dot(
            weights.to(grad.dtype), grad, grad_v, input_precision="ieee", out_dtype=grad_v.dtype
        )
        grad_weights = tl.dot(
            v, tl.trans(grad), out_dtype=grad_k.dtype, input_precision="ieee"
        )  # [m, p]
        grad_scores = weights * (grad_weights - delta[None, :])
        if capped:
            grad_scores = grad_scores * slope
        grad_scores = grad_scores.to(q.dtype)
        grad_k = tl.dot(grad_scores, q, grad_k, input_precision="ieee", out_dtype=grad_k.dtype)
    return grad_k, grad_v


@triton.jit
def backward_q_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, grad_out_at: Rows, lse_ptr: tl.tensor, delta_ptr: tl.tensor,
    grad_q_at: Rows,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    scale_log2: tl.tensor, cap: tl.tensor, cap_slope: tl.tensor,
    causal: tl.constexpr, capped: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store dQ of ``block_p`` queries of one head."""
    first, batch, head = find_tile(queries, heads, causal, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    grad_out_ptr = find_head(grad_out_at, batch, head)
    row = (batch * heads + head) * queries
    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)  # [p, e]
    grad = load_tile(grad_out_ptr, first, queries, grad_out_at.row, block_p, block_f, head_f, True)
    lse_log2, delta = _load_rows(lse_ptr + row, delta_ptr + row, first, queries, block_p)
    grad_q = tl.zeros([block_p, block_e], accumulator)

    full, stop = find_keys(first, queries, keys, causal, block_p, block_m)
    last_key = first + tl.arange(0, block_p) + (keys - queries)
    grad_q = _sweep_keys(
        grad_q, q, grad, lse_log2, delta, k_ptr, v_ptr, k_at.row, v_at.row, last_key, 0, full, keys,
        scale_log2, cap, cap_slope, False, causal, capped, head_e, head_f, block_e, block_f,
        block_m,
    )  # fmt: skip
    grad_q = _sweep_keys(
        grad_q, q, grad, lse_log2, delta, k_ptr, v_ptr, k_at.row, v_at.row, last_key, full, stop,
        keys, scale_log2, cap, cap_slope, True, causal, capped, head_e, head_f, block_e, block_f,
        block_m,
    )  # fmt: skip
    grad_q_ptr = find_head(grad_q_at, batch, head)
    store_tile(grad_q_ptr, grad_q * scale, first, queries, grad_q_at.row, block_p, block_e, head_e)


@triton.jit
def _sweep_keys(
    grad_q: tl.tensor,  # [p, e]
    q: tl.tensor,  # [p, e]
    grad: tl.tensor,  # [p, f]
    lse_log2: tl.tensor,  # [p]
    delta: tl.tensor,  # [p]
    k_ptr: tl.tensor, v_ptr: tl.tensor, k_row: tl.tensor, v_row: tl.tensor,
    last_key: tl.tensor,  # [p], under a causal mask
    start: tl.tensor, stop: tl.tensor, keys: tl.tensor, scale_log2: tl.tensor, cap: tl.tensor,
    cap_slope: tl.tensor, masked: tl.constexpr, causal: tl.constexpr, capped: tl.constexpr,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_m: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add what the keys from ``start`` to ``stop`` contribute."""
    for first in range(start, stop, block_m):
        k = load_tile(k_ptr, first, keys, k_row, block_m, block_e, head_e, masked)
        v = load_tile(v_ptr, first, keys, v_row, block_m, block_f, head_f, masked)
        scores = tl.dot(q, tl.trans(k), out_dtype=grad_q.dtype, input_precision="ieee")  # [p, m]
        if capped:
            bounded, slope = cap_scores(scores, cap_slope)
            scores = bounded * cap
        weights = tl.math.exp2(scores * scale_log2 - lse_log2[:, None])
        if masked:
            columns = first + tl.arange(0, block_m)
            seen = (columns < keys)[None, :]
            if causal:
                seen = seen & (columns[None, :] <= last_key[:, None])
            weights = tl.where(seen, weights, 0.0)
        grad_weights = tl.dot(
            grad, tl.trans(v), out_dtype=grad_q.dtype, input_precision="ieee"
        )  # [p, m]
        grad_scores = weights * (grad_weights - delta[:, None])
        if capped:
            grad_scores = grad_scores * slope
        grad_scores = grad_scores.to(k.dtype)
        grad_q = tl.dot(grad_scores, k, grad_q, input_precision="ieee", out_dtype=grad_q.dtype)
    return grad_q


@triton.jit
def _load_rows(
    lse_ptr: tl.tensor, delta_ptr: tl.tensor, first: tl.tensor, queries: tl.tensor,
    block_p: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Load delta, and the log-sum-exp in powers of two; +inf (weight 0) for rows without keys."""
    rows = first + tl.arange(0, block_p)
    lse = tl.load(lse_ptr + rows, mask=rows < queries, other=float("inf"))
    delta = tl.load(delta_ptr + rows, mask=rows < queries, other=0.0)
    return tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634), delta
