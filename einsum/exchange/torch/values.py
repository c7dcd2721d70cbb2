"""A tensor of an exported graph as a function from indices to an expression, and its views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Condition,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    accesses,
)
from einfuse.einsum.language.substitution import rebuild

Indices = tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its shape, and the expression at given indices.

    ``hints`` are variables that suit its axes. ``absent`` is the number for which an absent point
    stands, None where every point is there. A ``flag`` holds truth values. With
    ``whole_rows`` it is absent only where nothing of a row is there.
    """

    shape: tuple[int, ...]
    at: Callable[[Indices], Expression]
    hints: tuple[str | None, ...]
    absent: float | None = None
    flag: bool = False
    whole_rows: bool = False


class UnsupportedError(Exception):
    """What cannot be expressed; the place is added outside."""


def access_at(tensor: str, indices: Indices) -> Access:
    """Return an access to a tensor."""
    return Access(tensor, tuple(map(Index, indices)))


def variable_of(index: Expression) -> str | None:
    """Return the variable that an index is, if it is one."""
    return index.variable if isinstance(index, Coordinate) else None


_LARGEST_WHOLE = 10**15


def number(value: float | bool, shape: tuple[int, ...] = ()) -> Value:
    """Return one number at every place of a shape."""
    whole = isinstance(value, bool) or (float(value).is_integer() and abs(value) < _LARGEST_WHOLE)
    number = int(value) if whole else float(value)
    absent = value if isinstance(value, float) and math.isinf(value) else None
    return Value(shape, lambda i: Number(number), (None,) * len(shape), absent)


def as_value(value: Any) -> Value:
    """Return an argument as a value; a number is one too."""
    if isinstance(value, Value):
        return value
    if isinstance(value, int | float):
        return number(value)
    raise UnsupportedError(f"the argument {value!r}")


def clipped(value: Value, indices: Indices) -> Expression:
    """Return a value at indices, 0 along its axes of size 1."""
    return value.at(
        tuple(Number(0) if n == 1 else i for n, i in zip(value.shape, indices, strict=True))
    )


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that shapes broadcast to."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


def expanded_to(value: Value, shape: tuple[int, ...]) -> Value:
    """Return a value repeated to a shape that it broadcasts to."""
    if value.shape == shape:
        return value
    lead = len(shape) - len(value.shape)
    hints = (None,) * lead + tuple(
        h if n == m else None
        for h, n, m in zip(value.hints, value.shape, shape[lead:], strict=True)
    )
    return replace(value, shape=shape, hints=hints, at=lambda i: clipped(value, i[lead:]))


def moved_by(index: Expression, offset: int) -> Expression:
    """Return an index moved; by 0 too, since a bare variable would claim the whole rank."""
    if isinstance(index, Number):
        return Number(index.value + offset)
    if offset == 0 and not isinstance(index, Coordinate):
        return index
    return Binary("+", index, Number(offset))


def scaled_by(index: Expression, factor: int) -> Expression:
    """Return an index times a number."""
    if factor == 1:
        return index
    if isinstance(index, Number):
        return Number(index.value * factor)
    return Binary("*", index, Number(factor))


