"""The plain formula on any device: what runs where no Triton kernel does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .problem import Problem
from .reference import attend_plainly
from .registry import Kernel


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A computation by PyTorch's own operators, with the face of a launch."""

    compute: Callable[[], None]

    def run(self) -> None:
        """Compute."""
        self.compute()


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Call, ...]:
    """Return the call that fills ``out`` and ``lse``, accumulating in float32 or better."""

    def compute() -> None:
        exact_out, exact_lse = attend_plainly(problem, lse.dtype)
        out.copy_(exact_out)
        lse.copy_(exact_lse)

    return (Call(compute),)


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
) -> tuple[Call, ...]:
    """Return the call that fills the gradients by differentiating the formula."""

    def compute() -> None:
        leaves = [t.detach().to(lse.dtype).requires_grad_() for t in _tensors(problem)]
        with torch.enable_grad():
            again = replace(problem, q=leaves[0], k=leaves[1], v=leaves[2])
            result, log_sum = attend_plainly(again, lse.dtype)
            seen = torch.isfinite(log_sum)
            value = (result * grad_out).sum() + (log_sum[seen] * grad_lse[seen]).sum()
        gradients = torch.autograd.grad(value, leaves)
        for target, gradient in zip((grad_q, grad_k, grad_v), gradients, strict=True):
            target.copy_(gradient)

    return (Call(compute),)


def _tensors(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return problem.q, problem.k, problem.v
