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
from einfuse.kernels.calls.tiles import LOG2_E, accumulator, padded, strides

from .online import load_slice, store_slice


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    q, k, v = problem.q, problem.k, problem.v
    row = kernel.configuration("forward", architecture, **problem.sizes)
    tiles = dict(row.tiles)
    block_m = padded(problem.keys)
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
            "group": problem.heads // problem.key_heads,
            "scale_log2": problem.options.scale * LOG2_E,
            "causal": problem.options.causal,
            "head_e": problem.head_size,
            "head_f": problem.value_size,
            "block_m": block_m,
            "accumulator": accumulator(q.dtype),
            **tiles,
        },
        options=row.options,
        tile={"P": tiles["block_p"], "M": block_m, "E": tiles["block_e"], "F": tiles["block_f"]},
    )
    return (launch,)


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
    deferred: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:
    """Attend ``block_p`` queries of one head to all their keys, ``block_m`` at most."""
    tiles = tl.cdiv(queries, block_p)
    first = tl.program_id(0) % tiles * block_p
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head // group * v_head
    out_ptr += batch * out_batch + head * out_head
    rows = first + tl.arange(0, block_p)
    columns = tl.arange(0, block_m)

    scores = tl.zeros([block_p, block_m], accumulator)
    for at in range(0, head_e, block_e):
        q = load_slice(q_ptr, first, queries, q_row, at, head_e, block_p, block_e)
        k = load_slice(k_ptr, 0, keys, k_row, at, head_e, block_m, block_e)
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
        v = load_slice(v_ptr, 0, keys, v_row, at, head_f, block_m, block_f)
        out = tl.dot(weights, v, out_dtype=accumulator, input_precision="ieee")  # [p, f]
        if deferred:
            out = out * inverse[:, None]
        store_slice(out_ptr, out, first, queries, out_row, at, head_f, block_p, block_f)
