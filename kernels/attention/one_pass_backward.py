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
from einfuse.kernels.calls.tiles import head_arguments, loop_tile, score_arguments, strides

from .online import cap_scores, load_tile, store_tile


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
    rows = {
        name: kernel.configuration(name, architecture, **problem.sizes)
        for name in ("backward_delta", "backward_kv", "backward_q")
    }
    tiles = {name: dict(row.tiles) for name, row in rows.items()}
    heads, key_heads = problem.batch * problem.heads, problem.batch * problem.key_heads
    sizes = {"queries": problem.queries, "heads": problem.heads}
    of_heads = head_arguments(problem)
    shared = {
        "q_ptr": problem.q,
        "k_ptr": problem.k,
        "v_ptr": problem.v,
        "grad_out_ptr": grad_out,
        "lse_ptr": lse,
        "delta_ptr": delta,
        **strides(q=problem.q, k=problem.k, v=problem.v, grad_out=grad_out),
        **sizes,
        **of_heads,
        "keys": problem.keys,
        "scale": problem.options.scale,
        **score_arguments(problem),
        "causal": problem.options.causal,
    }
    return (
        Launch(
            function=delta_kernel,
            grid=(triton.cdiv(problem.queries, tiles["backward_delta"]["block_p"]) * heads,),
            arguments={
                "out_ptr": out,
                "grad_out_ptr": grad_out,
                "grad_lse_ptr": grad_lse,
                "delta_ptr": delta,
                **strides(out=out, grad_out=grad_out),
                **sizes,
                **{name: of_heads[name] for name in ("head_f", "block_f", "accumulator")},
                **tiles["backward_delta"],
            },
            options=rows["backward_delta"].options,
        ),
        Launch(
            function=backward_kv_kernel,
            grid=(triton.cdiv(problem.keys, tiles["backward_kv"]["block_m"]) * key_heads,),
            arguments={
                **shared,
                "grad_k_ptr": grad_k,
                "grad_v_ptr": grad_v,
                **strides(grad_k=grad_k, grad_v=grad_v),
                **tiles["backward_kv"],
            },
            options=rows["backward_kv"].options,
            tile=loop_tile(problem, tiles["backward_kv"]),
        ),
        Launch(
            function=backward_q_kernel,
            grid=(triton.cdiv(problem.queries, tiles["backward_q"]["block_p"]) * heads,),
            arguments={
                **shared,
                "grad_q_ptr": grad_q,
                **strides(grad_q=grad_q),
                **tiles["backward_q"],
            },
            options=rows["backward_q"].options,
            tile=loop_tile(problem, tiles["backward_q"]),
        ),
    )


