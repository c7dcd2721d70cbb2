"""One pass over the keys (FlashAttention-2): running maximum and sum, accumulator rescaled."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import head_arguments, loop_tile, score_arguments, strides

from .one_pass_backward import plan_backward
from .online import absorb, cap_scores, finish_softmax, load_tile, start_softmax, store_tile

__all__ = ["plan_backward", "plan_forward"]


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    q, k, v = problem.q, problem.k, problem.v
    row = kernel.configuration("forward", architecture, **problem.sizes)
    tiles = dict(row.tiles)
    launch = Launch(
        function=forward_kernel,
        grid=(triton.cdiv(problem.queries, tiles["block_p"]) * problem.batch * problem.heads,),
        arguments={
            "q_ptr": q,
            "k_ptr": k,
            "v_ptr": v,
            "out_ptr": out,
            "lse_ptr": lse,
            **strides(q=q, k=k, v=v, out=out),
            "queries": problem.queries,
            "keys": problem.keys,
            "heads": problem.heads,
            **score_arguments(problem),
            "causal": problem.options.causal,
            **head_arguments(problem),
            **tiles,
        },
        options=row.options,
        tile=loop_tile(problem, tiles),
    )
    return (launch,)


@triton.jit
def forward_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
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
    queries: tl.tensor,
    keys: tl.tensor,
    heads: tl.tensor,
    group: tl.tensor,
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
    """Attend ``block_p`` queries of one head to all their keys."""
    tiles = tl.cdiv(queries, block_p)
    tile = tl.program_id(0) % tiles
    if causal:
        tile = tiles - 1 - tile  # the longest rows start first
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head // group * v_head
    out_ptr += batch * out_batch + head * out_head
    lse_ptr += (batch * heads + head) * queries

    first = tile * block_p
    q = load_tile(q_ptr, first, queries, q_row, block_p, block_e, head_e, True)  # [p, e]
    acc, total, peak = start_softmax(block_p, block_f, accumulator)

    # Query p sees the keys up to p + offset. Every query of the tile sees the first `full` keys.
    offset = keys - queries
    stop = keys
    full = keys // block_m * block_m
    if causal:
        stop = tl.maximum(tl.minimum(keys, first + block_p + offset), 0)
        full = tl.maximum(tl.minimum(keys, first + offset + 1), 0) // block_m * block_m
    last_key = first + tl.arange(0, block_p) + offset
    acc, total, peak = _sweep(
        acc, total, peak, q, k_ptr, v_ptr, k_row, v_row, last_key, 0, full, keys, scale_log2,
        cap, cap_slope, False, causal, capped, head_e, head_f, block_e, block_f, block_m,
    )  # fmt: skip
    acc, total, peak = _sweep(
        acc, total, peak, q, k_ptr, v_ptr, k_row, v_row, last_key, full, stop, keys, scale_log2,
        cap, cap_slope, True, causal, capped, head_e, head_f, block_e, block_f, block_m,
    )  # fmt: skip
    out, lse = finish_softmax(acc, total, peak)
    rows = first + tl.arange(0, block_p)
    tl.store(lse_ptr + rows, lse, mask=rows < queries)
    store_tile(out_ptr, out, first, queries, out_row, block_p, block_f, head_f)


@triton.jit
def _sweep(
    acc: tl.tensor,
    total: tl.tensor,
    peak: tl.tensor,
    q: tl.tensor,  # [p, e]
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
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take in the keys from ``start`` to ``stop``; without ``masked`` every query sees them."""
    for first in range(start, stop, block_m):
        k = load_tile(k_ptr, first, keys, k_row, block_m, block_e, head_e, masked)
        scores = tl.dot(q, tl.trans(k), out_dtype=acc.dtype, input_precision="ieee")  # [p, m]
        if capped:
            bounded, _ = cap_scores(scores, cap_slope)
            scores = bounded * cap
        if masked:
            columns = first + tl.arange(0, block_m)
            seen = (columns < keys)[None, :]
            if causal:
                seen = seen & (columns[None, :] <= last_key[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        v = load_tile(v_ptr, first, keys, v_row, block_m, block_f, head_f, masked)
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, masked)
    return acc, total, peak
