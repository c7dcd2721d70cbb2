"""Indices and filters as arithmetic: affine forms, their extremes, their values on a grid."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CascadeError
from .expression import Binary, Comparison, Coordinate, Expression, Negate, Number, RankSize


@dataclass(frozen=True, slots=True)
class Linear:
    """``constant + sum(coefficient * variable)``; coefficients are whole or symbolic numbers."""

    coefficients: Mapping[str, Any]
    constant: Any = 0

    def plus(self, other: Linear, factor: Any = 1) -> Linear:
        """Return ``self + factor * other``."""
        coefficients = dict(self.coefficients)
        for variable, coefficient in other.coefficients.items():
            total = coefficients.pop(variable, 0) + factor * coefficient
            if total != 0:
                coefficients[variable] = total
        return Linear(coefficients, self.constant + factor * other.constant)

    def times(self, factor: Any) -> Linear:
        """Return ``factor * self``."""
        return Linear({}).plus(self, factor)


def linear(expression: Expression, sizes: Mapping[str, Any]) -> Linear | None:
    """Return the form of an index; None where it has none (``h/G``, ``m%W``, gathers).

    Args:
        expression: an index, or a side of a filter.
        sizes: size of each rank, whole or symbolic; a rank without one makes the form None.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "split M -> M1, M0\\ninput A[M]\\nB[m1,m0] = A[m1*M0+m0]"
    >>> index = parse(text).einsums[0].operands[0].indices[0].expression
    >>> linear(index, {"M0": 4})
    Linear(coefficients={'m1': 4, 'm0': 1}, constant=0)
    """
    match expression:
        case Number(value=int(value)):
            return Linear({}, value)
        case RankSize(rank=rank):
            return Linear({}, sizes[rank]) if rank in sizes else None
        case Coordinate(variable=variable):
            return Linear({variable: 1})
        case Negate(operand=operand):
            inner = linear(operand, sizes)
            return inner.times(-1) if inner else None
        case Binary(operator=sign, left=left, right=right):
            a, b = linear(left, sizes), linear(right, sizes)
            if a is None or b is None:
                return None
            if sign in "+-":
                return a.plus(b, 1 if sign == "+" else -1)
            if sign == "*" and not (a.coefficients and b.coefficients):
                return a.times(b.constant) if a.coefficients else b.times(a.constant)
            both = not (a.coefficients or b.coefficients)
            if both and isinstance(a.constant, int) and isinstance(b.constant, int) and b.constant:
                divided = a.constant // b.constant if sign == "/" else a.constant % b.constant
                return Linear({}, divided)
            return None
        case _:
            return None


def has_own_places(form: Linear | None, variable: str, extents: Mapping[str, Any]) -> bool:
    """Tell whether an index is a mixed radix of a variable and another: ``v*U+u``, or ``u*V+v``.

    Then no two coordinates of the variable meet at one place.

    >>> has_own_places(Linear({"m1": 4, "m0": 1}), "m1", {"m1": 3, "m0": 4})
    True
    >>> has_own_places(Linear({"m1": 2, "m0": 1}), "m1", {"m1": 3, "m0": 4})
    False
    """
    if form is None or variable not in form.coefficients or len(form.coefficients) != 2:
        return False
    step = form.coefficients[variable]
    other, inner = next(item for item in form.coefficients.items() if item[0] != variable)
    return bool(
        (step == extents[other] and inner == 1) or (step == 1 and inner == extents[variable])
    )


def offset(expression: Expression, variable: str) -> int | None:
    """Return c where the index is ``variable + c``, else None.

    >>> offset(Binary("+", Coordinate("m1"), Number(1)), "m1")
    1
    """
    form = linear(expression, {})
    return form.constant if form and dict(form.coefficients) == {variable: 1} else None


def at_most_zero(comparison: Comparison, sizes: Mapping[str, Any]) -> tuple[Linear, ...] | None:
    """Return forms that are all <= 0 just where the comparison holds.

    None where it is not linear, or is ``!=``, which no conjunction of such forms states.
    """
    left, right = linear(comparison.left, sizes), linear(comparison.right, sizes)
    if left is None or right is None:
        return None
    difference = left.plus(right, -1)
    opposite = difference.times(-1)
    one = Linear({}, 1)
    match comparison.operator:
        case "<=":
            return (difference,)
        case "<":
            return (difference.plus(one),)
        case ">=":
            return (opposite,)
        case ">":
            return (opposite.plus(one),)
        case "==":
            return (difference, opposite)
        case _:
            return None


def extremes(
    form: Linear, extents: Mapping[str, int], constraints: Iterable[Linear] = ()
) -> tuple[int, int] | None:
    """Return the least and the largest value of a form over a box that constraints cut.

    Exact over the rationals (Fourier-Motzkin elimination), rounded inwards: a safe bound over the
    whole numbers, and exact for differences of variables. None if no point is left.

    Args:
        form: whole coefficients.
        extents: extent of each variable, which runs from 0 to extent - 1.
        constraints: forms that must be <= 0.

    >>> lead = Linear({"m": 1, "p": -1})
    >>> extremes(lead, {"m": 8, "p": 8}, [lead])
    (-7, 0)
    """
    value = "="  # no variable's name
    rows = [form.plus(Linear({value: -1})), form.times(-1).plus(Linear({value: 1})), *constraints]
    for variable, extent in extents.items():
        rows += [Linear({variable: -1}), Linear({variable: 1}, 1 - extent)]
    for variable in extents:
        rows = _eliminate(rows, variable)
    bounds: dict[bool, list[Fraction]] = {True: [], False: []}
    for row in rows:
        coefficient = row.coefficients.get(value, 0)
        if coefficient:
            bounds[coefficient > 0].append(Fraction(-row.constant) / Fraction(coefficient))
        elif row.constant > 0:
            return None
    least, largest = -(-max(bounds[False]) // 1), min(bounds[True]) // 1
    return (least, largest) if least <= largest else None


def _eliminate(rows: list[Linear], variable: str) -> list[Linear]:
    kept = [row for row in rows if variable not in row.coefficients]
    upper = [row for row in rows if row.coefficients.get(variable, 0) > 0]
    lower = [row for row in rows if row.coefficients.get(variable, 0) < 0]
    for u in upper:
        for w in lower:
            scaled = u.times(-w.coefficients[variable])
            kept.append(scaled.plus(w, u.coefficients[variable]))
    unique = {(frozenset(row.coefficients.items()), row.constant): row for row in kept}
    return list(unique.values())


def interval(
    expression: Expression, extents: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[int, int]:
    """Return bounds on an index over a box, variable by variable (``/`` and ``%`` included).

    >>> interval(Binary("/", Coordinate("h"), Number(4)), {"h": 10}, {})
    (0, 2)
    """
    match expression:
        case Number(value=value):
            return int(value), int(value)
        case RankSize(rank=rank):
            return sizes[rank], sizes[rank]
        case Coordinate(variable=variable):
            return 0, extents[variable] - 1
        case Negate(operand=operand):
            low, high = interval(operand, extents, sizes)
            return -high, -low
        case Binary(operator=sign, left=left, right=right):
            (a, b), (c, d) = interval(left, extents, sizes), interval(right, extents, sizes)
            if sign == "+":
                return a + c, b + d
            if sign == "-":
                return a - d, b - c
            if sign == "*":
                products = (a * c, a * d, b * c, b * d)
                return min(products), max(products)
            if c <= 0:
                message = f"an index divides by {c}: a divisor must be at least 1"
                raise CascadeError(message, right.span)
            if sign == "/":
                quotients = (a // c, a // d, b // c, b // d)
                return min(quotients), max(quotients)
            return (a % c, b % c) if c == d and a // c == b // c else (0, d - 1)
        case _:
            raise TypeError(f"no index: {expression!r}")


def coordinates(extents: Mapping[str, int]) -> dict[str, npt.NDArray[np.int64]]:
    """Return an open grid: the coordinates of each variable along an axis of its own."""
    places = np.ix_(*(np.arange(extent, dtype=np.int64) for extent in extents.values()))
    return dict(zip(extents, places, strict=True))


def evaluate(expression: Expression, grid: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    """Return an index at the coordinates of a grid; ``/`` and ``%`` round towards -infinity."""
    match expression:
        case Number(value=value):
            return value
        case RankSize(rank=rank):
            return sizes[rank]
        case Coordinate(variable=variable):
            return grid[variable]
        case Negate(operand=operand):
            return -evaluate(operand, grid, sizes)
        case Binary(operator=sign, left=left, right=right):
            return _OPERATORS[sign](evaluate(left, grid, sizes), evaluate(right, grid, sizes))
        case _:
            raise TypeError(f"no index: {expression!r}")


def holds(
    condition: Iterable[Comparison], grid: Mapping[str, Any], sizes: Mapping[str, Any]
) -> npt.NDArray[np.bool_]:
    """Return where on a grid all comparisons hold, as an array over the whole grid."""
    kept = np.ones(np.broadcast_shapes(*(np.shape(axis) for axis in grid.values())), bool)
    for c in condition:
        sides = evaluate(c.left, grid, sizes), evaluate(c.right, grid, sizes)
        kept = kept & _OPERATORS[c.operator](*sides)
    return kept


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
