"""The gate before timing: a contender's results against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly

from .check import Verdict, judge

_FACTOR, _GRADIENT_FACTOR = 2.0, 3.0
"""How much more than the plain algorithm a contender may err (flash-attention's tests)."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The right results on a part of a problem, and what the plain algorithm makes of it.

    The part is one key head of the last sequence with its query heads: attention does not mix
    sequences or heads. ``exact`` and ``plain`` hold the output or, with ``grad_out``, the
    gradients of q, k and v.
    """

    exact: tuple[Tensor, ...]
    plain: tuple[Tensor, ...]
    is_gradient: bool

    def judge(self, results: tuple[Tensor, ...]) -> Verdict:
        """Return the worst verdict on a contender's whole results."""
        factor = _GRADIENT_FACTOR if self.is_gradient else _FACTOR
        verdicts = [
            judge(_last_part(result, exact), exact, plain, factor, self.is_gradient)
            for result, exact, plain in zip(results, self.exact, self.plain, strict=True)
        ]
        return max(verdicts, key=error_ratio)


def error_ratio(verdict: Verdict) -> float:
    """Return a verdict's error over what is allowed: it passes up to 1.

    >>> error_ratio(Verdict(error=3.0, allowed=4.0, rms_ratio=0.2, rms_allowed=0.4))
    0.75
    """
    ratios = (verdict.error / verdict.allowed, verdict.rms_ratio / verdict.rms_allowed)
    return float("inf") if any(ratio != ratio for ratio in ratios) else max(ratios)


def find_truth(problem: Problem, grad_out: Tensor | None = None) -> Truth:
    """Return the truth about a problem; of its gradients, given ``grad_out [B, H, P, F]``."""
    group = problem.heads // problem.key_heads
    part = replace(
        problem,
        q=problem.q[-1:, -group:].detach(),
        k=problem.k[-1:, -1:].detach(),
        v=problem.v[-1:, -1:].detach(),
    )
    if grad_out is None:
        exact, _ = attend_exactly(part)
        plain, _ = attend_plainly(part, problem.q.dtype)
        return Truth((exact,), (plain,), is_gradient=False)
    grad = grad_out[-1:, -group:]
    return Truth(
        _gradients(part, grad, torch.float64),
        _gradients(part, grad, problem.q.dtype),
        is_gradient=True,
    )


def _gradients(part: Problem, grad_out: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    leaves = tuple(t.to(dtype).clone().requires_grad_() for t in (part.q, part.k, part.v))
    with torch.enable_grad():
        out, _ = attend_plainly(replace(part, q=leaves[0], k=leaves[1], v=leaves[2]), dtype)
    return torch.autograd.grad(out, leaves, grad_out.to(out.dtype))


def _last_part(result: Tensor, exact: Tensor) -> Tensor:
    return result[-exact.shape[0] :, -exact.shape[1] :].detach()
