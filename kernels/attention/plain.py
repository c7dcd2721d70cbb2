"""The plain formula on any device: what runs where no Triton kernel does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.reference import attend_plainly, differentiate_plainly
from einfuse.kernels.calls.registry import Kernel


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
    """Return the call that fills the gradients, accumulating in float32 or better."""

    def compute() -> None:
        gradients = differentiate_plainly(problem, grad_out, grad_lse, lse.dtype)
        for target, gradient in zip((grad_q, grad_k, grad_v), gradients, strict=True):
            target.copy_(gradient)

    return (Call(compute),)
