"""The kernel of attention of many responses that share a prompt, on the line of their tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Options, Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch
from einfuse.kernels.compiled.examples import Example, sizes_and_dtypes

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
    kernel: Kernel,
    problem: Problem,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    tokens: int,
    out: Tensor,
    lse: Tensor,
    architecture: str,
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, R P, F]`` and ``lse [B, H, R P]`` (float32).

    ``problem`` has the queries ``[B, H, R P, E]`` of all responses, ``tokens`` (P) each, and the
    keys and values of the prefixes; ``k [B, G, R P, E]`` and ``v`` are those of the responses.
    """
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture,
        {"out": out, "k": k, "v": v, "prefix_k": problem.k, "prefix_v": problem.v},
        lse_ptr=lse,
        lengths_ptr=lengths,
        tokens=tokens,
        scale_log2=problem.options.scale * LOG2_E,
    )  # fmt: skip
    return (launch,)


def examples(kernel: Kernel, architecture: str) -> Iterator[Example]:
    """Yield the launches of every shipped configuration, for each data type."""
    batch, heads, key_heads, responses, tokens, prefix = 1, 32, 8, 8, 512, 4096
    for size, dtype in sizes_and_dtypes(kernel, architecture):
        q, k, shared = (
            torch.empty(shape, dtype=dtype, device="meta")
            for shape in (
                (batch, heads, responses * tokens, size),
                (batch, key_heads, responses * tokens, size),
                (batch, key_heads, prefix, size),
            )
        )
        problem = Problem(q, shared, shared, Options(scale=size**-0.5))
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        label = f"head_size={size} {str(dtype).removeprefix('torch.')}"
        for launch in plan_forward(kernel, problem, k, k, None, tokens, q, lse, architecture):
            yield Example(f"{launch.function.__name__} {label}", launch)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, prefix_k_at: Rows, prefix_v_at: Rows,
    lengths_ptr: tl.tensor,  # [batch, responses] or None
    out_at: Rows, lse_ptr: tl.tensor,
    queries: tl.tensor,  # responses * tokens
    tokens: tl.tensor,
    keys: tl.tensor,  # of the prefix
    heads: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr, block_f: tl.constexpr,
    block_p: tl.constexpr, block_m: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` tokens on the line of one prompt's responses, for one head."""
    first, batch, head = find_tile(queries, heads, False, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    prefix_k_ptr = find_head(prefix_k_at, batch, head // group)
    prefix_v_ptr = find_head(prefix_v_at, batch, head // group)
    out_ptr = find_head(out_at, batch, head)
    lse_ptr += (batch * heads + head) * queries
    if lengths_ptr is not None:
        lengths_ptr += batch * (queries // tokens)

    row = first + tl.arange(0, block_p)
    exists = _exists(row, lengths_ptr, queries, tokens)
    q = _load_existing(q_ptr, row, exists, q_at.row, block_e, head_e)  # [p, e]
    acc, total, peak = start_softmax(block_p, block_f, accumulator)
    full = keys // block_m * block_m
    for masked in tl.static_range(2):
        for start in range(full if masked else 0, keys if masked else full, block_m):
            k = load_tile(
                prefix_k_ptr, start, keys, prefix_k_at.row, block_m, block_e, head_e, masked
            )
            v = load_tile(
                prefix_v_ptr, start, keys, prefix_v_at.row, block_m, block_f, head_f, masked
            )
            scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")
            if masked:
                key = start + tl.arange(0, block_m)
                scores = tl.where((key < keys)[None, :], scores, float("-inf"))
            acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, masked)
    # The responses of the tile: from the start of the first one to the tile's last token.
    for start in range(first // tokens * tokens, tl.minimum(first + block_p, queries), block_m):
        key = start + tl.arange(0, block_m)
        present = _exists(key, lengths_ptr, queries, tokens)
        k = _load_existing(k_ptr, key, present, k_at.row, block_e, head_e)  # [m, e]
        v = _load_existing(v_ptr, key, present, v_at.row, block_f, head_f)  # [m, f]
        scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")
        visible = (key[None, :] <= row[:, None]) & (key // tokens == (row // tokens)[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, True)

    out, log_sum = finish_softmax(acc, tl.where(exists, total, 0.0), peak)
    tl.store(lse_ptr + row, log_sum, mask=row < queries)
    store_tile(out_ptr, out, first, queries, out_at.row, block_p, block_f, head_f)


@triton.jit
def _exists(
    row: tl.tensor, lengths_ptr: tl.tensor, queries: tl.tensor, tokens: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Whether rows of the line are tokens of a response."""
    exists = row < queries
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + row // tokens, mask=exists, other=0)
        exists = row % tokens < length
    return exists


@triton.jit
def _load_existing(
    pointer: tl.tensor, row: tl.tensor, exists: tl.tensor, stride: tl.tensor, columns: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load rows of the line, zero where there is none."""
    column = tl.arange(0, columns)
    return tl.load(
        pointer + row[:, None].to(tl.int64) * stride + column[None, :],
        mask=exists[:, None] & (column < width)[None, :],
        other=0.0,
    )
