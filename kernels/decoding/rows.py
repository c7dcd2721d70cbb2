"""Device functions of decoding: rows of several heads, ranges of a cache, merged results."""

from __future__ import annotations

import triton
import triton.language as tl

from einfuse.kernels.attention.online import absorb
from einfuse.kernels.calls.tiles import Rows


@triton.jit
def merge(
    acc: tl.tensor,  # [row, f]
    total: tl.tensor,  # [row]
    peak: tl.tensor,  # [row]
    out: tl.tensor,  # [row, f]
    lse: tl.tensor,  # [row]
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take a finished output and its natural log-sum-exp into a running softmax."""
    new_peak = tl.maximum(peak, lse * 1.4426950408889634)
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weight = tl.math.exp2(lse * 1.4426950408889634 - shift)
    rescale = tl.math.exp2(peak - shift)
    return (
        acc * rescale[:, None] + out * weight[:, None],
        total * rescale + weight,
        new_peak,
    )


@triton.jit
def attend_range(
    acc: tl.tensor, total: tl.tensor, peak: tl.tensor,
    q: tl.tensor,  # [row, e]
    query: tl.tensor,  # [row], which of the newest positions
    begin: tl.tensor, stop: tl.tensor, keys: tl.tensor, k_at: Rows, v_at: Rows,
    page_table_ptr: tl.tensor, sequence: tl.tensor, key_head: tl.tensor, queries: tl.tensor,
    pages: tl.tensor, scale_log2: tl.tensor, causal: tl.constexpr, page_slots: tl.constexpr,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_m: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take the keys from ``begin`` to ``stop`` of a sequence of ``keys`` into a running softmax."""
    k_ptr = k_at.ptr + key_head * k_at.head
    v_ptr = v_at.ptr + key_head * v_at.head
    if page_slots == 0:
        k_ptr += sequence * k_at.batch
        v_ptr += sequence * v_at.batch
    e = tl.arange(0, block_e)
    f = tl.arange(0, block_f)
    for start in range(begin, stop, block_m):
        key = start + tl.arange(0, block_m)
        present = key < stop
        if page_slots == 0:
            k_offset = key.to(tl.int64) * k_at.row
            v_offset = key.to(tl.int64) * v_at.row
        else:
            page = tl.load(
                page_table_ptr + sequence * pages + key // page_slots, mask=present, other=0
            ).to(tl.int64)
            k_offset = page * k_at.batch + key % page_slots * k_at.row
            v_offset = page * v_at.batch + key % page_slots * v_at.row
        k = tl.load(
            k_ptr + k_offset[:, None] + e[None, :],
            mask=present[:, None] & (e < head_e)[None, :],
            other=0.0,
        )  # [m, e]
        v = tl.load(
            v_ptr + v_offset[:, None] + f[None, :],
            mask=present[:, None] & (f < head_f)[None, :],
            other=0.0,
        )  # [m, f]
        scores = tl.dot(q, tl.trans(k), out_dtype=acc.dtype, input_precision="ieee")  # [row, m]
        visible = present[None, :]
        if causal:
            visible = visible & (key[None, :] <= (keys - queries + query)[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, True)
    return acc, total, peak


@triton.jit
def load_rows(
    tensor: Rows, sequence: tl.tensor,
    head: tl.tensor,  # [row]
    query: tl.tensor,  # [row]
    present: tl.tensor,  # [row]
    width: tl.constexpr, columns: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load rows of several heads of one sequence, zero where absent."""
    column = tl.arange(0, columns)
    at = head * tensor.head + query * tensor.row
    return tl.load(
        tensor.ptr + sequence * tensor.batch + at[:, None] + column[None, :],
        mask=present[:, None] & (column < width)[None, :],
        other=0.0,
    )


@triton.jit
def store_rows(
    tensor: Rows, sequence: tl.tensor, tile: tl.tensor, head: tl.tensor, query: tl.tensor,
    present: tl.tensor, width: tl.constexpr, columns: tl.constexpr,
) -> None:  # fmt: skip
    """Store rows where :func:`load_rows` would load them."""
    column = tl.arange(0, columns)
    at = head * tensor.head + query * tensor.row
    tl.store(
        tensor.ptr + sequence * tensor.batch + at[:, None] + column[None, :],
        tile.to(tensor.ptr.dtype.element_ty),
        mask=present[:, None] & (column < width)[None, :],
    )
