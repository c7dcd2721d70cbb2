"""Intervals that values must lie in: what a clamp or a tanh lets an analysis conclude."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .cascade import Cascade
from .expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Negate,
    Number,
    RankSize,
    walk,
)
from .function_row import ANYTHING as ANYTHING
from .function_row import Interval as Interval
from .functions import function


def intervals(cascade: Cascade) -> dict[str, Interval]:
    """Return the interval that every value of each tensor lies in, as far as the text proves.

    Inputs, recurrences and unknown functions may be anything; a sum keeps only its sign.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput A[M]\\noutput Y\\nB[m] = 2 * tanh(A[m])\\nY[] = B[m] :: max(m)"
    >>> intervals(parse(text))["Y"]
    (-2.0, 2.0)
    """
    found: dict[str, Interval] = dict.fromkeys(cascade.inputs, ANYTHING)
    for einsum in cascade.einsums:
        first = einsum.name not in found
        value = interval_of(einsum.expression, found)
        for reduction in einsum.reductions:
            value = _folded(reduction.operator, value)
        for output in einsum.outputs:
            found[output.tensor] = value if first and output is einsum.output else ANYTHING
    return found


def guarding_maxima(cascade: Cascade) -> frozenset[str]:
    """Return the maxima over bounded values that only keep an exponential in range.

    Such a maximum is subtracted inside ``exp`` wherever it is read (or folded into another
    maximum). Softmax does not change if it is left out, and with bounded scores nothing
    overflows: the cascade as written still waits for it, a derived one need not.
    """
    values = intervals(cascade)
    found: set[str] = set()
    for einsum in reversed(cascade.einsums):
        name = einsum.name
        if name in cascade.outputs or not all(map(math.isfinite, values[name])):
            continue
        if not any(r.operator == "max" for r in einsum.reductions):
            continue
        readers = cascade.consumers(name)
        if readers and all(r.name in found or _guards(r.expression, name) for r in readers):
            found.add(name)
    return frozenset(found)


def _guards(expression: Expression, tensor: str) -> bool:
    """Tell whether a tensor is read only as the subtrahend inside an exponential."""
    reads = sum(isinstance(n, Access) and n.tensor == tensor for n in walk(expression))
    inside = sum(
        isinstance(node, Call)
        and function(node.function).base is not None
        and isinstance(argument := node.arguments[0], Binary)
        and argument.operator == "-"
        and isinstance(argument.right, Access)
        and argument.right.tensor == tensor
        for node in walk(expression)
    )
    return reads == inside > 0


def interval_of(node: Expression, known: Mapping[str, Interval]) -> Interval:
    """Return the interval that an expression lies in, given those of tensors."""
    match node:
        case Number(value=value):
            return float(value), float(value)
        case RankSize():
            return 1.0, math.inf
        case Coordinate():
            return 0.0, math.inf
        case Access(tensor=tensor):
            return known.get(tensor, ANYTHING)
        case Negate(operand=operand):
            low, high = interval_of(operand, known)
            return -high, -low
        case Binary(operator=operator, left=left, right=right):
            return _binary(operator, interval_of(left, known), interval_of(right, known))
        case Call(function=name, arguments=arguments):
            return interval_of_call(name, [interval_of(a, known) for a in arguments])


def _binary(operator: str, a: Interval, b: Interval) -> Interval:
    if operator == "+":
        return _hull([a[0] + b[0], a[1] + b[1]])
    if operator == "-":
        return _hull([a[0] - b[1], a[1] - b[0]])
    if operator == "*":
        return _hull([x * y if x and y else 0.0 for x in a for y in b])
    if operator == "/" and (b[0] > 0 or b[1] < 0):
        return _hull([x / y for x in a for y in b])
    return ANYTHING


def interval_of_call(name: str, arguments: list[Interval]) -> Interval:
    """Return the interval of a function's values, given those of its arguments.

    >>> interval_of_call("clamp", [ANYTHING, (-1.0, -1.0), (1.0, 1.0)])
    (-1.0, 1.0)
    """
    rule = function(name).interval
    return _hull(list(rule(*arguments))) if rule else ANYTHING


def _folded(operator: str, value: Interval) -> Interval:
    if operator in ("max", "min"):
        return value
    if operator == "+":
        return (0.0 if value[0] >= 0 else -math.inf), (0.0 if value[1] <= 0 else math.inf)
    return ANYTHING


def _hull(values: list[float]) -> Interval:
    if any(map(math.isnan, values)):
        return ANYTHING
    return min(values), max(values)
