"""The functions of the language, a row each with all that analyses know of it.

A new function of the language is a new row; one of a user's own is registered with the same
(`functions.register_function`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

from . import derivative
from .derivative import ONE, call, minus, over, steps, times, unary
from .expression import Negate, Number
from .function_row import Function, Interval, Loader, magnitude, of_all, of_any, positive

# NumPy meanings. Limits at -inf are those of the function, so that a masked value stays finite.


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(np.multiply(x, 0.5)))


def _gated(x: Any, gate: Any) -> Any:
    """Return x * gate with the limit 0 at x = -inf, where the gate has closed."""
    closed = np.isneginf(x)
    return np.where(closed, 0, np.where(closed, 0, x) * gate)


_erf = np.vectorize(math.erf, otypes=[float])


def _silu(x: Any) -> Any:
    return _gated(x, _sigmoid(x))


def _gelu(x: Any) -> Any:
    return _gated(x, 0.5 * (1 + _erf(np.divide(x, math.sqrt(2)))))


def _elu1(x: Any) -> Any:
    return np.where(np.greater(x, 0), np.add(x, 1), np.exp(np.minimum(x, 0)))


def compare(ufunc: np.ufunc) -> Callable[[Any, Any], Any]:
    """Return a comparison that gives 1 and 0 in the kind of its arguments."""
    return lambda a, b: ufunc(a, b).astype(np.result_type(a, b, np.int8))


def _variadic(binary: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *values: functools.reduce(binary, values)


# PyTorch meanings; a plain number beside a tensor becomes a tensor of its kind.


def _tensors(torch: ModuleType, values: Iterable[Any]) -> list[Any]:
    values = list(values)
    like = next((v for v in values if torch.is_tensor(v)), torch.zeros(()))
    return [v if torch.is_tensor(v) else torch.as_tensor(v).to(like) for v in values]


def _on_tensors(make: Callable[[ModuleType], Callable[..., Any]]) -> Loader:
    def load(torch: ModuleType) -> Callable[..., Any]:
        function = make(torch)
        return lambda *values: function(*_tensors(torch, values))

    return load


def _torch_gated(torch: ModuleType, x: Any, gate: Any) -> Any:
    closed = torch.isneginf(x)
    return torch.where(closed, torch.zeros_like(x), x.masked_fill(closed, 0) * gate)


def _torch_compare(name: str) -> Callable[[ModuleType], Callable[..., Any]]:
    return lambda torch: lambda a, b: getattr(torch, name)(a, b).to(torch.result_type(a, b))


# Intervals: each takes the interval of every argument.


def _within(low: float, high: float) -> Callable[..., Interval]:
    return lambda *arguments: (low, high)


def _ends(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """Return the interval of a function that never falls."""
    return lambda argument: (function(argument[0]), function(argument[1]))


def _abs_interval(argument: Interval) -> Interval:
    ends = sorted(map(abs, argument))
    return (0.0 if argument[0] <= 0 <= argument[1] else ends[0]), ends[1]


def _sq_interval(argument: Interval) -> Interval:
    low, high = _abs_interval(argument)
    return low * low, high * high


def _extreme(pick: Callable[..., float]) -> Callable[..., Interval]:
    return lambda *arguments: (pick(a[0] for a in arguments), pick(a[1] for a in arguments))


def _clamp_interval(value: Interval, low: Interval, high: Interval) -> Interval:
    return min(max(value[0], low[0]), high[0]), min(max(value[1], low[1]), high[1])


def _where_interval(condition: Interval, *branches: Interval) -> Interval:
    return min(b[0] for b in branches), max(b[1] for b in branches)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _exp2(x: float) -> float:
    return math.exp2(x) if x < 1000 else math.inf


def _softplus(x: float) -> float:
    return x if x > 700 else math.log1p(_exp(x))


def _comparison(name: str, ufunc: np.ufunc) -> Function:
    return Function(
        name,
        compare(ufunc),
        2,
        "compare",
        torch_loader=_on_tensors(_torch_compare(name)),
        derivative=steps,
        interval=_within(0.0, 1.0),
        keeps_whole=True,
    )


_on = _on_tensors
_HALF = Fraction(1, 2)

FUNCTIONS: tuple[Function, ...] = (
    Function(
        "exp",
        np.exp,
        torch_loader=_on(lambda t: t.exp),
        sympy=lambda sp: sp.exp,
        derivative=unary(lambda x, y: y),
        sign=positive,
        base=math.e,
        increasing=True,
        interval=_ends(_exp),
        aten=("exp",),
    ),
    Function(
        "exp2",
        np.exp2,
        operation="exp",
        torch_loader=_on(lambda t: t.exp2),
        sympy=lambda sp: lambda x: sp.Pow(2, x),
        derivative=unary(lambda x, y: times(Number(math.log(2)), y)),
        sign=positive,
        base=2.0,
        increasing=True,
        interval=_ends(_exp2),
        aten=("exp2",),
    ),
    Function(
        "log",
        np.log,
        torch_loader=_on(lambda t: t.log),
        sympy=lambda sp: sp.log,
        derivative=unary(lambda x, y: over(ONE, x)),
        power=0,
        increasing=True,
        aten=("log",),
    ),
    Function(
        "log2",
        np.log2,
        operation="log",
        torch_loader=_on(lambda t: t.log2),
        sympy=lambda sp: lambda x: sp.log(x) / sp.log(2),
        derivative=unary(lambda x, y: over(Number(1 / math.log(2)), x)),
        power=0,
        increasing=True,
        aten=("log2",),
    ),
    Function(
        "sqrt",
        np.sqrt,
        torch_loader=_on(lambda t: t.sqrt),
        sympy=lambda sp: sp.sqrt,
        derivative=unary(lambda x, y: over(Number(0.5), y)),
        sign=of_all,
        power=_HALF,
        increasing=True,
        interval=_ends(lambda x: math.sqrt(max(x, 0.0))),
        aten=("sqrt",),
    ),
    Function(
        "rsqrt",
        lambda x: 1 / np.sqrt(x),
        torch_loader=_on(lambda t: t.rsqrt),
        sympy=lambda sp: lambda x: sp.Pow(x, -sp.Rational(1, 2)),
        derivative=unary(lambda x, y: times(Number(-0.5), over(y, x))),
        sign=of_all,
        power=-_HALF,
        aten=("rsqrt",),
    ),
    Function(
        "sq",
        np.square,
        operation="multiply",
        torch_loader=_on(lambda t: t.square),
        sympy=lambda sp: lambda x: x**2,
        derivative=unary(lambda x, y: times(Number(2), x)),
        sign=magnitude,
        power=2,
        interval=_sq_interval,
        keeps_whole=True,
        aten=("square",),
    ),
    Function(
        "abs",
        np.abs,
        torch_loader=_on(lambda t: t.abs),
        sympy=lambda sp: sp.Abs,
        derivative=unary(lambda x, y: call("sign", x)),
        sign=magnitude,
        power=1,
        interval=_abs_interval,
        keeps_whole=True,
        aten=("abs",),
    ),
    Function(
        "sigmoid",
        _sigmoid,
        torch_loader=_on(lambda t: t.sigmoid),
        derivative=unary(lambda x, y: times(y, minus(ONE, y))),
        sign=positive,
        increasing=True,
        interval=_within(0.0, 1.0),
        aten=("sigmoid",),
    ),
    Function(
        "tanh",
        np.tanh,
        torch_loader=_on(lambda t: t.tanh),
        derivative=unary(lambda x, y: minus(ONE, call("sq", y))),
        increasing=True,
        interval=_within(-1.0, 1.0),
        aten=("tanh",),
    ),
    Function(
        "relu",
        lambda x: np.maximum(x, 0),
        operation="max",
        torch_loader=_on(lambda t: t.relu),
        derivative=unary(lambda x, y: call("gt", x, Number(0))),
        sign=of_all,
        power=1,
        interval=_ends(lambda x: max(x, 0.0)),
        aten=("relu",),
    ),
    Function(
        "silu",
        _silu,
        torch_loader=_on(lambda t: lambda x: _torch_gated(t, x, t.sigmoid(x))),
        derivative=unary(derivative.silu),
        aten=("silu",),
    ),
    Function(
        "gelu",
        _gelu,
        torch_loader=_on(
            lambda t: lambda x: _torch_gated(t, x, 0.5 * (1 + t.erf(x / math.sqrt(2))))
        ),
        derivative=unary(derivative.gelu),
        aten=("gelu",),
    ),
    Function(
        "elu1",
        _elu1,
        torch_loader=_on(lambda t: lambda x: t.where(x > 0, x + 1, t.exp(x.clamp(max=0)))),
        derivative=unary(lambda x, y: call("min", y, ONE)),
        interval=_ends(lambda x: x + 1 if x > 0 else _exp(x)),
    ),
    Function(
        "softplus",
        lambda x: np.logaddexp(x, 0),
        torch_loader=_on(lambda t: lambda x: t.logaddexp(x, t.zeros_like(x))),
        derivative=unary(lambda x, y: call("sigmoid", x)),
        sign=positive,
        increasing=True,
        interval=_ends(_softplus),
        aten=("softplus",),
    ),
    Function(
        "sin",
        np.sin,
        torch_loader=_on(lambda t: t.sin),
        derivative=unary(lambda x, y: call("cos", x)),
        interval=_within(-1.0, 1.0),
        aten=("sin",),
    ),
    Function(
        "cos",
        np.cos,
        torch_loader=_on(lambda t: t.cos),
        derivative=unary(lambda x, y: Negate(call("sin", x))),
        interval=_within(-1.0, 1.0),
        aten=("cos",),
    ),
    Function(
        "sign",
        np.sign,
        operation="compare",
        torch_loader=_on(lambda t: lambda x: t.where(t.isnan(x), x, t.sign(x))),
        derivative=steps,
        interval=_within(-1.0, 1.0),
        keeps_whole=True,
        aten=("sign",),
    ),
    Function(
        "clamp",
        np.clip,
        arity=3,
        torch_loader=_on(lambda t: t.clamp),
        derivative=derivative.clamp,
        interval=_clamp_interval,
        keeps_whole=True,
    ),
    Function(
        "floor",
        np.floor,
        torch_loader=_on(lambda t: t.floor),
        derivative=steps,
        aten=("floor",),
    ),
    Function(
        "max",
        _variadic(np.maximum),
        arity=None,
        operation="max",
        torch_loader=_on(lambda t: _variadic(t.maximum)),
        derivative=derivative.shares("ge"),
        sign=of_any,
        power=1,
        interval=_extreme(max),
        keeps_whole=True,
    ),
    Function(
        "min",
        _variadic(np.minimum),
        arity=None,
        operation="max",
        torch_loader=_on(lambda t: _variadic(t.minimum)),
        derivative=derivative.shares("le"),
        sign=of_all,
        power=1,
        interval=_extreme(min),
        keeps_whole=True,
    ),
    _comparison("ge", np.greater_equal),
    _comparison("gt", np.greater),
    _comparison("le", np.less_equal),
    _comparison("lt", np.less),
    Function(
        "where",
        lambda c, a, b: np.where(np.not_equal(c, 0), a, b),
        arity=3,
        operation="select",
        torch_loader=_on(lambda t: lambda c, a, b: t.where(c != 0, a, b)),
        derivative=derivative.where,
        interval=_where_interval,
        keeps_whole=True,
    ),
)
"""All functions of the language."""
