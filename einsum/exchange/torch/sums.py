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

from .pointwise import arithmetic
from .site import Site, dense
from .values import UnsupportedError, Value, behind, reshaped, selected, variable_of
from .views import with_axis


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


def _along(value: Value | None, count: int, axis: int = 1) -> Value | None:
    """Return a vector along one axis of a shape of so many axes."""
    if value is None:
        return None
    shape = tuple(value.shape[0] if k == axis else 1 for k in range(count))
    hints = tuple(value.hints[0] if k == axis else None for k in range(count))
    return replace(value, shape=shape, hints=hints, at=lambda i: value.at((i[axis],)))


def _batch_norm(
    site: Site,
    value: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    count = len(value.shape)
    weight, bias = _along(weight, count), _along(bias, count)
    if training or mean is None or variance is None:
        axes = [k for k in range(count) if k != 1]
        return _normalised(site, _centred(site, dense(site, value), axes), axes, weight, bias, eps)
    found = site.pointwise(
        [dense(site, value), _along(mean, count), _along(variance, count)],
        lambda x, m, v: Binary(
            "*", Binary("-", x, m), Call("rsqrt", (Binary("+", v, Number(eps)),))
        ),
    )
    found = found if weight is None else arithmetic("*")(site, found, weight)
    return found if bias is None else arithmetic("+")(site, found, bias)


def _group_norm(
    site: Site,
    value: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    batch, channels, *rest = value.shape
    grouped = reshaped(dense(site, value), (batch, groups, channels // groups, *rest))
    axes = list(range(2, len(grouped.shape)))
    found = _normalised(site, _centred(site, grouped, axes), axes, None, None, eps)
    found = reshaped(found, value.shape)
    for sign, part in (("*", weight), ("+", bias)):
        if part is not None:
            found = arithmetic(sign)(site, found, _along(part, len(value.shape)))
    return found


def _distance(site: Site, a: Value, b: Value, p: float = 2, *_: Any) -> Value:
    """Return the distances of all rows of one to all rows of the other."""
    rows, columns = len(a.shape) - 1, len(b.shape) - 2
    apart = arithmetic("-")(site, with_axis(site, a, rows), with_axis(site, b, columns))
    return _norm(site, apart, p, -1)


def _with_mean(spread: Callable[..., Value]) -> Callable[..., list[Value]]:
    """Return var_mean or std_mean."""

    def translate(
        site: Site, value: Value, dim: Any = None, *rest: Any, keepdim: bool = False, **named: Any
    ) -> list[Value]:
        found = spread(site, value, dim, *rest, keepdim=keepdim, **named)
        return [found, _mean(replace(site, name="mean"), value, dim, keepdim)]

    return translate


def _fold_of(monoid: str) -> Callable[..., Value]:
    def translate(
        site: Site, value: Value, dim: Any = None, keepdim: bool = False, **_: Any
    ) -> Value:
        axes = [dim] if isinstance(dim, int) else dim or []
        return site.fold(dense(site, value), axes, keepdim, monoid)

    return translate


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
    indices = site.writer.indices(value.shape, [value])
    out = variable_of(indices[axis])
    if out is None:
        return value
    taken = {v for i in indices if (v := variable_of(i))}
    inner = site.writer.another(value.shape[axis], axis - len(value.shape), taken)
    earlier = (Comparison(Coordinate(inner), "<=", Coordinate(out)),)
    moved = (*indices[:axis], Coordinate(inner), *indices[axis + 1 :])
    expression = behind(value.at(moved), earlier)
    if expression is None:
        raise UnsupportedError("a cumulative sum of a constant")
    return site.writer.write(site.name, value.shape, indices, expression, absent=value.absent)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "sum": _sum,
    "mean": _mean,
    "var": _variance,
    "std": _deviation,
    "linalg_vector_norm": _norm,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda site, x, weight, bias, mean, variance, *rest: [
        _batch_norm(site, x, weight, bias, mean, variance, False, *rest)
    ],
    "_native_batch_norm_legit": lambda site, x, weight, bias, *rest: [
        _batch_norm(site, x, weight, bias, None, None, True, *rest[-2:])
    ],
    "group_norm": _group_norm,
    "var_mean": _with_mean(_variance),
    "std_mean": _with_mean(_deviation),
    "any": _fold_of("any"),
    "all": _fold_of("all"),
    "prod": _fold_of("*"),
    "rms_norm": _rms_norm,
    "cumsum": _cumsum,
    "cdist": _distance,
    "_cdist_forward": _distance,
    "softmax": softmax,
    "_softmax": softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
}
