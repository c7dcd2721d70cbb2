"""Partial derivatives of the language's functions, as expressions: `partials`.

Comparisons, ``sign`` and ``floor`` are constant between their steps, so they pass nothing on. At a
kink the choice is that of PyTorch: 0 for ``abs`` and ``relu``, the inside for ``clamp``, and equal
shares for a maximum or minimum that several arguments attain.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import EinfuseError
from .expression import Binary, Call, Expression, Negate, Number

Partials = tuple[Expression | None, ...]
Rule = Callable[[tuple[Expression, ...], Expression], Partials]

ONE = Number(1)


def partials(call: Call, value: Expression) -> Partials:
    """Return the derivative of a call by each argument; None where it is 0 everywhere.

    Args:
        call: of a function of the language, or one with `register_derivative`.
        value: an expression that equals the call, to use in its place.

    Raises:
        EinfuseError: no derivative of the function is known.

    >>> from einfuse.einsum.language.expression import Access
    >>> from einfuse.einsum.language.printer import render_expression
    >>> call = Call("tanh", (Access("X"),))
    >>> print(*map(render_expression, partials(call, Access("Y"))))
    1 - sq(Y[])
    """
    if call.function in _RULES:
        return _RULES[call.function](call.arguments, value)
    raise EinfuseError(
        f"not differentiable: no derivative of {call.function} is known; "
        "register one with register_derivative"
    )


def register_derivative(function: str, rule: Rule) -> None:
    """Give a registered function a derivative, or replace it.

    Args:
        function: its name.
        rule: takes the arguments and the value of a call, and returns the derivative by each
            argument (None for 0), all as expressions.
    """
    _RULES[function] = rule


def times(left: Expression, right: Expression) -> Expression:
    """Return a product, without a factor that is 1."""
    if left == ONE or right == ONE:
        return right if left == ONE else left
    return Binary("*", left, right)


def _call(function: str, *arguments: Expression) -> Call:
    return Call(function, arguments)


def _minus(left: Expression, right: Expression) -> Expression:
    return Binary("-", left, right)


def _over(left: Expression, right: Expression) -> Expression:
    return Binary("/", left, right)


def _unary(rule: Callable[[Expression, Expression], Expression]) -> Rule:
    return lambda arguments, value: (rule(arguments[0], value),)


def _shares(attains: str) -> Rule:
    """Return the rule of a maximum (``ge``) or minimum (``le``): 1 over how many attain it."""

    def rule(arguments: tuple[Expression, ...], value: Expression) -> Partials:
        hits = [_call(attains, argument, value) for argument in arguments]
        total: Expression = hits[0]
        for hit in hits[1:]:
            total = Binary("+", total, hit)
        return tuple(_over(hit, total) for hit in hits)

    return rule


def _clamp(arguments: tuple[Expression, ...], value: Expression) -> Partials:
    x, low, high = arguments
    inside = times(_call("ge", x, low), _call("le", x, high))
    return inside, _call("lt", x, low), _call("gt", x, high)


def _where(arguments: tuple[Expression, ...], value: Expression) -> Partials:
    condition = arguments[0]
    return (
        None,
        _call("where", condition, ONE, Number(0)),
        _call("where", condition, Number(0), ONE),
    )


def _silu(x: Expression, value: Expression) -> Expression:
    gate = _call("sigmoid", x)
    return Binary("+", gate, times(value, _minus(ONE, gate)))


def _gelu(x: Expression, value: Expression) -> Expression:
    """Return ``cdf + x * density`` of a normal distribution; the first is ``gelu(x) / x``."""
    nonzero = _call("gt", _call("abs", x), Number(0))
    cdf = _call("where", nonzero, _over(value, _call("where", nonzero, x, ONE)), Number(0.5))
    density = times(
        Number(1 / math.sqrt(2 * math.pi)), _call("exp", times(Number(-0.5), _call("sq", x)))
    )
    return Binary("+", cdf, times(x, density))


_STEPS = ("ge", "gt", "le", "lt", "sign", "floor")
_RULES: dict[str, Rule] = {
    **{name: lambda arguments, value: (None,) * len(arguments) for name in _STEPS},
    "exp": _unary(lambda x, y: y),
    "exp2": _unary(lambda x, y: times(Number(math.log(2)), y)),
    "log": _unary(lambda x, y: _over(ONE, x)),
    "log2": _unary(lambda x, y: _over(Number(1 / math.log(2)), x)),
    "sqrt": _unary(lambda x, y: _over(Number(0.5), y)),
    "rsqrt": _unary(lambda x, y: times(Number(-0.5), _over(y, x))),
    "sq": _unary(lambda x, y: times(Number(2), x)),
    "abs": _unary(lambda x, y: _call("sign", x)),
    "sigmoid": _unary(lambda x, y: times(y, _minus(ONE, y))),
    "tanh": _unary(lambda x, y: _minus(ONE, _call("sq", y))),
    "relu": _unary(lambda x, y: _call("gt", x, Number(0))),
    "silu": _unary(_silu),
    "gelu": _unary(_gelu),
    "elu1": _unary(lambda x, y: _call("min", y, ONE)),
    "softplus": _unary(lambda x, y: _call("sigmoid", x)),
    "sin": _unary(lambda x, y: _call("cos", x)),
    "cos": _unary(lambda x, y: Negate(_call("sin", x))),
    "clamp": _clamp,
    "max": _shares("ge"),
    "min": _shares("le"),
    "where": _where,
}
