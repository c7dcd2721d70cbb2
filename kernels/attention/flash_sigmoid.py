"""Sigmoid attention (FlashSigmoid): no maximum, no sum, no rescaling; forward and backward.

Every weight is ``sigmoid(scale * q.k + bias)`` with one special-function operation per score:
either ``0.5 + 0.5 tanh(x / 2)`` by the hardware's tanh, or one exp2 whose reciprocal is a
polynomial on the multiply-add units. The first is shorter; the second keeps its relative
precision for the small weights that a bias of ``-log(keys)`` gives (see :func:`choose_method`).
Source: Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention".
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import Rows, attention_launch

from .online import find_head, find_keys, find_tile, load_tile, store_tile

Method = Literal["tanh", "exp2", "division"]
_ARGUMENT_FACTOR: dict[Method, float] = {"tanh": 0.5, "exp2": math.log2(math.e), "division": 1.0}
_TANH_ERROR = 2.0**-11
"""The largest relative error of ``tanh.approx.f32`` (PTX ISA, "tanh")."""


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]``, and ``lse [B, H, P]`` with -inf."""
    launch = attention_launch(
        forward_kernel, kernel, "forward", problem, architecture, {"out": out},
        lse_ptr=lse,
        **_sigmoid_arguments(problem, architecture),
    )  # fmt: skip
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
    """Return the launches that fill the gradients of q, and of k and v; neither uses atomics."""
    tensors, inputs = {"grad_out": grad_out}, _sigmoid_arguments(problem, architecture)
    scale = problem.options.scale
    return (
        attention_launch(
            backward_q_kernel, kernel, "backward_q", problem, architecture,
            {**tensors, "grad_q": grad_q}, scale=scale, **inputs,
        ),
        attention_launch(
            backward_kv_kernel, kernel, "backward_kv", problem, architecture,
            {**tensors, "grad_k": grad_k, "grad_v": grad_v}, over="keys", scale=scale, **inputs,
        ),
    )  # fmt: skip


