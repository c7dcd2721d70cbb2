"""Three passes over the keys, unfused: scores, softmax and context are a launch each.

What a framework without a fused kernel does; scores and weights ``[B, H, P, M]`` go through
memory. Each sweep of the softmax is a pass: maximum GM, exponentials SN with their sum SD, and
the division; every one waits for the whole row of the one before.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import Rows, attention_launch

from .online import find_head, load_slice, load_tile, store_tile


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launches that fill ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    scores = problem.q.new_empty(*problem.q.shape[:3], problem.keys)
    return (
        attention_launch(
            scores_kernel, kernel, "scores", problem, architecture, {},
            over="both", scores_ptr=scores, scale=problem.options.scale,
        ),
        attention_launch(
            softmax_kernel, kernel, "softmax", problem, architecture, {},
            scores_ptr=scores, lse_ptr=lse,
        ),
        attention_launch(
            context_kernel, kernel, "context", problem, architecture, {"out": out},
            weights_ptr=scores,
        ),
    )  # fmt: skip


@triton.jit
def scores_kernel(
    q_at: Rows, k_at: Rows, scores_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    head_e: tl.constexpr, block_e: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store a tile of the scaled scores of one head."""
    tiles_p, tiles_m = tl.cdiv(queries, block_p), tl.cdiv(keys, block_m)
    first_m = tl.program_id(0) % tiles_m * block_m
    first_p = tl.program_id(0) // tiles_m % tiles_p * block_p
    whole = (tl.program_id(0) // tiles_m // tiles_p).to(tl.int64)
    batch, head = whole // heads, whole % heads
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    scores = tl.zeros([block_p, block_m], accumulator)
    for at in range(0, head_e, block_e):
        q = load_slice(q_ptr, first_p, queries, q_at.row, at, head_e, block_p, block_e)
        k = load_slice(k_ptr, first_m, keys, k_at.row, at, head_e, block_m, block_e)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="ieee", out_dtype=accumulator)
    rows = (first_p + tl.arange(0, block_p))[:, None]
    columns = (first_m + tl.arange(0, block_m))[None, :]
    tl.store(
        scores_ptr + whole * queries * keys + rows.to(tl.int64) * keys + columns,
        (scores * scale).to(scores_ptr.dtype.element_ty),
        mask=(rows < queries) & (columns < keys),
    )


@triton.jit
def softmax_kernel(
    scores_ptr: tl.tensor, lse_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor,
    causal: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Turn rows of scores into weights where they lie, in three sweeps."""
    tiles = tl.cdiv(queries, block_p)
    rows = tl.program_id(0) % tiles * block_p + tl.arange(0, block_p)
    whole = (tl.program_id(0) // tiles).to(tl.int64)
    pointers = scores_ptr + whole * queries * keys + rows[:, None].to(tl.int64) * keys
    stop = tl.where(rows < queries, keys, 0)
    if causal:
        stop = tl.minimum(stop, rows + 1 + keys - queries)
    columns = tl.arange(0, block_m)

    peaks = tl.full([block_p, block_m], float("-inf"), accumulator)
    for first in range(0, keys, block_m):
        at = first + columns[None, :]
        scores = tl.load(pointers + at, mask=at < stop[:, None], other=float("-inf"))
        peaks = tl.maximum(peaks, scores.to(accumulator))
    peak = tl.max(peaks, 1)
    shift = tl.where(peak == float("-inf"), 0.0, peak) * 1.4426950408889634
    totals = tl.zeros([block_p, block_m], accumulator)
    for first in range(0, keys, block_m):
        at = first + columns[None, :]
        scores = tl.load(pointers + at, mask=at < stop[:, None], other=float("-inf"))
        weights = tl.math.exp2(scores.to(accumulator) * 1.4426950408889634 - shift[:, None])
        totals += weights
        present = (at < keys) & (rows < queries)[:, None]
        tl.store(pointers + at, weights.to(scores_ptr.dtype.element_ty), mask=present)
    total = tl.sum(totals, 1)
    empty = total == 0.0
    inverse = tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, total))
    for first in range(0, keys, block_m):
        at = first + columns[None, :]
        present = (at < keys) & (rows < queries)[:, None]
        weights = tl.load(pointers + at, mask=present, other=0.0).to(accumulator)
        weights = (weights * inverse[:, None]).to(scores_ptr.dtype.element_ty)
        tl.store(pointers + at, weights, mask=present)
    log_sum = peak + tl.math.log2(tl.where(empty, 1.0, total)) * 0.6931471805599453
    tl.store(lse_ptr + whole * queries + rows, log_sum, mask=rows < queries)


@triton.jit
def context_kernel(
    weights_ptr: tl.tensor, v_at: Rows, out_at: Rows,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor,
    head_f: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store the weighted sums of the values for a tile of queries of one head."""
    tiles = tl.cdiv(queries, block_p)
    first_p = tl.program_id(0) % tiles * block_p
    whole = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = whole // heads, whole % heads
    v_ptr = find_head(v_at, batch, head // group)
    weights_ptr += whole * queries * keys
    acc = tl.zeros([block_p, block_f], accumulator)
    rows = first_p + tl.arange(0, block_p)
    for first in range(0, keys, block_m):
        columns = first + tl.arange(0, block_m)
        weights = tl.load(
            weights_ptr + rows[:, None].to(tl.int64) * keys + columns[None, :],
            mask=(rows < queries)[:, None] & (columns < keys)[None, :],
            other=0.0,
        )
        v = load_tile(v_ptr, first, keys, v_at.row, block_m, block_f, head_f, True)
        acc = tl.dot(weights, v, acc, input_precision="ieee", out_dtype=accumulator)
    out_ptr = find_head(out_at, batch, head)
    store_tile(out_ptr, acc, first_p, queries, out_at.row, block_p, block_f, head_f)
