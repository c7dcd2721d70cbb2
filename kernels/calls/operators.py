"""Attention as PyTorch operators: traceable, differentiable, with a count of operations."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .arguments import check_problem
from .autotuning import tuned
from .pairs import count_pairs
from .problem import Options, Problem
from .registry import Kernel, Traits, choose_kernel, kernels


def empty_outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return ``out`` (``q`` with F for E) and ``lse [B, H, P]`` (``[H, P]`` if packed), unset."""
    q = problem.q
    out = q.new_empty((*q.shape[:-1], problem.value_size))
    ranks = (q.shape[1], q.shape[0]) if problem.is_packed else q.shape[:-1]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, q.new_empty(ranks, dtype=exact)


def empty_gradients(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors for the gradients of q, k and v, unset."""
    q, k, v = problem.q, problem.k, problem.v
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.custom_op("einfuse::attention", mutates_args=())
def attention_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor | None,
    starts_k: Tensor | None,
    block_mask: Tensor | None,
    full_heads: Tensor | None,
    block_size: int,
    scale: float,
    causal: bool,
    window: int | None,
    sinks: int,
    similarity: str,
    bias: float,
    softcap: float,
    kernel: str,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp (float32) that a named kernel computes."""
    problem = _problem(
        q, k, v, starts_q, starts_k, block_mask, full_heads, block_size, scale, causal, window,
        sinks, similarity, bias, softcap,
    )  # fmt: skip
    check_problem(problem)
    out, lse = empty_outputs(problem)
    traits = problem.traits(training=training)
    chosen = _choose(traits, kernel)

    def plan(kernel: Kernel) -> Any:
        return kernel.function("plan_forward")(kernel, problem, out, lse, traits.architecture)

    chosen = tuned(chosen, "forward", traits.architecture, problem.sizes, q.device, plan)
    for launch in plan(chosen):
        launch.run()
    return out, lse


@attention_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    problem = _problem(q, k, v, *options[:-2])
    check_problem(problem)
    return empty_outputs(problem)


@torch.library.custom_op("einfuse::attention_backward", mutates_args=())
def attention_backward_operator(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor | None,
    starts_k: Tensor | None,
    block_mask: Tensor | None,
    full_heads: Tensor | None,
    block_size: int,
    scale: float,
    causal: bool,
    window: int | None,
    sinks: int,
    similarity: str,
    bias: float,
    softcap: float,
    kernel: str,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    problem = _problem(
        q, k, v, starts_q, starts_k, block_mask, full_heads, block_size, scale, causal, window,
        sinks, similarity, bias, softcap,
    )  # fmt: skip
    gradients = empty_gradients(problem)
    traits = problem.traits(training=training)
    chosen = _choose(traits, kernel)
    grad_out, grad_lse = _rows_contiguous(grad_out), grad_lse.contiguous()

    def plan(kernel: Kernel) -> Any:
        return kernel.function("plan_backward")(
            kernel, problem, out, lse, grad_out, grad_lse, *gradients, traits.architecture
        )

    chosen = tuned(chosen, "backward", traits.architecture, problem.sizes, q.device, plan)
    for launch in plan(chosen):
        launch.run()
    return gradients


@attention_backward_operator.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_gradients(_problem(q, k, v, *options[:-2]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, options = inputs[:7], inputs[7:]
    ctx.save_for_backward(*output, *tensors)
    ctx.options = options


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = attention_backward_operator(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return (*gradients, *(None for _ in range(4 + len(ctx.options))))


attention_operator.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.einfuse.attention, get_raw=True)
def _count_forward(q: Tensor, k: Tensor, v: Tensor, *options: Any, **_: Any) -> int:
    problem = _problem(q, k, v, *options[:-2])
    return 2 * count_pairs(problem) * (problem.head_size + problem.value_size)


@register_flop_formula(torch.ops.einfuse.attention_backward, get_raw=True)
def _count_backward(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    *options: Any, **_: Any,
) -> int:  # fmt: skip
    problem = _problem(q, k, v, *options[:-2])
    # Over E: the scores again, dQ and dK; over F: the gradient of the weights and dV.
    return 2 * count_pairs(problem) * (3 * problem.head_size + 2 * problem.value_size)


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor | None,
    starts_k: Tensor | None,
    block_mask: Tensor | None,
    full_heads: Tensor | None,
    block_size: int,
    *options: Any,
) -> Problem:
    return Problem(
        _rows_contiguous(q),
        _rows_contiguous(k),
        _rows_contiguous(v),
        Options(*options),
        starts_q,
        starts_k,
        block_mask,
        block_size,
        full_heads,
    )


def _choose(traits: Traits, name: str) -> Kernel:
    """The named kernel, or the preferred one; says once if no fused kernel takes the call."""
    chosen = choose_kernel(traits, name or None)
    if not name and chosen.module == "plain" and traits.architecture != "cpu":
        refusals = (f"  {k.name} {k.refusal(traits)}" for k in kernels() if k != chosen)
        _warn_once("no fused kernel takes this call, using 'plain':\n" + "\n".join(refusals))
    return chosen


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
