"""Derivatives of functions as expressions: the rules that the function table names.

Comparisons, ``sign`` and ``floor`` are constant between their steps, so they pass nothing on. At a
kink the choice is that of PyTorch: 0 for ``abs`` and ``relu``, the inside for ``clamp``, and equal
shares for a maximum or minimum that several arguments attain.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .expression import Binary, Call, Expression, Number
from .function_row import Derivative, Partials

ONE = Number(1)


def times(left: Expression, right: Expression) -> Expression:
    """Return a product, without a factor that is 1."""
    if left == ONE or right == ONE:
        return right if left == ONE else left
    return Binary("*", left, right)


def call(function: str, *arguments: Expression) -> Call:
    """Return a call."""
    return Call(function, arguments)


def minus(left: Expression, right: Expression) -> Expression:
    """Return a difference."""
    return Binary("-", left, right)


def over(left: Expression, right: Expression) -> Expression:
    """Return a quotient."""
    return Binary("/", left, right)


def unary(rule: Callable[[Expression, Expression], Expression]) -> Derivative:
    """Return the rule of a function of one argument, from its argument and its value."""
    return lambda arguments, value: (rule(arguments[0], value),)


def steps(arguments: tuple[Expression, ...], value: Expression) -> Partials:
    """Return the rule of what is constant between its steps."""
    return (None,) * len(arguments)


def shares(attains: str) -> Derivative:
    """Return the rule of a maximum (``ge``) or minimum (``le``): 1 over how many attain it."""

    def rule(arguments: tuple[Expression, ...], value: Expression) -> Partials:
        hits = [call(attains, argument, value) for argument in arguments]
        total: Expression = hits[0]
        for hit in hits[1:]:
            total = Binary("+", total, hit)
        return tuple(over(hit, total) for hit in hits)

    return rule


def clamp(arguments: tuple[Expression, ...], value: Expression) -> Partials:
    """Return the rule of a clamp."""
    x, low, high = arguments
    inside = times(call("ge", x, low), call("le", x, high))
    return inside, call("lt", x, low), call("gt", x, high)


def where(arguments: tuple[Expression, ...], value: Expression) -> Partials:
    """Return the rule of a choice."""
    condition = arguments[0]
    return (
        None,
        call("where", condition, ONE, Number(0)),
        call("where", condition, Number(0), ONE),
    )


def silu(x: Expression, value: Expression) -> Expression:
    """Return ``gate + value * (1 - gate)``."""
    gate = call("sigmoid", x)
    return Binary("+", gate, times(value, minus(ONE, gate)))


def gelu(x: Expression, value: Expression) -> Expression:
    """Return ``cdf + x * density`` of a normal distribution; the first is ``gelu(x) / x``."""
    nonzero = call("gt", call("abs", x), Number(0))
    cdf = call("where", nonzero, over(value, call("where", nonzero, x, ONE)), Number(0.5))
    density = times(
        Number(1 / math.sqrt(2 * math.pi)), call("exp", times(Number(-0.5), call("sq", x)))
    )
    return Binary("+", cdf, times(x, density))
