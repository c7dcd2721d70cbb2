"""Device functions that the kernels share: tiles of memory, and a softmax that runs over them."""

from __future__ import annotations

import triton
import triton.language as tl

from einfuse.kernels.calls.tiles import Rows


@triton.jit
def find_head(tensor: Rows, batch: tl.tensor, head: tl.tensor) -> tl.tensor:
    """Return where the rows of one head of one sequence begin."""
    return tensor.ptr + (batch * tensor.batch + head * tensor.head)


@triton.jit
def find_tile(
    queries: tl.tensor, heads: tl.tensor, longest_first: tl.constexpr, block_p: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return this program's first query, its sequence and its head.

    Under a causal mask the last queries have the longest rows: ``longest_first`` starts them first.
    """
    tiles = tl.cdiv(queries, block_p)
    tile = tl.program_id(0) % tiles
    if longest_first:
        tile = tiles - 1 - tile
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    return tile * block_p, batch, head


@triton.jit
def find_keys(
    first: tl.tensor, queries: tl.tensor, keys: tl.tensor, causal: tl.constexpr,
    block_p: tl.constexpr, block_m: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return how many keys, in whole blocks, every query of a tile sees, and how many some see.

    Under a causal mask query ``p`` sees the keys up to ``p + keys - queries``.
    """
    stop = keys
    full = keys // block_m * block_m
    if causal:
        offset = keys - queries
        stop = tl.maximum(tl.minimum(keys, first + block_p + offset), 0)
        full = tl.maximum(tl.minimum(keys, first + offset + 1), 0) // block_m * block_m
    return full, stop


@triton.jit
def load_tile(
    pointer: tl.tensor, first: tl.tensor, stop: tl.tensor, stride: tl.tensor, rows: tl.constexpr,
    columns: tl.constexpr, width: tl.constexpr, ragged: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load rows ``first`` on of a matrix of ``width`` contiguous columns as [rows, columns].

    Columns past ``width`` are zero, and so are rows from ``stop`` on if ``ragged``; otherwise
    every row must exist.
    """
    row = tl.arange(0, rows)
    column = tl.arange(0, columns)
    pointers = pointer + tl.cast(first, tl.int64) * stride + row[:, None] * stride + column[None, :]
    if ragged:
        present = (first + row < stop)[:, None]
        if width != columns:
            present = present & (column < width)[None, :]
        tile = tl.load(pointers, mask=present, other=0.0)
    elif width != columns:
        tile = tl.load(pointers, mask=(column < width)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def load_slice(
    pointer: tl.tensor, first: tl.tensor, stop: tl.tensor, stride: tl.tensor, at: tl.tensor,
    width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load rows ``first`` on and columns ``at`` on of a matrix as [rows, columns].

    Rows from ``stop`` on and columns from ``width`` on are zero.
    """
    row = tl.arange(0, rows)
    column = at + tl.arange(0, columns)
    return tl.load(
        pointer + tl.cast(first, tl.int64) * stride + row[:, None] * stride + column[None, :],
        mask=(first + row < stop)[:, None] & (column < width)[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(
    pointer: tl.tensor, tile: tl.tensor, first: tl.tensor, stop: tl.tensor, stride: tl.tensor,
    rows: tl.constexpr, columns: tl.constexpr, width: tl.constexpr,
) -> None:  # fmt: skip
    """Store [rows, columns] where :func:`load_tile` with ``ragged`` would load it."""
    row = tl.arange(0, rows)
    column = tl.arange(0, columns)
    tl.store(
        pointer + tl.cast(first, tl.int64) * stride + row[:, None] * stride + column[None, :],
        tile.to(pointer.dtype.element_ty),
        mask=(first + row < stop)[:, None] & (column < width)[None, :],
    )


@triton.jit
def store_slice(
    pointer: tl.tensor, tile: tl.tensor, first: tl.tensor, stop: tl.tensor, stride: tl.tensor,
    at: tl.tensor, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
) -> None:  # fmt: skip
    """Store [rows, columns] where :func:`load_slice` would load it."""
    row = tl.arange(0, rows)
    column = at + tl.arange(0, columns)
    tl.store(
        pointer + tl.cast(first, tl.int64) * stride + row[:, None] * stride + column[None, :],
        tile.to(pointer.dtype.element_ty),
        mask=(first + row < stop)[:, None] & (column < width)[None, :],
    )


@triton.jit
def cap_scores(scores: tl.tensor, slope: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return ``tanh(slope * scores)`` and its derivative by what it is the tanh of."""
    # exp2 of a large argument is inf: the quotient is then 0, and the bound 1, as it should be.
    bounded = 1.0 - 2.0 / (tl.math.exp2(scores * (slope * 2.8853900817779268)) + 1.0)
    return bounded, 1.0 - bounded * bounded


@triton.jit
def start_softmax(
    rows: tl.constexpr, columns: tl.constexpr, accumulator: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return the state of a softmax that has met no key: accumulator, total and peak."""
    acc = tl.zeros([rows, columns], accumulator)
    total = tl.zeros([rows], accumulator)
    peak = tl.full([rows], float("-inf"), accumulator)
    return acc, total, peak


@triton.jit
def absorb(
    acc: tl.tensor,  # [p, f]
    total: tl.tensor,  # [p]
    peak: tl.tensor,  # [p], scaled scores in powers of two
    scores: tl.tensor,  # [p, m], unscaled; -inf where a query does not see a key
    v: tl.tensor,  # [m, f]
    scale_log2: tl.tensor, masked: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take one block of keys into the state (RM, PRM, SLN, RD and RNV of the 1-pass cascade)."""
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    shift = new_peak
    if masked:  # a row without a visible key yet has no maximum to subtract
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.math.exp2(scores * scale_log2 - shift[:, None])
    rescale = tl.math.exp2(peak - shift)
    total = total * rescale + tl.sum(weights, 1)
    acc = acc * rescale[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee", out_dtype=acc.dtype)
    return acc, total, new_peak


@triton.jit
def finish_softmax(
    acc: tl.tensor, total: tl.tensor, peak: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the output [p, f] and its natural log-sum-exp [p].

    They are 0 and -inf for rows without keys.
    """
    empty = total == 0.0
    present = tl.where(empty, 1.0, total)
    log_sum = tl.where(empty, float("-inf"), (peak + tl.math.log2(present)) * 0.6931471805599453)
    return acc * tl.where(empty, 0.0, 1.0 / present)[:, None], log_sum
