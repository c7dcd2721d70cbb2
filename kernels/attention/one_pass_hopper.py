"""One pass over the keys on Hopper: tensor descriptors (TMA) and specialised warps.

One group of warps loads tiles of K and V ahead, the others multiply and exponentiate: the layout
of FlashAttention-3 (arXiv 2407.08608), made by Triton from a loop marked ``warp_specialize``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel, find_kernel
from einfuse.kernels.calls.tiles import LOG2_E, head_arguments, loop_tile, strides

from .one_pass_backward import plan_backward as _plan_backward
from .online import absorb, finish_softmax, start_softmax


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
            "scale_log2": problem.options.scale * LOG2_E,
            "causal": problem.options.causal,
            "ragged": problem.keys % tiles["block_m"] != 0,
            **head_arguments(problem),
            **tiles,
        },
        options=row.options,
        tile=loop_tile(problem, tiles),
        needs_scratch=True,
    )
    return (launch,)


def plan_backward(
    kernel: Kernel,
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    architecture: str,
) -> tuple[Launch, ...]:
    """Return the launches that fill the gradients: those of the one-pass kernel."""
    return _plan_backward(
        find_kernel("one-pass"), problem, out, lse, grad_out, grad_lse, grad_q, grad_k, grad_v,
        architecture,
    )  # fmt: skip


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
    causal: tl.constexpr,
    head_e: tl.constexpr,
    head_f: tl.constexpr,
    block_e: tl.constexpr,
    block_f: tl.constexpr,
    block_p: tl.constexpr,
    block_m: tl.constexpr,
    specialize: tl.constexpr,
    ragged: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Attend ``block_p`` queries of one head to all their keys."""
    tiles = tl.cdiv(queries, block_p)
    tile = tl.program_id(0) % tiles
    if causal:
        tile = tiles - 1 - tile  # the longest rows start first
    first = tile * block_p
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    q_tiles = tl.make_tensor_descriptor(
        q_ptr + batch * q_batch + head * q_head, [queries, head_e], [q_row, 1], [block_p, block_e]
    )
    k_tiles = tl.make_tensor_descriptor(
        k_ptr + batch * k_batch + head // group * k_head,
        [keys, head_e], [k_row, 1], [block_m, block_e],
    )  # fmt: skip
    v_tiles = tl.make_tensor_descriptor(
        v_ptr + batch * v_batch + head // group * v_head,
        [keys, head_f], [v_row, 1], [block_m, block_f],
    )  # fmt: skip
    out_tiles = tl.make_tensor_descriptor(
        out_ptr + batch * out_batch + head * out_head,
        [queries, head_f], [out_row, 1], [block_p, block_f],
    )  # fmt: skip
    q = q_tiles.load([first, 0])  # [p, e]; rows past the end are 0
    acc, total, peak = start_softmax(block_p, block_f, accumulator)

    # Query p sees the keys up to p + offset. Every query of the tile sees the first `full` keys.
    offset = keys - queries
    stop = keys
    full = keys // block_m * block_m
    if causal:
        stop = tl.maximum(tl.minimum(keys, first + block_p + offset), 0)
        full = tl.maximum(tl.minimum(keys, first + offset + 1), 0) // block_m * block_m
    last_key = first + tl.arange(0, block_p) + offset
    if specialize:  # the compiler specialises warps of a kernel with one loop only
        acc, total, peak = _sweep(
            acc, total, peak, q, k_tiles, v_tiles, last_key, 0, stop, keys, scale_log2,
            ragged or causal, causal, block_m, True,
        )  # fmt: skip
    else:
        acc, total, peak = _sweep(
            acc, total, peak, q, k_tiles, v_tiles, last_key, 0, full, keys, scale_log2,
            False, causal, block_m, False,
        )  # fmt: skip
        acc, total, peak = _sweep(
            acc, total, peak, q, k_tiles, v_tiles, last_key, full, stop, keys, scale_log2,
            True, causal, block_m, False,
        )  # fmt: skip

    out, lse = finish_softmax(acc, total, peak)
    rows = first + tl.arange(0, block_p)
    lse_ptr += (batch * heads + head) * queries
    tl.store(lse_ptr + rows, lse, mask=rows < queries)
    out_tiles.store([first, 0], out.to(out_ptr.dtype.element_ty))


@triton.jit
def _sweep(
    acc: tl.tensor,
    total: tl.tensor,
    peak: tl.tensor,
    q: tl.tensor,  # [p, e]
    k_tiles: tl.tensor,
    v_tiles: tl.tensor,
    last_key: tl.tensor,  # [p], under a causal mask
    start: tl.tensor,
    stop: tl.tensor,
    keys: tl.tensor,
    scale_log2: tl.tensor,
    masked: tl.constexpr,
    causal: tl.constexpr,
    block_m: tl.constexpr,
    specialize: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take in the keys from ``start`` to ``stop``; without ``masked`` every query sees them."""
    for first in tl.range(start, stop, block_m, warp_specialize=specialize):
        k = k_tiles.load([first, 0])  # rows past the end are 0
        scores = tl.dot(q, tl.trans(k), out_dtype=acc.dtype, input_precision="ieee")  # [p, m]
        if masked:
            columns = first + tl.arange(0, block_m)
            seen = (columns < keys)[None, :]
            if causal:
                seen = seen & (columns[None, :] <= last_key[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        v = v_tiles.load([first, 0])
        acc, total, peak = absorb(acc, total, peak, scores, v, scale_log2, masked)
    return acc, total, peak
