"""Attention written out: the truth in float64, and the same in low precision for its error."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import visible
from .problem import Problem


def attend_exactly(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp in float64.

    >>> from einfuse.kernels.calls.problem import Options
    >>> q = torch.zeros(1, 1, 1, 2); k = torch.zeros(1, 1, 4, 2); v = torch.eye(4)[None, None]
    >>> out, lse = attend_exactly(Problem(q, k, v, Options(scale=1.0)))
    >>> out.flatten().tolist(), round(lse.item(), 4)
    ([0.25, 0.25, 0.25, 0.25], 1.3863)
    """
    return attend_plainly(problem, torch.float64)


def attend_plainly(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp with every step rounded to ``dtype``.

    In the tensors' own type this is the rival of the numerics rule: the error that the plain
    algorithm makes.
    """
    if not problem.is_packed:
        return _attend(problem, dtype)
    parts = [attend_plainly(one, dtype) for one in problem.sequences()]
    out = torch.cat([out[0].transpose(0, 1) for out, _ in parts])
    return out, torch.cat([lse[0] for _, lse in parts], dim=-1)


def differentiate_plainly(
    problem: Problem, grad_out: Tensor, grad_lse: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v by the chain rule written out, in ``dtype``.

    ``grad_lse`` counts where a query sees a key. Autograd of :func:`attend_plainly` gives the
    same; an operator's implementation, which runs below autograd, needs it explicitly.
    """
    if not problem.is_packed:
        return _differentiate(problem, grad_out.to(dtype), grad_lse.to(dtype))
    parts = []
    at = 0
    for one in problem.sequences():
        rows = slice(at, at + one.queries)
        at += one.queries
        grads = grad_out[rows].transpose(0, 1)[None], grad_lse[None, :, rows]
        parts.append(differentiate_plainly(one, *grads, dtype))
    q, k, v = (
        torch.cat([part[0].transpose(0, 1) for part in of]) for of in zip(*parts, strict=True)
    )
    return q, k, v


def _attend(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    _, _, v = _wide(problem, dtype)
    weights, _, lse = _weigh(problem, dtype)
    return weights @ v, lse


def _differentiate(
    problem: Problem, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    options, dtype = problem.options, grad_out.dtype
    q, k, v = _wide(problem, dtype)
    weights, slope, lse = _weigh(problem, dtype)
    grad_weights = grad_out @ v.transpose(-1, -2)  # [b, h, p, m]
    if options.similarity == "sigmoid":
        grad_scores = weights * (1 - weights) * grad_weights
    else:
        grad_lse = torch.where(torch.isfinite(lse), grad_lse, 0.0)
        delta = (weights * grad_weights).sum(-1) - grad_lse
        grad_scores = weights * (grad_weights - delta[..., None])
    grad_scores = grad_scores * slope * options.scale
    grad_k = grad_scores.transpose(-1, -2) @ q
    grad_v = weights.transpose(-1, -2) @ grad_out
    shared = (problem.batch, problem.key_heads, problem.heads // problem.key_heads)
    return (
        grad_scores @ k,
        grad_k.reshape(*shared, *grad_k.shape[2:]).sum(2),
        grad_v.reshape(*shared, *grad_v.shape[2:]).sum(2),
    )


def _weigh(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor | float, Tensor]:
    """The weights ``[B, H, P, M]``, the slope of the soft cap there, and the log-sum-exp."""
    options = problem.options
    q, k, _ = _wide(problem, dtype)
    seen = visible(problem)
    scores = (q * options.scale) @ k.transpose(-1, -2)
    slope: Tensor | float = 1.0
    if options.softcap:
        bounded = torch.tanh(scores / options.softcap)
        scores, slope = options.softcap * bounded, 1 - bounded.square()
    if options.similarity == "sigmoid":
        weights = torch.sigmoid(scores + options.bias).masked_fill(~seen, 0.0)
        return weights, slope, torch.full_like(scores[..., 0], float("-inf"))
    scores = scores.masked_fill(~seen, float("-inf"))
    # softmax of a row without any visible key is NaN: such a row attends to nothing.
    weights = torch.softmax(scores, dim=-1).masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weights, slope, torch.logsumexp(scores, dim=-1)


def _wide(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in ``dtype``, key heads repeated for the heads that share them."""
    group = problem.heads // problem.key_heads
    q, k, v = (tensor.to(dtype) for tensor in (problem.q, problem.k, problem.v))
    return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
