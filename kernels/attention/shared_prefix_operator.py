"""Attention of many responses to one prompt that share its keys and values (Prefix Grouper).

The tokens of all responses form one line of queries: a tile of them attends to the prefix, read
once for all responses in it, then to the tokens of its own responses, which on the line is a
causal mask that starts anew with every response. The prompt's own output is ordinary causal
attention. Training works in the same two parts, with the log-sum-exp over both.
Source: Liu et al., Prefix Grouper (2025).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from einfuse.kernels.calls.architecture import find_architecture
from einfuse.kernels.calls.arguments import (
    check_key_heads,
    check_operands,
    check_scale,
    check_tensors,
    check_values,
)
from einfuse.kernels.calls.problem import Options, Problem
from einfuse.kernels.calls.register import (
    empty_results,
    pull_back,
    register_operator,
    with_contiguous_rows,
)
from einfuse.kernels.calls.registry import Traits, find_kernel, find_or_fall_back
from einfuse.kernels.errors import KernelError

_NAME = "shared-prefix"


def shared_prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs ``[B, H, R, P, F]`` of R responses to each prompt, and log-sum-exps.

    ``q [B, H, R, P, E]``, ``k [B, G, R, P, E]`` and ``v [B, G, R, P, F]`` belong to the responses,
    of P tokens each; ``prefix_k [B, G, M, E]`` and ``prefix_v [B, G, M, F]`` to the prompts. A
    token sees its whole prompt and the tokens of its response up to itself. ``lengths`` (int32
    [B, R]) says how many tokens of a response exist: the others give 0 and -inf, and are not read.
    ``scale`` is 1/sqrt(E) unless given. All five tensors have gradients.

    Raises KernelError (a ValueError) on bad arguments.
    """
    check_tensors(q=q, k=k, v=v, prefix_k=prefix_k, prefix_v=prefix_v)
    check_values({"lengths": lengths, "scale": scale})
    factor = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    out, lse = _attend(q, k, v, prefix_k, prefix_v, lengths, factor)
    return out, lse


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, prefix_k, prefix_v, lengths, scale)
    prefix = _prefix_part(q, prefix_k, prefix_v, scale)
    architecture = find_architecture(q.device)
    kernel = find_or_fall_back(_NAME, _traits(prefix, architecture))
    out, lse = empty_results(q, v)
    if kernel is None:
        plain = attend_with_prefix(q, k, v, prefix_k, prefix_v, lengths, scale, lse.dtype)
        return out.copy_(plain[0]), lse.copy_(plain[1])
    launches = kernel.function("plan_forward")(
        kernel, prefix, _on_a_line(k), _on_a_line(v), lengths, q.shape[3],
        out.flatten(2, 3), lse.flatten(2, 3), architecture,
    )  # fmt: skip
    for launch in launches:
        launch.run()
    return out, lse


def _empty_outputs(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_results(q, v)


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if lengths is not None:  # what does not exist may hold anything, NaN included
        missing = _missing(lengths, q.shape[3])[:, None, :, :, None]
        q, k, v, grad_out = (t.masked_fill(missing, 0.0) for t in (q, k, v, grad_out))
    prefix = _prefix_part(q, prefix_k, prefix_v, scale)
    architecture = find_architecture(q.device)
    if find_or_fall_back(_NAME, _traits(prefix, architecture)) is None:
        return _differentiate_plainly(
            grad_out, grad_lse, q, k, v, prefix_k, prefix_v, lengths, scale
        )
    kernel = find_kernel("one-pass")
    plan_backward = kernel.function("plan_backward")
    grads = tuple(t.new_empty(t.shape) for t in (q, k, v, prefix_k, prefix_v))
    grad_q_of_prefix = q.new_empty(q.shape)
    on_prefix = plan_backward(
        kernel, prefix,
        out.flatten(2, 3), lse.flatten(2, 3).contiguous(), _on_a_line(grad_out),
        grad_lse.flatten(2, 3).contiguous(),
        grad_q_of_prefix.flatten(2, 3), grads[3], grads[4], architecture,
    )  # fmt: skip
    own = Options(scale=scale, causal=True)
    responses = Problem(_responses(q), _responses(k), _responses(v), own)
    on_responses = plan_backward(
        kernel, responses, _responses(out), _responses(lse).contiguous(), _responses(grad_out),
        _responses(grad_lse).contiguous(),
        _responses(grads[0]), _responses(grads[1]), _responses(grads[2]), architecture,
    )  # fmt: skip
    for launch in (*on_prefix, *on_responses):
        launch.run()
    grads[0].add_(grad_q_of_prefix)
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def _empty_gradients(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:5])


