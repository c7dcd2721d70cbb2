"""The gate before timing: a kernel may err at most twice as much as the plain algorithm does.

The rule is FlashAttention's (tests/test_flash_attn.py) with a float64 reference; the second rule,
a ratio of root mean squares, is flash-linear-attention's (fla/utils/_testing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly

RATIO_TOLERANCE = {
    torch.float16: 5e-3,
    torch.bfloat16: 1e-2,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}
"""The largest accepted RMS error over RMS value of a forward result; twice that for gradients."""

_FACTOR, _GRADIENT_FACTOR = 2.0, 3.0
"""How much more than the plain algorithm a contender may err (flash-attention's tests)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a result is from the truth, and how far it may be."""

    error: float
    allowed: float
    rms_ratio: float
    rms_allowed: float

    @property
    def passed(self) -> bool:
        """Whether both rules hold; NaN anywhere fails them."""
        return self.error <= self.allowed and self.rms_ratio <= self.rms_allowed

    def __str__(self) -> str:
        return (
            f"{'passed' if self.passed else 'FAILED'}: largest error {self.error:.3g} "
            f"(allowed {self.allowed:.3g}), RMS ratio {self.rms_ratio:.3g} "
            f"(allowed {self.rms_allowed:.3g})"
        )


def judge(
    result: Tensor,
    exact: Tensor,
    plain: Tensor,
    factor: float = 2.0,
    gradient: bool = False,
    *,
    relative: bool = True,
) -> Verdict:
    """Return the verdict on a result, given the float64 truth and the plain algorithm's result.

    ``plain`` is computed in the result's own type. Rounding the truth itself to that type is
    allowed on top of ``factor`` times the plain algorithm's error. Without ``relative`` the
    second rule is left out: that of quantities around 0, such as a log-sum-exp.

    >>> x = torch.tensor([1.0, 2.0])
    >>> judge(x, x.double(), x).passed
    True
    """
    truth = exact.to(torch.float64)
    # -inf (an empty row's log-sum-exp) is right exactly where the truth is -inf.
    finite = torch.isfinite(truth)
    difference = torch.where(finite, result.to(torch.float64) - truth, 0.0)
    wrong_infinity = torch.where(finite, torch.zeros_like(truth), truth) != torch.where(
        finite, torch.zeros_like(truth), result.to(torch.float64)
    )
    error = float("inf") if bool(wrong_infinity.any()) else _largest(difference)
    rival = torch.where(finite, plain.to(torch.float64) - truth, 0.0)
    rounding = torch.where(finite, truth.to(result.dtype).to(torch.float64) - truth, 0.0)
    scale = float(torch.where(finite, truth, 0.0).square().mean().sqrt())
    tolerance = RATIO_TOLERANCE[result.dtype] * (2 if gradient else 1)
    return Verdict(
        error=error,
        allowed=factor * _largest(rival) + 2 * _largest(rounding) + torch.finfo(torch.float64).eps,
        rms_ratio=float(difference.square().mean().sqrt()) / (scale + 1e-8),
        rms_allowed=tolerance if relative else math.inf,
    )


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


def _largest(difference: Tensor) -> float:
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    return largest if largest == largest else float("inf")
