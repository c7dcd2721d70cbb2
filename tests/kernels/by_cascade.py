"""Attention by running a cascade from its text: a second truth beside the formula."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from einfuse.einsum import load, run
from einfuse.kernels.calls.problem import Problem


def attend_by_cascade(problem: Problem, cascade: str, **sizes: int) -> Tensor:
    """Return the output in float64 by running a cascade of the library from its text.

    The cascade takes ``Q [E, P]``, ``K [E, M]`` and ``V [F, M]`` of one head and gives
    ``AV [F, P]``; the scale is folded into Q. ``sizes`` are those of ranks that the tensors leave
    open, such as the tile ``M0``. Masks are the cascade's own: the options' are not applied.
    """
    loaded = load(cascade)
    group = problem.heads // problem.key_heads
    wide = [tensor.double() for tensor in (problem.q, problem.k, problem.v)]
    out = torch.empty((*problem.q.shape[:-1], problem.value_size), dtype=torch.float64)
    for batch, head in itertools.product(range(problem.batch), range(problem.heads)):
        q, k, v = wide[0][batch, head], wide[1][batch, head // group], wide[2][batch, head // group]
        inputs = {"Q": q.T * problem.options.scale, "K": k.T, "V": v.T}
        out[batch, head] = run(loaded, inputs, sizes, backend="torch")["AV"].T
    return out
