"""A family of kernels as a PyTorch operator: traced, differentiated, its operations counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def register_operator(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    *,
    empty_outputs: Callable[..., tuple[Tensor, ...]],
    count: Callable[..., int],
    backward: Callable[..., tuple[Tensor, ...]] | None = None,
    empty_gradients: Callable[..., tuple[Tensor, ...]] | None = None,
    count_backward: Callable[..., int] | None = None,
    saved: Sequence[int] = (0, 1),
) -> Any:
    """Register ``einfuse::name``, and ``einfuse::name_backward`` if it has one; return the first.

    ``forward`` takes tensors, or None, and after them plain values. ``backward`` takes a gradient
    for each output, the outputs whose places are in ``saved``, and all that ``forward`` takes; it
    returns the gradients of the first inputs. The functions for tracing (``empty_...``) and those
    that count operations take the same as what they stand for.
    """
    operator = torch.library.custom_op(f"einfuse::{name}", forward, mutates_args=())
    operator.register_fake(empty_outputs)
    _register_count(name, count)
    if backward is None or empty_gradients is None or count_backward is None:
        return operator
    gradient = torch.library.custom_op(f"einfuse::{name}_backward", backward, mutates_args=())
    gradient.register_fake(empty_gradients)
    _register_count(f"{name}_backward", count_backward)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = tuple(itertools.takewhile(lambda i: i is None or isinstance(i, Tensor), inputs))
        ctx.save_for_backward(*(output[place] for place in saved), *tensors)
        ctx.values = inputs[len(tensors) :]

    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (*ctx.saved_tensors[len(saved) :], *ctx.values)
        found = gradient(*grads, *ctx.saved_tensors, *ctx.values)
        return tuple(
            None if tensor is None else grad
            for tensor, grad in itertools.zip_longest(inputs, found)
        )

    operator.register_autograd(differentiate, setup_context=save)
    return operator


def pull_back(
    compute: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor],
    exact: torch.dtype,
) -> tuple[Tensor, ...]:
    """Return the gradients of tensors from those of a formula's results, computed in ``exact``.

    It works inside an operator, where autograd itself records nothing.
    """
    pull = torch.func.vjp(compute, *(t.detach().to(exact) for t in tensors))[1]
    found = pull(tuple(grad.to(exact) for grad in grads))
    return tuple(grad.to(t.dtype).contiguous() for grad, t in zip(found, tensors, strict=True))


def empty_results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return an output (``q`` with the last size of ``v``) and its log-sum-exp, unset."""
    return (
        q.new_empty((*q.shape[:-1], v.shape[-1])),
        q.new_empty(q.shape[:-1], dtype=exact_type(q.dtype)),
    )


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums and states: float32, or float64 for float64 tensors."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_contiguous_rows(tensor: Tensor) -> Tensor:
    """Return the tensor, copied unless its last dimension is contiguous."""
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def _register_count(name: str, count: Callable[..., int]) -> None:
    @register_flop_formula(getattr(torch.ops.einfuse, name), get_raw=True)
    def _(*inputs: Any, **_: Any) -> int:
        return count(*inputs)
