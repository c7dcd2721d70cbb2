"""What is timed against each other on a case: PyTorch's own attention and the kernels here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from einfuse.kernels.calls.dispatch import attention
from einfuse.kernels.calls.pairs import visible
from einfuse.kernels.calls.problem import Options, Problem
from einfuse.kernels.calls.registry import Kernel, kernels

from .device import DeviceKind

_BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
_ON_CPU = ("sdpa-flash",)
_SCORE_COPIES = 6  # that the explicit formula may hold at once, backward included


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A way to compute attention: its name, and ``kernel`` if it is one of the registry."""

    name: str
    attend: Callable[[Problem], Tensor]
    kernel: Kernel | None = None


def list_contenders(
    problem: Problem, device: DeviceKind, training: bool, memory_bytes: int | None = None
) -> tuple[Contender, ...]:
    """Return what may take a call; PyTorch's backends refuse some when they are called.

    Formulas that hold all scores are left out where these do not fit into ``memory_bytes``.
    """
    scores = problem.batch * problem.heads * problem.queries * problem.keys
    fits = memory_bytes is None or (
        scores * max(4, problem.q.element_size()) * _SCORE_COPIES < memory_bytes
    )
    found = [Contender("torch-3-pass", attend_in_three_passes)] if fits else []
    if problem.options.similarity == "softmax":
        names = _BACKENDS if device == "cuda" else _ON_CPU
        found += [
            Contender(name, functools.partial(attend_by_backend, backend=_BACKENDS[name]))
            for name in names
            if fits or name != "sdpa-math"
        ]
    traits = problem.traits(training)
    found += [
        Contender(kernel.name, functools.partial(attend_by_kernel, name=kernel.name), kernel)
        for kernel in kernels()
        if kernel.configurations and kernel.refusal(traits) is None
    ]
    return tuple(found)


def attend_in_three_passes(problem: Problem) -> Tensor:
    """Return attention by the explicit formula, in the tensors' own type, scores in memory.

    >>> q = torch.ones(1, 1, 2, 4)
    >>> attend_in_three_passes(Problem(q, q, q, Options(scale=0.5))).tolist()
    [[[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]]
    """
    options = problem.options
    group = problem.heads // problem.key_heads
    k, v = (t.repeat_interleave(group, 1) if group > 1 else t for t in (problem.k, problem.v))
    scores = (problem.q * options.scale) @ k.transpose(-1, -2)  # [b, h, p, m]
    mask = _mask(problem)
    if options.similarity == "sigmoid":
        weights = torch.sigmoid(scores + options.bias)
        return (weights if mask is None else weights.masked_fill(~mask, 0.0)) @ v
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def attend_by_backend(problem: Problem, backend: SDPBackend) -> Tensor:
    """Return attention by one backend of PyTorch; RuntimeError if it does not take the call."""
    options = problem.options
    is_square = problem.queries == problem.keys
    plain_causal = options.causal and options.window is None and is_square
    with sdpa_kernel(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reasons why a backend refuses
        return scaled_dot_product_attention(
            problem.q,
            problem.k,
            problem.v,
            attn_mask=None if plain_causal else _mask(problem),
            is_causal=plain_causal,
            scale=options.scale,
            enable_gqa=problem.heads != problem.key_heads,
        )


def attend_by_kernel(problem: Problem, name: str) -> Tensor:
    """Return attention by a kernel of the registry."""
    options = problem.options
    return attention(
        problem.q,
        problem.k,
        problem.v,
        causal=options.causal,
        window=options.window,
        sinks=options.sinks or None,
        similarity=options.similarity,
        scale=options.scale,
        bias=options.bias,
        kernel=name,
    )


def _mask(problem: Problem) -> Tensor | None:
    """Return which keys each query sees, made once for a shape; None if it is all of them."""
    options = problem.options
    if not options.causal and options.window is None:
        return None
    return _shape_mask(
        problem.queries,
        problem.keys,
        options.causal,
        options.window,
        options.sinks,
        problem.q.device,
    )


@functools.lru_cache(maxsize=1)
def _shape_mask(
    queries: int,
    keys: int,
    causal: bool,
    window: int | None,
    sinks: int,
    device: torch.device,
) -> Tensor:
    q = torch.empty(1, 1, queries, 1, device=device)
    k = torch.empty(1, 1, keys, 1, device=device)
    options = Options(scale=1.0, causal=causal, window=window, sinks=sinks)
    return visible(Problem(q, k, k, options))