def _differentiate_plainly(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    exact = grad_lse.dtype

    def compute(*wide: Tensor) -> tuple[Tensor, Tensor]:
        return attend_with_prefix(
            wide[0], wide[1], wide[2], wide[3], wide[4], lengths, scale, exact
        )

    found = pull_back(compute, (q, k, v, prefix_k, prefix_v), (grad_out, grad_lse), exact)
    return found[0], found[1], found[2], found[3], found[4]


def _count(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, *_: Any) -> int:
    """Two operations per multiply-add of the scores that exist, as if responses were full."""
    return 2 * _count_pairs(q, prefix_k) * (q.shape[4] + v.shape[4])


def _count_backward(
    grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    prefix_k: Tensor, *_: Any,
) -> int:  # fmt: skip
    # Over E: the scores again, dQ and dK; over F: the gradient of the weights and dV.
    return 2 * _count_pairs(q, prefix_k) * (3 * q.shape[4] + 2 * v.shape[4])


def _count_pairs(q: Tensor, prefix_k: Tensor) -> int:
    *outer, tokens, _ = q.shape
    return math.prod(outer) * (tokens * prefix_k.shape[2] + tokens * (tokens + 1) // 2)


_attend = register_operator(
    "shared_prefix",
    _forward,
    empty_outputs=_empty_outputs,
    count=_count,
    backward=_backward,
    empty_gradients=_empty_gradients,
    count_backward=_count_backward,
)


def attend_with_prefix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lengths: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return outputs and log-sum-exps by the plain formula in ``dtype``, prefixes repeated."""
    responses, tokens = q.shape[2:4]
    group = q.shape[1] // k.shape[1]
    q, k, v, prefix_k, prefix_v = (t.to(dtype) for t in (q, k, v, prefix_k, prefix_v))
    keys, values = (
        torch.cat([prefix[:, :, None].expand(-1, -1, responses, -1, -1), own], dim=3)
        for prefix, own in ((prefix_k, k), (prefix_v, v))
    )
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = (q * scale) @ keys.transpose(-1, -2)  # [b, h, r, p, m + p]
    token = torch.arange(tokens, device=q.device)
    own = token[None, :] <= token[:, None]
    seen = torch.cat([torch.ones_like(own[:, :1]).expand(-1, prefix_k.shape[2]), own], dim=1)
    scores = scores.masked_fill(~seen, float("-inf"))
    out, lse = torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)
    if lengths is not None:
        missing = _missing(lengths, tokens)[:, None]
        out = out.masked_fill(missing[..., None], 0.0)
        lse = lse.masked_fill(missing, float("-inf"))
    return out, lse


def _prefix_part(q: Tensor, prefix_k: Tensor, prefix_v: Tensor, scale: float) -> Problem:
    """All tokens of all responses against the prefixes."""
    k, v = (with_contiguous_rows(t) for t in (prefix_k, prefix_v))
    return Problem(_on_a_line(q), k, v, Options(scale=scale))


def _traits(prefix: Problem, architecture: str) -> Traits:
    traits = prefix.traits(training=True, architecture=architecture)
    return replace(traits, features=traits.features | {"shared_prefix"})


def _on_a_line(tensor: Tensor) -> Tensor:
    """[B, H, R, P, E] as [B, H, R P, E] with contiguous rows."""
    return with_contiguous_rows(tensor.flatten(2, 3))


def _responses(tensor: Tensor) -> Tensor:
    """[B, H, R, P, ...] as [R, B H, P, ...]: a batch of responses with the heads of all prompts."""
    rows = tensor if tensor.dim() == 4 else with_contiguous_rows(tensor)
    return rows.flatten(0, 1).transpose(0, 1)


def _missing(lengths: Tensor, tokens: int) -> Tensor:
    """Which tokens [B, R, P] do not exist."""
    return torch.arange(tokens, device=lengths.device) >= lengths[..., None]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> None:
    own, of_prefix = "[B, {}, R, P, {}]", "[B, G, M, {}]"
    check_operands(
        ("q", q, own.format("H", "E")),
        ("k", k, own.format("G", "E")),
        ("v", v, own.format("G", "F")),
        ("prefix_k", prefix_k, of_prefix.format("E")),
        ("prefix_v", prefix_v, of_prefix.format("F")),
    )
    batch, heads, responses, tokens, size = q.shape
    key_heads, keys, value_size = k.shape[1], prefix_k.shape[2], v.shape[4]
    for name, tensor, shape in (
        ("k", k, (batch, key_heads, responses, tokens, size)),
        ("v", v, (batch, key_heads, responses, tokens, value_size)),
        ("prefix_k", prefix_k, (batch, key_heads, keys, size)),
        ("prefix_v", prefix_v, (batch, key_heads, keys, value_size)),
    ):
        if tuple(tensor.shape) != shape:
            raise KernelError(f"{name}: expected {list(shape)}, found {list(tensor.shape)}")
    check_key_heads(heads, key_heads)
    if lengths is not None:
        _check_lengths(lengths, batch, responses, tokens, q.device)
    check_scale(scale)


def _check_lengths(
    lengths: Tensor, batch: int, responses: int, tokens: int, device: torch.device
) -> None:
    fits = tuple(lengths.shape) == (batch, responses) and lengths.dtype == torch.int32
    if not fits or lengths.device != device:
        raise KernelError(
            f"lengths: expected int32 [{batch}, {responses}] on {device}, found "
            f"{lengths.dtype} {list(lengths.shape)} on {lengths.device}"
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 0 or high > tokens:
        raise KernelError(
            f"lengths: expected 0 to {tokens} tokens, found {low if low < 0 else high}"
        )
