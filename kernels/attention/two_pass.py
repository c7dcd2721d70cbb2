"""Two passes over the keys: local maxima first, their correction with the context second.

The class of TileFlow and of Choi et al.: the first launch takes each tile's maximum LM, the
exponentials SLN against it and their sum SLD; the second corrects them by ``exp(LM - GM)``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch

from .online import find_head, load_slice, load_tile, store_tile


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launches that fill ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    block_m = dict(kernel.configuration("local", architecture, **problem.sizes).tiles)["block_m"]
    statistics = (*problem.q.shape[:2], triton.cdiv(problem.keys, block_m), problem.queries)
    shared: dict[str, Any] = {
        "weights_ptr": problem.q.new_empty(*problem.q.shape[:3], problem.keys),
        "peaks_ptr": lse.new_empty(statistics),
        "totals_ptr": lse.new_empty(statistics),
    }
    local = attention_launch(
        local_kernel, kernel, "local", problem, architecture, {},
        over="both", scale_log2=problem.options.scale * LOG2_E, **shared,
    )  # fmt: skip
    context = attention_launch(
        context_kernel, kernel, "context", problem, architecture, {"out": out},
        lse_ptr=lse, block_m=block_m, **shared,
    )  # fmt: skip
    return local, context


@triton.jit
def local_kernel(
    q_at: Rows, k_at: Rows, weights_ptr: tl.tensor, peaks_ptr: tl.tensor, totals_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, head_e: tl.constexpr, block_e: tl.constexpr, block_p: tl.constexpr,
    block_m: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store a tile's exponentials against its own maxima, these maxima, and the sums."""
    tiles_p, tiles_m = tl.cdiv(queries, block_p), tl.cdiv(keys, block_m)
    tile_m = tl.program_id(0) % tiles_m
    first_p = tl.program_id(0) // tiles_m % tiles_p * block_p
    whole = (tl.program_id(0) // tiles_m // tiles_p).to(tl.int64)
    batch, head = whole // heads, whole % heads
    first_m = tile_m * block_m
    rows = first_p + tl.arange(0, block_p)
    columns = first_m + tl.arange(0, block_m)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    scores = tl.zeros([block_p, block_m], accumulator)
    for at in range(0, head_e, block_e):
        q = load_slice(q_ptr, first_p, queries, q_at.row, at, head_e, block_p, block_e)
        k = load_slice(k_ptr, first_m, keys, k_at.row, at, head_e, block_m, block_e)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="ieee", out_dtype=accumulator)
    seen = (columns < keys)[None, :]
    if causal:
        seen = seen & (columns[None, :] <= (rows + keys - queries)[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    peak = tl.max(scores, 1) * scale_log2  # LM
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.math.exp2(scores * scale_log2 - shift[:, None])  # SLN
    at = (whole * tiles_m + tile_m) * queries + rows
    tl.store(peaks_ptr + at, peak, mask=rows < queries)
    tl.store(totals_ptr + at, tl.sum(weights, 1), mask=rows < queries)  # SLD
    tl.store(
        weights_ptr + whole * queries * keys + rows[:, None].to(tl.int64) * keys + columns[None, :],
        weights.to(weights_ptr.dtype.element_ty),
        mask=(rows < queries)[:, None] & (columns < keys)[None, :],
    )


@triton.jit
def context_kernel(
    v_at: Rows, weights_ptr: tl.tensor, peaks_ptr: tl.tensor, totals_ptr: tl.tensor, out_at: Rows,
    lse_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor,
    causal: tl.constexpr, head_f: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr,
    block_m: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Store the context of a tile of queries from all tiles' exponentials, corrected."""
    tiles_p, tiles_m = tl.cdiv(queries, block_p), tl.cdiv(keys, block_m)
    first_p = tl.program_id(0) % tiles_p * block_p
    whole = (tl.program_id(0) // tiles_p).to(tl.int64)
    batch, head = whole // heads, whole % heads
    rows = first_p + tl.arange(0, block_p)
    used = tiles_m
    if causal:  # later tiles hold no key that a query of this tile sees
        used = tl.cdiv(tl.maximum(tl.minimum(keys, first_p + block_p + keys - queries), 0), block_m)
    peaks_ptr += whole * tiles_m * queries + rows
    totals_ptr += whole * tiles_m * queries + rows

    peak = tl.full([block_p], float("-inf"), accumulator)  # GM
    for tile in range(0, used):
        local = tl.load(peaks_ptr + tile * queries, mask=rows < queries, other=float("-inf"))
        peak = tl.maximum(peak, local)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.zeros([block_p], accumulator)  # SD
    for tile in range(0, used):
        local = tl.load(peaks_ptr + tile * queries, mask=rows < queries, other=float("-inf"))
        part = tl.load(totals_ptr + tile * queries, mask=rows < queries, other=0.0)
        total += part * tl.math.exp2(local - shift)
    empty = total == 0.0
    present = tl.where(empty, 1.0, total)
    inverse = tl.where(empty, 0.0, 1.0 / present)

    v_ptr = find_head(v_at, batch, head // group)
    weights_ptr += whole * queries * keys
    acc = tl.zeros([block_p, block_f], accumulator)
    for tile in range(0, used):
        first_m = tile * block_m
        columns = first_m + tl.arange(0, block_m)
        local = tl.load(peaks_ptr + tile * queries, mask=rows < queries, other=float("-inf"))
        correction = tl.math.exp2(local - shift) * inverse
        weights = tl.load(
            weights_ptr + rows[:, None].to(tl.int64) * keys + columns[None, :],
            mask=(rows < queries)[:, None] & (columns < keys)[None, :],
            other=0.0,
        ).to(accumulator)
        weights = (weights * correction[:, None]).to(v_ptr.dtype.element_ty)  # A
        v = load_tile(v_ptr, first_m, keys, v_at.row, block_m, block_f, head_f, True)
        acc = tl.dot(weights, v, acc, input_precision="ieee", out_dtype=accumulator)
    out_ptr = find_head(out_at, batch, head)
    store_tile(out_ptr, acc, first_p, queries, out_at.row, block_p, block_f, head_f)
    log_sum = tl.where(empty, float("-inf"), (peak + tl.math.log2(present)) * 0.6931471805599453)
    tl.store(lse_ptr + whole * queries + rows, log_sum, mask=rows < queries)
