"""One pass over the keys (FlashAttention-2): running maximum and sum, accumulator rescaled."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import Rows, attention_launch, score_arguments

from .one_pass_backward import plan_backward
from .online import (
    absorb,
    cap_scores,
    find_head,
    find_keys,
    find_tile,
    finish_softmax,
    load_tile,
    start_softmax,
    store_tile,
)

__all__ = ["plan_backward", "plan_forward"]


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {"out": out},
        lse_ptr=lse, **score_arguments(problem)
    )  # fmt: skip
    return (launch,)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    cap: tl.tensor, cap_slope: tl.tensor,
    causal: tl.constexpr, capped: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head to all their keys."""
    first, batch, head = find_tile(queries, heads, causal, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    out_ptr = find_head(out_at, batch, head)
    lse_ptr += (batch * heads + head) * queries

    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)  # [p, e]
    acc, total, peak = start_softmax(block_p, block_f, accumulator)

    full, stop = find_keys(first, queries, keys, causal, block_p, block_m)
    last_key = first + tl.arange(0, block_p) + (keys - queries)
    acc, total, peak = _sweep(
        acc, total, peak, q, k_ptr, v_ptr, k_at.row, v_at.row, last_key, 0, full, keys,
        scale_log2, cap, cap_slope, False, causal, capped, head_e, head_f, block_e, block_f,
        block_m,
    )  # fmt: skip
    acc, total, peak = _sweep(
        acc, total, peak, q, k_ptr, v_ptr, k_at.row, v_at.row, last_key, full, stop, keys,
        scale_log2, cap, cap_slope, True, causal, capped, head_e, head_f, block_e, block_f,
        block_m,
    )  # fmt: skip
    out, lse = finish_softmax(acc, total, peak)
    rows = first + tl.arange(0, block_p)
    tl.store(lse_ptr + rows, lse, mask=rows < queries)
    store_tile(out_ptr, out, first, queries, out_at.row, block_p, block_f, head_f)


@triton.jit
def _sweep(
    acc: tl.tensor, total: tl.tensor, peak: tl.tensor,
    q: tl.tensor,  # [p, e]
    k_ptr: tl.tensor, v_ptr: tl.tensor, k_row: tl.tensor, v_row: tl.tensor,
    last_key: tl.tensor,  # [p], under a causal mask
    start: tl.tensor, stop: tl.tensor, keys: tl.tensor, scale_log2: tl.tensor, cap: tl.tensor,
    cap_slope: tl.tensor, masked: tl.constexpr, causal: tl.constexpr, capped: tl.constexpr,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_m: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
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
