"""Attention as PyTorch operators: traceable, differentiable, with a count of operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .arguments import check_problem
from .autotuning import tuned
from .pairs import count_pairs
from .problem import Options, Problem
from .register import empty_results, register_operator, with_contiguous_rows
from .registry import Kernel, Traits, choose_kernel, kernels, warn_once


def empty_outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return ``out`` (``q`` with F for E) and ``lse [B, H, P]`` (``[H, P]`` if packed), unset."""
    out, lse = empty_results(problem.q, problem.v)
    return out, lse.new_empty(lse.shape[1], lse.shape[0]) if problem.is_packed else lse


def empty_gradients(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors for the gradients of q, k and v, unset."""
    q, k, v = problem.q, problem.k, problem.v
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _forward(
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


def _empty_outputs(*inputs: Any) -> tuple[Tensor, Tensor]:
    problem = _problem(*inputs[:-2])
    check_problem(problem)
    return empty_outputs(problem)


def _backward(
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
    grad_out, grad_lse = with_contiguous_rows(grad_out), grad_lse.contiguous()

    def plan(kernel: Kernel) -> Any:
        return kernel.function("plan_backward")(
            kernel, problem, out, lse, grad_out, grad_lse, *gradients, traits.architecture
        )

    chosen = tuned(chosen, "backward", traits.architecture, problem.sizes, q.device, plan)
    for launch in plan(chosen):
        launch.run()
    return gradients


def _empty_gradients(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(_problem(*inputs[4:-2]))


def _count(*inputs: Any) -> int:
    problem = _problem(*inputs[:-2])
    return 2 * count_pairs(problem) * (problem.head_size + problem.value_size)


def _count_backward(*inputs: Any) -> int:
    problem = _problem(*inputs[4:-2])
    # Over E: the scores again, dQ and dK; over F: the gradient of the weights and dV.
    return 2 * count_pairs(problem) * (3 * problem.head_size + 2 * problem.value_size)


attention_operator = register_operator(
    "attention",
    _forward,
    empty_outputs=_empty_outputs,
    count=_count,
    backward=_backward,
    empty_gradients=_empty_gradients,
    count_backward=_count_backward,
)


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
        with_contiguous_rows(q),
        with_contiguous_rows(k),
        with_contiguous_rows(v),
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
    if not name and chosen.name == "plain" and traits.architecture != "cpu":
        refusals = (f"  {k.name} {k.refusal(traits)}" for k in kernels() if k != chosen)
        warn_once("no fused kernel takes this call, using 'plain':\n" + "\n".join(refusals))
    return chosen
