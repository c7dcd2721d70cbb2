"""Positions, constants, comparisons and choices of PyTorch; a choice by position is a filter."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from einfuse.einsum.language.expression import (
    Binary,
    Call,
    Expression,
    Number,
)

from .site import Site, dense
from .values import (
    SIGNS,
    Indices,
    UnsupportedError,
    Value,
    absence_of,
    as_value,
    behind,
    broadcast,
    condition_of,
    constant_of,
    expanded_to,
    moved_by,
    number,
    position,
    selected,
    variable_of,
)


def _arange(site: Site, *bounds: float, **_: Any) -> Value:
    start, step = (bounds[0] if len(bounds) > 1 else 0), (bounds[2] if len(bounds) > 2 else 1)

    def at(indices: Indices) -> Expression:
        found = position(indices[0])
        if step != 1:
            found = Binary("*", found, Number(step))
        return Binary("+", found, Number(start)) if start else found

    return Value(site.shape, at, (None,))


def _filled(value: float | None = None, place: int = 1) -> Callable[..., Value]:
    def translate(site: Site, *arguments: Any, **_: Any) -> Value:
        found = arguments[place] if value is None else value
        return number(found, site.shape)

    return translate


def _scalar_tensor(site: Site, value: float, **_: Any) -> Value:
    return number(value)


def _compare(called: str) -> Callable[..., Value]:
    def translate(site: Site, a: Any, b: Any) -> Value:
        def build(x: Expression, y: Expression) -> Expression:
            if called in SIGNS:
                return Call(called, (x, y))
            if y in (Number(0), Number(1)) and condition_of(x) not in (None, ()):
                return x if (called == "eq") == (y == Number(1)) else _opposite_of(x)
            equal = Binary("*", Call("ge", (x, y)), Call("le", (x, y)))
            return equal if called == "eq" else Binary("-", Number(1), equal)

        return site.pointwise([dense(site, a), dense(site, b)], build)

    return translate


def _truths(site: Site, *values: Any) -> None:
    """Refuse what are no truth values: of whole numbers these operations take bits."""
    if any(isinstance(v, Value) and not v.flag for v in values):
        raise UnsupportedError(f"{site.name} of numbers")


def _different(site: Site, a: Any, b: Any) -> Value:
    _truths(site, a, b)
    return site.pointwise(
        [a, b],
        lambda x, y: Binary("-", Call("max", (x, y)), Binary("*", x, y)),
    )


def _eye(site: Site, *_: Any, **__: Any) -> Value:
    def at(i: Indices) -> Expression:
        row, column = position(i[0]), position(i[1])
        return Binary("*", Call("ge", (row, column)), Call("le", (row, column)))

    return Value(site.shape, at, (None, None))


def _both(site: Site, a: Any, b: Any) -> Value:
    _truths(site, a, b)
    return site.pointwise([a, b], lambda x, y: Binary("*", x, y))


def _either(site: Site, a: Any, b: Any) -> Value:
    _truths(site, a, b)
    return site.pointwise([a, b], lambda x, y: Call("max", (x, y)))


_OPPOSITES = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def _not(site: Site, a: Any) -> Value:
    return site.pointwise([a], _opposite_of)


def _opposite_of(x: Expression) -> Expression:
    """Return 1 where an expression of 1 and 0 is 0, and 0 where it is 1."""
    if isinstance(x, Binary) and x.operator == "-" and x.left == Number(1):
        return x.right
    if isinstance(x, Call) and x.function in _OPPOSITES:
        return Call(_OPPOSITES[x.function], x.arguments)
    return Binary("-", Number(1), x)


def _opposite(site: Site, a: Any) -> Value:
    _truths(site, a)
    return _not(site, a)


def triangle(called: str) -> Callable[..., Value]:
    """Return tril (``le``: column <= row + diagonal) or triu (``ge``)."""

    def translate(site: Site, value: Value, diagonal: int = 0) -> Value:
        shape = value.shape[-2:]
        keep = Value(
            shape,
            lambda i: Call(
                called,
                (position(i[1]), position(moved_by(i[0], diagonal) if diagonal else i[0])),
            ),
            (None, None),
        )
        if constant_of(selected(selected(value, 0, 0), 0, 0)) == 1 and len(value.shape) == 2:
            return keep
        return choose(site, keep, value, 0)

    return translate


def choose(site: Site, condition: Value, a: Any = None, b: Any = None) -> Value:
    """Return a choice; a choice by position between a value and 0 or -inf is a filter."""
    for chosen, other, negated in ((a, b, False), (b, a, True)):
        fill = constant_of(other)
        if fill is None or fill not in (0, -math.inf) or not isinstance(chosen, Value):
            continue
        if chosen.absent not in (None, fill):
            continue
        keep = _not(site, condition) if negated else condition
        shape = broadcast([keep.shape, chosen.shape])
        wide, mask = expanded_to(chosen, shape), expanded_to(keep, shape)
        indices = site.writer.indices(shape, [wide, mask])
        if _filtered(wide, mask, indices) is not None:
            return Value(
                shape,
                functools.partial(_masked, site, wide, mask, fill),
                tuple(h or variable_of(i) for h, i in zip(wide.hints, indices, strict=True)),
                fill,
            )
    absent = absence_of([v for v in (a, b) if as_value(v).absent != 0])
    values = [dense(site, v) if as_value(v).absent == 0 else v for v in (a, b)]
    return site.pointwise(
        [condition, *values], lambda c, x, y: Call("where", (c, x, y)), absent=absent
    )


def _masked_fill(site: Site, value: Value, mask: Value, fill: Any) -> Value:
    return choose(site, mask, fill, value)


def _masked(site: Site, value: Value, mask: Value, fill: float, indices: Indices) -> Expression:
    """Return a value behind a mask at any indices, those of other shapes included."""
    found = _filtered(value, mask, indices)
    if found is not None:
        return found
    if fill:
        raise UnsupportedError(f"{site.name} with a mask at places that no filter expresses")
    return Binary("*", value.at(indices), mask.at(indices))


def _filtered(value: Value, mask: Value, indices: Indices) -> Expression | None:
    condition = condition_of(mask.at(indices))
    return None if condition is None else behind(value.at(indices), condition)


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: _compare(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "arange": _arange,
    "ones": _filled(1),
    "ones_like": _filled(1),
    "new_ones": _filled(1),
    "zeros": _filled(0),
    "zeros_like": _filled(0),
    "new_zeros": _filled(0),
    **{name: _filled(0) for name in ("empty", "empty_like", "new_empty", "empty_strided")},
    "full": _filled(),
    "full_like": _filled(),
    "new_full": _filled(place=2),
    "scalar_tensor": _scalar_tensor,
    "__xor__": _different,
    "logical_xor": _different,
    "bitwise_xor": _different,
    "eye": _eye,
    "logical_and": _both,
    "bitwise_and": _both,
    "__and__": _both,
    "__or__": _either,
    "logical_or": _either,
    "bitwise_or": _either,
    "logical_not": _opposite,
    "bitwise_not": _opposite,
    "tril": triangle("le"),
    "triu": triangle("ge"),
    "where": choose,
    "masked_fill": _masked_fill,
}
