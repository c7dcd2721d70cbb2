"""Attention under a block mask: each tile of queries visits its list of kept key blocks.

The mask becomes, per row of blocks, the ascending list of kept blocks and its length (compressed
sparse rows, padded so that no size depends on the mask's contents). Time is proportional to the
kept blocks. Source: block-sparse FlashAttention (Dao et al., NeurIPS 2022, section 3.3).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch
from einfuse.kernels.errors import KernelError

from .online import absorb, find_head, finish_softmax, load_tile, start_softmax, store_tile


class KeptBlocks(NamedTuple):
    """Which blocks of a mask ``[..., P1, M1]`` are kept.

    ``indices`` (int32 ``[..., P1, M1]``) starts with the kept key blocks in ascending order;
    ``counts`` (int32 ``[..., P1]``) says how many they are.
    """

    indices: Tensor
    counts: Tensor


def list_blocks(mask: Tensor) -> KeptBlocks:
    """Return the kept blocks of a boolean mask ``[..., P1, M1]``.

    >>> kept = list_blocks(torch.tensor([[False, True, False, True]]))
    >>> kept.counts.tolist(), kept.indices[0, :2].tolist()
    ([2], [1, 3])
    """
    order = torch.argsort(~mask, dim=-1, stable=True)
    return KeptBlocks(order.to(torch.int32), mask.sum(-1, dtype=torch.int32))


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    mask, size = problem.block_mask, problem.block_size
    if mask is None:
        raise KernelError(f"block_mask: kernel {kernel.name} expects one, found None")
    if problem.options.causal:
        mask = mask & _causal_blocks(problem)
    kept = list_blocks(mask.expand(problem.batch, problem.heads, -1, -1))
    row = kernel.configuration("forward", architecture, **problem.sizes)
    # A tile lies within one block of the mask.
    tiles: dict[str, Any] = {name: math.gcd(size, tile) for name, tile in row.tiles}
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {"out": out},
        lse_ptr=lse,
        indices_ptr=kept.indices,
        counts_ptr=kept.counts,
        scale_log2=problem.options.scale * LOG2_E,
        block_size=size,
        **tiles,
    )  # fmt: skip
    return (launch,)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    indices_ptr: tl.tensor,  # [batch, heads, P1, M1]
    counts_ptr: tl.tensor,  # [batch, heads, P1]
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, block_size: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head to the kept blocks of their row of the mask."""
    tiles = tl.cdiv(queries, block_p)
    first = tl.program_id(0) % tiles * block_p
    sequence = (tl.program_id(0) // tiles).to(tl.int64)  # batch and head
    batch = sequence // heads
    head = sequence % heads
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    out_ptr = find_head(out_at, batch, head)
    lse_ptr += sequence * queries
    mask_row = sequence * tl.cdiv(queries, block_size) + first // block_size
    indices_ptr += mask_row * tl.cdiv(keys, block_size)

    position = first + tl.arange(0, block_p) + keys - queries
    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)  # [p, e]
    acc, total, peak = start_softmax(block_p, block_f, accumulator)
    parts: tl.constexpr = block_size // block_m
    for step in range(0, tl.load(counts_ptr + mask_row) * parts):
        start = tl.load(indices_ptr + step // parts) * block_size + step % parts * block_m
        k = load_tile(k_ptr, start, keys, k_at.row, block_m, block_e, head_e, True)
        v = load_tile(v_ptr, start, keys, v_at.row, block_m, block_f, head_f, True)
        scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")  # [p, m]
        key = start + tl.arange(0, block_m)
        visible = (key < keys)[None, :]
        if causal:
            visible = visible & (key[None, :] <= position[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, True)

    out, log_sum = finish_softmax(acc, total, peak)
    row = first + tl.arange(0, block_p)
    tl.store(lse_ptr + row, log_sum, mask=row < queries)
    store_tile(out_ptr, out, first, queries, out_at.row, block_p, block_f, head_f)


def _causal_blocks(problem: Problem) -> Tensor:
    """Return which blocks [P1, M1] have a key that is not after the block's last query."""
    size, device = problem.block_size, problem.q.device
    stops = torch.arange(size, problem.queries + size, size, device=device)
    last_keys = stops.clamp(max=problem.queries) - 1 + problem.keys - problem.queries
    return torch.arange(0, problem.keys, size, device=device)[None, :] <= last_keys[:, None]
