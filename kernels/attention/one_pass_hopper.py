"""One pass over the keys on Hopper: tensor descriptors (TMA) and specialised warps.

One group of warps loads tiles of K and V ahead, the others multiply and exponentiate: the layout
of FlashAttention-3 (arXiv 2407.08608), made by Triton from a loop marked ``warp_specialize``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel, find_kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch

from .one_pass_backward import plan_backward as _plan_backward
from .online import absorb, find_head, find_keys, find_tile, finish_softmax, start_softmax


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    block_m = dict(kernel.configuration("forward", architecture, **problem.sizes).tiles)["block_m"]
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {"out": out},
        lse_ptr=lse,
        scale_log2=problem.options.scale * LOG2_E,
        ragged=problem.keys % block_m != 0,
        needs_scratch=True,
    )  # fmt: skip
    return (launch,)


def plan_backward(kernel: Kernel, *call: Any) -> tuple[Launch, ...]:
    """Return the launches that fill the gradients: those of the one-pass kernel."""
    return _plan_backward(find_kernel("one-pass"), *call)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr,
    block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr, specialize: tl.constexpr,
    ragged: tl.constexpr, accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head to all their keys."""
    first, batch, head = find_tile(queries, heads, causal, block_p)
    q_tiles = tl.make_tensor_descriptor(
        find_head(q_at, batch, head), [queries, head_e], [q_at.row, 1], [block_p, block_e]
    )
    k_tiles = tl.make_tensor_descriptor(
        find_head(k_at, batch, head // group),
        [keys, head_e], [k_at.row, 1], [block_m, block_e],
    )  # fmt: skip
    v_tiles = tl.make_tensor_descriptor(
        find_head(v_at, batch, head // group),
        [keys, head_f], [v_at.row, 1], [block_m, block_f],
    )  # fmt: skip
    out_tiles = tl.make_tensor_descriptor(
        find_head(out_at, batch, head),
        [queries, head_f], [out_at.row, 1], [block_p, block_f],
    )  # fmt: skip
    q = q_tiles.load([first, 0])  # [p, e]; rows past the end are 0
    acc, total, peak = start_softmax(block_p, block_f, accumulator)

    full, stop = find_keys(first, queries, keys, causal, block_p, block_m)
    last_key = first + tl.arange(0, block_p) + (keys - queries)
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
    out_tiles.store([first, 0], out.to(out_at.ptr.dtype.element_ty))


@triton.jit
def _sweep(
    acc: tl.tensor, total: tl.tensor, peak: tl.tensor,
    q: tl.tensor,  # [p, e]
    k_tiles: tl.tensor, v_tiles: tl.tensor,
    last_key: tl.tensor,  # [p], under a causal mask
    start: tl.tensor, stop: tl.tensor, keys: tl.tensor, scale_log2: tl.tensor, masked: tl.constexpr,
    causal: tl.constexpr, block_m: tl.constexpr, specialize: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
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
