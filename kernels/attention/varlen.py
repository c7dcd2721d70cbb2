"""Sequences of different lengths packed end to end, without padding (ByteTransformer).

Tiles never cross from one sequence into the next, and no tile of padding is computed.
Source: Zhai et al., ByteTransformer (IPDPS 2023), with the running softmax of FlashAttention-2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch, rows
from einfuse.kernels.errors import KernelError

from .online import absorb, find_keys, finish_softmax, load_tile, start_softmax, store_tile


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [P, H, F]`` and ``lse [H, P]`` (float32)."""
    if problem.starts_q is None or problem.starts_k is None:
        raise KernelError(f"cu_seqlens: kernel {kernel.name} expects it, found None")
    packed = (("q", problem.q), ("k", problem.k), ("v", problem.v), ("out", out))
    operands: dict[str, Any] = {
        f"{name}_at": rows(tensor.transpose(0, 1)[None]) for name, tensor in packed
    }
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {},
        lse_ptr=lse,
        starts_q_ptr=problem.starts_q,
        starts_k_ptr=problem.starts_k,
        lse_head=lse.stride(0),
        scale_log2=problem.options.scale * LOG2_E,
        **operands,
    )  # fmt: skip
    tiles = triton.cdiv(problem.queries, launch.arguments["block_p"])
    return (replace(launch, grid=(tiles, problem.heads, problem.batch)),)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor, starts_q_ptr: tl.tensor,
    starts_k_ptr: tl.tensor,
    lse_head: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr,
    block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head of one sequence to the keys of that sequence."""
    head = tl.program_id(1).to(tl.int64)
    sequence = tl.program_id(2)
    start_q = tl.load(starts_q_ptr + sequence).to(tl.int64)
    start_k = tl.load(starts_k_ptr + sequence).to(tl.int64)
    queries = (tl.load(starts_q_ptr + sequence + 1) - start_q).to(tl.int32)
    keys = (tl.load(starts_k_ptr + sequence + 1) - start_k).to(tl.int32)
    tile = tl.program_id(0)
    if causal:
        tile = tl.num_programs(0) - 1 - tile  # the longest rows start first
    first = tile * block_p
    if first >= queries:
        return
    q_ptr = q_at.ptr + (start_q * q_at.row + head * q_at.head)
    k_ptr = k_at.ptr + (start_k * k_at.row + head // group * k_at.head)
    v_ptr = v_at.ptr + (start_k * v_at.row + head // group * v_at.head)
    out_ptr = out_at.ptr + (start_q * out_at.row + head * out_at.head)
    lse_ptr += start_q + head * lse_head

    # Positions among the sequence's keys: query p stands at p + keys - queries.
    position = first + tl.arange(0, block_p) + keys - queries
    full, stop = find_keys(first, queries, keys, causal, block_p, block_m)
    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)  # [p, e]
    acc, total, peak = start_softmax(block_p, block_f, accumulator)
    for masked in tl.static_range(2):  # blocks that every query sees in full, then the others
        for start in range(full if masked else 0, stop if masked else full, block_m):
            k = load_tile(k_ptr, start, keys, k_at.row, block_m, block_e, head_e, masked)
            v = load_tile(v_ptr, start, keys, v_at.row, block_m, block_f, head_f, masked)
            scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")
            if masked:
                key = start + tl.arange(0, block_m)
                visible = (key < keys)[None, :]
                if causal:
                    visible = visible & (key[None, :] <= position[:, None])
                scores = tl.where(visible, scores, float("-inf"))
            acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, masked)

    out, log_sum = finish_softmax(acc, total, peak)
    row = first + tl.arange(0, block_p)
    tl.store(lse_ptr + row, log_sum, mask=row < queries)
    store_tile(out_ptr, out, first, queries, out_at.row, block_p, block_f, head_f)
