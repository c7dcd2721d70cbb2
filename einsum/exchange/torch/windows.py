"""Operations of PyTorch on neighbourhoods: padding, windows, convolutions, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from einfuse.einsum.language.equation import Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Number,
    accesses,
)

from .pointwise import arithmetic, extreme_fold
from .site import Site, dense
from .values import (
    Indices,
    UnsupportedError,
    Value,
    behind,
    expanded_to,
    moved_by,
    position,
    quotient,
    scaled_by,
    selected,
    sliced,
    variable_of,
)
from .views import joined, reversed_along, with_axis

Sizes = Mapping[int, tuple[int, int]]
"""An axis -> how many places are put before it and after it."""


def padded(site: Site, value: Value, sizes: Sizes, fill: float = 0) -> Value:
    """Return a value with places of one number around it; less than none cuts places off."""
    for axis, (before, after) in sizes.items():
        cut = max(-before, 0), max(-after, 0)
        if any(cut):
            value = sliced(value, axis, cut[0], value.shape[axis] - sum(cut), 1)
    sizes = {k: (max(a, 0), max(b, 0)) for k, (a, b) in sizes.items() if max(a, b) > 0}
    if not sizes:
        return value
    if value.absent not in (None, fill):
        value = dense(site, value)
    shape = tuple(n + sum(sizes.get(k, (0, 0))) for k, n in enumerate(value.shape))
    hints = tuple(None if k in sizes else h for k, h in enumerate(value.hints))
    indices = site.writer.indices(shape, [replace(value, shape=shape, hints=hints)])
    own = value.at(_moved(value, sizes, indices))
    if any(accesses(own)) and (not isinstance(own, Access) or not own.indices):
        value = site.writer.define("OF", value.shape, [value], value.at, absent=value.absent)
        own = value.at(_moved(value, sizes, indices))
    if not isinstance(own, Access) or not own.indices or fill not in (0, -math.inf):
        return _chosen(site, value, sizes, shape, fill)

    def at(i: Indices) -> Expression:
        found = behind(value.at(_moved(value, sizes, i)), _inside(value, sizes, i))
        assert found is not None
        return found

    return Value(shape, at, hints, float(fill))


def _chosen(site: Site, value: Value, sizes: Sizes, shape: tuple[int, ...], fill: float) -> Value:
    """Return a padded value with a number in all its places."""

    def keep(i: Indices) -> Expression:
        found: Expression = Number(1)
        for c in _inside(value, sizes, i):
            called = {">=": "ge", "<": "lt"}[c.operator]
            here = Call(called, (position(c.left), c.right))
            found = here if found == Number(1) else Binary("*", found, here)
        return found

    def outside(i: Indices) -> Expression:
        return Call("where", (keep(i), Number(0), Number(fill)))

    def at(i: Indices) -> Expression:
        return Call("where", (keep(i), value.at(_moved(value, sizes, i)), Number(fill)))

    hints = (None,) * len(shape)
    probe = value.at(_moved(value, sizes, tuple(Coordinate("i") for _ in shape)))
    if not any(accesses(probe)):
        return Value(shape, at, hints)
    if isinstance(probe, Access) and not probe.indices:  # a single number
        return site.pointwise(
            [Value(shape, keep, hints), value], lambda c, x: Call("where", (c, x, Number(fill)))
        )
    zeros = dense(site, padded(site, value, sizes, 0))
    return site.pointwise([zeros, Value(shape, outside, hints)], lambda x, y: Binary("+", x, y))


def _moved(value: Value, sizes: Sizes, indices: Indices) -> Indices:
    """Return the indices of a value where its padded form is at some."""
    return tuple(
        i if k not in sizes else Number(0) if n == 1 else moved_by(i, -sizes[k][0])
        for k, (i, n) in enumerate(zip(indices, value.shape, strict=True))
    )


def _inside(value: Value, sizes: Sizes, indices: Indices) -> tuple[Comparison, ...]:
    found = list[Comparison]()
    for axis, (before, after) in sizes.items():
        if before:
            found.append(Comparison(indices[axis], ">=", Number(before)))
        if after:
            found.append(Comparison(indices[axis], "<", Number(before + value.shape[axis])))
    return tuple(found)


def _pad(
    site: Site, value: Value, pads: Sequence[int], mode: Any = "constant", fill: Any = None
) -> Value:
    if not isinstance(mode, str):
        mode, fill = "constant", mode
    last = len(value.shape) - 1
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    sizes = {last - k: pair for k, pair in enumerate(pairs) if pair != (0, 0)}
    if mode == "constant":
        return padded(site, value, sizes, fill or 0)
    for axis, (before, after) in sizes.items():
        size = value.shape[axis]
        if min(before, after) < 0:
            raise UnsupportedError(f"a padding of less than none in mode {mode}")
        parts = [value]
        if before:
            parts.insert(0, _border(value, axis, before, mode, 0))
        if after:
            parts.append(_border(value, axis, after, mode, size))
        value = joined(site, parts, axis)
    return value


def _border(value: Value, axis: int, count: int, mode: str, place: int) -> Value:
    """Return what a mode of padding puts before the first place of an axis or after the last."""
    size = value.shape[axis]
    if mode == "circular":
        return sliced(value, axis, 0 if place else size - count, count, 1)
    if mode == "replicate":
        edge = sliced(value, axis, size - 1 if place else 0, 1, 1)
        shape = tuple(count if k == axis else n for k, n in enumerate(value.shape))
        return expanded_to(edge, shape)
    if mode == "reflect":
        part = sliced(value, axis, size - 1 - count if place else 1, count, 1)
        return reversed_along(part, [axis])
    raise UnsupportedError(f"a padding in mode {mode}")


def windows(value: Value, axis: int, size: int, step: int, spread: int = 1) -> Value:
    """Return the windows of an axis, their places on a new last axis."""
    axis %= len(value.shape)
    count = (value.shape[axis] - spread * (size - 1) - 1) // step + 1

    def at(i: Indices) -> Expression:
        first, place = scaled_by(i[axis], step), scaled_by(i[-1], spread)
        here = _sum_of(first, place)
        own = Number(0) if value.shape[axis] == 1 else here
        return value.at((*i[:axis], own, *i[axis + 1 : -1]))

    shape = (*value.shape[:axis], count, *value.shape[axis + 1 :], size)
    hints = (*value.hints[:axis], None, *value.hints[axis + 1 :], None)
    return replace(value, shape=shape, hints=hints, at=at)


def _sum_of(a: Expression, b: Expression) -> Expression:
    if isinstance(a, Number) and isinstance(b, Number):
        return Number(a.value + b.value)
    if isinstance(b, Number):
        return moved_by(a, int(b.value))
    return moved_by(b, int(a.value)) if isinstance(a, Number) else Binary("+", a, b)


def _unfold(site: Site, value: Value, axis: int, size: int, step: int) -> Value:
    return windows(value, axis, size, step)


def _pair(given: Any, count: int) -> list[int]:
    listed = [given] if isinstance(given, int) else list(given)
    return listed * count if len(listed) == 1 else listed


def convolution(axes: int) -> Callable[..., Value]:
    """Return the convolution over a number of axes: ``conv1d``, ``conv2d``, ``conv3d``."""

    def translate(
        site: Site,
        value: Value,
        weight: Value,
        bias: Value | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Value:
        single = len(value.shape) == axes + 1
        value = with_axis(site, value, 0) if single else value
        spread, kernel = _pair(dilation, axes), weight.shape[2:]
        reach = [d * (n - 1) for d, n in zip(spread, kernel, strict=True)]
        if padding in ("same", "valid"):
            sides = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
        else:
            sides = [(p, p) for p in _pair(padding, axes)]
        value = padded(site, value, {k + 2: s for k, s in enumerate(sides) if any(s)})
        for k, step in enumerate(_pair(stride, axes)):
            value = windows(value, k + 2, kernel[k], step, spread[k])
        found = _window_product(site, value, weight, groups, axes)
        if bias is not None:
            column = replace(bias, shape=(bias.shape[0], *(1,) * axes),
                             hints=(*bias.hints, *(None,) * axes),
                             at=lambda i: bias.at(i[:1]))  # fmt: skip
            found = arithmetic("+")(site, found, column)
        return selected(found, 0, 0) if single else found

    return translate


def _window_product(site: Site, value: Value, weight: Value, groups: int, axes: int) -> Value:
    """Return windows ``[b, c, l.., k..]`` times weights ``[o, c, k..]``, summed over c and k."""
    outs, ins = weight.shape[:2]
    if value.absent not in (None, 0):
        value = dense(site, value)
    writer = site.writer
    shape = (value.shape[0], outs, *value.shape[2 : 2 + axes])
    like = replace(value, shape=shape, hints=(value.hints[0], weight.hints[0],
                                              *value.hints[2 : 2 + axes]))  # fmt: skip
    left = writer.indices(shape, [like])
    taken = {v for i in left if (v := variable_of(i))}
    inner = writer.indices(weight.shape[1:], [replace(
        weight, shape=weight.shape[1:], hints=weight.hints[1:])], tuple(taken))  # fmt: skip
    channel = inner[0]
    if groups > 1:
        group = quotient(left[1], outs // groups)
        channel = _sum_of(scaled_by(group, ins), channel)
    own = value.at((left[0], channel, *left[2:], *inner[1:]))
    product = Binary("*", own, weight.at((left[1], *inner)))
    gone = tuple(v for i in inner if (v := variable_of(i)))
    actions = (Reduce("+", gone),) if gone else ()
    return writer.write(site.name, shape, left, product, actions)


def pooling(axes: int, called: str) -> Callable[..., Any]:
    """Return ``max_pool1d``, ``avg_pool2d`` and their kin."""

    def translate(
        site: Site, value: Value, size: Any, stride: Any = None, padding: Any = 0, *rest: Any
    ) -> Value:
        spread = _pair(rest[0], axes) if called == "max" and rest else [1] * axes
        if any(rest[1:] if called == "max" else rest):
            raise UnsupportedError(f"{site.name} with options {list(rest)}")
        kernel = _pair(size, axes)
        value = value if value.absent is None else dense(site, value)
        sides = {k - axes: (p, p) for k, p in enumerate(_pair(padding, axes)) if p}
        sides = {k + len(value.shape): pair for k, pair in sides.items()}
        value = padded(site, value, sides, -math.inf if called == "max" else 0)
        first = len(value.shape) - axes
        for k, step in enumerate(_pair(stride or size, axes)):
            value = windows(value, first + k, kernel[k], step, spread[k])
        last = [-1 - k for k in range(axes)]
        if called == "max":
            return extreme_fold("max")(site, value, last)
        total = site.fold(value, last, False, "+")
        return arithmetic("*")(site, total, 1 / math.prod(kernel))

    return translate


OPERATIONS: dict[str, Callable[..., Any]] = {
    "pad": _pad,
    "constant_pad_nd": _pad,
    "unfold": _unfold,
    **{f"conv{n}d": convolution(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d": pooling(n, "max") for n in (1, 2)},
    **{f"avg_pool{n}d": pooling(n, "+") for n in (1, 2)},
}
