"""Attention written out: the truth in float64, and the same in low precision for its error."""

from __future__ import annotations

import torch
from torch import Tensor

from .options import Options
from .pairs import visible
from .problem import Problem


def attend_exactly(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp in float64.

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
    if problem.starts_q is None:
        seen = visible(problem)
        return _attend(problem.q, problem.k, problem.v, problem.options, seen, dtype)
    parts = [attend_plainly(one, dtype) for one in problem.sequences()]
    out = torch.cat([out[0].transpose(0, 1) for out, _ in parts])
    return out, torch.cat([lse[0] for _, lse in parts], dim=-1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, options: Options, seen: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    q = q.to(dtype)
    k = k.to(dtype).repeat_interleave(group, 1)
    v = v.to(dtype).repeat_interleave(group, 1)
    scores = (q * options.scale) @ k.transpose(-1, -2)  # [b, h, p, m]
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.similarity == "sigmoid":
        weights = torch.sigmoid(scores + options.bias).masked_fill(~seen, 0.0)
        nothing = torch.full(scores.shape[:-1], float("-inf"), dtype=scores.dtype)
        return weights @ v, nothing.to(scores.device)
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    # softmax of a row without any visible key is NaN: such a row attends to nothing.
    weights = torch.softmax(scores, dim=-1).masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return weights @ v, lse
