"""Linear attention with decay: its tensors, their checks, and the plain formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from einfuse.kernels.calls.arguments import check_operands
from einfuse.kernels.calls.register import exact_type
from einfuse.kernels.calls.registry import Traits
from einfuse.kernels.errors import KernelError


@dataclass(frozen=True, slots=True, eq=False)
class RecurrenceProblem:
    """The state ``S[n] = exp(log_decay[n]) S[n-1] + k[n] v[n]``, read by ``scale q[n] S[n]``.

    With B sequences of N tokens, H heads and G groups (H a multiple of G): ``q`` and ``k``
    ``[B, G, N, E]``, ``v [B, H, N, F]``, ``log_decay [B, H, N]`` (float32; at most 0 in a
    recurrence that forgets), ``initial_state [B, H, E, F]`` (float32, zero if None). Lightning
    attention has one decay per head and G = H; Mamba-2 has ``q = C``, ``k = B``, ``v = dt X`` and
    ``log_decay = dt A``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    scale: float = 1.0
    initial_state: Tensor | None = None

    @property
    def heads(self) -> int:
        """H, the number of value heads."""
        return self.v.shape[1]

    @property
    def tokens(self) -> int:
        """N, the number of tokens."""
        return self.v.shape[2]

    @property
    def key_size(self) -> int:
        """E, the length of a query or key."""
        return self.q.shape[3]

    @property
    def value_size(self) -> int:
        """F, the length of a value."""
        return self.v.shape[3]

    @property
    def sizes(self) -> dict[str, int]:
        """What the rows of a kernel's configurations may be conditional on."""
        return {
            "head_size": max(self.key_size, self.value_size),
            "itemsize": self.q.element_size(),
        }

    def traits(self, architecture: str) -> Traits:
        """Return what a kernel must know to say whether it takes this call."""
        return Traits(
            architecture=architecture,
            dtype=str(self.q.dtype).removeprefix("torch."),
            heads=self.heads,
            key_heads=self.q.shape[1],
            queries=self.tokens,
            keys=self.tokens,
            head_size=self.key_size,
            value_size=self.value_size,
            features=frozenset({"decay", "backward"}),
        )


def check_recurrence(problem: RecurrenceProblem) -> None:
    """Raise a KernelError unless the tensors belong together."""
    q, k, v = problem.q, problem.k, problem.v
    check_operands(("q", q, "[B, G, N, E]"), ("k", k, "[B, G, N, E]"), ("v", v, "[B, H, N, F]"))
    if k.shape != q.shape:
        raise KernelError(f"k: expected {list(q.shape)} as q, found {list(k.shape)}")
    if v.shape[0] != q.shape[0] or v.shape[2] != q.shape[2]:
        raise KernelError(
            f"v: expected batch {q.shape[0]} and {q.shape[2]} tokens as q, found {list(v.shape)}"
        )
    if v.shape[1] % q.shape[1]:
        raise KernelError(
            f"q: expected a number of groups that divides the {v.shape[1]} heads of v, "
            f"found {q.shape[1]}"
        )
    exact = exact_type(q.dtype)
    state = (v.shape[0], v.shape[1], q.shape[3], v.shape[3])
    for name, extra, shape in (
        ("log_decay", problem.log_decay, tuple(v.shape[:3])),
        ("initial_state", problem.initial_state, state),
    ):
        if extra is not None and (tuple(extra.shape) != shape or extra.dtype != exact):
            raise KernelError(
                f"{name}: expected {exact} {list(shape)}, found {extra.dtype} {list(extra.shape)}"
            )
        if extra is not None and extra.device != q.device:
            raise KernelError(f"{name}: expected it on {q.device} as q, found {extra.device}")
    # Reading a GPU's values would wait for it.
    if q.device.type == "cpu" and not bool(torch.isfinite(problem.log_decay).all()):
        raise KernelError("log_decay: expected finite numbers, found an infinity or NaN")
    if not math.isfinite(problem.scale):
        raise KernelError(f"scale: expected a finite number, found {problem.scale}")


def attend_linearly(problem: RecurrenceProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return output [B, H, N, F] and final state [B, H, E, F] by the quadratic formula.

    Steps are rounded to ``dtype``; decays are float32 at least, as in every implementation.
    """
    group = problem.heads // problem.q.shape[1]
    q, k = (t.to(dtype).repeat_interleave(group, 1) for t in (problem.q, problem.k))
    v = problem.v.to(dtype)
    total = problem.log_decay.to(torch.promote_types(dtype, torch.float32)).cumsum(-1)  # [b, h, n]
    since = total[..., :, None] - total[..., None, :]
    earlier = torch.ones(problem.tokens, problem.tokens, dtype=torch.bool, device=q.device).tril()
    decay = torch.where(earlier, since, float("-inf")).exp().to(dtype)
    out = ((q * problem.scale) @ k.transpose(-1, -2) * decay) @ v
    left = (total[..., -1:] - total).exp().to(dtype)
    state = (k * left[..., None]).transpose(-1, -2) @ v
    if problem.initial_state is not None:
        initial = problem.initial_state.to(dtype)
        out = out + (q * problem.scale * total.exp().to(dtype)[..., None]) @ initial
        state = state + initial * total[..., -1].exp().to(dtype)[..., None, None]
    return out, state