@triton.jit
def forward_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, slope: tl.tensor,
    intercept: tl.tensor,
    causal: tl.constexpr, method: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend ``block_p`` queries of one head to all their keys."""
    first, batch, head = find_tile(queries, heads, causal, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    out_ptr = find_head(out_at, batch, head)

    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)  # [p, e]
    acc = tl.zeros([block_p, block_f], accumulator)
    full, stop = find_keys(first, queries, keys, causal, block_p, block_m)
    last_key = first + tl.arange(0, block_p) + (keys - queries)
    for masked in tl.static_range(2):  # blocks that every query sees in full, then the others
        for start in range(full if masked else 0, stop if masked else full, block_m):
            k = load_tile(k_ptr, start, keys, k_at.row, block_m, block_e, head_e, masked)
            v = load_tile(v_ptr, start, keys, v_at.row, block_m, block_f, head_f, masked)
            scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")
            weights = sigmoid(scores * slope + intercept, method)
            if masked and causal:  # keys past the end have v = 0
                key = start + tl.arange(0, block_m)
                weights = tl.where(key[None, :] <= last_key[:, None], weights, 0.0)
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee", out_dtype=accumulator)
    row = first + tl.arange(0, block_p)
    nothing = tl.full([block_p], float("-inf"), accumulator)  # weights are not normalised
    tl.store(lse_ptr + (batch * heads + head) * queries + row, nothing, mask=row < queries)
    store_tile(out_ptr, acc, first, queries, out_at.row, block_p, block_f, head_f)


@triton.jit
def backward_q_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, grad_out_at: Rows, grad_q_at: Rows,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    slope: tl.tensor, intercept: tl.tensor,
    causal: tl.constexpr, method: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient of ``block_p`` queries of one head."""
    first, batch, head = find_tile(queries, heads, causal, block_p)
    q_ptr = find_head(q_at, batch, head)
    k_ptr = find_head(k_at, batch, head // group)
    v_ptr = find_head(v_at, batch, head // group)
    grad_out_ptr = find_head(grad_out_at, batch, head)
    grad_q_ptr = find_head(grad_q_at, batch, head)

    q = load_tile(q_ptr, first, queries, q_at.row, block_p, block_e, head_e, True)
    grad_out = load_tile(
        grad_out_ptr, first, queries, grad_out_at.row, block_p, block_f, head_f, True
    )  # [p, f]
    grad_q = tl.zeros([block_p, block_e], accumulator)
    full, stop = find_keys(first, queries, keys, causal, block_p, block_m)
    last_key = first + tl.arange(0, block_p) + (keys - queries)
    for masked in tl.static_range(2):  # blocks that every query sees in full, then the others
        for start in range(full if masked else 0, stop if masked else full, block_m):
            k = load_tile(k_ptr, start, keys, k_at.row, block_m, block_e, head_e, masked)
            v = load_tile(v_ptr, start, keys, v_at.row, block_m, block_f, head_f, masked)
            scores = tl.dot(q, tl.trans(k), out_dtype=accumulator, input_precision="ieee")
            weights = sigmoid(scores * slope + intercept, method)
            if masked and causal:
                key = start + tl.arange(0, block_m)
                weights = tl.where(key[None, :] <= last_key[:, None], weights, 0.0)
            grad_weights = tl.dot(
                grad_out, tl.trans(v), out_dtype=accumulator, input_precision="ieee"
            )
            grad_scores = grad_weights * weights * (1.0 - weights)
            grad_q = tl.dot(
                grad_scores.to(k.dtype), k, grad_q, input_precision="ieee", out_dtype=accumulator
            )
    store_tile(grad_q_ptr, grad_q * scale, first, queries, grad_q_at.row, block_p, block_e, head_e)


@triton.jit
def backward_kv_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, grad_out_at: Rows, grad_k_at: Rows, grad_v_at: Rows,
    queries: tl.tensor, keys: tl.tensor, heads: tl.tensor, group: tl.tensor, scale: tl.tensor,
    slope: tl.tensor, intercept: tl.tensor,
    causal: tl.constexpr, method: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_p: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """The gradients of ``block_m`` keys and values of one key head, over its ``group`` heads."""
    tiles = tl.cdiv(keys, block_m)
    key_heads = heads // group
    first = tl.program_id(0) % tiles * block_m
    batch = (tl.program_id(0) // tiles // key_heads).to(tl.int64)
    key_head = (tl.program_id(0) // tiles % key_heads).to(tl.int64)
    k_ptr = find_head(k_at, batch, key_head)
    v_ptr = find_head(v_at, batch, key_head)
    k = load_tile(k_ptr, first, keys, k_at.row, block_m, block_e, head_e, True)  # [m, e]
    v = load_tile(v_ptr, first, keys, v_at.row, block_m, block_f, head_f, True)  # [m, f]
    grad_k = tl.zeros([block_m, block_e], accumulator)
    grad_v = tl.zeros([block_m, block_f], accumulator)
    key = first + tl.arange(0, block_m)
    begin = 0
    if causal:  # the first query that sees a key of this tile
        begin = tl.maximum(first - (keys - queries), 0) // block_p * block_p
    for member in range(0, group):
        head = key_head * group + member
        q_ptr = find_head(q_at, batch, head)
        grad_out_ptr = find_head(grad_out_at, batch, head)
        for start in range(begin, queries, block_p):
            q = load_tile(q_ptr, start, queries, q_at.row, block_p, block_e, head_e, True)
            grad_out = load_tile(
                grad_out_ptr, start, queries, grad_out_at.row, block_p, block_f, head_f, True
            )
            scores = tl.dot(k, tl.trans(q), out_dtype=accumulator, input_precision="ieee")  # [m, p]
            weights = sigmoid(scores * slope + intercept, method)
            if causal:
                last_key = start + tl.arange(0, block_p) + keys - queries
                weights = tl.where(key[:, None] <= last_key[None, :], weights, 0.0)
            grad_v = tl.dot(
                weights.to(grad_out.dtype),
                grad_out,
                grad_v,
                input_precision="ieee",
                out_dtype=accumulator,
            )
            grad_weights = tl.dot(
                v, tl.trans(grad_out), out_dtype=accumulator, input_precision="ieee"
            )
            grad_scores = grad_weights * weights * (1.0 - weights)
            grad_k = tl.dot(
                grad_scores.to(q.dtype), q, grad_k, input_precision="ieee", out_dtype=accumulator
            )
    grad_k_ptr = find_head(grad_k_at, batch, key_head)
    grad_v_ptr = find_head(grad_v_at, batch, key_head)
    store_tile(grad_k_ptr, grad_k * scale, first, keys, grad_k_at.row, block_m, block_e, head_e)
    store_tile(grad_v_ptr, grad_v, first, keys, grad_v_at.row, block_m, block_f, head_f)


@triton.jit
def sigmoid(x: tl.tensor, method: tl.constexpr) -> tl.tensor:
    """Return the sigmoid by ``method``, whose argument is ``x / 2``, ``x log2(e)`` or ``x``."""
    if method == "tanh":
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
        weights = 0.5 * half + 0.5
    elif method == "exp2":
        # With e = exp(-|x|) in (0, 1]: 1 / (1 + e) starts from the quadratic whose relative error
        # is the Chebyshev polynomial T3(1 - 2e) / 99, and a third-order step leaves 99**-3 = 1e-6.
        e = tl.math.exp2(-tl.abs(x))
        inverse = (0.32323232 * e - 0.80808081) * e + 0.98989899
        error = 1.0 - (e + 1.0) * inverse
        inverse += inverse * (error * error + error)
        weights = tl.where(x < 0.0, e * inverse, inverse)
    else:
        weights = 1.0 / (1.0 + tl.exp(-x))
    return weights


def _sigmoid_arguments(problem: Problem, architecture: str) -> dict[str, Any]:
    options = problem.options
    method = choose_method(problem.q.dtype, options.bias, architecture)
    factor = _ARGUMENT_FACTOR[method]
    return {
        "slope": options.scale * factor,
        "intercept": options.bias * factor,
        "method": method,
    }


def choose_method(dtype: torch.dtype, bias: float, architecture: str) -> Method:
    """Return how weights are computed.

    tanh is off by up to 2**-12 of one whatever the weight; it is taken where rounding a typical
    weight, ``sigmoid(bias)``, to the tensors' type costs as much.
    """
    if dtype in (torch.float32, torch.float64):
        return "division"
    typical = 1.0 / (1.0 + math.exp(-bias)) if bias > -700.0 else 0.0
    is_precise = typical * torch.finfo(dtype).eps >= _TANH_ERROR
    return "tanh" if is_precise and architecture != "interpreter" else "exp2"
