"""Three passes over the keys, fused: a tile of queries keeps its scores of all keys on chip.

FLAT's dataflow (Kao et al., ASPLOS 2023) on a GPU: the scores live in registers, so that the
length of the keys is bounded, and K and V are taken in slices of the head size instead. With
``deferred`` the division follows the product with V: F divisions a query instead of M.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import LOG2_E, Rows, attention_launch, padded

from .online import find_head, find_tile, load_slice, store_slice


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {"out": out},
        lse_ptr=lse,
        scale_log2=problem.options.scale * LOG2_E,
        block_m=padded(problem.keys),
    )  # fmt: skip
    return (launch,)


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr, block_e: tl.constexpr,
    block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr, deferred: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head to all their keys, ``block_m`` at most."""
    first, batch, head = find_tile(queries, heads, False, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    out_ptr = find_head(out_at, batch, head)
    rows = first + tl.arange(0, block_p)
    columns = tl.arange(0, block_m)

    scores = tl.zeros([block_p, block_m], accumulator)
    for at in range(0, head_e, block_e):
        q = load_slice(q_ptr, first, queries, q_at.row, at, head_e, block_p, block_e)
        k = load_slice(k_ptr, 0, keys, k_at.row, at, head_e, block_m, block_e)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="ieee", out_dtype=accumulator)
    seen = (columns < keys)[None, :]
    if causal:
        seen = seen & (columns[None, :] <= (rows + keys - queries)[:, None])
    scores = tl.where(seen, scores, float("-inf"))

    peak = tl.max(scores, 1) * scale_log2  # GM
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.math.exp2(scores * scale_log2 - shift[:, None])  # SN
    total = tl.sum(weights, 1)  # SD
    empty = total == 0.0
    present = tl.where(empty, 1.0, total)
    inverse = tl.where(empty, 0.0, 1.0 / present)
    log_sum = tl.where(empty, float("-inf"), (peak + tl.math.log2(present)) * 0.6931471805599453)
    lse_ptr += (batch * heads + head) * queries
    tl.store(lse_ptr + rows, log_sum, mask=rows < queries)
    if not deferred:
        weights = weights * inverse[:, None]  # A
    weights = weights.to(v_ptr.dtype.element_ty)
    for at in range(0, head_f, block_f):
        v = load_slice(v_ptr, 0, keys, v_at.row, at, head_f, block_m, block_f)
        out = tl.dot(weights, v, out_dtype=accumulator, input_precision="ieee")  # [p, f]
        if deferred:
            out = out * inverse[:, None]
        store_slice(out_ptr, out, first, queries, out_at.row, at, head_f, block_p, block_f)
