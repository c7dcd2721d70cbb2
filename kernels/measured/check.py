"""The numerics rule: a kernel may err at most twice as much as the plain algorithm does.

The rule is FlashAttention's (tests/test_flash_attn.py) with a float64 reference; the second rule,
a ratio of root mean squares, is flash-linear-attention's (fla/utils/_testing.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RATIO_TOLERANCE = {
    torch.float16: 5e-3,
    torch.bfloat16: 1e-2,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}
"""The largest accepted RMS error over RMS value of a forward result; twice that for gradients."""


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


def _largest(difference: Tensor) -> float:
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    return largest if largest == largest else float("inf")
