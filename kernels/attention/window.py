"""A sliding window with attention sinks: StreamingLLM, and DuoAttention's streaming heads.

A query sees the keys fewer than ``window`` positions away, and the first ``sinks`` keys. Loops
cover those blocks alone, so that time is proportional to the window, not to the sequence.
Sources: Xiao et al., StreamingLLM (ICLR 2024) and DuoAttention (ICLR 2025).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch

from .online import (
    absorb,
    find_head,
    find_tile,
    finish_softmax,
    load_tile,
    start_softmax,
    store_tile,
)


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    window, every_key = problem.options.window, problem.queries + problem.keys
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {"out": out},
        lse_ptr=lse,
        full_heads_ptr=problem.full_heads,
        window=every_key if window is None else min(window, every_key),
        sinks=min(problem.options.sinks, problem.keys),
        scale_log2=problem.options.scale * LOG2_E,
    )  # fmt: skip
    return (launch,)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    full_heads_ptr: tl.tensor,  # [heads], which have no window; or None
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, window: tl.tensor,
    sinks: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr,
    block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head to their windows and the sinks."""
    first, batch, head = find_tile(queries, heads, False, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    out_ptr = find_head(out_at, batch, head)
    lse_ptr += (batch * heads + head) * queries
    if full_heads_ptr is not None:  # noqa: SIM102 (the first is decided at compile time)
        if tl.load(full_heads_ptr + head):
            window = queries + keys

    # Positions among the keys: query p stands at p + offset.
    offset = keys - queries
    low = first + offset
    high = tl.minimum(first + block_p, queries) - 1 + offset
    position = first + tl.arange(0, block_p) + offset
    if causal:
        last_seen_by_all = low
        stop = tl.minimum(keys, high + 1)
    else:
        last_seen_by_all = low + window - 1
        stop = tl.minimum(keys, tl.maximum(high + window, sinks))
    # Four runs of blocks: sinks, the window's ragged head, its whole blocks, its ragged tail.
    begin = tl.maximum(low - window + 1, 0) // block_m * block_m
    whole = tl.maximum(tl.cdiv(tl.maximum(high - window + 1, 0), block_m) * block_m, begin)
    tail = tl.maximum(tl.minimum(last_seen_by_all + 1, keys) // block_m * block_m, whole)
    sink_blocks = tl.minimum(tl.cdiv(sinks, block_m), begin // block_m)
    head_blocks = tl.maximum(tl.cdiv(tl.minimum(whole, stop) - begin, block_m), 0)
    tail_blocks = tl.maximum(tl.cdiv(stop - tail, block_m), 0)

    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)  # [p, e]
    acc, total, peak = start_softmax(block_p, block_f, accumulator)
    for block in range(0, sink_blocks + head_blocks + tail_blocks):
        start = block * block_m
        if block >= sink_blocks:
            start += begin - sink_blocks * block_m
        if block >= sink_blocks + head_blocks:
            start += tail - begin - head_blocks * block_m
        k = load_tile(k_ptr, start, keys, k_at.row, block_m, block_e, head_e, True)
        v = load_tile(v_ptr, start, keys, v_at.row, block_m, block_f, head_f, True)
        scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")  # [p, m]
        key = start + tl.arange(0, block_m)
        ahead = position[:, None] - key[None, :]
        visible = (ahead < window) | (key < sinks)[None, :]
        if causal:
            visible = visible & (ahead >= 0)
        else:
            visible = visible & ((-ahead < window) | (key < sinks)[None, :])
        scores = tl.where(visible & (key < keys)[None, :], scores, float("-inf"))
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, True)
    for start in range(whole, tail, block_m):
        k = load_tile(k_ptr, start, keys, k_at.row, block_m, block_e, head_e, False)
        v = load_tile(v_ptr, start, keys, v_at.row, block_m, block_f, head_f, False)
        scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, False)

    out, log_sum = finish_softmax(acc, total, peak)
    row = first + tl.arange(0, block_p)
    tl.store(lse_ptr + row, log_sum, mask=row < queries)
    store_tile(out_ptr, out, first, queries, out_at.row, block_p, block_f, head_f)
