"""Which keys a query sees: as a mask, and how many pairs that makes."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem, has_data


def visible(problem: Problem) -> Tensor:
    """Return which keys each query sees, as booleans ``[B or 1, H or 1, P, M]``."""
    options, device = problem.options, problem.q.device
    p = torch.arange(problem.queries, device=device)[:, None] + problem.keys - problem.queries
    m = torch.arange(problem.keys, device=device)
    seen = torch.ones(1, 1, problem.queries, problem.keys, dtype=torch.bool, device=device)
    if options.window is not None:
        seen = seen & (((p - m).abs() < options.window) | (m < options.sinks))
        if problem.full_heads is not None:
            seen = seen | problem.full_heads[None, :, None, None]
    if options.causal:
        seen = seen & (m <= p)
    if problem.block_mask is not None:
        size = problem.block_size
        tiles = problem.block_mask.repeat_interleave(size, -2).repeat_interleave(size, -1)
        seen = seen & tiles[..., : problem.queries, : problem.keys]
    return seen


def count_pairs(problem: Problem) -> int:
    """Return how many (query, key) pairs the masks leave, over all heads and sequences.

    Where a mask's or a length's values are unknown (tensors without data), the mask counts as
    full and the lengths as equal.

    >>> from einfuse.kernels.calls.problem import Options
    >>> q = torch.empty(1, 2, 4, 8)
    >>> count_pairs(Problem(q, q, q, Options(scale=1.0, causal=True)))
    20
    """
    if problem.is_packed:
        return sum(count_pairs(one) for one in problem.sequences())
    every = problem.batch * problem.heads
    mask = problem.block_mask
    if mask is not None and has_data(mask):
        seen = visible(problem)
        return int(seen.sum()) * (every // (seen.shape[0] * seen.shape[1]))
    in_window = _count_in_one(problem, problem.options.window)
    if problem.full_heads is None or not has_data(problem.full_heads):
        return every * in_window
    full = int(problem.full_heads.sum())
    without = _count_in_one(problem, None)
    return problem.batch * (full * without + (problem.heads - full) * in_window)


def _count_in_one(problem: Problem, window: int | None) -> int:
    """The pairs of one head of one sequence under the options' masks."""
    keys = problem.keys
    position = torch.arange(keys - problem.queries, keys)
    stop = (position + 1 if problem.options.causal else torch.full_like(position, keys)).clamp(0)
    if window is None:
        return int(stop.sum())
    start = (position - window + 1).clamp(0)
    inside = torch.minimum(stop, position + window) - start
    sinks = stop.clamp(max=problem.options.sinks)
    twice = torch.minimum(torch.minimum(stop, position + window), sinks) - start
    return int((inside.clamp(0) + sinks - twice.clamp(0)).sum())