def quotient(index: Expression, divisor: int) -> Expression:
    """Return an index over a number, rounded down."""
    if isinstance(index, Number):
        return Number(int(index.value) // divisor)
    return index if divisor == 1 else Binary("/", index, Number(divisor))


def remainder(index: Expression, divisor: int) -> Expression:
    """Return what is left of an index over a number."""
    if divisor == 1:
        return Number(0)
    if isinstance(index, Number):
        return Number(int(index.value) % divisor)
    return Binary("%", index, Number(divisor))


def permuted(value: Value, order: Sequence[int]) -> Value:
    """Return a value with its axes in another order."""
    order = [axis % len(value.shape) for axis in order]
    back = [order.index(axis) for axis in range(len(order))]
    return replace(
        value,
        shape=tuple(value.shape[a] for a in order),
        hints=tuple(value.hints[a] for a in order),
        at=lambda i: value.at(tuple(i[k] for k in back)),
    )


def reshaped(value: Value, shape: Sequence[int]) -> Value:
    """Return the elements in another shape: groups of axes with one product are split or merged."""
    total = math.prod(value.shape)
    known = math.prod(n for n in shape if n != -1)
    target = tuple(total // known if n == -1 else n for n in shape)
    groups: list[tuple[list[int], list[int]]] = []
    old, new = 0, 0
    while old < len(value.shape) or new < len(target):
        mine, theirs, a, b = list[int](), list[int](), 1, 1
        while True:
            if a <= b and old < len(value.shape):
                mine.append(old)
                a *= value.shape[old]
                old += 1
            elif new < len(target):
                theirs.append(new)
                b *= target[new]
                new += 1
            else:
                break
            if a == b and mine and theirs:
                break
        groups.append((mine, theirs))
    hints: list[str | None] = [None] * len(target)
    for mine, theirs in groups:
        long = [k for k in mine if value.shape[k] > 1]
        goal = [k for k in theirs if target[k] > 1]
        if len(long) == 1 and len(goal) == 1:
            hints[goal[0]] = value.hints[long[0]]

    def at(indices: Indices) -> Expression:
        found: list[Expression] = [Number(0)] * len(value.shape)
        for mine, theirs in groups:
            goal = [k for k in theirs if target[k] > 1]
            flat: Expression = Number(0)
            for k in goal:
                step = scaled_by(flat, target[k])
                zero = isinstance(step, Number) and step.value == 0
                flat = indices[k] if zero else Binary("+", step, indices[k])
            inner = 1
            long = [k for k in mine if value.shape[k] > 1]
            for k in reversed(long):
                part = quotient(flat, inner)
                found[k] = part if k == long[0] else remainder(part, value.shape[k])
                inner *= value.shape[k]
        return value.at(tuple(found))

    return replace(value, shape=target, hints=tuple(hints), at=at)


def sliced(value: Value, axis: int, start: int, length: int, step: int) -> Value:
    """Return every ``step``-th place of an axis, ``length`` of them."""
    axis %= len(value.shape)
    shape = tuple(length if k == axis else n for k, n in enumerate(value.shape))
    whole = shape == value.shape and start == 0 and step == 1
    hints = tuple(None if k == axis and not whole else h for k, h in enumerate(value.hints))

    def at(indices: Indices) -> Expression:
        moved = indices[axis] if whole else moved_by(scaled_by(indices[axis], step), start)
        return value.at((*indices[:axis], moved, *indices[axis + 1 :]))

    return replace(value, shape=shape, hints=hints, at=at)


def selected(value: Value, axis: int, place: int) -> Value:
    """Return a value at one place of an axis."""
    axis %= len(value.shape)
    place %= value.shape[axis]
    return replace(
        value,
        shape=value.shape[:axis] + value.shape[axis + 1 :],
        hints=value.hints[:axis] + value.hints[axis + 1 :],
        at=lambda i: value.at((*i[:axis], Number(place), *i[axis:])),
    )


def absence_of(values: Sequence[Any]) -> float | None:
    """Return the number for which absent points of values stand."""
    found = {as_value(v).absent for v in values} - {None}
    if len(found) > 1:
        raise UnsupportedError("values that are masked in two ways")
    return next(iter(found), None)


def constant_of(value: Any) -> float | None:
    """Return the number that a value is everywhere, if it is one."""
    operand = as_value(value)
    found = operand.at(tuple(Coordinate("i") for _ in operand.shape))  # at 0 a position is 0
    return float(found.value) if isinstance(found, Number) else None


def folded(node: Expression) -> Expression:
    """Return an expression with what constants decide decided: ``max(-inf, x)`` is ``x``."""
    match node:
        case Binary(operator=operator, left=left, right=right):
            return _folded_binary(operator, folded(left), folded(right))
        case Negate(operand=operand):
            inside = folded(operand)
            return Number(-inside.value) if isinstance(inside, Number) else Negate(inside)
        case Call(function=called, arguments=arguments):
            return _folded_call(called, tuple(map(folded, arguments)))
        case _:
            return node


def _folded_binary(operator: str, left: Expression, right: Expression) -> Expression:
    a, b = (side.value if isinstance(side, Number) else None for side in (left, right))
    infinite = next((n for n in (a, b) if n is not None and math.isinf(n)), None)
    match operator:
        case "+" if a == 0:
            return right
        case "+" | "-" if b == 0:
            return left
        case "+" if infinite is not None:
            return Number(infinite)
        case "-" if infinite is not None:
            return Number(infinite if infinite == a else -infinite)
        case "*" if 0 in (a, b) and any(accesses(Binary("*", left, right))):
            return Number(0)  # 0 * m stays: it says that there is a point at every m
        case "*" if a == 1:
            return right
        case "*" | "/" if b == 1:
            return left
        case "/" if a == 0 and b != 0:
            return Number(0)
    if a is None or b is None or infinite is not None or operator == "/":
        return Binary(operator, left, right)
    return Number({"+": a + b, "-": a - b, "*": a * b}[operator])


def _folded_call(called: str, arguments: tuple[Expression, ...]) -> Expression:
    least = {"max": -math.inf, "min": math.inf}.get(called)
    if least is not None:
        kept = tuple(a for a in arguments if a != Number(least)) or arguments[:1]
        return kept[0] if len(kept) == 1 else Call(called, kept)
    match arguments:
        case (Number(value=value),) if called in ("exp", "exp2"):
            return Number(0) if value == -math.inf else Call(called, arguments)
        case (Number(value=value), chosen, other) if called == "where":
            return chosen if value else other
        case (Number(value=a), Number(value=b)) if called in SIGNS:
            return Number(int({"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[called]))
    return Call(called, arguments)


def with_last_swapped(value: Value) -> Value:
    """Return a value with its last two axes exchanged."""
    order = list(range(len(value.shape)))
    return permuted(value, [*order[:-2], order[-1], order[-2]])


SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def position(index: Expression) -> Expression:
    """Return an index as a number: in values ``/`` has fractions, and there is no ``%``."""

    def change(node: Expression) -> Expression | None:
        match node:
            case Binary(operator="/", left=left, right=right):
                return Call("floor", (Binary("/", position(left), right),))
            case Binary(operator="%", left=left, right=right):
                whole = Call("floor", (Binary("/", position(left), right),))
                return Binary("-", position(left), Binary("*", right, whole))
            case _:
                return None

    return rebuild(index, change)


def index_of(number: Expression, *, gathers: bool = False) -> Expression | None:
    """Return a number made of positions and whole numbers as an index, if it is one.

    With ``gathers`` tensors may stand in it, which then hold whole numbers.
    """
    match number:
        case Coordinate():
            return number
        case Access():
            return number if gathers else None
        case Number(value=value):
            return number if isinstance(value, int) else None
        case Negate(operand=operand):
            inside = index_of(operand, gathers=gathers)
            return None if inside is None else Binary("-", Number(0), inside)
        case Call(function="floor", arguments=(Binary(operator="/", left=left, right=right),)):
            sign = "/"
        case Binary(operator="+" | "-" | "*" as sign, left=left, right=right):
            pass
        case _:
            return None
    first, second = (index_of(side, gathers=gathers) for side in (left, right))
    return None if first is None or second is None else Binary(sign, first, second)


def is_whole(node: Expression) -> bool:
    """Tell whether an expression is made of positions and whole numbers."""
    return index_of(node) is not None


def condition_of(node: Expression) -> Condition | None:
    """Return an expression of positions, 1 or 0, as a filter; None where it is no conjunction."""
    match node:
        case Number(value=1):
            return ()
        case Call(function=called, arguments=(left, right)) if called in SIGNS:
            first, second = index_of(left), index_of(right)
            if first is None or second is None:
                return None
            return (Comparison(first, SIGNS[called], second),)
        case Binary(operator="*", left=left, right=right):
            before, after = condition_of(left), condition_of(right)
            return None if before is None or after is None else before + after
        case _:
            return None


def behind(expression: Expression, condition: Condition) -> Expression | None:
    """Return an expression behind a filter on the first access that has an index."""
    if not condition:
        return expression
    if isinstance(expression, Access) and expression.indices:
        first, *rest = expression.indices
        kept = Index(first.expression, first.condition + condition)
        return replace(expression, indices=(kept, *rest))
    return None
