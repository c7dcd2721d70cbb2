"""Sums along axes of PyTorch, and what is made of them: means, softmax, cumulative sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from einfuse.einsum.language.expression import (
    Binary,
    Call,
    Comparison,
    Coordinate,
    Number,
)

from .graph import Site, dense
from .pointwise import arithmetic
from .values import UnsupportedError, Value, behind, selected, variable_of


def _sum(site: Site, value: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    value = value if value.absent in (None, 0) else dense(site, value)
    return site.fold(value, [dim] if isinstance(dim, int) else dim or [], keepdim, "+")


def _mean(site: Site, value: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    axes = [dim] if isinstance(dim, int) else dim or range(len(value.shape))
    count = math.prod(value.shape[axis] for axis in axes)
    total = _sum(replace(site, name="sum"), value, list(axes), keepdim)
    return site.pointwise([total], lambda x: Binary("/", x, Number(count)))


def _variance(
    site: Site,
    value: Value,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Value:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    taken = (1 if unbiased else 0) if correction is None else correction
    axes = [dim] if isinstance(dim, int) else list(dim or range(len(value.shape)))
    count = math.prod(value.shape[axis] for axis in axes)
    if count <= taken:
        raise UnsupportedError(f"a variance of {count} elements less {taken}")
    centred = _centred(site, dense(site, value), axes)
    squares = site.pointwise([centred], lambda x: Call("sq", (x,)), name="SQ")
    total = _sum(replace(site, name="sum"), squares, axes, keepdim)
    return site.pointwise([total], lambda x: Binary("/", x, Number(count - taken)))


def _deviation(site: Site, *arguments: Any, **named: Any) -> Value:
    variance = _variance(replace(site, name="var"), *arguments, **named)
    return site.pointwise([variance], lambda x: Call("sqrt", (x,)))


def _centred(site: Site, value: Value, axes: Sequence[int]) -> Value:
    return arithmetic("-")(site, value, _mean(replace(site, name="mean"), value, axes, True))


def _norm(
    site: Site, value: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Value:
    parts: dict[float, tuple[str, str]] = {
        1: ("abs", "+"), 2: ("sq", "+"), math.inf: ("abs", "max")
    }  # fmt: skip
    if ord not in parts:
        raise UnsupportedError(f"the {ord}-norm")
    called, monoid = parts[ord]
    value = dense(site, value)
    sizes = site.pointwise([value], lambda x: Call(called, (x,)), name=called)
    axes = [dim] if isinstance(dim, int) else dim or []
    total = site.fold(sizes, axes, keepdim, monoid)
    return site.pointwise([total], lambda x: Call("sqrt", (x,))) if ord == 2 else total


def _layer_norm(
    site: Site,
    value: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    axes = [-1 - k for k in range(len(shape))]
    return _normalised(site, _centred(site, dense(site, value), axes), axes, weight, bias, eps)


def _rms_norm(
    site: Site,
    value: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    if eps is None:
        raise UnsupportedError("rms_norm without eps")
    axes = [-1 - k for k in range(len(shape))]
    return _normalised(site, dense(site, value), axes, weight, None, eps)


def _normalised(
    site: Site,
    value: Value,
    axes: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> Value:
    """Return a value over the root of its mean square, scaled and moved."""
    squares = site.pointwise([value], lambda x: Call("sq", (x,)), name="SQ")
    mean = _mean(replace(site, name="mean"), squares, axes, True)
    scaled = site.pointwise(
        [value, mean],
        lambda x, y: Binary("*", x, Call("rsqrt", (Binary("+", y, Number(eps)),))),
    )
    if weight is not None:
        scaled = arithmetic("*")(site, scaled, weight)
    return scaled if bias is None else arithmetic("+")(site, scaled, bias)


def softmax(site: Site, value: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Return a softmax along an axis, its largest value taken off first."""
    shifted, total = _exponentials(site, value, dim)
    return site.pointwise(
        [shifted, total], lambda x, y: Binary("/", x, y), absent=shifted.absent, name="A"
    )


def _exponentials(site: Site, value: Value, dim: int) -> tuple[Value, Value]:
    if value.absent == 0:
        value = dense(site, value)
    largest = site.fold(value, [dim], True, "max", "GM")
    absent = None if value.absent is None else 0.0
    shifted = site.pointwise(
        [value, largest],
        lambda x, y: Call("exp", (Binary("-", x, y),)),
        absent=absent,
        name="SN",
    )
    return shifted, site.fold(shifted, [dim], True, "+", "SD")


def _logsumexp(site: Site, value: Value, dim: Any, keepdim: bool = False) -> Value:
    axis = dim if isinstance(dim, int) else dim[0]
    largest = site.fold(value, [axis], True, "max", "GM")
    shifted = site.pointwise(
        [value, largest], lambda x, y: Call("exp", (Binary("-", x, y),)), absent=0.0, name="SN"
    )
    total = site.fold(shifted, [axis], True, "+", "SD")
    found = site.pointwise([largest, total], lambda x, y: Binary("+", x, Call("log", (y,))))
    return found if keepdim else selected(found, axis, 0)


def _log_softmax(site: Site, value: Value, dim: int, *_: Any, **__: Any) -> Value:
    return arithmetic("-")(site, value, _logsumexp(site, value, dim, True))


def _cumsum(site: Site, value: Value, dim: int, **_: Any) -> Value:
    axis = dim % len(value.shape)
    value = value if value.absent in (None, 0) else dense(site, value)
    indices = site.translation.indices(value.shape, [value])
    out = variable_of(indices[axis])
    if out is None:
        return value
    taken = {v for i in indices if (v := variable_of(i))}
    inner = site.translation.another(value.shape[axis], axis - len(value.shape), taken)
    earlier = (Comparison(Coordinate(inner), "<=", Coordinate(out)),)
    moved = (*indices[:axis], Coordinate(inner), *indices[axis + 1 :])
    expression = behind(value.at(moved), earlier)
    if expression is None:
        raise UnsupportedError("a cumulative sum of a constant")
    return site.translation.write(site.name, value.shape, indices, expression, absent=value.absent)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "sum": _sum,
    "mean": _mean,
    "var": _variance,
    "std": _deviation,
    "linalg_vector_norm": _norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "cumsum": _cumsum,
    "softmax": softmax,
    "_softmax": softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
}
