"""What a cascade is compared with: a reference in PyTorch, written from the paper's definition.

References take tensors of any dtype: in float64 they are the truth, in half precision the
yardstick of flash-attention's numerics rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]
Shape = Mapping[str, int]
Reference = Callable[[Tensors, Shape], Tensors]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A cascade, its reference, and the shapes to try.

    ``amend`` makes of the drawn inputs such as the algorithm takes (lengths, positive steps).
    ``scores`` are the two inputs that the kinds of input (negative, large) act on; ``large`` is
    the factor of the large ones. ``yardstick`` is the same algorithm in plain PyTorch, for half
    precision, where the reference rounds in quite another way. ``grouped`` is False where inputs
    depend on the queries, so that groups of these cannot share them.
    """

    name: str
    reference: Reference
    shapes: tuple[dict[str, int], ...]
    amend: Callable[[Arrays, Shape, np.random.Generator], Arrays] | None = None
    scores: tuple[str, str] = ("Q", "K")
    large: float = 20.0
    yardstick: Reference | None = None
    settings: dict[str, float] = field(default_factory=dict)
    grouped: bool = True


def softmax(scores: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Return weights over the last axis; rows without a kept key give 0."""
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    top = scores.amax(-1, keepdim=True)
    top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, torch.ones_like(total), total)


def layer_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the layer norm over the last axis, every step rounded to the tensors' own type."""
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (centred**2).sum(-1, keepdim=True) / x.shape[-1]
    return centred * torch.rsqrt(variance + 1e-5) * gain + bias


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keep: torch.Tensor | None = None,
    bias: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Return softmax attention [f,p] of q [e,p], k [e,m], v [f,m]; keep and bias are [p,m]."""
    return v @ softmax(q.T @ k + bias, keep).T


def positions(queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of queries [p,1] (the last key is the last query's own) and keys [1,m]."""
    return torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None, :]
