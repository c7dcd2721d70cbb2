"""Intervals that values must lie in: what a clamp or a tanh lets an analysis conclude."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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

Interval = tuple[float, float]

ANYTHING: Interval = (-math.inf, math.inf)


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
        and node.function in ("exp", "exp2")
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
        case Call(function=function, arguments=arguments):
            return interval_of_call(
                function, [interval_of(argument, known) for argument in arguments]
            )


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


def interval_of_call(function: str, arguments: list[Interval]) -> Interval:
    """Return the interval of a function's values, given those of its arguments.

    >>> interval_of_call("clamp", [ANYTHING, (-1.0, -1.0), (1.0, 1.0)])
    (-1.0, 1.0)
    """
    if function == "clamp" and len(arguments) == 3:
        value, floor, ceiling = arguments
        return _clamped(value[0], floor[0], ceiling[0]), _clamped(value[1], floor[1], ceiling[1])
    if function in ("max", "min"):
        pick: Callable[..., float] = max if function == "max" else min
        return pick(a[0] for a in arguments), pick(a[1] for a in arguments)
    if function == "where" and len(arguments) == 3:
        return _hull([*arguments[1], *arguments[2]])
    low, high = arguments[0]
    if function in _RANGES:
        return _RANGES[function]
    if function == "abs":
        return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
    if function == "sq":
        least, most = interval_of_call("abs", [(low, high)])
        return least * least, most * most
    if function in _INCREASING:
        return _INCREASING[function](low), _INCREASING[function](high)
    return ANYTHING


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


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _exp2(x: float) -> float:
    return math.exp2(x) if x < 1000 else math.inf


_RANGES: Mapping[str, Interval] = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "sign": (-1.0, 1.0),
    "ge": (0.0, 1.0),
    "gt": (0.0, 1.0),
    "le": (0.0, 1.0),
    "lt": (0.0, 1.0),
}
_INCREASING: Mapping[str, Callable[[float], float]] = {
    "exp": _exp,
    "exp2": _exp2,
    "relu": lambda x: max(x, 0.0),
    "softplus": lambda x: x if x > 700 else math.log1p(_exp(x)),
    "elu1": lambda x: x + 1 if x > 0 else _exp(x),
    "sqrt": lambda x: math.sqrt(max(x, 0.0)),
}