@triton.jit
def delta_kernel(
    out_ptr: tl.tensor,
    grad_out_ptr: tl.tensor,
    grad_lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    out_batch: tl.tensor,
    out_head: tl.tensor,
    out_row: tl.tensor,
    grad_out_batch: tl.tensor,
    grad_out_head: tl.tensor,
    grad_out_row: tl.tensor,
    queries: tl.tensor,
    heads: tl.tensor,
    head_f: tl.constexpr,
    block_f: tl.constexpr,
    block_p: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Store ``dO . O`` less the gradient of the log-sum-exp for ``block_p`` queries of a head."""
    tiles = tl.cdiv(queries, block_p)
    first = tl.program_id(0) % tiles * block_p
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    out_ptr += batch * out_batch + head * out_head
    grad_out_ptr += batch * grad_out_batch + head * grad_out_head
    out = load_tile(out_ptr, first, queries, out_row, block_p, block_f, head_f, True)
    grad = load_tile(grad_out_ptr, first, queries, grad_out_row, block_p, block_f, head_f, True)
    rows = (batch * heads + head) * queries + first + tl.arange(0, block_p)
    present = first + tl.arange(0, block_p) < queries
    grad_lse = tl.load(grad_lse_ptr + rows, mask=present, other=0.0)
    delta = tl.sum(out.to(accumulator) * grad.to(accumulator), 1) - grad_lse
    tl.store(delta_ptr + rows, delta, mask=present)


@triton.jit
def backward_kv_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    grad_out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    grad_k_ptr: tl.tensor,
    grad_v_ptr: tl.tensor,
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
    grad_k_batch: tl.tensor,
    grad_k_head: tl.tensor,
    grad_k_row: tl.tensor,
    grad_v_batch: tl.tensor,
    grad_v_head: tl.tensor,
    grad_v_row: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
    scale: tl.tensor,
    scale_log2: tl.tensor,
    cap: tl.tensor,
    cap_slope: tl.tensor,
    causal: tl.constexpr,
    capped: tl.constexpr,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_p: tl.constexpr,
    block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Store dK and dV of ``block_m`` keys of one key head, from the queries of all its heads."""
    tiles = tl.cdiv(keys, block_m)
    first = tl.program_id(0) % tiles * block_m
    key_heads = heads // group
    batch = (tl.program_id(0) // tiles // key_heads).to(tl.int64)
    key_head = (tl.program_id(0) // tiles % key_heads).to(tl.int64)
    k_ptr += batch * k_batch + key_head * k_head
    v_ptr += batch * v_batch + key_head * v_head
    k = load_tile(k_ptr, first, keys, k_row, block_m, block_e, head_e, True)  # [m, e]
    v = load_tile(v_ptr, first, keys, v_row, block_m, block_f, head_f, True)  # [m, f]
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
        q_of_head = q_ptr + batch * q_batch + head * q_head
        grad_of_head = grad_out_ptr + batch * grad_out_batch + head * grad_out_head
        row = (batch * heads + head) * queries
        if causal:
            grad_k, grad_v = _sweep_queries(
                grad_k, grad_v, k, v, q_of_head, grad_of_head, lse_ptr + row, delta_ptr + row,
                q_row, grad_out_row, first, start, tl.minimum(full, queries), queries, offset,
                scale_log2, cap, cap_slope, True, capped, head_e, head_f, block_e, block_f,
                block_p, block_m,
            )  # fmt: skip
        grad_k, grad_v = _sweep_queries(
            grad_k, grad_v, k, v, q_of_head, grad_of_head, lse_ptr + row, delta_ptr + row,
            q_row, grad_out_row, first, full, queries, queries, offset, scale_log2,
            cap, cap_slope, False, capped, head_e, head_f, block_e, block_f, block_p, block_m,
        )  # fmt: skip

    grad_k_ptr += batch * grad_k_batch + key_head * grad_k_head
    grad_v_ptr += batch * grad_v_batch + key_head * grad_v_head
    store_tile(grad_k_ptr, grad_k * scale, first, keys, grad_k_row, block_m, block_e, head_e)
    store_tile(grad_v_ptr, grad_v, first, keys, grad_v_row, block_m, block_f, head_f)


@triton.jit
def _sweep_queries(
    grad_k: tl.tensor,  # [m, e]
    grad_v: tl.tensor,  # [m, f]
    k: tl.tensor,  # [m, e]
    v: tl.tensor,  # [m, f]
    q_ptr: tl.tensor,
    grad_out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    q_row: tl.tensor,
    grad_out_row: tl.tensor,
    first_key: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    queries: tl.tensor,
    offset: tl.tensor,
    scale_log2: tl.tensor,
    cap: tl.tensor,
    cap_slope: tl.tensor,
    diagonal: tl.constexpr,
    capped: tl.constexpr,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_p: tl.constexpr,
    block_m: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
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
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    grad_out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    grad_q_ptr: tl.tensor,
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
    queries: tl.tensor,
    keys: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
    scale: tl.tensor,
    scale_log2: tl.tensor,
    cap: tl.tensor,
    cap_slope: tl.tensor,
    causal: tl.constexpr,
    capped: tl.constexpr,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_p: tl.constexpr,
    block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Store dQ of ``block_p`` queries of one head."""
    tiles = tl.cdiv(queries, block_p)
    tile = tl.program_id(0) % tiles
    if causal:
        tile = tiles - 1 - tile  # the longest rows start first
    first = tile * block_p
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head // group * v_head
    grad_out_ptr += batch * grad_out_batch + head * grad_out_head
    row = (batch * heads + head) * queries
    q = load_tile(q_ptr, first, queries, q_row, block_p, block_e, head_e, True)  # [p, e]
    grad = load_tile(grad_out_ptr, first, queries, grad_out_row, block_p, block_f, head_f, True)
    lse_log2, delta = _load_rows(lse_ptr + row, delta_ptr + row, first, queries, block_p)
    grad_q = tl.zeros([block_p, block_e], accumulator)

    offset = keys - queries
    stop = keys
    full = keys // block_m * block_m
    if causal:
        stop = tl.maximum(tl.minimum(keys, first + block_p + offset), 0)
        full = tl.maximum(tl.minimum(keys, first + offset + 1), 0) // block_m * block_m
    last_key = first + tl.arange(0, block_p) + offset
    grad_q = _sweep_keys(
        grad_q, q, grad, lse_log2, delta, k_ptr, v_ptr, k_row, v_row, last_key, 0, full, keys,
        scale_log2, cap, cap_slope, False, causal, capped, head_e, head_f, block_e, block_f,
        block_m,
    )  # fmt: skip
    grad_q = _sweep_keys(
        grad_q, q, grad, lse_log2, delta, k_ptr, v_ptr, k_row, v_row, last_key, full, stop, keys,
        scale_log2, cap, cap_slope, True, causal, capped, head_e, head_f, block_e, block_f,
        block_m,
    )  # fmt: skip
    grad_q_ptr += batch * grad_q_batch + head * grad_q_head
    store_tile(grad_q_ptr, grad_q * scale, first, queries, grad_q_row, block_p, block_e, head_e)


@triton.jit
def _sweep_keys(
    grad_q: tl.tensor,  # [p, e]
    q: tl.tensor,  # [p, e]
    grad: tl.tensor,  # [p, f]
    lse_log2: tl.tensor,  # [p]
    delta: tl.tensor,  # [p]
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_row: tl.tensor,
    v_row: tl.tensor,
    last_key: tl.tensor,  # [p], under a causal mask
    start: tl.tensor,
    stop: tl.tensor,
    keys: tl.tensor,
    scale_log2: tl.tensor,
    cap: tl.tensor,
    cap_slope: tl.tensor,
    masked: tl.constexpr,
    causal: tl.constexpr,
    capped: tl.constexpr,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_m: tl.constexpr,
) -> tl.tensor:
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
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    first: tl.tensor,
    queries: tl.tensor,
    block_p: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Load delta, and the log-sum-exp in powers of two; +inf (weight 0) for rows without keys."""
    rows = first + tl.arange(0, block_p)
    lse = tl.load(lse_ptr + rows, mask=rows < queries, other=float("inf"))
    delta = tl.load(delta_ptr + rows, mask=rows < queries, other=0.0)
    return tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634), delta
