"""Linear attention with decay: Lightning attention and Mamba-2's SSD, in both directions.

Time and memory are linear in the number of tokens.
Sources: Qin et al., Lightning Attention-2 (2024); Dao and Gu, Mamba-2 (ICML 2024), section 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from einfuse.kernels.calls.architecture import find_architecture
from einfuse.kernels.calls.arguments import check_tensors, check_values
from einfuse.kernels.calls.register import pull_back, register_operator, with_contiguous_rows
from einfuse.kernels.calls.registry import find_or_fall_back

from .recurrence import RecurrenceProblem, attend_linearly, check_recurrence

_NAME = "linear-decay"


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return causal linear attention ``[B, H, N, F]`` and its final state ``[B, H, E, F]``.

    ``q`` and ``k`` are ``[B, G, N, E]``, ``v [B, H, N, F]`` with H a multiple of G. ``log_decay``
    is ``[H]``, one decay per head (Lightning attention), or ``[B, H, N]``, one per token
    (Mamba-2), finite and in float32. The state (float32) can be handed to the next call as
    ``initial_state``. Every tensor argument has a gradient.

    Raises KernelError (a ValueError) on bad arguments.
    """
    check_tensors(q=q, k=k, v=v, log_decay=log_decay)
    check_values({"scale": scale, "initial_state": initial_state})
    if log_decay.dim() == 1 and v.dim() == 4 and log_decay.shape[0] == v.shape[1]:
        log_decay = log_decay[None, :, None].expand(v.shape[:3])
    out, state = _attend(q, k, v, log_decay, initial_state, scale)
    return out, state


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    problem = _problem(q, k, v, log_decay, initial_state, scale)
    check_recurrence(problem)
    out, state = _empty_outputs(q, k, v, log_decay)
    architecture = find_architecture(q.device)
    kernel = find_or_fall_back(_NAME, problem.traits(architecture))
    if kernel is None:
        plain_out, plain_state = attend_linearly(problem, state.dtype)
        return out.copy_(plain_out), state.copy_(plain_state)
    for launch in kernel.function("plan_forward")(kernel, problem, out, state, architecture):
        launch.run()
    return out, state


def _empty_outputs(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    state = (*v.shape[:2], q.shape[-1], v.shape[-1])
    return v.new_empty(v.shape), log_decay.new_empty(state)


def _backward(
    grad_out: Tensor,
    grad_state: Tensor,
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(q, k, v, log_decay, initial_state, scale)
    architecture = find_architecture(q.device)
    kernel = find_or_fall_back(_NAME, problem.traits(architecture))
    if kernel is None:
        return _differentiate_plainly(problem, grad_out, grad_state, state)
    group = problem.heads // q.shape[1]
    per_head = (v.shape[0], problem.heads, *q.shape[2:])
    grad_q, grad_k, grad_v = q.new_empty(per_head), k.new_empty(per_head), v.new_empty(v.shape)
    reads, writes = (log_decay.new_empty(log_decay.shape) for _ in range(2))
    grad_initial = state.new_empty(state.shape)
    launches = kernel.function("plan_backward")(
        kernel, problem, grad_out, grad_state, grad_q, grad_k, grad_v, grad_initial,
        reads, writes, architecture,
    )  # fmt: skip
    for launch in launches:
        launch.run()
    # A token's decay reaches everything after it, the final state included.
    grad_total = reads - writes
    grad_total[..., -1] += (grad_state * state).sum((-1, -2))
    grad_decay = grad_total.flip(-1).cumsum(-1).flip(-1)
    if group > 1:
        groups = (v.shape[0], q.shape[1], group, *q.shape[2:])
        grad_q, grad_k = (grad.view(groups).sum(2) for grad in (grad_q, grad_k))
    return grad_q, grad_k, grad_v, grad_decay, grad_initial


def _empty_gradients(
    grad_out: Tensor, grad_state: Tensor, state: Tensor, q: Tensor, k: Tensor, v: Tensor,
    log_decay: Tensor, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v, log_decay, state))


def _differentiate_plainly(
    problem: RecurrenceProblem, grad_out: Tensor, grad_state: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    initial = torch.zeros_like(state) if problem.initial_state is None else problem.initial_state
    tensors = (problem.q, problem.k, problem.v, problem.log_decay, initial)

    def compute(*wide: Tensor) -> tuple[Tensor, Tensor]:
        again = RecurrenceProblem(wide[0], wide[1], wide[2], wide[3], problem.scale, wide[4])
        return attend_linearly(again, state.dtype)

    found = pull_back(compute, tensors, (grad_out, grad_state), state.dtype)
    return found[0], found[1], found[2], found[3], found[4]


def _count(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    """Two operations per multiply-add of the recurrence: a token writes the state and reads it."""
    return 2 * 2 * v.numel() * q.shape[3]


def _count_backward(grad_out: Tensor, grad_state: Tensor, state: Tensor, q: Tensor, *_: Any) -> int:
    # The state again and its gradient, and what either gives to the four gradients of a token.
    return 2 * 5 * grad_out.numel() * q.shape[3]


def _problem(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None, scale: float
) -> RecurrenceProblem:
    q, k, v = (with_contiguous_rows(t) for t in (q, k, v))
    return RecurrenceProblem(q, k, v, log_decay, scale, initial_state)


_attend = register_operator(
    "linear_attention",
    _forward,
    empty_outputs=_empty_outputs,
    count=_count,
    backward=_backward,
    empty_gradients=_empty_gradients,
    count_backward=_count_backward,
    saved=(1,),
)
